"""warmline turns an open-weights chat model into an empathetic, safety-aware companion, and proves what it did."""

__version__ = "0.1.0"
