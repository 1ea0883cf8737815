"""The public red-team set: cases and replies, written before any rule, and the figures on them."""
