"""Base model, adapter, heads, and the checkpoint that holds them together."""
