"""Every variant against the same worlds, and what came of it."""
