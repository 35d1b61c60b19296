"""Hand-coded schedules of temperatures and inverse slopes, which fall to 0, where the quantizer is hard.

Hestia, with its temperature tau_0 = 0.351, at which the softmax over {-1, 0, 1} is nearest to the identity:

    weight_blend         clip(5 u)
    weight_temperature   tau_0 for u < 1/5, then tau_0 (1 + cos(pi (u - 1/5) / (4/5))) / 2

Its factor for the temperature of each layer l, from the traces Tr_l of the Hessian (training/curvature.py),

    exp(-alpha sigmoid(kappa z_l)),   z_l = (log max(Tr_l, 1e-8) - mean) / (standard deviation + 1e-8),   kappa = 1

is in ``hestia_hessian``: sensitive layers are colder. alpha = 0.4 is the best of the authors' ablation.

Activations, which Hestia does not quantize, are those of STE in ``temperature_hestia``; the others treat both alike.

PARQ, ``parq_sigmoid_k``: one minus the sigmoid of k (u - 1/2), stretched to go from 1 to 0. The library's steepness is
k = 10; it leaves the window to its user, ours is the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.blending import ramp, sigmoid
from metasched.schedules.curves import Curve, HandCoded, constant, cosine_after, falling, in_layers, steps
from metasched.schedules.interpolation import Interpolation
from metasched.schedules.published import RAMP_CITATIONS

HESTIA = (
    "Wang, Wang, Lv, Zong, Yang: Hestia: A Hessian-Guided Differentiable Quantization-Aware Training Framework for "
    "Extremely Low-Bit LLMs. 2026, arXiv 2601.20745; hestia2026/Hestia, configs/quant_example.yaml"
)
PARQ = (
    "Jin, Ma, Liu, Gromov, Defazio, Xiao: PARQ: Piecewise-Affine Regularized Quantization. ICML 2025, "
    "arXiv 2503.15748; torchao, prototype/parq"
)
NEAREST = 0.351  # temperature at which the softmax over {-1, 0, 1} is nearest to the identity
_STE = "hard from the first step: the straight-through estimator"
_BLENDED = 0.2
ALPHA = 0.4
_SMALLEST = 1e-8  # of a trace, and added to the standard deviation, as in the authors' code
_WITHOUT_FACTOR = "without its factor for each tensor from the Hessian"
_HESTIA: dict[str, Curve] = {
    "weight_temperature": partial(cosine_after, onset=_BLENDED, before=NEAREST, start=NEAREST, end=0.0),
    "weight_blend": partial(ramp, length=_BLENDED),
    "activation_temperature": partial(constant, value=0.0),
}


def mirrored_sigmoid(progress: torch.Tensor, layers: Sequence[Layer], *, steepness: float) -> torch.Tensor:
    """One minus the stretched sigmoid of k (u - 1/2): from 1 to 0, [T, L] at progress u [T], equal in all layers."""
    return 1 - sigmoid(progress, layers, steepness=steepness)


def sensitivity_factors(traces: Sequence[float], alpha: float = ALPHA, kappa: float = 1.0) -> tuple[float, ...]:
    """Hestia's factor of each layer, in (exp(-alpha), 1) for alpha > 0, from the traces of its Hessian.

    >>> [round(factor, 4) for factor in sensitivity_factors([1.0, 100.0])]
    [0.898, 0.7465]
    """
    logs = [math.log(max(trace, _SMALLEST)) for trace in traces]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))
    scores = [1 / (1 + math.exp(-kappa * (x - mean) / (deviation + _SMALLEST))) for x in logs]
    return tuple(math.exp(-alpha * score) for score in scores)


def hestia_hessian(traces: Sequence[float]) -> HandCoded:
    """Hestia's schedule with its factor for each layer, for a network whose layers have these traces."""
    curves = dict(_HESTIA)
    name, factors = "weight_temperature", sensitivity_factors(traces)
    curves[name] = partial(in_layers, curve=curves[name], factors=factors)
    how = f"{HESTIA}; with its factor from the Hessian, alpha = {ALPHA:g} of response/alpha_ablation.md, kappa = 1"
    return HandCoded("temperature_hestia_hessian", "temperature", how, curves, "linear")


def temperature() -> list[HandCoded]:
    """The schedules of the method ``temperature``: Hestia's, ramps, a constant, and none, which is STE."""
    until_the_end = partial(steps, times=(1.0,), values=(NEAREST, 0.0))
    kept = f"temperature of {NEAREST:g} until the last step, not from a paper"
    return [
        HandCoded("temperature_hestia", "temperature", f"{HESTIA}; {_WITHOUT_FACTOR}", _HESTIA, "linear"),
        *(
            _both(name, RAMP_CITATIONS[name], partial(falling, ramp=name, start=NEAREST), "linear")
            for name in ("linear", "cosine", "input_first")
        ),
        _both("constant", kept, until_the_end, "previous", (1.0,)),
        _both("none", _STE, partial(constant, value=0.0), "linear"),
    ]


def parq() -> list[HandCoded]:
    """The schedules of the method ``parq``: sigmoids, a line, and none, which is STE."""
    curves: dict[str, tuple[str, Curve]] = {
        **{f"sigmoid_{k}": (PARQ, partial(mirrored_sigmoid, steepness=float(k))) for k in (1, 10, 20)},
        "linear": (RAMP_CITATIONS["linear"], partial(falling, ramp="linear", start=1.0)),
        "none": (_STE, partial(constant, value=0.0)),
    }
    return [
        HandCoded(f"parq_{name}", "parq", citation, {"inverse_slope": curve}, "linear")
        for name, (citation, curve) in curves.items()
    ]


def _both(
    name: str, citation: str, curve: Curve, interpolation: Interpolation, jumps: tuple[float, ...] = ()
) -> HandCoded:
    """One curve for both temperatures, and the weights blended from the first step."""
    curves = {
        "weight_temperature": curve,
        "weight_blend": partial(constant, value=1.0),
        "activation_temperature": curve,
    }
    return HandCoded(f"temperature_{name}", "temperature", citation, curves, interpolation, jumps)
