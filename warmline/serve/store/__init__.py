"""What people chose to keep: sealed conversations and their risk, in SQLite or PostgreSQL."""
