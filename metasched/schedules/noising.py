"""Hand-coded schedules of ``quant_noise``: the share of weights and of activations that is quantized in a step.

    quant_noise_int8            0.5 for both until the last step, then 1       (fairseq, scalar quantization)
    quant_noise_pq              0.1 of the weights until the last step         (fairseq, product quantization)
    quant_noise_linear, ...     ramps from 0 to 1 for both
    quant_noise_constant        1 throughout: no schedule

The authors' shares hold until the end of training, and the network is quantized as a whole afterwards: here that is the
last step. In ``quant_noise_pq`` activations are quantized from the first step on; the authors' are float.
"""

from __future__ import annotations

from functools import partial

from metasched.schedules.curves import RAMPS, Curve, HandCoded, constant, rising, steps
from metasched.schedules.interpolation import Interpolation
from metasched.schedules.published import RAMP_CITATIONS

QUANT_NOISE = (
    "Fan, Stock, Graham, Grave, Gribonval, Jegou, Joulin: Training with Quantization Noise for Extreme Model "
    "Compression. ICLR 2021, arXiv 2004.07320; facebookresearch/fairseq, examples/quant_noise/README.md"
)
_NONE: Curve = partial(constant, value=1.0)


def quant_noise() -> list[HandCoded]:
    """The constants of the authors' examples, ramps, and none."""
    return [
        _schedule("int8", f"{QUANT_NOISE}, quant-noise-scalar 0.5", _until_the_end(0.5), jumps=(1.0,)),
        _schedule(
            "pq",
            f"{QUANT_NOISE}, quant-noise-pq 0.1, of 0.05 to 0.2; with method.noise_block 8",
            _until_the_end(0.1),
            _NONE,
            jumps=(1.0,),
        ),
        *(_schedule(name, RAMP_CITATIONS[name], partial(rising, ramp=name), interpolation="linear") for name in RAMPS),
        _schedule("constant", "all quantized from the first step on: no schedule", _NONE, interpolation="linear"),
    ]


def _until_the_end(share: float) -> Curve:
    return partial(steps, times=(1.0,), values=(share, 1.0))


def _schedule(
    name: str,
    citation: str,
    weights: Curve,
    activations: Curve | None = None,
    interpolation: Interpolation = "previous",
    jumps: tuple[float, ...] = (),
) -> HandCoded:
    curves = {"weight_share": weights, "activation_share": activations or weights}
    return HandCoded(f"quant_noise_{name}", "quant_noise", citation, curves, interpolation, jumps)
