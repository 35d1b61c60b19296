"""The gains of the golden file correct the open-loop values as they ever did: the formulas, in numpy once more."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.exchange.form import controls_of
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import dumps, loads, read_schedule
from metasched.schedules.base import progress_of_steps
from metasched.schedules.feedback import corrected, gains_of, open_loop
from metasched.training.feedback import features_of

GOLDEN = Path(__file__).parent / "schedule_v3_feedback.json"
OTHERS = tuple(Layer(f"block{i}", i / 4, "conv", "weight+activation", 9, 90, 2.0) for i in range(5))
FEATURES = ("loss_trend", "distance", "flips")


def gain(tree: dict[str, Any], control: str, feature: str, depth: np.ndarray) -> np.ndarray:
    (entry,) = (g for g in tree["feedback"] if (g["control"], g["feature"]) == (control, feature))
    return entry["numbers"][0] + entry["numbers"][1] * (2 * depth - 1)


def measured(draws: np.random.Generator, layers: int) -> dict[str, Any]:
    fast, slow = draws.uniform(0.1, 3, 2)
    of_layers = {"distance": draws.uniform(0, 1, layers), "flips": draws.uniform(0, 0.2, layers)}
    return {"loss_fast": fast, "loss_slow": slow, **of_layers}


@pytest.mark.parametrize("own", [True, False])
def test_the_controls_that_follow_from_what_is_measured(own: bool) -> None:
    tree, schedule = json.loads(GOLDEN.read_text("ascii")), PlayedSchedule(read_schedule(GOLDEN))
    layers, steps, draws = schedule.layers if own else OTHERS, 40, np.random.default_rng(1)
    depth, u = np.array([layer.depth for layer in layers]), np.arange(steps) / (steps - 1)
    values = schedule(progress_of_steps(steps), layers)
    base = {name: v.numpy() for name, v in open_loop(values).items()}
    assert base.keys() == {"weight_width", "activation_width", "freeze_fraction"}
    if own:  # the table
        for name, v in base.items():
            np.testing.assert_allclose(v[:, 1], np.interp(u, tree["progress"], tree["values"][name][1]), atol=1e-12)
    gains, controls = gains_of(values), {c.name: c for c in controls_of(schedule.file)}
    last = {name: v[0] for name, v in base.items()}
    moved = 0.0
    for t in range(steps):
        m = measured(draws, len(layers))
        fast, slow, x = m["loss_fast"], m["loss_slow"], steps * m["flips"]
        phi = ((fast - slow) / (fast + slow), 2 * m["distance"] - 1, (x - 1) / (x + 1))
        c = {name: sum(gain(tree, name, f, depth) * p for f, p in zip(FEATURES, phi, strict=True)) for name in gains}
        low, high, b = math.log(0.1), math.log(4), np.log(base["weight_width"][t])
        z = np.log((b - low) / (high - b)) + c["weight_width"]
        expected = {"weight_width": np.exp(low + (high - low) / (1 + np.exp(-z)))}
        b = base["freeze_fraction"][t]
        with np.errstate(divide="ignore"):
            inside = 1 / (1 + np.exp(-np.log(b / (1 - b)) - c["freeze_fraction"]))
        leaving = np.clip(c["freeze_fraction"] / 4, 0, 1)
        free = np.where(b <= 0, leaving, inside) if t < steps - 1 else np.ones_like(b)
        expected["freeze_fraction"] = np.maximum(free, last["freeze_fraction"])
        given = {name: torch.tensor(v, dtype=torch.float64) for name, v in m.items()}
        features = features_of(given, steps)
        for name, wanted in expected.items():
            found = corrected(
                controls[name],
                torch.tensor(base[name][t]),
                gains[name][:, t],
                features,
                torch.tensor(last[name]),
            ).numpy()
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
            moved = max(moved, abs(found - base[name][t]).max())
        last = {name: expected.get(name, v[t]) for name, v in base.items()}
    assert moved > 0.2 and (last["freeze_fraction"] == 1).all()


def edited(**change: Any) -> str:
    return json.dumps(json.loads(GOLDEN.read_text("ascii")) | change)


def test_a_file_without_it_is_of_a_lower_version_and_open_loop() -> None:
    file = loads(edited(feedback=[]), "x")
    assert file.version == 2 and '"feedback"' not in dumps(file)
    assert PlayedSchedule(file)(progress_of_steps(3), OTHERS).keys() == {c.name for c in file.controls}


ENTRY = {"control": "weight_width", "feature": "flips", "numbers": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "x: feedback: is not a field of version 2"),
        ({"version": 1}, "is not a field of version 1"),
        ({"version": 4}, "x: version: unknown version 4; known: 1, 2, 3"),
        ({"feedback": [{**ENTRY, "control": "other"}]}, r"feedback\[0\].control: 'other' is not declared"),
        ({"feedback": [{**ENTRY, "feature": "weather"}]}, r"feedback\[0\].feature: must"),
        ({"feedback": [{**ENTRY, "numbers": [1.0]}]}, r"feedback\[0\].numbers: has 1 entries"),
        ({"feedback": [{**ENTRY, "numbers": [1.0, 2.0, 3.0]}]}, r"feedback\[0\].numbers: must"),
        ({"feedback": [ENTRY, ENTRY]}, r"feedback\[1\]: 'weight_width by flips' occurs twice"),
        ({"feedback": [{**ENTRY, "more": 1}]}, "unknown key"),
    ],
)
def test_what_it_cannot_hold_is_refused_by_its_place(change: dict[str, Any], said: str) -> None:
    with pytest.raises(MetaschedError, match=said):
        loads(edited(**change), "x")


def test_gains_that_are_not_named_are_0() -> None:
    values = PlayedSchedule(loads(edited(feedback=[ENTRY]), "x"))(progress_of_steps(3), OTHERS)
    assert bool((values["weight_width:flips"] == 1).all()) and not bool(values["weight_width:distance"].any())
    assert "freeze_fraction:flips" not in values
