"""Bit-Split: digits, monotone sweeps, and the optimum by enumeration on tiny problems."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from metasched.calibration.bit_split import Split, alternating, digits_of, recomposed, swept
from metasched.calibration.moments import Moments, moments_of, patches
from metasched.calibration.walking import units
from metasched.core.errors import MetaschedError
from metasched.network.recipe import Recipe
from metasched.quantizers.levels import integers

BALANCED = {bits: integers(bits, signed=True, balanced=True) for bits in (2, 3, 4)}


def problem(seed: int, rows: int = 1, d: int = 5, examples: int = 40) -> tuple[torch.Tensor, Moments]:
    """Rows of weights [1, rows, d], and the moments of correlated inputs."""
    draws = torch.Generator().manual_seed(seed)
    w = torch.randn(1, rows, d, generator=draws)
    x = torch.randn(examples, d, generator=draws) @ torch.randn(d, d, generator=draws)
    y = x @ w[0].mT
    return w, Moments((x.mT @ x)[None], (y.mT @ x)[None], y.square().sum(0)[None])


@pytest.mark.parametrize("bits", BALANCED)
def test_digits_recompose_every_integer(bits: int) -> None:
    q = torch.tensor(BALANCED[bits].levels)
    digits = digits_of(q, bits - 1)
    assert set(digits.flatten().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(recomposed(digits), q)


@pytest.mark.parametrize("bits", BALANCED)
def test_no_sweep_raises_the_error_and_integers_stay_in_range(bits: int) -> None:
    levels = BALANCED[bits]
    for seed in range(10):
        w, moments = problem(seed, rows=3, d=7)
        alpha, q = alternating(w, levels)
        split = Split(alpha, digits_of(q, bits - 1))
        last = moments.error(split.weight)
        for _ in range(6):
            split = swept(split, moments.gram, moments.cross, sweeps=1)
            error = moments.error(split.weight)
            assert bool((error <= last * (1 + 1e-12) + 1e-12).all())
            last = error
        assert bool((split.alpha > 0).all())
        assert split.q.abs().max() <= levels.levels[-1] and torch.equal(split.q, split.q.round())


def test_the_weight_form_is_where_alternating_ends() -> None:
    """The error of the weights is a sum over them, so that no digit can be better (other-digit forms of q aside)."""
    for seed in range(2):
        w, _ = problem(seed, rows=4, d=9)
        alpha, q = alternating(w, BALANCED[3])
        found = swept(Split(alpha, digits_of(q, 2)), torch.eye(9)[None], w, sweeps=3)
        torch.testing.assert_close(found.weight, alpha[..., None] * q, rtol=1e-7, atol=1e-9)


def optimum(w: torch.Tensor, moments: Moments, top: int) -> float:
    """The smallest error over all integers and the best scale of each."""
    d = w.shape[-1]
    q = torch.tensor(list(product(range(-top, top + 1), repeat=d)), dtype=w.dtype)
    along, square = q @ moments.cross[0, 0], ((q @ moments.gram[0]) * q).sum(1)
    gain = torch.where((along > 0) & (square > 0), along.square() / square.clamp_min(1e-30), 0.0)
    return float(moments.power[0, 0] - gain.max())


def test_sweeps_come_near_the_optimum_and_reach_it_sometimes() -> None:
    ratios, reached = [], 0
    for seed in range(12):
        w, moments = problem(seed)
        alpha, q = alternating(w, BALANCED[3])
        start = Split(alpha, digits_of(q, 2))
        found = swept(start, moments.gram, moments.cross, sweeps=100)
        best = optimum(w, moments, 3)
        error = float(moments.error(found.weight))
        assert best <= error * (1 + 1e-9)
        ratios.append(error / float(moments.error(start.weight)))
        reached += error <= best * (1 + 1e-6)
    assert sorted(ratios)[6] <= 0.8 and 2 <= reached < 12


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv1d(4, 6, 3, padding=1, groups=2, dilation=2),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding="valid"),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2),
    ],
    ids=["linear", "conv1d", "conv2d", "circular"],
)
def test_patches_and_moments_give_the_error_of_the_layer(layer: nn.Module) -> None:
    layer = layer.to(torch.get_default_dtype())
    x = torch.randn(5, 6) if isinstance(layer, nn.Linear) else torch.randn(5, 4, *[9] * (layer.weight.dim() - 2))
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
    model(x)
    (unit,) = list(units(model, Recipe("ste", weights="balanced3", activations=None), [x]))
    moments = moments_of(unit)
    w = torch.randn_like(layer.weight)  # pyright: ignore[reportArgumentType, reportCallIssue]
    own = w.reshape(len(moments.gram), -1, moments.gram.shape[-1])
    out = layer(x) - torch.func.functional_call(layer, {"weight": w}, (x,))
    squares = out.detach().square()
    by_channel = squares.movedim(1, -1).reshape(-1, out.shape[1] if out.dim() > 2 else out.shape[-1]).sum(0)
    torch.testing.assert_close(moments.error(own).flatten(), by_channel)
    assert patches(layer, x).shape[0] == len(moments.gram)


def test_layers_whose_inputs_cannot_be_laid_out_are_refused() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(147, 2)).eval()
    (unit,) = units(model, Recipe("ste", weights="balanced3", activations=None), [torch.randn(2, 2, 5, 5)])
    with pytest.raises(MetaschedError, match=r"^model.0: is a ConvTranspose2d, and this takes linear layers"):
        moments_of(unit)
