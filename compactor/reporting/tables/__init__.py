"""The tables of a report, as text, one subject a file: the page and the Markdown show the same cells."""
