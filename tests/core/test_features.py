from __future__ import annotations

import math

import pytest

from metasched.core.features import FEATURE_NAMES, FEATURES, bounded, features_of
from metasched.core.layer import Layer

LAYERS = [
    Layer("conv", 0.0, "conv", "weight+activation", fan_in=9, num_weights=9 * 8, bits=2.0),
    Layer("middle", 0.5, "conv", "weight+activation", fan_in=72, num_weights=72 * 32, bits=2.0),
    Layer("fc", 1.0, "linear", "weight", fan_in=128, num_weights=128 * 100, bits=32.0),
]


def test_each_feature_is_what_its_description_says() -> None:
    found = features_of(LAYERS, 1000, rate=0.1, batches_per_epoch=10.0, pretrained=True)
    wanted = {"horizon": 3, "layers": math.log10(3), "batches_per_epoch": 1, "rate": -1, "width": math.log10(32)}
    assert found == pytest.approx({**wanted, "conv": 2 / 3, "pretrained": 1, "bits": (2 + 2 + 8) / 3})
    assert set(found) == set(FEATURE_NAMES)


def test_a_feature_that_is_not_known_is_that_of_the_mean_task() -> None:
    some = features_of(LAYERS, 1000)
    assert set(some) == set(FEATURE_NAMES) - {"rate", "batches_per_epoch", "pretrained"}
    centres = {f.name: f.centre for f in FEATURES if f.name not in some}
    assert bounded(some) == bounded({**some, **centres})


@pytest.mark.parametrize("value", [-1e9, 1e9])
def test_features_are_bounded_wherever_a_task_lies(value: float) -> None:
    assert all(abs(phi) <= 1 for phi in bounded(dict.fromkeys(FEATURE_NAMES, value)))
    at = FEATURES[3]
    assert bounded({at.name: at.centre + at.spread})[3] == pytest.approx(math.tanh(1))
