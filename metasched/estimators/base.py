"""The contract of an estimator: a schedule and inner runs in, hypergradients out; what it carries on is explicit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.engines.base import Hypergradient
from metasched.runs.local import Runs

State = Mapping[str, torch.Tensor]  # flat, so that it can be saved and resumed exactly

PLACE = "state.estimator"  # of a state in a checkpoint
MEND = "give a checkpoint that `metasched train` has left, or start a new run"


class Estimate(NamedTuple):
    """What an estimator found in one outer step.

    Attributes:
        found: hypergradients whose mean is the estimate: one for each inner run, or one for a whole population.
        state: to be given to the next call.
        inner_steps: training steps done, each counted once; the way back is not counted.
        notes: what it has to say about itself, logged as ``estimator/<name>``.
        line: what a person should read now, such as a change of mind.
        weights: what each of them counts in that mean, which is (1 / n) sum of weight times hypergradient, each scaled
            down to meta.clip before; None: 1.
    """

    found: list[Hypergradient]
    state: State
    inner_steps: int
    notes: dict[str, float]
    line: str | None = None
    weights: Sequence[float] | None = None


def check_like(place: str, tensors: State, like: State) -> None:
    """Refuse tensors that have other names, dtypes (such as float64) or shapes than those that are expected.

    Raises:
        MetaschedError: the first that differs.
    """
    for name in sorted(tensors.keys() ^ like.keys()):
        raise MetaschedError(f"{place}.{name}", "is missing" if name in like else "is unknown", MEND)
    for name, t in tensors.items():
        found, wanted = ((x.dtype, tuple(x.shape)) for x in (t, like[name]))
        if found != wanted:
            raise MetaschedError(f"{place}.{name}", f"is {found[0]} {found[1]}, not {wanted[0]} {wanted[1]}", MEND)


def check_range(name: str, value: torch.Tensor, low: int, high: int) -> None:
    """Refuse a number of a state (0-d) that is not in low..high.

    Raises:
        MetaschedError: it is not.
    """
    if not low <= int(value) <= high:
        raise MetaschedError(f"{PLACE}.{name}", f"must be in {low}..{high}, is {int(value)}", MEND)


class Estimator(Protocol):
    """A way to compute a hypergradient. Implementations are frozen dataclasses: their fields are their settings."""

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """The state before the first estimate; empty for those that carry nothing on."""
        ...

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """Refuse a state that no estimate from ``num_runs`` seeds leaves, because a file may hold anything.

        Names, shapes and dtypes of its tensors (float64 for measured numbers, int64 for counts) must be those that the
        estimator writes.

        Raises:
            MetaschedError: with the place of what is wrong.
        """
        ...

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """The gradient of the outer loss in the schedule's parameters.

        Args:
            schedule: what is differentiated, at its present parameters.
            runs: where inner runs are done.
            seeds: one for each inner run or antithetic pair; all random numbers follow from them.
            state: what the last call (or ``begin``) gave: {name: [...]}.
        """
        ...


class Stateless:
    """What estimators that carry nothing on share: an empty state."""

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """Nothing is carried on."""
        return {}

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """See Estimator."""
        check_like(PLACE, state, {})
