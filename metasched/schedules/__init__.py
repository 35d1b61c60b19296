"""Schedules: hand-coded ones by name, the papers' own among them, and the network that learns."""
