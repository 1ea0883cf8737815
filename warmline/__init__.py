"""warmline turns an open-weights chat model into an empathetic, safety-aware companion, and proves what it did."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`warmline.open_companion`, looked up when it is first asked for: `import warmline` alone loads nothing."""
    if name == "open_companion":
        return __import__("warmline.embed", fromlist=[name]).open_companion
    raise AttributeError(f"module 'warmline' has no attribute {name!r}")
