"""From a checkpoint's tensors to its stock PyTorch model, and from that to the canonical graph."""
