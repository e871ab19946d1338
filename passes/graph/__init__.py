"""What passes share: how a graph is followed, matched and refilled."""
