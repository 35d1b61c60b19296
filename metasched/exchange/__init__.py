"""Schedules as JSON files: the format, reading and writing, the player for any training loop, and other software."""
