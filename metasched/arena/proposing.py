"""The arm ``surface``: what a response surface over the runs of other tasks proposes, at no run on this one."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from metasched.arena.arms import Made, Planned, Setting
from metasched.arena.config import ArmEntry
from metasched.core.errors import MetaschedError
from metasched.evaluation.contenders import Contender
from metasched.runs.cells import digest
from metasched.runs.store import read_store
from metasched.search.surface import proposal
from metasched.training.problem import build_problem


def surface(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """The stored schedule with the best prediction; runs on the task itself, at any horizon, are left out.

    Raises:
        MetaschedError: the store cannot be read.
    """
    assert entry.of is not None
    own = build_problem(setting.problem).fingerprint
    rows = [row for row in _rows(*_version(Path(entry.of))) if row["task"] != own]
    about = ["surface", digest(rows, {}), setting.steps]
    return [Planned(entry.label, setting.problem, about, partial(_proposed, setting, rows))]


def _proposed(setting: Setting, rows: list[dict[str, Any]]) -> Made:
    problem = build_problem(setting.problem)
    return Made(Contender(setting.problem, proposal(problem, setting.problem.method.name, rows).schedule))


def _version(store: Path) -> tuple[Path, int]:
    try:
        return store, store.stat().st_mtime_ns
    except OSError as error:
        raise MetaschedError(f"arena.arms: of: {store}", error.strerror or str(error), "give a store of runs") from None


@lru_cache(maxsize=1)
def _rows(store: Path, version: int) -> list[dict[str, Any]]:
    return list(read_store(store))
