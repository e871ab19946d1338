"""From what exporters write to the canonical dialect."""
