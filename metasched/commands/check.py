"""The gate before the outer loop: is the hypergradient of an experiment the derivative of what it trains?

Two gates, on a small copy of the experiment (three inner steps, float64):

    finite differences   |g - d| / max(|g|, |d|) <= 1e-6,   d = (L(c + h v) - L(c - h v)) / 2h,   h = 1e-6
    agreement            |g - g'| / max(|g|, |g'|) <= 1e-10,   g' by the other ways of unrolling

The first holds where the path from the controls c to the outer loss L is smooth. Where it is hard (a mode or random
forward, quantized activations of INQ, a hardened outer loss) the hypergradient is that of a surrogate, which is no
derivative of L: finite differences would be wrong, not the hypergradient. There the engines must agree, and the
cosine to a smoothed gradient of the hardened loss is reported: it says whether the surrogate points the right way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from metasched.config.schema import Experiment, ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.randomness import generator
from metasched.engines import engine, find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import TOLERANCE, error_against_differences, outer_loss, span, uphill
from metasched.estimators.smoothed import smoothed_gradient
from metasched.meta.config import MetaConfig
from metasched.meta.start import learned_controls
from metasched.methods import METHODS, build_method
from metasched.methods.base import Control
from metasched.network.flat import Tensors
from metasched.schedules.space import at_shares
from metasched.tasks.table import TASKS
from metasched.tracking.console import Console
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

POINTS = 20  # and at least one for each layer
AGREEMENT = 1e-10
EXACT = ("higher", "unroll")  # the estimators that the configured one is held against
_REPORTED = 5  # points from one line of progress to the next
_DRAWS_PER_POINT = 3  # points at a kink are drawn anew, but not for ever
_STEPS, _TRAIN, _VALIDATION, _BATCH = 3, 256, 64, 16
_PAIRS, _SMOOTHING = 16, 0.1  # of the smoothed gradient; its width as a share of the control's range


class ControlGate(NamedTuple):
    """The outcome for one control.

    Attributes:
        gate: what its hypergradient was held against, ``finite differences`` or ``agreement``.
        error: the largest relative error over the points.
        points: random values of the controls that gave an error.
        passed: enough points, all of them within the gate, and a hypergradient that is not zero at all of them.
        cosine: to the smoothed gradient of the hardened loss at the last point; None where finite differences apply.
    """

    gate: str
    error: float
    points: int
    passed: bool
    cosine: float | None


def check(experiment: Experiment, console: Console) -> dict[str, Any]:
    """Try the hypergradient of an experiment out, for every learned control and layer, and show the result.

    Returns:
        ``{method, controls: {name: {gate, error, points, passed, cosine}}, passed, seconds}``.

    Raises:
        MetaschedError: a control whose hypergradient fails its gate.
    """
    start = time.perf_counter()
    setting = _Setting(small(experiment.problem), experiment.meta, experiment.seed)
    gates = _gates(setting, experiment.schedule.learn, console)
    _show(setting, gates, console)
    for name, result in gates.items():
        if not result.passed:
            raise _failed(setting, name, result)
    return {
        "method": experiment.method.name,
        "controls": {name: result._asdict() for name, result in gates.items()},
        "passed": True,
        "seconds": time.perf_counter() - start,
    }


def small(config: ProblemConfig) -> ProblemConfig:
    """The problem with three inner steps on a few examples, in float64."""
    task = replace(config.task, steps=_STEPS)
    if task.factory is None and "train" in TASKS[task.name].reads:
        train = min(task.train or _TRAIN, _TRAIN)
        validation = min(task.validation or _VALIDATION, _VALIDATION)
        task = replace(task, train=train, validation=validation, batch=min(task.batch, _BATCH, train))
    return config._replace(task=task, dtype="float64", autocast=False)


def random_controls(controls: Sequence[Control], steps: int, num_layers: int, seed: int, index: int) -> Tensors:
    """Legal values {control: [T, L]}: uniform in the middle half of each range, sorted in the control's direction."""
    values = {}
    for i, c in enumerate(controls):
        draws = generator(seed, "points", index, i)
        shares = 0.25 + 0.5 * torch.rand(steps, num_layers, generator=draws, dtype=torch.float64)
        if c.direction != "free":
            shares = shares.sort(0, descending=c.direction == "nonincreasing").values
        values[c.name] = at_shares(c, shares)
    return values


class _Setting(NamedTuple):
    """The problem that is checked, how it is learned, and the seed of random points."""

    problem: ProblemConfig
    meta: MetaConfig
    seed: int

    @property
    def outer(self) -> OuterLoss:
        return OuterLoss(self.meta.objective, self.meta.surrogate)


class _Point(NamedTuple):
    """Random controls, the problem from a fresh seed, and the hypergradient there."""

    index: int
    problem: InnerProblem
    controls: Tensors
    slope: Tensors


_Gate = Callable[[_Setting, _Point], Callable[[str, int], float | None]]  # -> (control, turn) -> error


