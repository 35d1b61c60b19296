"""What happens to numbers that went bad: named policies, each counted.

``keep``: a run in which anything was not finite is left out of the average. ``clip``: each run's gradient is scaled
to at most a given norm, so that one exploding run cannot outvote the others. ``update``: what an update would make is
looked at before it is made, and where anything in it is not finite nothing changes. ``MOST_BAD_STEPS`` steps in a row
without an update end the run. One more, the noise floor, belongs to the estimators that differentiate
(hypergradients/reverse.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.engines.base import Hypergradient, norm
from metasched.meta.adam import Adam
from metasched.schedules.base import progress_of_steps
from metasched.schedules.shared import LearnedSchedule
from metasched.training.faults import Fault

MOST_BAD_STEPS = 3


class RunStopped(MetaschedError):
    """A run that ends because of its numbers: no mistake in what the user gave, so the exit code is 1."""

    exit_code = 1


def keep(estimates: Sequence[Hypergradient]) -> list[Hypergradient]:
    """The estimates in which everything is finite."""
    return [e for e in estimates if e.diagnostics.nonfinite == 0 and math.isfinite(e.loss) and _all(e.gradient)]


def clip(gradient: list[torch.Tensor], largest: float) -> tuple[list[torch.Tensor], bool]:
    """The gradient, of [...] tensors, scaled to norm ``largest`` at most, and whether it was."""
    size = norm(gradient)
    if size <= largest:
        return gradient, False
    if math.isinf(size):  # finite, but so long that its norm is no number: first to a length that is one
        gradient = [g / torch.finfo(g.dtype).max for g in gradient]
        size = norm(gradient)
    return [g * (largest / size) for g in gradient], True


def first_fault(parts: Mapping[str, Mapping[str, torch.Tensor]]) -> Fault | None:
    """The first tensor [...] that is not finite, of {what it is: {its name: tensor}}."""
    for what, tensors in parts.items():
        for name, t in tensors.items():
            if not _all([t]):
                return Fault(what, place=name)
    return None


def values_of(schedule: LearnedSchedule, steps: int, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
    """{control: [T, L]} of a schedule, as the next step would play it."""
    with torch.no_grad():
        return schedule(progress_of_steps(steps), layers)


def update(
    schedule: LearnedSchedule,
    optimizer: Adam,
    gradient: Sequence[torch.Tensor],
    steps: int,
    layers: Sequence[Layer],
) -> Fault | None:
    """One step of the optimizer along a gradient, if all that it makes is finite.

    The gradient has a tensor [...] for each parameter of the schedule, in their order.

    It is tried on a copy: where the gradient, a parameter, the optimizer's state or a value of the schedule at one of
    ``steps`` steps is not finite, nothing changes, and what it was is given back.
    """
    tried, trial = copy.deepcopy((schedule, optimizer))
    _step(tried, trial, gradient)
    names = dict(schedule.named_parameters())
    state = {f"{q} of {n}": trial.state[p][q] for n, p in tried.named_parameters() for q in trial.state[p]}
    fault = first_fault(
        {
            "outer gradient": dict(zip(names, gradient, strict=True)),
            "outer update": dict(tried.named_parameters()),
            "optimizer's state": state,
            "control": values_of(tried, steps, layers),
        }
    )
    if fault is None:
        _step(schedule, optimizer, gradient)
    return fault


def listed(faults: Sequence[Fault], most: int = 3) -> str:
    """The first few, as text.

    >>> listed([Fault("inner loss", step=3)] * 5 + [Fault("outer loss")])
    'inner loss at inner step 3, outer loss'
    """
    texts = list(dict.fromkeys(str(fault) for fault in faults))
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _step(schedule: LearnedSchedule, optimizer: Adam, gradient: Sequence[torch.Tensor]) -> None:
    for p, g in zip(schedule.parameters(), gradient, strict=True):
        p.grad = g
    optimizer.step()


def _all(tensors: Sequence[torch.Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)
