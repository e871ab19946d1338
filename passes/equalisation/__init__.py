"""Exact changes of scale that leave int8 less to round; see ``graph/equalising.py``."""
