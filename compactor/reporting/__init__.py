"""The report for people: Markdown and one self-contained HTML page, both made from ``report.json``."""
