"""Which number of an inner run was the first that is not finite: found by doing the run once more.

A run is a function of its arguments, so the repetition comes upon the same number. It is done for broken runs only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from metasched.network.flat import rows, rows_of
from metasched.training.finite import FINITE
from metasched.training.loop import take_steps
from metasched.training.state import InnerProblem, TrainingState


class Fault(NamedTuple):
    """Where a number first was not finite.

    Attributes:
        what: kind of the number, such as ``inner loss`` or ``hypergradient``.
        control: whose value or derivative it is, if it is one.
        place: layer or parameter, where it has one.
        step: inner step, from 0; None outside an inner run.

    >>> str(Fault("control", "weight_noise", "conv1", 3))
    'control weight_noise of conv1 at inner step 3'
    """

    what: str
    control: str = ""
    place: str = ""
    step: int | None = None

    def __str__(self) -> str:
        named = f"{self.what} {self.control}".rstrip()
        placed = f"{named} of {self.place}" if self.place else named
        return placed if self.step is None else f"{placed} at inner step {self.step}"


def broken(state: TrainingState) -> bool:
    """Whether anything in the run so far was not finite; waits for the device."""
    return not bool(state.health[FINITE])


def locate(
    problem: InnerProblem, controls: Mapping[str, torch.Tensor], since: TrainingState | None, steps: range
) -> Fault | None:
    """The first number that is not finite in some steps of a run, done once more; None where all are finite.

    Args:
        problem: with the seed of the run.
        controls: of the whole run, {control: [T, L]}.
        since: the state before the first of the steps; None: the initial one.
        steps: which are done.
    """
    like = next(problem.network.module.parameters())
    controls = {name: v.detach().to(like) for name, v in controls.items()}
    start = problem.initial(rows(controls, 0)) if since is None else since
    layers = [layer.name for layer in problem.network.layers]
    for step, state, loss, gradients, row in take_steps(problem, start, rows_of(controls, steps), steps):
        if not broken(state):
            continue
        for name, of_layers in row.items():
            for layer in _bad(dict(zip(layers, of_layers, strict=True))):
                return Fault("control", name, layer, step)
        if not bool(loss.isfinite()):
            return Fault("inner loss", step=step)
        for what, tensors in (("inner gradient", gradients), ("inner update", {**state.params, **state.optimizer})):
            for name in _bad(tensors):
                return Fault(what, place=name, step=step)
        return Fault("inner update", step=step)  # the method has put another value in its place
    return None


def _bad(tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    return (name for name, t in tensors.items() if not bool(t.isfinite().all()))
