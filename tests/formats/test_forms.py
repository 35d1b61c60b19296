"""The parametric forms of the golden files give the same values for ever: the formulas, written in numpy once more."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched.core.features import features_of
from metasched.core.layer import Layer
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import read_schedule

FOLDER = Path(__file__).parent
NINE = tuple(
    Layer(f"block{i}", i / 8, "conv" if i < 7 else "linear", "weight+activation", 9 * 2**i, 360 * 2**i, 2.0)
    for i in range(9)
)
TASK = {"rate": 0.1, "batches_per_epoch": 50.0, "pretrained": True}


def logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def in_range(x: Any, low: float, high: float) -> Any:
    return low + (high - low) * logistic(x)


def window(numbers: Any, u: np.ndarray, depth: np.ndarray, low: float, high: float, end: float | None) -> np.ndarray:
    """[K, L] of a control that starts inside its range; with a free end, ``last`` is the second number."""
    first, *rest = numbers
    if end is None:
        last, *rest = rest
        end = in_range(last, low, high)
    start, start_over_depth, length, length_over_depth, power = rest
    m = 2 * depth - 1
    s = 0.01 + 0.98 * logistic(start + start_over_depth * m)
    e = s + (1 - s) * (0.01 + 0.99 * logistic(length + length_over_depth * m))
    left = np.clip((e - u[:, None]) / (e - s), 0, 1) ** 16 ** np.tanh(power)
    return end + (in_range(first, low, high) - end) * left


def played(name: str, features: dict[str, float] | None = None) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    """The file as plain JSON, the values [K, 9] on nine layers, and the knots."""
    schedule = PlayedSchedule(read_schedule(FOLDER / name))
    schedule = schedule if features is None else schedule.at(features)
    values = {control: v.numpy() for control, v in schedule(schedule.knots, NINE).items()}
    return json.loads((FOLDER / name).read_text("ascii")), values, schedule.knots.numpy()


DEPTH = np.array([layer.depth for layer in NINE])


def test_a_family() -> None:
    tree, values, u = played("schedule_v2_family.json")
    (numbers,) = tree["form"]["numbers"]
    np.testing.assert_allclose(values["weight_noise"], window(numbers[:6], u, DEPTH, 0, 1, 0.0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(values["activation_noise"], window(numbers[6:], u, DEPTH, 0, 1, 0.0), rtol=0, atol=1e-12)
    assert (values["noise_mean"] == 0).all()  # of the base
    table = np.array(tree["values"]["weight_noise"]).T
    between = np.stack([np.interp(DEPTH, [0, 0.5, 1], row) for row in table])
    assert abs(values["weight_noise"] - between).max() > 0.05  # the table, matched by depth, is another schedule


def test_a_shared_family_at_another_task() -> None:
    features = features_of(NINE, 1000, **TASK)
    tree, values, u = played("schedule_v2_shared.json", features)
    form = tree["form"]
    assert {f["name"] for f in form["features"]} == features.keys()
    phi = [math.tanh((features[f["name"]] - f["centre"]) / f["spread"]) / math.sqrt(8) for f in form["features"]]
    numbers = np.array([1.0, *phi]) @ np.array(form["numbers"])
    expected = np.exp(window(numbers, u, DEPTH, math.log(0.1), math.log(4.0), None))
    np.testing.assert_allclose(values["weight_width"], expected, rtol=0, atol=1e-12)
    own = played("schedule_v2_shared.json")[1]["weight_width"]  # on nine layers too, but for the task of the file
    phi = [math.tanh((tree["task"][f["name"]] - f["centre"]) / f["spread"]) / math.sqrt(8) for f in form["features"]]
    numbers = np.array([1.0, *phi]) @ np.array(form["numbers"])
    expected = np.exp(window(numbers, u, DEPTH, math.log(0.1), math.log(4.0), None))
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12)
    assert abs(own - values["weight_width"]).max() > 0.1


def test_a_network() -> None:
    tree, values, u = played("schedule_v2_network.json")
    (weights,), body = tree["form"]["numbers"], [np.array(rows) for rows in tree["form"]["body"]]
    low, high = math.log(0.1), math.log(4.0)
    share = (math.log(1.0) - low) / (high - low)  # of the base: no schedule
    waves = [u, *(np.cos(k * math.pi * u) for k in range(1, 5))]
    for i, layer in enumerate(NINE):
        of_layer = [
            2 * layer.depth - 1,
            1.0 if layer.kind == "linear" else -1.0,
            1.0,  # weights and activations
            math.log10(layer.fan_in) - 2,
            math.log10(layer.num_weights) - 4,
            layer.bits - 2,
        ]
        hidden = np.stack([*waves, *(np.full_like(u, x) for x in of_layer)], 1)
        for rows in body:
            hidden = np.tanh(hidden @ rows[:, :-1].T + rows[:, -1])
        heads = np.array(weights).reshape(2, -1)
        correction = (hidden @ heads[0, :-1] + heads[0, -1]) / hidden.shape[1]
        expected = np.exp(in_range(math.log(share / (1 - share)) + correction, low, high))
        np.testing.assert_allclose(values["weight_width"][:, i], expected, rtol=0, atol=1e-12)
    assert (values["activation_width"] == 1).all()
    assert np.ptp(values["weight_width"]) > 0.5


@pytest.mark.parametrize("kind", ["family", "network", "shared"])
def test_at_its_own_layers_a_file_is_its_table(kind: str) -> None:
    schedule = PlayedSchedule(read_schedule(FOLDER / f"schedule_v2_{kind}.json"))
    for name, values in schedule(schedule.knots, schedule.layers).items():
        assert torch.equal(values, torch.tensor(schedule.file.values[name], dtype=torch.float64).T)
