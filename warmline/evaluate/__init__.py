"""Scores with floors and intervals, and the report that shows them."""
