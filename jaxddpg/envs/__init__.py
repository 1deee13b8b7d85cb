"""Doors to environment libraries, one per file."""
