"""Distributions of tasks: a schedule that is learned over many tasks is to hold for one that it has never seen."""
