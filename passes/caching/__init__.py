"""From a decoder without a cache to the graphs of its steps."""
