"""Blends in their authors' own time: steps of fine-tuning to 1.58 bits, of torchtune; the onset layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metasched.core.layer import Layer
from metasched.schedules.base import progress_of_steps
from metasched.schedules.blending import binary_relax, ramp, sigmoid
from metasched.schedules.table import hand_coded

LAYERS = [Layer(f"l{i}", i / 4, "conv", "weight+activation", 9, 81, 1.585) for i in range(5)]


def played(name: str, progress: np.ndarray) -> np.ndarray:
    """[T, L]; both controls have the same values."""
    values = hand_coded("blend")[f"blend_{name}"](torch.tensor(progress), LAYERS)
    assert torch.equal(values["weight_blend"], values["activation_blend"])
    return values["weight_blend"].numpy()


@pytest.mark.parametrize(
    ("name", "steps", "law"),
    [
        ("bitnet", 5000, lambda t: min(t / 1000, 1)),
        ("half", 2000, lambda t: min(2 * t / 2000, 1)),
        ("linear", 2000, lambda t: t / 2000),
        ("late", 2000, lambda t: float(t >= 1000)),
        ("constant", 10, lambda t: 1.0),
    ],
)
def test_published_warm_ups_by_the_step(name: str, steps: int, law) -> None:
    values = played(name, np.arange(steps + 1) / steps)
    expected = np.array([law(t) for t in range(steps + 1)])
    np.testing.assert_allclose(values, np.repeat(expected[:, None], len(LAYERS), 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [15, 100])
def test_sigmoids_are_the_authors_but_for_their_ends(k: int) -> None:
    t = np.arange(1001) / 1000
    published = 1 / (1 + np.exp(-k * (t - 0.5)))
    values = played(f"sigmoid_{k}", t)[:, 0]
    stretched = (published - published[0]) / (published[-1] - published[0])
    np.testing.assert_allclose(values, stretched, rtol=0, atol=1e-12)
    assert np.abs(values - published).max() < 6e-4
    assert values[0] == 0 and values[-1] == 1


def test_the_onset_moves_from_input_to_output() -> None:
    u = np.linspace(0, 1, 801)
    values = played("onset", u)
    for i, layer in enumerate(LAYERS):
        start = 0.09 + 0.38 * layer.depth
        np.testing.assert_allclose(values[:, i], np.interp(u, [start, start + 0.28], [0, 1]), rtol=0, atol=1e-12)
    assert (values[u >= 0.7501] == 1).all() and (values[u <= 0.09] == 0).all()


def test_ramps_and_sigmoids_take_any_parameters() -> None:
    u = progress_of_steps(101)
    assert torch.equal(ramp(u, LAYERS, length=1.0)[:, 2], u)
    delayed = ramp(u, LAYERS, start=0.1, delay=0.4, length=0.5)
    assert delayed[0].tolist() == [0.0] * 5 and delayed[-1].tolist() == [1.0] * 5
    assert torch.allclose(delayed[50], (0.8 - 0.8 * torch.arange(5) / 4).clamp(0, 1))
    for steepness in (0.1, 15.0, 1000.0):
        values = sigmoid(u, LAYERS, steepness=steepness)[:, 0]
        assert torch.allclose(values + values.flip(0), torch.ones_like(values)) and bool((values.diff() >= 0).all())


def test_binary_relax_is_the_authors_epoch_by_epoch() -> None:
    """Their relaxation parameter grows by 1.04 an epoch from 1, and is off from epoch 150 of 200 on."""
    values = hand_coded("blend")["blend_binary_relax"](torch.arange(201) / 200, LAYERS)
    eta, expected = 1.0, []
    for epoch in range(201):
        expected.append(eta / (1 + eta) if epoch < 150 else 1.0)
        eta *= 1.04
    for i in range(len(LAYERS)):
        np.testing.assert_allclose(values["weight_blend"][:, i], expected, rtol=0, atol=1e-12)
    assert bool((values["activation_blend"] == 1).all())
    early = binary_relax(torch.tensor([0.0, 1.0]), LAYERS, growth=3.0, epochs=1, relaxed=2.0)
    assert torch.allclose(early[:, 0], torch.tensor([0.5, 0.75]))
