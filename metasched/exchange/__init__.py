"""Schedules as JSON files: format, reading, writing, a player for any training loop, and other software."""
