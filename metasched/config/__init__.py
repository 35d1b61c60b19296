"""The schema of an experiment: load, override, describe."""
