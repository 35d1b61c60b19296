"""Guided evolution strategies: antithetic pairs, perturbed mostly along unrolled hypergradients.

    delta = s xi,   xi ~ N(0, C),   C = a I + (1 - a) (D / k) U U^T,    g = mean over pairs of r xi / s,

with r the slope of the outer loss along delta (es.py), D the number of parameters, s their scales, and U an orthonormal
basis of k guides: exact hypergradients of the last few inner runs, each block of which has norm 1 (agreement.py). Half
of the variance (a = 1/2) is spread over all parameters, half over the guides; the trace of C is D, so sigma means what
it means in es. In the mean g is C times the gradient of the smoothed loss: a descent direction, whatever the guides
are. The pairs set the signs: a guide that points the wrong way is as good as one that points the right way. A guide
that points anywhere costs only the share of the pairs that goes into it.

Each estimate differentiates one run for each FEWER seeds, and plays an antithetic pair for each seed.
Source: Maheswaranathan et al., ICML 2019, arXiv 1806.10230. We differ: guides are normalized by block, and the factor
of their estimate is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from metasched.core.randomness import generator
from metasched.engines.base import Hypergradient
from metasched.estimators.agreement import blocks_of, flat, normalized
from metasched.estimators.base import PLACE, Estimate, State, check_like
from metasched.estimators.es import Pairs, antithetic_pairs
from metasched.estimators.perturbation import scales
from metasched.estimators.reverse import differentiate
from metasched.meta.config import MetaConfig
from metasched.network.flat import Tensors
from metasched.runs.local import Runs

GUIDES = 4  # k, the latest exact hypergradients
FEWER = 5  # seeds for each of which a run is differentiated: that takes about as long as five plain runs
SHARE = 0.5  # a


@dataclass(frozen=True)
class Guided:
    """One hypergradient from antithetic pairs along exact hypergradients.

    Attributes:
        noise_floor: of the exact runs, see Reverse.
        sigma: standard deviation of the perturbations, in units of the parameters' scales.
    """

    noise_floor: float | None
    sigma: float

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """No guide yet: zeros."""
        return {"guides": no_guides(schedule)}

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """See Estimator."""
        check_like(PLACE, state, self.begin(schedule, runs))

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        chosen = seeds[: max(1, len(seeds) // FEWER)]
        exact = differentiate(schedule, runs, chosen, self.noise_floor).found
        guides = with_new(schedule, state["guides"], exact)
        basis = orthonormal(guides)
        deltas = [stretched(schedule, basis, seed) for seed in seeds]
        pairs = antithetic_pairs(schedule, runs, seeds, self.sigma, deltas)
        steps = (2 * len(seeds) + len(chosen)) * runs.problem.steps
        notes = {**pairs.notes, "guides": float(basis.shape[1]), "guided_share": guided_share(schedule, pairs, basis)}
        return Estimate([pairs.mean], {"guides": guides}, steps, notes)


def no_guides(schedule: nn.Module) -> torch.Tensor:
    """Guides before the first exact hypergradient: zeros [k, D]."""
    size = sum(p.numel() for p in schedule.parameters())
    return torch.zeros(min(GUIDES, size), size, dtype=torch.float64)


def with_new(schedule: nn.Module, guides: torch.Tensor, exact: Sequence[Hypergradient]) -> torch.Tensor:
    """The latest guides [k, D], those that are finite among ``exact`` first."""
    new = [flat(schedule, e.gradient).double() for e in exact if e.diagnostics.nonfinite == 0]
    if not new:
        return guides
    units = normalized(torch.stack(new), blocks_of(schedule))
    return torch.cat([units.to(guides), guides])[: len(guides)]


def orthonormal(guides: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the span of guides [k, D]: [D, at most k]."""
    _, values, rows = torch.linalg.svd(guides, full_matrices=False)
    return rows[values > 1e-6 * values.max().clamp_min(torch.finfo(values.dtype).tiny)].T


def stretched(schedule: nn.Module, basis: torch.Tensor, seed: int) -> Tensors:
    """delta: {parameter: a random change of it}, a function of the seed and the basis [D, k]."""
    draws = generator(seed, "direction", 0)
    size, k = basis.shape
    xi = torch.randn(size, generator=draws, dtype=torch.float64)
    if k:
        along = torch.randn(k, generator=draws, dtype=torch.float64)
        xi = math.sqrt(SHARE) * xi + math.sqrt((1 - SHARE) * size / k) * (basis @ along)
    named, s = dict(schedule.named_parameters()), scales(schedule)
    parts = xi.split([p.numel() for p in named.values()])
    return {name: s[name] * part.reshape(p.shape).to(p) for (name, p), part in zip(named.items(), parts, strict=True)}


def guided_share(schedule: nn.Module, pairs: Pairs, basis: torch.Tensor) -> float:
    """Share of the squared norm of the estimate that lies along the basis [D, k], in units of scales."""
    g = flat(schedule, pairs.mean.gradient).double()
    return float((basis.T @ g).square().sum() / g.square().sum()) if bool(g.any()) else math.nan


def build(meta: MetaConfig) -> Guided:
    """As configured."""
    return Guided(meta.noise_floor, meta.sigma)
