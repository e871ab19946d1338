"""Training that prunes: blocks, heads and neurons go while the model learns its task."""
