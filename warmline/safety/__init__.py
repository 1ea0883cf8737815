"""Notice danger, hold it, show help first, and release only checked words. Needs no torch, no engine and no network."""
