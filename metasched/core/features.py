"""What a schedule may know of a task: a few numbers that exist for any network and any run, bounded.

    phi = tanh((x - centre) / spread),    0 where x is not known

A number far from those that were seen in learning changes a schedule no further than its bound: a linear map of the
logarithm of the depth, for one, gives windows for very deep networks that are far too short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from metasched.core.layer import Layer


@dataclass(frozen=True)
class Feature:
    """One number of a task.

    Attributes:
        name: its name in files.
        centre, spread: x is counted from the centre, in units of the spread.
        about: what x is.
    """

    name: str
    centre: float
    spread: float
    about: str


FEATURES = (
    Feature("horizon", 2.0, 0.5, "log10 of the training steps"),
    Feature("layers", 0.8, 0.4, "log10 of the number of scheduled layers"),
    Feature("batches_per_epoch", 1.5, 0.7, "log10 of the batches in one pass of the training data"),
    Feature("rate", -2.0, 0.5, "log10 of the largest learning rate"),
    Feature("width", 1.2, 0.5, "log10 of the median number of outputs of a layer"),
    Feature("conv", 0.5, 0.5, "share of convolutions among the layers"),
    Feature("pretrained", 0.5, 0.5, "1 if training starts from a pretrained network, 0 if from scratch"),
    Feature("bits", 2.0, 1.0, "mean bits of the weights of a layer, each at most 8"),
)
FEATURE_NAMES = tuple(feature.name for feature in FEATURES)


def features_of(
    layers: Sequence[Layer],
    steps: int,
    *,
    rate: float | None = None,
    batches_per_epoch: float | None = None,
    pretrained: bool | None = None,
) -> dict[str, float]:
    """The features of a task, {name: x}; those that are not given are left out.

    Args:
        layers: the scheduled layers of the network, at least one.
        steps: T, training steps.
        rate: the largest learning rate.
        batches_per_epoch: training examples over the examples of a batch.
        pretrained: whether training starts from a pretrained network.

    >>> layer = Layer("fc", 0.0, "linear", "weight", fan_in=10, num_weights=1000, bits=1.585)
    >>> features_of([layer], 100, rate=0.01)["horizon"], features_of([layer], 100, rate=0.01)["rate"]
    (2.0, -2.0)
    """
    assert layers and steps >= 1
    found = {
        "horizon": math.log10(steps),
        "layers": math.log10(len(layers)),
        "width": math.log10(max(1.0, median(layer.num_weights / layer.fan_in for layer in layers))),
        "conv": fmean(layer.kind == "conv" for layer in layers),
        "bits": fmean(min(8.0, layer.bits) for layer in layers),
    }
    if rate is not None and rate > 0:
        found["rate"] = math.log10(rate)
    if batches_per_epoch is not None and batches_per_epoch > 0:
        found["batches_per_epoch"] = math.log10(batches_per_epoch)
    if pretrained is not None:
        found["pretrained"] = float(pretrained)
    return found


def bounded(features: Mapping[str, float]) -> list[float]:
    """The bounded phi of all features in the order of ``FEATURES``, each in (-1, 1).

    >>> bounded({"horizon": 2.0})
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    assert features.keys() <= set(FEATURE_NAMES), features
    return [math.tanh((features[f.name] - f.centre) / f.spread) if f.name in features else 0.0 for f in FEATURES]
