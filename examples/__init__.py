"""Programs with a companion inside."""
