"""Which estimator to trust: exact, mixed or evolution strategies, from exact runs and antithetic pairs.

    es       the adjoint grows by more than EXPLODING decades over the run, or half of the runs are not finite;
             or c + SURE se < 0: the exact gradient points against what the pairs see;
             or w < 1 - ONE_SIDED: it is so noisy that the mix would ignore it
    exact    w > ONE_SIDED: the mix would ignore the pairs; and c > se, or a signal above CLEAR with c > -se
    mixed    otherwise: nothing is settled, and both are worth their price

Growth, signal, agreement c and its standard error se: diagnosis.py; w, the weight of the exact part: mixed.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from metasched.engines.base import Hypergradient
from metasched.estimators.base import State
from metasched.estimators.diagnosis import Growth, adjoint_growth, agreement, agreement_error
from metasched.estimators.es import Pairs
from metasched.estimators.mixed import KEEP, Mix, blend, log_variance, mix_of, no_averages
from metasched.estimators.reverse import Differentiated

EXPLODING = 6.0  # decades: beyond them rounding in float32 (1e-7), early in the run, turns the gradient
ONE_SIDED = 0.9  # the other part adds at most a tenth
CLEAR = 2.0  # at least half of the squared norm of the mean is signal
SURE = 2.0  # standard errors

Mode = Literal["exact", "mixed", "es"]


class Measured(NamedTuple):
    """What a verdict is made from.

    Attributes:
        growth: of the adjoint.
        broken: share of the exact runs that are not finite.
        signal: of the mean over exact runs, moving average (geometric); NaN if no two runs were finite.
        weight: of the exact part in the mix.
        agreement: of the exact mean with the pairs, moving average.
        error: standard error of the agreement.
    """

    growth: Growth
    broken: float
    signal: float
    weight: float
    agreement: float
    error: float


class Verdict(NamedTuple):
    """The estimator to use, and why."""

    mode: Mode
    why: str


def verdict(m: Measured) -> Verdict:
    """By the rules in the module's docstring."""
    seen = f"agreement with the pairs {m.agreement:.2f} +- {m.error:.2f}"
    spread = f"signal of the exact mean {m.signal:.2g}"
    if exploding := explosion(m.growth, m.broken):
        return Verdict("es", exploding)
    if m.agreement + SURE * m.error < 0:
        return Verdict("es", f"exact gradients point the other way, {seen}")
    if m.weight < 1 - ONE_SIDED:
        return Verdict("es", f"exact gradients are too noisy, weight {m.weight:.2g} in a mix, {spread}")
    confirmed = m.agreement > m.error
    clear = m.signal > CLEAR and m.agreement > -m.error
    if m.weight > ONE_SIDED and (confirmed or clear):
        return Verdict("exact", f"the adjoint grows by only 10^{m.growth.decades:.1f}, {spread}, {seen}")
    return Verdict("mixed", f"not settled: {spread}, {seen}, weight of the exact part {m.weight:.2g}")


def explosion(growth: Growth, broken: float) -> str:
    """Why exact gradients are out of the question; empty where they are not."""
    if broken >= 0.5:
        return f"{broken:.0%} of the exact runs are not finite"
    if growth.decades > EXPLODING:
        return f"the adjoint grows by 10^{growth.decades:.1f} over the run, {growth.rate:.2g} a step"
    return ""


class Examined(NamedTuple):
    """Measures of exact runs and pairs, their mix, the moving averages after it, and notes for the log."""

    measured: Measured
    mix: Mix
    state: State
    notes: dict[str, float]


def unexamined() -> State:
    """The moving averages before the first measurement: NaN, or no pairs."""
    nan, zero = (torch.tensor(value, dtype=torch.float64) for value in (math.nan, 0.0))
    return {"log_signal": nan, "agreement": zero, "agreement_pairs": zero.clone(), **no_averages()}


def examine(schedule: nn.Module, exact: Differentiated, pairs: Pairs, state: State) -> Examined:
    """Measure everything that a verdict needs, from exact runs and pairs of the same seeds.

    ``state`` holds the moving averages of ``unexamined``, float64 and 0-d.
    """
    mix = mix_of(schedule, exact.found, pairs, state)
    known = mix.exact is not None and not math.isnan(log_variance(mix.exact)) and mix.exact.square > 0
    log_signal = blend(state["log_signal"], math.log(mix.exact.signal) if known and mix.exact else math.nan)
    c, n = float(state["agreement"]), float(state["agreement_pairs"])
    if mix.exact is not None and 0 < math.hypot(*pairs.rises) < math.inf:
        kept, new = KEEP * n, len(pairs.rises)
        c = (kept * c + new * agreement(mix.exact.mean, pairs.deltas, pairs.rises)) / (kept + new)
        n = kept + new
    measured = Measured(
        growth=adjoint_growth(exact.in_controls),
        broken=broken_share(exact.found),
        signal=float(log_signal.exp()),
        weight=mix.notes["exact_weight"],
        agreement=c,
        error=agreement_error(c, n),
    )
    averages = {"agreement": torch.full_like(log_signal, c), "agreement_pairs": torch.full_like(log_signal, n)}
    own = {"signal": measured.signal, "agreement": c, "agreement_error": measured.error}
    notes = {**pairs.notes, **mix.notes, **growth_notes(measured.growth), **own}
    return Examined(measured, mix, {**state, **mix.state, "log_signal": log_signal, **averages}, notes)


def growth_notes(growth: Growth) -> dict[str, float]:
    """The growth of the adjoint, for the log."""
    return {"growth_rate": growth.rate, "growth": growth.decades, "growth_peak": growth.peak}


def broken_share(found: Sequence[Hypergradient]) -> float:
    """Share of the runs that are not finite."""
    return sum(f.diagnostics.nonfinite > 0 for f in found) / len(found)
