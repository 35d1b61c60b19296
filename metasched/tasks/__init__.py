"""What inner runs train: tasks by name, one row each, and tasks of the user's own."""

from __future__ import annotations

from metasched.tasks.table import TASKS, TaskSpec, register_task

__all__ = ["TASKS", "TaskSpec", "register_task"]
