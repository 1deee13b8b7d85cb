"""The training of one member, and of a population of members."""
