"""Schedules as JSON files: the format, reading and writing, and the player for any training loop."""
