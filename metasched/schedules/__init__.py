"""Schedules: hand-coded ones by name, which include the published ones, and learnable ones."""
