"""``metasched sensitivity``: where in time and in which layer a change of a schedule would help, without learning.

    S_tl = mean over r of dL_r / dc_tl,    t_tl = S_tl / (sd over r / sqrt n)

from one reverse pass for each of n inner runs r, at the learnable schedule where it starts (which is the given one, to
its even share) with the noise floor. A change that lasts over a third of the run adds up: the table sums S over it,
within each run, and calls it clear where 0 lies outside the 95 % interval (Student's t; not corrected for the number of
cells). Antithetic pairs from the same seeds give the verdict that the estimator ``auto`` would begin with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from metasched.config.schema import Experiment, ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.extras import from_extra
from metasched.core.randomness import derive_seed
from metasched.estimators.es import antithetic_pairs
from metasched.estimators.reverse import differentiate
from metasched.estimators.verdict import Measured, Verdict, examine, unexamined, verdict
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.meta.start import given_start, learned_controls
from metasched.runs.pooled import PooledRuns
from metasched.runs.where import open_pool
from metasched.schedules.base import Schedule
from metasched.schedules.learnable import build_learnable, refuse_feedback
from metasched.tracking.console import Console
from metasched.tracking.opening import require_report
from metasched.tracking.plots import plot_sensitivity
from metasched.training.problem import build_problem

PARTS = ("first third", "middle third", "last third")


class Slopes(NamedTuple):
    """A mean over runs, and how many standard errors it is away from 0 (NaN for fewer than two runs)."""

    mean: torch.Tensor
    t: torch.Tensor


class Cell(NamedTuple):
    """What a change of a control in one layer over one third of the run would do.

    Attributes:
        layer, part: where.
        slope: of the outer loss, per unit of the control.
        t: the slope in standard errors.
        advice: ``more`` or ``less`` of the control would help, or ``unclear``.
    """

    layer: str
    part: str
    slope: float
    t: float
    advice: str


def sensitivity(
    experiment: Experiment, schedule: str | None, num_runs: int, folder: RunFolder, console: Console
) -> dict[str, Any]:
    """Differentiate a hand-coded schedule, plot and show where a change would help.

    Args:
        experiment: the whole configuration.
        schedule: name of a hand-coded schedule or path of a file; None for ``schedule.start``.
        num_runs: n, inner runs and antithetic pairs; at least 2.
        folder: the plot and ``sensitivity.json`` are written here.
        console: where the tables are shown.

    Returns:
        what a program would want to read: the table, the measures, the verdict and paths.

    Raises:
        MetaschedError: names or files that do not fit, fewer than two runs.
    """
    if num_runs < 2:
        raise MetaschedError("--runs", f"must be at least 2, got {num_runs}", "from one run no spread can be told")
    require_report()
    refuse_feedback(experiment.schedule)
    experiment = replace(experiment, meta=replace(experiment.meta, estimator="sweep"))
    network = build_problem(experiment.problem).network
    controls, layers = network.method.controls, network.layers
    learn = learned_controls(experiment.method.name, experiment.schedule.learn, controls)
    name, base = _given(experiment.problem, experiment.schedule.start, schedule)
    learnable = build_learnable(
        experiment.schedule, controls, base, learn, layers, derive_seed(experiment.seed, "schedule network")
    )
    seeds = [derive_seed(experiment.seed, "sensitivity", run) for run in range(num_runs)]
    with open_pool(experiment.run) as pool:
        runs = PooledRuns(experiment.problem, experiment.meta, pool)
        exact = differentiate(learnable, runs, seeds, experiment.meta.noise_floor)
        pairs = antithetic_pairs(learnable, runs, seeds, experiment.meta.sigma)
    measured, _, _, notes = examine(learnable, exact, pairs, unexamined())
    says = verdict(measured)
    finite = [f for f in exact.in_controls if f.nonfinite == 0]
    shape = (len(finite), experiment.task.steps, len(layers))
    per_run = {c: torch.stack([f.wrt[c].double() for f in finite]) if finite else torch.zeros(shape) for c in learn}
    names = [layer.name for layer in layers]
    maps = {c: slopes(of_runs) for c, of_runs in per_run.items()}
    table = {c: cells(of_runs, names) for c, of_runs in per_run.items()}
    picture, data = folder.plots / "sensitivity.png", folder.path / "sensitivity.json"
    plot_sensitivity(picture, {c: (m.mean, m.t) for c, m in maps.items()}, names)
    result = {
        "schedule": name,
        "runs": num_runs,
        "finite_runs": len(finite),
        "loss": _mean([f.loss for f in finite]),
        "score": _mean([f.score for f in finite]),
        "verdict": says.mode,
        "measures": {"why": says.why, **notes},
        "table": {c: [cell._asdict() for cell in rows] for c, rows in table.items()},
    }
    whole = {c: {"mean": m.mean.tolist(), "t": m.t.tolist()} for c, m in maps.items()}
    write_atomic(data, json_text({**result, "layers": names, "maps": whole}, indent=1).encode() + b"\n")
    _show(console, f"{name}, {num_runs} runs of {experiment.task.steps} steps", table, names, measured, says)
    return {**result, "plot": str(picture), "data": str(data)}


def slopes(of_runs: torch.Tensor) -> Slopes:
    """Mean and t over n runs [n, ...], each [...]; t is 0 where all runs say 0.

    >>> slopes(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    Slopes(mean=tensor([2., 0.]), t=tensor([2., 0.]))
    """
    n, mean = len(of_runs), of_runs.mean(0)
    if n < 2:
        return Slopes(mean, torch.full_like(mean, math.nan))
    error = of_runs.std(0) / math.sqrt(n)
    return Slopes(mean, torch.where(mean == 0, 0.0, mean / error))


def cells(of_runs: torch.Tensor, layers: Sequence[str]) -> list[Cell]:
    """A row for each layer and third of the run, from the derivatives [runs, T, L] of one control."""
    with from_extra("train"):
        from scipy.special import stdtrit

    summed = torch.stack([part.sum(1) for part in of_runs.tensor_split(len(PARTS), dim=1)], 1)
    mean, t = slopes(summed)  # [3, L]
    clear = float(stdtrit(len(of_runs) - 1, 0.975)) if len(of_runs) > 1 else math.inf
    return [
        Cell(layer, part, float(mean[p, i]), float(t[p, i]), _advice(float(t[p, i]), clear))
        for i, layer in enumerate(layers)
        for p, part in enumerate(PARTS)
    ]


def _advice(t: float, clear: float) -> str:
    return "less" if t > clear else "more" if t < -clear else "unclear"


def _given(config: ProblemConfig, start: str, schedule: str | None) -> tuple[str, Schedule]:
    """The schedule that is looked at; the linear one where nothing names another."""
    named = start if schedule is None else schedule
    start = f"{config.method.name}_linear" if named == "best" else named
    try:
        given = given_start(config, start)
    except MetaschedError as error:
        if schedule is None or error.path != "schedule.start":
            raise
        raise MetaschedError("--schedule", error.problem, error.fix) from None
    assert given is not None
    return given


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _show(
    console: Console,
    title: str,
    table: dict[str, list[Cell]],
    layers: Sequence[str],
    measured: Measured,
    says: Verdict,
) -> None:
    for control, rows in table.items():
        lines = [[name, *(_text(cell) for cell in rows if cell.layer == name)] for name in layers]
        console.table(f"{control} of {title}: what would lower the loss", ["layer", *PARTS], lines)
    console.note(
        f"growth of the adjoint 10^{measured.growth.decades:.1f} ({measured.growth.rate:.2g} a step), signal of the "
        f"mean {measured.signal:.2g}, agreement with pairs {measured.agreement:.2f} +- {measured.error:.2f}, "
        f"weight in a mix {measured.weight:.2g}"
    )
    console.note(f"meta.estimator: auto would begin with {says.mode}: {says.why}")


def _text(cell: Cell) -> str:
    return f"{cell.advice} ({cell.slope:+.1e}, t {cell.t:+.1f})"
