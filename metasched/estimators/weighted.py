"""Exact hypergradients weighted by how far their inner runs agree, block by block (agreement.py).

    g = sum over blocks of sqrt(max(a, 0)) m / |m|,   in units of the parameters' scales

m is the mean of the runs' unit vectors in a block, and a says how much of it is signal: 0 in the mean where the runs
point anywhere, and 1 where all point the same way. So moments of the run whose derivative explodes, or is noise, move
little, and the others are not drowned by them. The outer loop's Adam divides each number by its own size over the
steps; a block without signal then takes a random walk of small steps.
Biased as exact hypergradients are: to the relaxed problem with the noise floor (reverse.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from metasched.engines.base import Hypergradient, norm
from metasched.estimators.agreement import agreement, blocks_of, flat, unflat
from metasched.estimators.base import Estimate, State, Stateless
from metasched.estimators.mixed import require_spread
from metasched.estimators.reverse import differentiate
from metasched.meta.config import MetaConfig
from metasched.runs.local import Runs


@dataclass(frozen=True)
class Weighted(Stateless):
    """One direction from the exact hypergradients of all seeds.

    Attributes:
        noise_floor: lowest value of controls that declare one while learning, in place of theirs; None: theirs.
    """

    noise_floor: float | None

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        found = differentiate(schedule, runs, seeds, self.noise_floor).found
        steps = len(seeds) * runs.problem.steps
        finite = [e for e in found if e.diagnostics.nonfinite == 0]
        if len(finite) < 2:  # nothing to agree with: the outer loop counts a step without a finite estimate
            return Estimate(found, state, steps, {"exact_runs": float(len(finite))})
        gradients = torch.stack([flat(schedule, e.gradient).double() for e in finite])
        agreed = agreement(gradients, blocks_of(schedule))
        squares = list(agreed.squares.values())
        notes = {
            "exact_runs": float(len(finite)),
            "agreement_mean": sum(squares) / len(squares),
            "agreement_most": max(squares),
            **{f"agreement/{name}": a for name, a in agreed.squares.items()},
        }
        return Estimate([_as_one(finite, unflat(schedule, agreed.direction))], state, steps, notes)


def _as_one(found: Sequence[Hypergradient], gradient: list[torch.Tensor]) -> Hypergradient:
    """The direction, with the mean loss and diagnostics of the runs."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    every = [e.diagnostics for e in found]
    diagnostics = replace(
        every[0],
        gradient_norm=norm(gradient),
        dead_layers=mean([d.dead_layers for d in every]),
        seconds=sum(d.seconds for d in every),
        peak_bytes=max(d.peak_bytes for d in every),
        score=mean([d.score for d in every]),
    )
    return Hypergradient(mean([e.loss for e in found]), gradient, diagnostics)


def build(meta: MetaConfig) -> Weighted:
    """As configured.

    Raises:
        MetaschedError: fewer than two inner runs.
    """
    require_spread(meta)
    return Weighted(meta.noise_floor)
