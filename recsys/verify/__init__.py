"""What the project claims of itself, shown by doing it."""
