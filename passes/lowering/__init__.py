"""From the compact canonical graph to operators that are fast on the target."""
