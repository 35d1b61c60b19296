"""Hand-coded schedules of ``rounding``: how often weights and activations are rounded at random.

    rounding_stochastic     1 for both until the last step, then 0         (Gupta et al.)
    rounding_weights        the same for weights, activations 0            (BinaryConnect)
    rounding_linear, ...    ramps from 1 to 0 for both
    rounding_nearest        0 throughout: STE, no schedule

The authors round at random until training ends; the network is then quantized to the nearest levels, here in the last
step.
"""

from __future__ import annotations

from functools import partial

from metasched.schedules.curves import RAMPS, Curve, HandCoded, constant, falling, steps
from metasched.schedules.interpolation import Interpolation
from metasched.schedules.published import RAMP_CITATIONS

GUPTA = (
    "Gupta, Agrawal, Gopalakrishnan, Narayanan: Deep Learning with Limited Numerical Precision. ICML 2015, arXiv "
    "1502.02551"
)
BINARY_CONNECT = (
    "Courbariaux, Bengio, David: BinaryConnect: Training Deep Neural Networks with binary weights during propagations. "
    "NeurIPS 2015, arXiv 1511.00363, stochastic binarization; with method.levels binary"
)
_UNTIL_THE_END: Curve = partial(steps, times=(1.0,), values=(1.0, 0.0))
_NEAREST: Curve = partial(constant, value=0.0)


def rounding() -> list[HandCoded]:
    """Stochastic until the end, as published, ramps, and none."""
    return [
        _schedule("stochastic", GUPTA, _UNTIL_THE_END, _UNTIL_THE_END, "previous", (1.0,)),
        _schedule("weights", BINARY_CONNECT, _UNTIL_THE_END, _NEAREST, "previous", (1.0,)),
        *(_ramp(name) for name in RAMPS),
        _schedule("nearest", "always to the nearest level: the straight-through estimator", _NEAREST, _NEAREST),
    ]


def _ramp(name: str) -> HandCoded:
    curve: Curve = partial(falling, ramp=name, start=1.0)
    return _schedule(name, RAMP_CITATIONS[name], curve, curve)


def _schedule(
    name: str,
    citation: str,
    weights: Curve,
    activations: Curve,
    interpolation: Interpolation = "linear",
    jumps: tuple[float, ...] = (),
) -> HandCoded:
    curves = {"weight_randomness": weights, "activation_randomness": activations}
    return HandCoded(f"rounding_{name}", "rounding", citation, curves, interpolation, jumps)
