"""Comparison of schedules on the same seeds, with statistics of the differences."""
