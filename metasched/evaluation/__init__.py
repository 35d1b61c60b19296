"""Schedules compared on the same seeds, with the statistics of the difference."""
