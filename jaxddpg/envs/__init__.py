"""Adapters of environment libraries, and environments of our own, one source per file."""
