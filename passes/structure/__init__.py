"""Exact removal of all that cannot change the output."""
