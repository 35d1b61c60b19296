"""The published schedules of ANA and INQ, and the constants and ramps that they are compared with.

ANA (controls ``weight_noise``, ``activation_noise``, ``noise_mean``). The papers have one noise for the weight and the
activation of a layer: both controls have the same curve. For layer l of N, l = 0 at the input, a run has N + 3 periods
and

    noise = 0.5 ((e - u) / (e - s))^(2 b),    noise_mean = m ((e - u) / (e - s))^b,    u clipped to [s, e]

with m = 0 (static) or -0.5 (dynamic), b = 1 (homogeneous) or N - l (progressive), and the window [s, e] in periods

    overlapped [0, N]    same_start [0, l + 1]    same_end [N - l - 1, N]    partition [l, l + 1]

The paper's run has N = 7 and 50 epochs per period: u = epoch / 500. ``noise`` is the half-width of the noise in quanta,
so that 0.5 is the paper's initial value for all four noise families.

INQ (control ``freeze_fraction``). The n accumulated portions take effect at u = k / n, k = 1..n: each step of INQ has
an equal share of the run. The first share replaces the pretraining of the paper; the last portion takes effect at the
last step, as in the authors' AlexNet solver, whose last step runs one iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from metasched.schedules.curves import RAMPS, Curve, HandCoded, Window, bounded_window, constant, falling, rising, steps

ANA_2022 = (
    "Spallanzani, Leonardi, Benini: Training Quantised Neural Networks with STE Variants: the Additive Noise Annealing "
    "Algorithm. CVPR 2022, pp. 470-479, arXiv 2203.11323; pulp-platform/quantlab, "
    "systems/CIFAR10/VGG/doe/anacifar10vgg8.py"
)
ANA_2019 = (
    "Spallanzani, Cavigelli, Leonardi, Bertogna, Benini: Additive Noise Annealing and Approximation Properties of "
    "Quantized Neural Networks. 2019, arXiv 1905.10452; spallanzanimatteo/QuantLab, CIFAR-10/config.json"
)
INQ = (
    "Zhou, Yao, Guo, Xu, Chen: Incremental Network Quantization: Towards Lossless CNNs with Low-Precision Weights. "
    "ICLR 2017, arXiv 1702.03044"
)
RAMP_CITATIONS: dict[str, str] = {
    "linear": "linear ramp, not from a paper",
    "cosine": "cosine ramp of Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts. ICLR 2017, "
    "arXiv 1608.03983",
    "cubic": "cubic ramp of Zhu, Gupta: To prune, or not to prune: exploring the efficacy of pruning for model "
    "compression. 2017, arXiv 1710.01878",
    "input_first": "linear ramp over half of the run, staggered from input to output, not from a paper",
    "output_first": "linear ramp over half of the run, staggered from output to input, not from a paper",
}

START = 0.5  # quanta: half the distance between two levels

NO_MEAN: Curve = partial(constant, value=0.0)
STATIC_NOISE: Curve = partial(steps, times=(1.0,), values=(START, 0.0))  # 0 at the last step
CONSTANTS = {"075": 0.75, "085": 0.85, "100": 1.0}  # wider half-widths, in quanta: the published 0.5 is too narrow

_INTERVALS: dict[str, Callable[[int, int], tuple[int, int]]] = {  # (l, N) -> periods of start and end
    "overlapped": lambda layer, num_layers: (0, num_layers),
    "same_start": lambda layer, num_layers: (0, layer + 1),
    "same_end": lambda layer, num_layers: (num_layers - layer - 1, num_layers),
    "partition": lambda layer, num_layers: (layer, layer + 1),
}
_POWERS: dict[str, Callable[[int, int], int]] = {  # (l, N) -> b
    "homogeneous": lambda layer, num_layers: 1,
    "progressive": lambda layer, num_layers: num_layers - layer,
}
_MEANS: dict[str, float] = {"static": 0.0, "dynamic": -0.5}


def both_noises(curve: Curve) -> dict[str, Curve]:
    """One curve, with values [T, L] in quanta, for the noise of weights and for that of activations."""
    return {"weight_noise": curve, "activation_noise": curve}


def ana_windows(num_layers: int, *, interval: str, power: str, factor: int) -> list[Window]:
    """One window per layer in the 2022 design, for the mean (factor 1) or the scale (factor 2) of the noise.

    >>> ana_windows(7, interval="partition", power="progressive", factor=2)[0]
    Window(start=0.0, end=0.1, power=14)
    """
    periods = num_layers + 3
    windows = []
    for layer in range(num_layers):
        start, end = _INTERVALS[interval](layer, num_layers)
        windows.append(Window(start / periods, end / periods, factor * _POWERS[power](layer, num_layers)))
    return windows


def ana_2019_windows(num_layers: int) -> list[Window]:
    """One window per layer in the 2019 design: one period each, with an empty period after that of the input layer.

    In periods, layer 0 starts at 0 and layer l >= 1 at l + 1; a run has 2 (N + 1) periods. The paper's CIFAR-10
    network has N = 9 and 50 epochs a period: starts 0, 100, 150, ..., 450 of 1000 epochs.
    """
    periods = 2 * (num_layers + 1)
    starts = [0, *range(2, num_layers + 1)]
    return [Window(start / periods, (start + 1) / periods, 1) for start in starts]


def ana() -> list[HandCoded]:
    """ANA's schedules: 16 of the 2022 design, that of 2019, static noise, constants and ramps."""
    design = [_ana_2022(interval, power, mean) for interval in _INTERVALS for power in _POWERS for mean in _MEANS]
    backward = "; forward noise only: the paper keeps the backward noise at 0.5, which needs method.backward: fixed"
    forward = "; static variance, which the authors keep for mode and random forward only"
    return [
        *design,
        _ana("ana_2019", ANA_2019 + backward, scale=partial(bounded_window, beta=START, windows=ana_2019_windows)),
        HandCoded(
            "ana_static",
            "ana",
            ANA_2022 + forward,
            {**both_noises(STATIC_NOISE), "noise_mean": NO_MEAN},
            "previous",
            (1.0,),
        ),
        *(_constant(name, half_width) for name, half_width in CONSTANTS.items()),
        *(_ana(f"ana_{ramp}", RAMP_CITATIONS[ramp], scale=partial(falling, ramp=ramp, start=START)) for ramp in RAMPS),
    ]


