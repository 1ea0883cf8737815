"""The rules that every candidate reply must pass, and the types of text that may be shown."""
