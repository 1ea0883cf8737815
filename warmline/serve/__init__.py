"""What people meet: the terminal chat."""
