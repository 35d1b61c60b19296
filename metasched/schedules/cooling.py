"""Cooling: hand-coded schedules of the ``temperature`` of methods whose weights jump between states.

GXNOR's temperature is the learning rate of its discrete weights relative to that of the optimizer. In the authors' code
the rate decays geometrically over E epochs:

    cifar10   (3e-5 / 0.01)^u, and times 0.1 from epoch 1000 of 2000 on, and again from epoch 1600 on
    mnist     (1e-7 / 0.1)^u,  u = epoch / E

Simulated annealing, for Metropolis, from T_0 = 1 to T_1 = 0.01; the unit is the mean change of the loss by one quantum:

    geometric     T_0 (T_1 / T_0)^u                             (Kirkpatrick et al., 1983)
    logarithmic   T_0 ln 2 / ln(2 + 100 u): down to 0.15 T_0     (Geman and Geman, 1984, for 100 sweeps)
    restarts      four geometric coolings, one after the other
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.curves import RAMPS, Curve, HandCoded, constant, falling
from metasched.schedules.published import RAMP_CITATIONS

GXNOR_NET = (
    "Deng, Jiao, Pei, Wu, Li: GXNOR-Net: Training deep neural networks with ternary weights and activations without "
    "full-precision memory under a unified discretization framework. Neural Networks 100:49-58, 2018, arXiv 1705.09283"
)
KIRKPATRICK = "Kirkpatrick, Gelatt, Vecchi: Optimization by Simulated Annealing. Science 220:671-680, 1983"
GEMAN = (
    "Geman, Geman: Stochastic Relaxation, Gibbs Distributions, and the Bayesian Restoration of Images. IEEE PAMI "
    "6:721-741, 1984"
)
METROPOLIS = (
    "Metropolis, Rosenbluth, Rosenbluth, Teller, Teller: Equation of State Calculations by Fast Computing Machines. "
    "J. Chem. Phys. 21:1087-1092, 1953"
)
_START, _END = 1.0, 0.01
_SWEEPS = 100.0
_CYCLES = 4


def geometric(
    progress: torch.Tensor, layers: Sequence[Layer], *, start: float, end: float, drops: Sequence[float] = ()
) -> torch.Tensor:
    """Geometric decay start (end / start)^u, and a further factor 0.1 from each progress in ``drops`` on.

    Args:
        progress: u [T] in [0, 1].
        layers: L of them; all have the same values.
        start, end: values at u = 0 and, before the drops, at u = 1; both > 0.
        drops: progress of the drops, increasing.

    Returns:
        [T, L] in the dtype of ``progress``.

    >>> geometric(torch.tensor([0.0, 0.5, 1.0]), [None], start=1.0, end=0.25, drops=(1.0,)).flatten().tolist()
    [1.0, 0.5, 0.025]
    """
    passed = torch.bucketize(progress, progress.new_tensor(drops), right=True)
    factors = progress.new_tensor([10.0**-k for k in range(len(drops) + 1)])
    return _all_layers(start * torch.exp(math.log(end / start) * progress) * factors[passed], layers)


def logarithmic(progress: torch.Tensor, layers: Sequence[Layer], *, start: float) -> torch.Tensor:
    """Logarithmic decay start ln 2 / ln(2 + 100 u), at progress u [T] in [0, 1]; [T, L], equal in all layers."""
    return _all_layers(start * math.log(2) / torch.log(2 + _SWEEPS * progress), layers)


def restarts(progress: torch.Tensor, layers: Sequence[Layer], *, start: float, end: float, cycles: int) -> torch.Tensor:
    """``geometric`` from start to end in each of ``cycles`` equal parts of the run: [T, L] at progress [T]."""
    through = progress * cycles
    return geometric(through - through.floor().clamp_max(cycles - 1), layers, start=start, end=end)


def gxnor() -> list[HandCoded]:
    """GXNOR's schedules: the learning-rate annealing of the authors' code, a constant rate, and the ramps."""
    code = f"{GXNOR_NET}; learning rates from AcrossV/Gated-XNOR"
    drops = (0.5, 0.8)
    cifar10 = partial(geometric, start=1.0, end=3e-5 / 0.01, drops=drops)
    return [
        _cooled("gxnor_cifar10", "gxnor", f"{code}, cifar10_GXNOR.py: 0.01 to 3e-5 over 2000 epochs", cifar10, drops),
        _cooled(
            "gxnor_mnist",
            "gxnor",
            f"{code}, MNIST: 0.1 to 1e-7 over 4000 epochs",
            partial(geometric, start=1.0, end=1e-7 / 0.1),
        ),
        _cooled("gxnor_constant", "gxnor", f"{GXNOR_NET}; without annealing", partial(constant, value=1.0)),
        *_ramps("gxnor"),
    ]


def metropolis() -> list[HandCoded]:
    """Metropolis' schedules: two constant temperatures, the coolings of simulated annealing, and the ramps."""
    ends = {"start": _START, "end": _END}
    jumps = tuple((k + 1) / _CYCLES for k in range(_CYCLES - 1))
    return [
        _cooled("metropolis_constant", "metropolis", METROPOLIS, partial(constant, value=_START)),
        _cooled("metropolis_cold", "metropolis", f"{METROPOLIS}; hardly ever uphill", partial(constant, value=_END)),
        _cooled("metropolis_geometric", "metropolis", KIRKPATRICK, partial(geometric, **ends)),
        _cooled("metropolis_logarithmic", "metropolis", GEMAN, partial(logarithmic, start=_START)),
        _cooled(
            "metropolis_restarts",
            "metropolis",
            f"{KIRKPATRICK}; four coolings in a row",
            partial(restarts, **ends, cycles=_CYCLES),
            jumps,
        ),
        *_ramps("metropolis"),
    ]


def _ramps(family: str) -> list[HandCoded]:
    return [
        _cooled(f"{family}_{ramp}", family, RAMP_CITATIONS[ramp], partial(falling, ramp=ramp, start=_START))
        for ramp in RAMPS
    ]


def _cooled(name: str, family: str, citation: str, curve: Curve, jumps: tuple[float, ...] = ()) -> HandCoded:
    return HandCoded(name, family, citation, {"temperature": curve}, "linear", jumps)


def _all_layers(values: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    return values[:, None].repeat(1, len(layers))
