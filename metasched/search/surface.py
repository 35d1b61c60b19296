"""A response surface over stored runs: which stored schedule is likely to be good for a task that has no run yet.

    score of schedule z on task x  ~  ridge on [phi(x), z, z^2, z phi_f(x) for each feature f]

phi are the bounded features (core/features.py), z the values of a schedule on its grid (runs/store.py). Scores are the
means over seeds on meta-validation, standardized within each task, so that easy tasks do not outvote hard ones; the
test part is left out. The penalty is the one whose predictions correlate best with the scores of tasks that are left
out. What is proposed is one more candidate: only fresh runs say whether it is any good.
Source: a ridge on all logged runs, as in docs/many_tasks.md; here schedules of one method, with one set of controls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import numpy as np
import torch

from metasched.core.errors import MetaschedError
from metasched.core.extras import from_extra
from metasched.core.features import bounded
from metasched.runs.store import GridSchedule
from metasched.training.features import features_of_inner
from metasched.training.state import InnerProblem

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
_FEWEST = 3  # schedules of a task that can be ranked

Grid = tuple[tuple[str, tuple[tuple[float, ...], ...]], ...]


class Tried(NamedTuple):
    """A schedule that was played on a task.

    Attributes:
        task: its fingerprint, steps and features: runs of one task have one scale.
        phi: bounded features of the task.
        grid: of the schedule.
        score: mean over seeds, standardized within the task.
    """

    task: str
    phi: tuple[float, ...]
    grid: Grid
    score: float


class Surface(NamedTuple):
    """What was fitted.

    Attributes:
        model: predicts from the inputs of ``inputs``.
        grids: the schedules that it was fitted to, without repetitions.
        correlation: of predictions with scores, mean over tasks that were left out; NaN with one task.
        tasks, runs: that it was fitted to.
        penalty: of the ridge.
    """

    model: Any
    grids: tuple[Grid, ...]
    correlation: float
    tasks: int
    runs: int
    penalty: float

    def predict(self, features: Mapping[str, float], grids: Sequence[Grid]) -> list[float]:
        """Standardized scores of schedules on a task."""
        phi = tuple(bounded(features))
        return [float(y) for y in self.model.predict(np.stack([inputs(phi, grid) for grid in grids]))]

    def proposed(self, features: Mapping[str, float]) -> Grid:
        """The stored schedule with the best prediction; the first of equal ones."""
        predicted = self.predict(features, self.grids)
        return self.grids[max(range(len(predicted)), key=predicted.__getitem__)]


def tried(rows: Sequence[Mapping[str, Any]], method: str) -> list[Tried]:
    """The schedules of a method in the rows of a store, each with its mean over seeds on meta-validation.

    A run that diverged counts as the lowest score of its task. Tasks with fewer than three schedules, or on which all
    have the same score, say nothing and are left out.
    """
    found: dict[str, dict[Grid, dict[int, float]]] = {}
    phis: dict[str, tuple[float, ...]] = {}
    for row in rows:
        if row["method"] != method or row["part"] != "validation":
            continue
        grid: Grid = tuple((name, tuple(map(tuple, values))) for name, values in sorted(row["grid"].items()))
        task = "/".join([row["task"], str(row["steps"]), repr(sorted(row["features"].items()))])
        phis[task] = tuple(bounded(row["features"]))
        own = found.setdefault(task, {}).setdefault(grid, {})
        own.update(zip(row["seeds"], row["scores"], strict=True))  # a run that was done twice counts once
    every = []
    for task, of_grid in found.items():
        worst = min((s for own in of_grid.values() for s in own.values() if math.isfinite(s)), default=0.0)
        means = {g: fmean(s if math.isfinite(s) else worst for s in own.values()) for g, own in of_grid.items()}
        spread = pstdev(means.values())
        if len(means) < _FEWEST or spread == 0:
            continue
        mean = fmean(means.values())
        every += [Tried(task, phis[task], grid, (score - mean) / spread) for grid, score in means.items()]
    return every


def inputs(phi: Sequence[float], grid: Grid) -> np.ndarray:
    """What a prediction is made of."""
    z = np.array([x for _, values in grid for row in values for x in row])
    return np.concatenate([phi, z, z * z, np.outer(phi, z).ravel()])


def fit(found: Sequence[Tried]) -> Surface:
    """The surface of schedules that were tried.

    Raises:
        MetaschedError: none was tried that says anything, or their controls differ.
    """
    if not found:
        problem = "holds no task on which three schedules of this method were played on meta-validation"
        raise MetaschedError("store", problem, "run `metasched train` or `tune` with --run.store first")
    if len({tuple((name, len(values[0])) for name, values in t.grid) for t in found}) > 1:
        raise MetaschedError(
            "store", "holds schedules of this method with different controls", "use one store for each"
        )
    tasks = sorted({t.task for t in found})
    by_penalty = {penalty: _left_out(found, tasks, penalty) for penalty in PENALTIES}
    best = max(PENALTIES, key=lambda p: (-math.inf if math.isnan(by_penalty[p]) else by_penalty[p], p))
    grids = tuple(dict.fromkeys(t.grid for t in found))
    return Surface(_fitted(found, best), grids, by_penalty[best], len(tasks), len(found), best)


class Proposal(NamedTuple):
    """What a surface proposes for a task.

    Attributes:
        schedule: the stored schedule with the best prediction.
        said: what it rests on, in one line.
    """

    schedule: GridSchedule
    said: str


def proposal(problem: InnerProblem, method: str, rows: Sequence[Mapping[str, Any]]) -> Proposal:
    """The stored schedule with the best prediction for a task.

    Args:
        problem: the task, with the method that will play the schedule.
        method: its name.
        rows: of a store.

    Raises:
        MetaschedError: the rows say nothing of the method and its controls.
    """
    controls = problem.network.method.controls
    surface = fit(tried(rows, method))
    best = surface.proposed(features_of_inner(problem))
    grid = {name: torch.tensor(values, dtype=torch.float64) for name, values in best}
    if missing := {c.name for c in controls} ^ grid.keys():
        what = f"has schedules with other controls than {method} here ({', '.join(sorted(missing))})"
        raise MetaschedError("store", what, "give runs of the same method with the same parameters")
    said = (
        f"best prediction of {len(surface.grids)} stored schedules, by {surface.runs} scores of {surface.tasks} tasks; "
        f"on tasks left out, predictions correlate with scores by {surface.correlation:.2f}"
    )
    return Proposal(GridSchedule(controls, grid), said)


def _left_out(found: Sequence[Tried], tasks: Sequence[str], penalty: float) -> float:
    """Mean correlation of predictions with the scores of each task, fitted to the others."""
    if len(tasks) < 2:
        return math.nan
    each = []
    for task in tasks:
        own, others = [t for t in found if t.task == task], [t for t in found if t.task != task]
        predicted = _fitted(others, penalty).predict(np.stack([inputs(t.phi, t.grid) for t in own]))
        spread = float(np.std(predicted))
        each.append(float(np.corrcoef(predicted, [t.score for t in own])[0, 1]) if spread > 1e-12 else 0.0)
    return fmean(each)


def _fitted(found: Sequence[Tried], penalty: float) -> Any:
    with from_extra("train"):
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), Ridge(penalty))
    return model.fit(np.stack([inputs(t.phi, t.grid) for t in found]), [t.score for t in found])
