"""From fp32 to another number format."""
