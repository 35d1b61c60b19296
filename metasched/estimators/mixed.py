"""The inverse-variance mix of the exact estimate and that of evolution strategies.

    g = w a + (1 - w) b,    w = v_b / (v_a + v_b)

a is the mean of the exact hypergradients (reverse.py), b that of antithetic pairs (es.py), from the same seeds; v_a and
v_b are the errors of the two means (``Moments.variance``). w has the least error if both are unbiased and independent.
a and v_a are those of the runs as they are: clipped first, exploding runs would seem to agree, and clipping shows in no
variance. An explosion costs its own weight: w a falls like 1 / |a|. The outer loop clips the mix as a whole.

One weight for the whole schedule: from 4 to 8 runs a variance per parameter has 3 to 7 degrees of freedom, and weights
made of it follow the noise of the estimates that they weigh; the trace averages over all parameters. It still has heavy
tails, so for each part the larger of the present variance and its moving average (geometric) counts.
A part with fewer than two finite runs, or a variance that is not finite, has weight 0; so has one whose runs all say
exactly the same, such as a slope of 0 everywhere: it saw nothing.
Biased towards what either part is: a to the relaxed problem with the noise floor, b to the smoothed loss.
Source: Metz et al., ICML 2019, arXiv 1810.10180. We differ: they weigh each parameter, by variances over many workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.engines.base import Diagnostics, Hypergradient, norm
from metasched.estimators.base import PLACE, Estimate, State, check_like
from metasched.estimators.diagnosis import Moments, cosine, moments
from metasched.estimators.es import Pairs, antithetic_pairs
from metasched.estimators.perturbation import scales
from metasched.estimators.reverse import differentiate
from metasched.meta.config import MetaConfig
from metasched.runs.local import Runs

KEEP = 0.7  # of a moving average at each measurement: about the last three of them count
EXACT, ES = "log_variance_exact", "log_variance_es"  # moving averages; NaN before the first measurement


@dataclass(frozen=True)
class Mixed:
    """One hypergradient from an inner run and an antithetic pair for each seed.

    Attributes:
        noise_floor: of the exact runs, see Reverse.
        sigma: standard deviation of the perturbations of the pairs, in units of the parameters' scales.
    """

    noise_floor: float | None
    sigma: float

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """Moving averages of the logarithms of both variances."""
        return no_averages()

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """See Estimator."""
        check_like(PLACE, state, no_averages())

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        exact = differentiate(schedule, runs, seeds, self.noise_floor).found
        pairs = antithetic_pairs(schedule, runs, seeds, self.sigma)
        mix = mix_of(schedule, exact, pairs, state)
        return Estimate([mix.found], mix.state, 3 * len(seeds) * runs.problem.steps, {**pairs.notes, **mix.notes})


def no_averages() -> State:
    """The moving averages before the first measurement: NaN."""
    return {name: torch.tensor(math.nan, dtype=torch.float64) for name in (EXACT, ES)}


@dataclass(frozen=True)
class Mix:
    """The mixed hypergradient, the moments of its exact part, the moving averages after it, and notes for the log."""

    found: Hypergradient
    exact: Moments | None
    state: State
    notes: dict[str, float]


def mix_of(schedule: nn.Module, exact: Sequence[Hypergradient], pairs: Pairs, state: State) -> Mix:
    """Mix the exact hypergradients of single runs with the terms of antithetic pairs.

    Args:
        schedule: has the parameters.
        exact: one for each run; those that are not finite are left out.
        pairs: see there.
        state: holds the moving averages, ``EXACT`` and ``ES``, float64 and 0-d.
    """
    units = list(scales(schedule).values())
    finite = [e.gradient for e in exact if e.diagnostics.nonfinite == 0]
    a, b = moments(finite, units) if finite else None, moments(pairs.terms, units)
    now_a, now_b = log_variance(a), log_variance(b)
    after = {EXACT: blend(state[EXACT], now_a), ES: blend(state[ES], now_b)}
    w = weight_of_exact(now_a, now_b, after)
    parts = [(part, share) for part, share in ((a, w), (b, 1 - w)) if part is not None and share > 0]
    gradient = [
        torch.stack([share * g for (_, share), g in zip(parts, of_parts, strict=True)]).sum(0)
        for of_parts in zip(*(part.mean for part, _ in parts), strict=True)
    ]
    notes = {
        "exact_weight": w,
        "exact_runs": float(len(finite)),
        "exact_norm": math.sqrt(a.square) if a else math.nan,
        "es_norm": math.sqrt(b.square),
        "cosine": cosine(a.mean, b.mean, units) if a else math.nan,
    }
    return Mix(_with_diagnostics(gradient, exact, pairs.mean), a, after, notes)


def log_variance(part: Moments | None) -> float:
    """Logarithm of the error of a mean; NaN where it is not known."""
    if part is None or not math.isfinite(part.square) or not 0 < part.variance < math.inf:
        return math.nan
    return math.log(part.variance)


def blend(average: torch.Tensor, now: float) -> torch.Tensor:
    """The moving average (float64, 0-d) after a measurement; the first one is taken as it is, NaN is none."""
    if math.isnan(now):
        return average
    return torch.full_like(average, now) if bool(average.isnan()) else KEEP * average + (1 - KEEP) * now


def weight_of_exact(exact: float, es: float, averages: State) -> float:
    """W in [0, 1], from the logarithms of the present variances (NaN: unknown) and their moving averages (0-d)."""
    if math.isnan(exact) or math.isnan(es):
        return 0.0 if math.isnan(exact) else 1.0
    a, b = max(exact, float(averages[EXACT])), max(es, float(averages[ES]))
    return float(torch.sigmoid(torch.tensor(b - a, dtype=torch.float64)))


def _with_diagnostics(gradient: list[torch.Tensor], exact: Sequence[Hypergradient], es: Hypergradient) -> Hypergradient:
    """Loss and score are those of the exact runs, which are at the schedule itself, or else of the pairs."""
    whole = [e for e in exact if math.isfinite(e.loss)] or [es]
    every = [*exact, es]
    loss = _mean([e.loss for e in whole])
    diagnostics = Diagnostics(
        gradient_norm=norm(gradient),
        nonfinite=sum(int((~torch.isfinite(g)).sum()) for g in gradient) + (not math.isfinite(loss)),
        dead_layers=_mean([e.diagnostics.dead_layers for e in exact]),
        seconds=sum(e.diagnostics.seconds for e in every),
        peak_bytes=max(e.diagnostics.peak_bytes for e in every),
        score=_mean([e.diagnostics.score for e in whole]),
        faults=tuple(fault for e in every for fault in e.diagnostics.faults),
    )
    return Hypergradient(loss, gradient, diagnostics)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)  # fsum raises where a sum overflows


def require_spread(meta: MetaConfig) -> None:
    """Refuses settings from which no variance can be had.

    Raises:
        MetaschedError: fewer than two inner runs.
    """
    if meta.runs < 2:
        problem = f"{meta.estimator} weighs estimates by their spread over inner runs, and there is {meta.runs}"
        raise MetaschedError("meta.runs", problem, "set it to 4 or more")


def build(meta: MetaConfig) -> Mixed:
    """As configured.

    Raises:
        MetaschedError: fewer than two inner runs.
    """
    require_spread(meta)
    return Mixed(meta.noise_floor, meta.sigma)
