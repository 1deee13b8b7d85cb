"""A run: its directory, its epochs, its checkpoints, and what is made of it afterwards."""
