"""Decisions: serving, learning, worlds and reports. The only package that knows both `streaming` and `models`."""
