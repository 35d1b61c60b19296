"""Studies: schedules that are learned for any training function, by ways that need no derivative of it."""
