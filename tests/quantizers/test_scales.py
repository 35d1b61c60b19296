"""Scales of weight tensors against their definitions, brute force and INQ's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.quantizers.levels import LevelSet, binary, integers, powers_of_two, ternary
from metasched.quantizers.scales import SCALES, ScaleName, scale_of

LEVELS = {
    "binary": binary(),
    "ternary": ternary(),
    "int3": integers(3, signed=True, balanced=False),
    "pow2_4": powers_of_two(4),
}


def squared_error(w: np.ndarray, scale: float, levels: LevelSet) -> float:
    """Of rounding to the nearest multiple of a level."""
    q = scale * np.array(levels.levels)
    return float((np.abs(w.reshape(-1, 1) - q).min(1) ** 2).sum())


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("name", SCALES)
def test_each_channel_has_the_scale_that_it_has_alone(name: ScaleName, levels: LevelSet) -> None:
    w = torch.randn(5, 3, 2, 2) * torch.arange(1.0, 6.0).reshape(-1, 1, 1, 1)
    scales = scale_of(w, levels, name, "channel")
    assert scales.shape == (5, 1, 1, 1) and not scales.requires_grad
    for channel, scale in zip(w, scales, strict=True):
        alone = scale_of(channel[None], levels, name, "tensor")
        assert alone.shape == (1, 1, 1, 1)
        assert alone.item() == scale.item() > 0


@pytest.mark.parametrize("name", SCALES)
def test_zeros_get_scale_one(name: ScaleName) -> None:
    w = torch.randn(3, 4)
    w[1] = 0
    scales = scale_of(w, ternary(), name, "channel")
    assert scales[1].item() == 1
    assert bool((scale_of(w[[0, 2]], ternary(), name, "channel") == scales[[0, 2]]).all())
    assert scale_of(torch.zeros(3, 4), ternary(), name, "tensor").tolist() == [[1.0]]


def test_unit_and_max() -> None:
    w = torch.tensor([[0.5, -3.0], [1.0, 0.25]])
    assert scale_of(w, ternary(), "unit", "tensor").tolist() == [[1.0]]
    assert scale_of(w, ternary(), "max", "tensor").tolist() == [[3.0]]
    assert scale_of(w, ternary(), "max", "channel").tolist() == [[3.0], [1.0]]
    int3 = integers(3, signed=True, balanced=False)  # -4 .. 3: its largest level by size is -4
    assert scale_of(w, int3, "max", "tensor").tolist() == [[0.75]]


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_least_squares_against_brute_force(levels: LevelSet) -> None:
    w = torch.randn(200)[None]
    found = scale_of(w, levels, "least_squares", "tensor").item()
    largest = w.abs().max().item() / max(abs(q) for q in levels.levels)
    candidates = [largest * share for share in np.linspace(0.05, 1, 40)]
    errors = [squared_error(w.numpy(), scale, levels) for scale in candidates]
    assert found == pytest.approx(candidates[int(np.argmin(errors))], rel=1e-12)
    densely = min(squared_error(w.numpy(), largest * share, levels) for share in np.linspace(0.02, 1.2, 2000))
    assert squared_error(w.numpy(), found, levels) <= 1.05 * densely


@pytest.mark.parametrize(
    ("largest", "top"), [(0.74, 0.5), (0.75, 1), (1.0, 1), (1.49, 1), (1.5, 2), (3.1, 4), (0.09375, 0.125)]
)
def test_top_level_of_inq(largest: float, top: float) -> None:
    w = torch.tensor([[largest, -largest / 3, 0.0]])
    assert scale_of(w, powers_of_two(5), "pow2", "tensor").item() == top
    int4 = integers(4, signed=True, balanced=True)
    assert scale_of(w, int4, "pow2", "tensor").item() == top / 7


@given(st.floats(1e-30, 1e30))
def test_pow2_is_the_formula_of_the_paper(largest: float) -> None:
    scale = scale_of(torch.tensor([[-largest]]), ternary(), "pow2", "tensor").item()
    mantissa, exponent = math.frexp(scale)
    assert mantissa == 0.5  # a power of two
    assert scale <= 4 * largest / 3 * (1 + 1e-15) and 4 * largest / 3 < 2 * scale * (1 + 1e-15)
    if abs(math.log2(4 * largest / 3) % 1 - 0.5) < 0.499:
        assert exponent - 1 == math.floor(math.log2(4 * largest / 3))
