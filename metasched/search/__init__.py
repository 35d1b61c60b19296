"""Black-box search over a family of hand-coded schedules."""