def _gates(setting: _Setting, learn: Sequence[str] | None, console: Console) -> dict[str, ControlGate]:
    config, meta, seed = setting
    problem = build_problem(config, relaxation=meta.relaxation)
    declared, num_layers = problem.network.method.controls, len(problem.network.layers)
    learned = learned_controls(config.method.name, learn, declared)
    smooth = meta.objective == "relaxed" and METHODS[config.method.name].smooth(config.method)
    smooth = smooth and config.method.activation_scale != "clip"  # its derivative is not that of the forward pass
    gate: _Gate = _by_differences if smooth else _by_agreement
    unroll = find_unroll(meta.estimator)
    points = max(POINTS, num_layers)
    errors: dict[str, list[float]] = {name: [] for name in learned}
    alive = dict.fromkeys(learned, False)
    cosines: dict[str, float | None] = dict.fromkeys(learned)
    for index in range(_DRAWS_PER_POINT * points):
        missing = [name for name in learned if len(errors[name]) < points]
        if not missing:
            break
        controls = random_controls(declared, problem.steps, num_layers, seed, index)
        here = problem.with_seed(index)
        slope = control_gradient(unroll, here, controls, setting.outer).wrt
        point = _Point(index, here, controls, slope)
        error_of = gate(setting, point)
        for name in missing:
            alive[name] |= bool(slope[name].any())
            error = error_of(name, len(errors[name]))
            if error is not None:
                errors[name].append(error)
        if (index + 1) % _REPORTED == 0:
            console.note(f"check: {min(map(len, errors.values()))} of {points} points")
        if not smooth and len(errors[missing[0]]) == points:
            cosines = {c.name: _trust(setting, c, point) for c in declared if c.name in learned}
    label, largest = ("finite differences", TOLERANCE) if smooth else ("agreement", AGREEMENT)
    return {
        name: ControlGate(
            gate=label,
            error=max(e, default=math.nan),
            points=len(e),
            passed=alive[name] and len(e) == points and max(e) <= largest,
            cosine=cosines[name],
        )
        for name, e in errors.items()
    }


def _by_differences(setting: _Setting, point: _Point) -> Callable[[str, int], float | None]:
    """Along a random direction over the steps of one layer, the layers in turn."""
    outer = setting.outer

    def error(name: str, turn: int) -> float | None:
        values, slope = point.controls[name], point.slope[name]
        (control,) = (c for c in point.problem.network.method.controls if c.name == name)
        direction = uphill(slope, turn % slope.shape[1], setting.seed, point.index, span(control))

        def along(h: float) -> float:
            return outer_loss(point.problem, {**point.controls, name: values + h * direction}, outer)

        return error_against_differences(along, float((slope * direction).sum()))

    return error


def _by_agreement(setting: _Setting, point: _Point) -> Callable[[str, int], float | None]:
    """The largest distance to the exact estimators, relative to the longer of the two."""
    others = [
        control_gradient(find_unroll(name), point.problem, point.controls, setting.outer).wrt
        for name in EXACT
        if name != setting.meta.estimator
    ]

    return lambda name, turn: max(relative_distance(point.slope[name], other[name]) for other in others)


def relative_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / max(|a|, |b|) of two [...] tensors; 0 if they are equal, infinity where something is not finite."""
    if bool((a == b).all()):
        return 0.0
    distance = float((a - b).norm() / torch.maximum(a.norm(), b.norm()))
    return distance if math.isfinite(distance) else math.inf


def _trust(setting: _Setting, control: Control, point: _Point) -> float:
    """Cosine of a hypergradient to the smoothed gradient of the hardened loss, under the unrelaxed method."""
    problem = build_problem(setting.problem).with_seed(point.problem.seed)

    def hardened(values: torch.Tensor) -> float:
        legal = values.clamp(control.low, control.high)
        return outer_loss(problem, {**point.controls, control.name: legal}, OuterLoss())

    sigma = _SMOOTHING * (control.high - control.low)
    reference = smoothed_gradient(hardened, point.controls[control.name], sigma, _PAIRS, setting.seed)
    slope = point.slope[control.name].to(reference)
    return float(torch.cosine_similarity(slope.flatten(), reference.flatten(), dim=0))


def _show(setting: _Setting, gates: Mapping[str, ControlGate], console: Console) -> None:
    columns = ["control", "held against", "largest error", "points", "cosine to smoothed", "gate"]
    lines = [
        [name, g.gate, g.error, g.points, "" if g.cosine is None else g.cosine, "passed" if g.passed else "FAILED"]
        for name, g in gates.items()
    ]
    console.table(f"hypergradient of {setting.problem.method.name} by {engine(setting.meta.estimator)}", columns, lines)
    if any(g.gate == "agreement" for g in gates.values()):
        console.note("The path to the outer loss is hard: not finite differences, but the exact estimators must agree.")
        console.note("The cosine is to a smoothed gradient of the hardened loss: one noisy sample, for information.")


def _failed(setting: _Setting, name: str, result: ControlGate) -> MetaschedError:
    path = f"check: {name}"
    if result.error == 0:
        fix = "leave it out of schedule.learn"
        method = build_method(setting.problem.method)
        surrogate = any(c.name == name and c.gradient == "surrogate" for c in method.controls)
        if surrogate and setting.meta.relaxation == 0 and method.relaxed(1.0) != method:
            fix = f"set meta.relaxation above 0, or {fix}"
        return MetaschedError(path, "its hypergradient is zero at every point", fix)
    if result.error <= TOLERANCE or math.isnan(result.error):
        problem = f"only {result.points} of {POINTS} points were smooth enough for finite differences"
        return MetaschedError(path, problem, "raise optimizer.eps or use smoother noise (method.noise: normal)")
    problem = f"its hypergradient is wrong by a relative error of {result.error:.1e} ({result.gate})"
    return MetaschedError(path, problem, "do not train with this combination, and report it as a bug of metasched")
