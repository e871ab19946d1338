"""Measurement: what ``compactor bench`` does between its options and its report."""