def inq() -> list[HandCoded]:
    """INQ's schedules: four sets of accumulated portions, and the ramps."""
    resnet = f"{INQ}; portions from Mxbonn/INQ-pytorch, issue 11"
    # epoch -> fraction in a run of 130 epochs
    dvs128 = {5: 0.2, 15: 0.4, 30: 0.6, 45: 0.8, 60: 0.9, 75: 0.95, 90: 0.975, 105: 1.0}
    return [
        _portions(
            "inq_alexnet_5bit",
            f"{INQ}; portions from AojunZhou/Incremental-Network-Quantization, examples/INQ/alexnet",
            *_equal_shares(0.3, 0.6, 0.8, 1.0),
        ),
        _portions("inq_resnet18_4bit", resnet, *_equal_shares(0.3, 0.5, 0.8, 0.9, 0.95, 1.0)),
        _portions("inq_resnet18_2bit", resnet, *_equal_shares(0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0)),
        _portions(
            "inq_dvs128",
            "pulp-platform/quantlab, systems/DVS128/dvs_cnn/config.inq.json (ternary CNN and TCN, 130 epochs); "
            f"algorithm: {INQ}",
            tuple(epoch / 130 for epoch in dvs128),
            tuple(dvs128.values()),
        ),
        *(
            HandCoded(
                f"inq_{ramp}", "inq", RAMP_CITATIONS[ramp], {"freeze_fraction": partial(rising, ramp=ramp)}, "linear"
            )
            for ramp in RAMPS
        ),
    ]


def _ana_2022(interval: str, power: str, mean: str) -> HandCoded:
    windows = partial(ana_windows, interval=interval, power=power)
    return _ana(
        f"ana_{interval}_{power}_{mean}",
        ANA_2022,
        scale=partial(bounded_window, beta=START, windows=partial(windows, factor=2)),
        mean=partial(bounded_window, beta=_MEANS[mean], windows=partial(windows, factor=1)),
    )


def _ana(name: str, citation: str, scale: Curve, mean: Curve = NO_MEAN) -> HandCoded:
    return HandCoded(name, "ana", citation, {**both_noises(scale), "noise_mean": mean}, "linear")


def _constant(name: str, half_width: float) -> HandCoded:
    noise = partial(steps, times=(1.0,), values=(half_width, 0.0))
    return HandCoded(
        f"ana_constant_{name}",
        "ana",
        f"noise of constant half-width {half_width:g} quanta until the last step, not from a paper",
        {**both_noises(noise), "noise_mean": NO_MEAN},
        "previous",
        (1.0,),
    )


def _equal_shares(*fractions: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Times k / n of n accumulated portions, and the portions."""
    return tuple((k + 1) / len(fractions) for k in range(len(fractions))), fractions


def _portions(name: str, citation: str, times: tuple[float, ...], fractions: tuple[float, ...]) -> HandCoded:
    curve = partial(steps, times=times, values=(0.0, *fractions))
    return HandCoded(name, "inq", citation, {"freeze_fraction": curve}, "previous", times)
