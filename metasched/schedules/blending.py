"""Hand-coded schedules of ``blend``: a curve from 0 to 1 for ``weight_blend`` and ``activation_blend``.

Both have the same curve, except in ``blend_binary_relax`` and ``blend_alpha_blending``, whose activations are hard
throughout. With progress u, the relative depth d of a layer, and clip to [0, 1]:

    blend_bitnet         clip(5 u): over 1,000 of 5,000 steps            (1.58-bit fine-tuning)
    blend_half           clip(2 u)                                       (the same, an earlier run)
    blend_linear         u                                               (the same, the first try)
    blend_sigmoid_k      1 / (1 + exp(-k (u - 1/2))), k = 15, 100        (the same)
    blend_late           a jump at u = 1/2: 1,000 of 2,000 steps         (torchtune)
    blend_onset          clip((u - 0.09 - 0.38 d) / 0.28)                (found by random search, for this package)
    blend_binary_relax   r / (1 + r), r = 1.04^(200 u), and 1 from 3/4   (BinaryRelax: 150 of 200 epochs)
    blend_alpha_blending 1 - (1 - u)^3 for weights, activations hard        (alpha-blending; exponent of QKeras)
    blend_constant       1 throughout: STE

We differ: numbers of steps are shares of the run here. The authors' sigmoids miss 0 and 1 by 6e-4 for k = 15; ours are
stretched to both, and the steps of the sigmoid are those of the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.curves import RAMPS, Curve, HandCoded, constant, rising, steps
from metasched.schedules.published import RAMP_CITATIONS

BITNET = (
    "Fine-tuning LLMs to 1.58bit: extreme quantization made easy. Hugging Face blog, 2024, "
    "huggingface.co/blog/1_58_llm_extreme_quantization"
)
LATE = (
    "torchtune, fake_quant_after_n_steps: 1000 of 2000 steps in docs/source/tutorials/qat_finetune.rst; also "
    "axolotl-ai-cloud/axolotl, pull request 2590"
)
BINARY_RELAX = (
    "Yin, Zhang, Lyu, Osher, Qi, Xin: BinaryRelax: A Relaxation Approach for Training Deep Neural Networks with "
    "Quantized Weights. SIAM Journal on Imaging Sciences 11(4), 2018, arXiv 1801.06313; penhunt/binaryrelax, "
    "VGG11-Cifar10.ipynb"
)
ALPHA_BLENDING = (
    "Liu, Mattina: Learning low-precision neural networks without Straight-Through Estimator (STE). IJCAI 2019, arXiv "
    "1903.01061; exponent of google/qkeras, QNoiseScheduler; with method.weight_gradient float"
)
ONSET = "found by random search for this package, on the digits with nine convolutions and learned scales; no paper"
_ONSET = {"start": 0.09, "delay": 0.38, "length": 0.28}


def ramp(
    progress: torch.Tensor, layers: Sequence[Layer], *, start: float = 0.0, delay: float = 0.0, length: float
) -> torch.Tensor:
    """clip((u - start - delay d) / length, 0, 1) at progress u [T] and relative depth d: [T, L].

    Args:
        progress: [T] in [0, 1].
        layers: L of them; their depth counts.
        start: progress at which the first layer begins.
        delay: how much later the last layer begins.
        length: of each layer's ramp, > 0; start + delay + length <= 1.

    >>> ramp(torch.tensor([0.0, 0.25, 0.5, 1.0]), [Layer("a", 1.0, "conv", "weight", 9, 9, 1.0)], length=0.5).tolist()
    [[0.0], [0.5], [1.0], [1.0]]
    """
    depths = progress.new_tensor([layer.depth for layer in layers])
    return ((progress[:, None] - start - delay * depths) / length).clamp(0, 1)


def sigmoid(progress: torch.Tensor, layers: Sequence[Layer], *, steepness: float) -> torch.Tensor:
    """The sigmoid of k (u - 1/2), stretched to go from 0 to 1: [T, L] at progress u [T], equal in all layers.

    It is (1 + tanh(k (u - 1/2) / 2) / tanh(k / 4)) / 2, for the steepness k > 0.
    """
    share = (1 + torch.tanh(steepness * (progress - 0.5) / 2) / math.tanh(steepness / 4)) / 2
    exact = torch.where((progress > 0) & (progress < 1), share, progress)  # the ends, to the last bit
    return exact[:, None].repeat(1, len(layers))


def binary_relax(
    progress: torch.Tensor, layers: Sequence[Layer], *, growth: float, epochs: int, relaxed: float
) -> torch.Tensor:
    """The share r / (1 + r) of Q(w) in BinaryRelax's mixture (w + r Q(w)) / (1 + r).

    Args:
        progress: u [T] in [0, 1].
        layers: L of them; all have the same values.
        growth: of r in an epoch; r = growth^(epochs u) starts at 1.
        epochs: of the whole run.
        relaxed: progress from which on the share is 1.

    Returns:
        [T, L] in the dtype of ``progress``.
    """
    ratio = torch.exp(epochs * math.log(growth) * progress)
    share = torch.where(progress < relaxed, ratio / (1 + ratio), 1.0)
    return share[:, None].repeat(1, len(layers))


def blend() -> list[HandCoded]:
    """The schedules of the method ``blend``: published warm-ups, a late start, an onset by layer, ramps, the floor."""
    warm_up = f"{BITNET}; lambda"
    others = [name for name in RAMPS if name != "linear"]
    return [
        _both("bitnet", f"{warm_up} = min(step / 1000, 1) in runs of 5000 steps", partial(ramp, length=0.2)),
        _both("half", f"{warm_up} = min(2 step / steps, 1)", partial(ramp, length=0.5)),
        _both("linear", f"{warm_up} = step / steps", partial(rising, ramp="linear")),
        *(_sigmoid(k) for k in (15, 100)),
        HandCoded(
            "blend_late",
            "blend",
            LATE,
            dict.fromkeys(("weight_blend", "activation_blend"), partial(steps, times=(0.5,), values=(0.0, 1.0))),
            "previous",
            (0.5,),
        ),
        HandCoded(
            "blend_binary_relax",
            "blend",
            BINARY_RELAX,
            {
                "weight_blend": partial(binary_relax, growth=1.04, epochs=200, relaxed=0.75),
                "activation_blend": partial(constant, value=1.0),
            },
            "linear",
            (0.75,),
        ),
        HandCoded(
            "blend_alpha_blending",
            "blend",
            ALPHA_BLENDING,
            {"weight_blend": partial(rising, ramp="cubic"), "activation_blend": partial(constant, value=1.0)},
            "linear",
        ),
        _both("onset", ONSET, partial(ramp, **_ONSET)),
        _both("constant", "hard from the first step, as the straight-through estimator", partial(constant, value=1.0)),
        *(_both(name, RAMP_CITATIONS[name], partial(rising, ramp=name)) for name in others),
    ]


def _sigmoid(k: int) -> HandCoded:
    citation = f"{BITNET}; lambda = sigmoid({k} (step / steps - 0.5))"
    return _both(f"sigmoid_{k}", citation, partial(sigmoid, steepness=float(k)))


def _both(name: str, citation: str, curve: Curve) -> HandCoded:
    return HandCoded(f"blend_{name}", "blend", citation, {"weight_blend": curve, "activation_blend": curve}, "linear")
