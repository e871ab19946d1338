"""The last steps before a graph is saved."""
