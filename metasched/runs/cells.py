"""One cell of a comparison: train under one schedule from one seed, harden, and score on one split.

A cell is a function of its arguments alone. So a run that was stopped reads those that are done back from a file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metasched.config.schema import ProblemConfig
from metasched.config.writing import section_dict
from metasched.core.errors import MetaschedError
from metasched.exchange.played import for_task
from metasched.io.json_lines import JsonLines, read_json_lines
from metasched.network.flat import Tensors
from metasched.runs.pool import Mapper
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.tasks.base import Part
from metasched.training.faults import broken
from metasched.training.features import features_of_problem
from metasched.training.loop import hardened_score
from metasched.training.problem import build_problem
from metasched.training.stacked import mapping_pays, train_each


def cell_score(config: ProblemConfig, controls: Tensors, seed: int, steps: int, part: Part) -> float:
    """Score of the hardened network after ``steps`` steps under the controls ({control: [T, L]}).

    NaN where the run diverged: a number in it was not finite. The method is played hard (no relaxed mask). A function
    of its arguments alone: runs in any process.
    """
    return cell_scores(config, controls, [seed], steps, part)[0]


def cell_scores(config: ProblemConfig, controls: Tensors, seeds: Sequence[int], steps: int, part: Part) -> list[float]:
    """``cell_score`` for each seed under {control: [T, L]}; trained at once where that pays (training/stacked.py)."""
    problem = build_problem(config, steps=steps)
    like = next(problem.network.module.parameters())
    states = train_each(problem, {name: v.to(like) for name, v in controls.items()}, seeds)
    return [
        math.nan if broken(state) else hardened_score(problem.with_seed(seed), state, part)
        for seed, state in zip(seeds, states, strict=True)
    ]


def played(config: ProblemConfig, schedule: Schedule, steps: int) -> Tensors:
    """The control values {control: [T, L]} that a schedule gives this network at a horizon, in float64."""
    layers = build_problem(config, steps=steps).network.layers
    own = bound(config, schedule, steps)
    return {name: v.detach() for name, v in own(progress_of_steps(steps), layers).items()}


def bound(config: ProblemConfig, schedule: Schedule, steps: int) -> Schedule:
    """The schedule for this task at a horizon: that of a file may depend on features of the task."""
    return for_task(schedule, lambda: features_of_problem(config, steps))


def shares(config: ProblemConfig, seeds: Sequence[int], pool: Mapper) -> list[Sequence[int]]:
    """The seeds in parts, one for each ``cell_scores``: as many at once as a process of the pool trains at once."""
    share = -(-len(seeds) // pool.workers)
    size = share if mapping_pays(build_problem(config), share) else 1
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


class CachedPool:
    """A pool with a cache in a file: cells in the file are not computed again, and computed ones are added to it.

    Args:
        pool: where cells are computed; a Mapper, as this is.
        path: the file, of one JSON object a line: ``{"cells": their key, "scores": [...]}``.
        reuse: such files of other runs; what is asked for and found there joins the file too.

    Raises:
        MetaschedError: a file does not hold scores, or cannot be written.
    """

    def __init__(self, pool: Mapper, path: Path, reuse: Sequence[Path] = ()) -> None:
        self._pool = pool
        self._others = {key: scores for other in reuse for key, scores in _read(other).items()}
        self._known = _read(path) if path.exists() else {}
        self._lines = JsonLines(path)

    @property
    def workers(self) -> int:
        """See Mapper."""
        return self._pool.workers

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[list[float]]:
        """``cell_scores(*a)`` for each ``a``, in order."""
        assert function is cell_scores, function
        asked = [(a, cells_key(*a)) for a in arguments]
        for a, key in asked:
            for old in (key, former_key(*a)):
                if old in self._others and key not in self._known:
                    self._known[key] = self._join(key, self._others[old])
                elif old in self._known and key not in self._known:
                    self._known[key] = self._known[old]
        computed = self._pool.map(function, [a for a, key in asked if key not in self._known])
        return (self._known[key] if key in self._known else self._join(key, next(computed)) for _, key in asked)

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def _join(self, key: str, scores: list[float]) -> list[float]:
        self._lines.write({"cells": key, "scores": scores})
        return scores


def cells_key(config: ProblemConfig, controls: Tensors, seeds: Sequence[int], steps: int, part: Part) -> str:
    """A hash of all that scores depend on, the task's fingerprint included; ``controls`` are {control: [T, L]}."""
    about = [build_problem(config, steps=steps).fingerprint, _settings(config), list(seeds), steps, part]
    return digest(about, controls)


def former_key(config: ProblemConfig, controls: Tensors, seeds: Sequence[int], steps: int, part: Part) -> str | None:
    """The key of files from before fingerprints, which do not say what data lay under ``task.root``.

    The controls are {control: [T, L]}.

    None for a task from outside the package, and for a name of the table that stands for something else than it did.
    """
    if config.task.outside:
        return None
    what, how = _settings(config)
    return digest([what, how, list(seeds), steps, part], controls)


def _settings(config: ProblemConfig) -> list[dict[str, Any]]:
    """The sections that a problem depends on, and where it runs, in the types of JSON."""
    sections = ("task", "optimizer", "method", "quantize")
    what = {section: section_dict(getattr(config, section)) for section in sections}
    return [what, {name: getattr(config, name) for name in ("device", "dtype", "autocast")}]


def digest(about: Any, tensors: Tensors) -> str:
    """A hash of something that JSON can hold, and of tensors [...] with their names, dtypes and shapes."""
    described = {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()}
    found = hashlib.blake2b(json.dumps([about, described], sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        found.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _read(path: Path) -> dict[str, list[float]]:
    known = {}
    for number, line in enumerate(read_json_lines(path), 1):
        key, scores = line.get("cells"), line.get("scores")
        if not (isinstance(key, str) and isinstance(scores, list) and all(_is_score(s) for s in scores)):
            raise MetaschedError(f"{path}: line {number}", "does not hold scores", "delete the line")
        known[key] = [float(score) for score in scores]
    return known


def _is_score(value: object) -> bool:
    return type(value) is float or value in ("nan", "inf", "-inf")
