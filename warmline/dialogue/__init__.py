"""The only door to a reply: it reads the person's turn, shows help first, and releases checked words alone."""
