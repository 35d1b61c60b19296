r"""What tells whether an exact hypergradient is of use: growth of the adjoint, spread over runs, agreement with pairs.

    growth      log median_r |dL_r / dc_t| ~ const + rate (T - 1 - t),    decades = rate (T - 1) / log 10
    spread      v = tr cov(g_r) / n, the squared error of the mean g of n runs;    signal = |g|^2 / v
    agreement   c = sum_i p_i r_i / (|p| |r|),    p_i = <g, delta_i>,    standard error sqrt((1 - c^2) / (n - 1))

c_t are the controls at step t, g_r the hypergradient of run r. Norms and covariances are taken in units of the
parameters' scales (perturbation.py), in which all parameters are alike. p_i is the slope that g predicts along the
direction of the i-th antithetic pair, r_i the one that the pair measures: cosines of slopes need few pairs, whereas the
cosine of g to the mean of n pairs in d dimensions is about sqrt(n / d) at best.
Source: the growth of Jacobian products as the cause of failure: Metz et al., 2021, arXiv 2111.05803.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from metasched.engines.base import ControlGradient


class Growth(NamedTuple):
    """How the derivative in the controls grows from the end of a run to its beginning; infinite if no run is finite.

    Attributes:
        rate: slope of the logarithm of its norm per step.
        decades: factors of ten over the whole run, by that slope.
        peak: factors of ten from the last step to the step where the norm is largest.
    """

    rate: float
    decades: float
    peak: float


class Moments(NamedTuple):
    """Mean of several estimates and the error of it.

    Attributes:
        mean: one tensor for each parameter, in the parameters' own units.
        square: squared norm of the mean, in units of scales.
        variance: trace of the covariance of the mean, in squared units of scales; not finite for a single estimate.
    """

    mean: list[torch.Tensor]
    square: float
    variance: float

    @property
    def signal(self) -> float:
        """|mean|^2 / variance: about 1 where there is nothing but noise; 0 for 0 / 0."""
        return self.square / self.variance if self.variance > 0 else math.inf if self.square > 0 else 0.0


def adjoint_growth(found: Sequence[ControlGradient]) -> Growth:
    """The growth over the finite runs; steps at which the derivative is exactly zero say nothing and are left out."""
    norms = [
        torch.stack([g.double().square().sum(1) for g in f.wrt.values()]).sum(0).sqrt()
        for f in found
        if f.nonfinite == 0
    ]
    norms = [n for n in norms if bool(n.isfinite().all())]  # a square can overflow
    if not norms:
        return Growth(math.inf, math.inf, math.inf)
    typical = torch.stack(norms).quantile(0.5, dim=0)
    steps = torch.nonzero(typical).flatten()
    if len(steps) < 2:
        return Growth(0.0, 0.0, 0.0)
    logs, back = typical[steps].log(), -steps.double()
    back = back - back.mean()
    rate = float((logs * back).sum() / back.square().sum())
    peak = float(logs.max() - logs[-1]) / math.log(10)
    return Growth(rate, rate * (len(typical) - 1) / math.log(10), peak)


def moments(estimates: Sequence[Sequence[torch.Tensor]], scales: Sequence[torch.Tensor]) -> Moments:
    """Mean and error of estimates of the same gradient.

    Args:
        estimates: each has one tensor for each parameter, of its shape [...].
        scales: of the parameters, 0-d.

    >>> one, two = [torch.tensor([1.0, 0.0])], [torch.tensor([3.0, 0.0])]
    >>> found = moments([one, two], [torch.tensor(10.0)])
    >>> found.mean[0].tolist(), found.square, found.variance, found.signal
    ([2.0, 0.0], 400.0, 100.0, 4.0)
    """
    mean = [torch.stack(list(of_one)).mean(0) for of_one in zip(*estimates, strict=True)]
    if len(estimates) < 2:
        return Moments(mean, _square(mean, scales), math.nan)
    about_mean = [[g - m for g, m in zip(e, mean, strict=True)] for e in estimates]
    n = len(estimates)
    variance = math.fsum(_square(e, scales) for e in about_mean) / (n - 1) / n
    return Moments(mean, _square(mean, scales), variance)


def _square(gradient: Sequence[torch.Tensor], scales: Sequence[torch.Tensor]) -> float:
    return sum(float((g.double() * s).square().sum()) for g, s in zip(gradient, scales, strict=True))


def cosine(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], scales: Sequence[torch.Tensor]) -> float:
    """Cosine of two gradients in units of scales; 0 where one of them is zero.

    Args:
        a, b: one tensor [...] for each parameter.
        scales: of the parameters, 0-d.
    """
    x, y = (torch.cat([(g.double() * s).flatten() for g, s in zip(v, scales, strict=True)]) for v in (a, b))
    return float(torch.cosine_similarity(x, y, dim=0, eps=0).nan_to_num())


def agreement(
    gradient: Sequence[torch.Tensor], deltas: Sequence[Mapping[str, torch.Tensor]], rises: Sequence[float]
) -> float:
    """Cosine over pairs of the slopes that a gradient predicts and those that were measured; 0 where one is zero.

    Args:
        gradient: one tensor [...] for each parameter, of its shape.
        deltas: direction of each pair, {parameter: change}, in the same order of parameters.
        rises: measured slope along each direction.

    >>> pairs = [{"theta": torch.tensor([1.0, 0.0])}, {"theta": torch.tensor([0.0, 1.0])}]
    >>> round(agreement([torch.tensor([3.0, 4.0])], pairs, [3.0, 0.0]), 12)
    0.6
    """
    predicted = [
        sum(float((g.double() * d).sum()) for g, d in zip(gradient, delta.values(), strict=True)) for delta in deltas
    ]
    p, r = math.hypot(*predicted), math.hypot(*rises)
    if not 0 < p * r < math.inf:
        return 0.0
    return math.fsum(a / p * b / r for a, b in zip(predicted, rises, strict=True))


def agreement_error(value: float, pairs: float) -> float:
    """Standard error of an agreement from that many pairs; 1, the largest cosine, for fewer than two."""
    return math.sqrt(max(0.0, 1 - value**2) / (pairs - 1)) if pairs >= 2 else 1.0
