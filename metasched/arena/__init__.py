"""The arena: arms on many tasks, and what follows for tasks that nobody has seen."""
