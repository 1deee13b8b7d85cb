"""Agents, one paper per file."""
