"""INQ: the partition of the weights, exact and relaxed, and its three orders."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.core.randomness import Draw
from metasched.methods import build_method, masks
from metasched.methods.base import State
from metasched.methods.config import MethodConfig
from metasched.methods.inq import INQ
from metasched.schedules.table import hand_coded

PORTIONS = {
    "alexnet": (0.3, 0.6, 0.8, 1.0),
    "resnet18_4bit": (0.3, 0.5, 0.8, 0.9, 0.95, 1.0),
    "resnet18_2bit": (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0),
    "dvs128": (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.975, 1.0),
}
FRACTIONS = st.lists(st.floats(0, 1), min_size=1, max_size=6).map(sorted)


def inq(partition: str, relaxation: float = 0.0) -> INQ:
    method = build_method(MethodConfig(name="inq", scale="max", partition=partition))  # pyright: ignore
    assert isinstance(method, INQ)
    return method.relaxed(relaxation)


def run(method: INQ, w: torch.Tensor, fractions: tuple[float, ...] | list[float], moving: float) -> list[State]:
    """The states of the steps at these fractions; between them the optimizer proposes random moves of this size."""
    values = {"freeze_fraction": torch.tensor(fractions[0])}
    w, _, state = method.initialize(w, values, Draw(0, 0, 0))
    draws = torch.Generator().manual_seed(1)
    states = []
    for step, fraction in enumerate(fractions):
        values, draw = {"freeze_fraction": torch.tensor(fraction)}, Draw(0, step, 0)
        state = method.prepare(w, state, values, draw)
        states.append({**state, "w": w, "seen": method.weight(w, state, values, draw)})
        w, state = method.update(w, w + moving * torch.randn(w.shape, generator=draws), state, values, draw)
    return states


def count(fraction: float, n: int) -> int:
    """round(f n), half up."""
    return int(np.floor(fraction * n + 0.5 + 1e-9))


@pytest.mark.pairwise
@pytest.mark.parametrize("portions", PORTIONS.values(), ids=PORTIONS)
@pytest.mark.parametrize("partition", ["magnitude", "random", "relaxation"])
@pytest.mark.parametrize("n", [1, 7, 40, 1000])
def test_published_portions_freeze_their_share(portions: tuple[float, ...], partition: str, n: int) -> None:
    states = run(inq(partition), torch.randn(1, n), portions, moving=0.3)
    assert [int(s["frozen"].sum()) for s in states] == [count(f, n) for f in portions]
    assert all(set(s["frozen"].unique().tolist()) <= {0.0, 1.0} for s in states)


def test_these_are_the_portions_of_the_published_schedules() -> None:
    for name, portions in PORTIONS.items():
        known = name if name != "alexnet" else "alexnet_5bit"
        curve = hand_coded("inq")[f"inq_{known}"]
        played = curve(torch.linspace(0, 1, 2001), [None])["freeze_fraction"][:, 0]  # pyright: ignore
        assert tuple(played.unique().tolist()) == (0.0, *portions)


@given(FRACTIONS, st.integers(1, 60), st.sampled_from(["magnitude", "random"]), st.sampled_from([0.0, 0.05, 0.5]))
def test_the_partition_is_cumulative_though_weights_move(
    fractions: list[float], n: int, partition: str, relaxation: float
) -> None:
    w = torch.randn(1, n, generator=torch.Generator().manual_seed(0))
    states = run(inq(partition, relaxation), w, fractions, moving=1.0)
    for before, after in pairwise(states):
        assert bool((after["frozen"] >= before["frozen"] - 1e-15).all())
    for s in states:
        if not relaxation:
            frozen = s["frozen"] == 1
            assert torch.equal(s["w"][frozen], states[-1]["w"][frozen])


def test_the_largest_live_weights_freeze_next() -> None:
    states = run(inq("magnitude"), torch.randn(20, 10), PORTIONS["resnet18_4bit"], moving=0.5)
    frozen = torch.zeros(20, 10)
    for s in states:
        fresh, live = (s["frozen"] == 1) & (frozen == 0), s["frozen"] == 0
        if live.any():
            assert s["w"][fresh].abs().min() >= s["w"][live].abs().max()
        frozen = s["frozen"]
    # rounding makes frozen weights smaller than some live ones: an order over all weights would thaw them
    assert (
        states[1]["seen"][states[1]["frozen"] == 1].abs().min() < states[1]["w"][states[1]["frozen"] == 0].abs().max()
    )


def test_random_freezes_a_random_subset() -> None:
    """Not the first ones in memory, as quantlib's permutation of 0..k-1 does."""
    n = 400
    masks = []
    for seed in range(20):
        method = inq("random")
        values = {"freeze_fraction": torch.tensor(0.25)}
        w, _, state = method.initialize(torch.randn(1, n), values, Draw(seed, 0, 0))
        masks.append(method.prepare(w, state, values, Draw(seed, 0, 0))["frozen"][0])
    share = torch.stack(masks).mean(0)
    assert abs(share[: n // 2].mean().item() - 0.25) < 0.02
    assert share.max().item() < 0.65 and share.sum().item() == pytest.approx(n / 4)
    overlap = (masks[0] * masks[1]).sum().item()
    assert 10 < overlap < 40  # 25 expected


def test_random_order_ignores_the_weights() -> None:
    values, draw = {"freeze_fraction": torch.tensor(0.5)}, Draw(1, 0, 0)
    method = inq("random")
    masks = []
    for w in (torch.randn(1, 100), torch.randn(1, 100)):
        _, _, state = method.initialize(w, values, draw)
        masks.append(method.prepare(w, state, values, draw)["frozen"])
    assert torch.equal(*masks)


def test_relaxation_releases_weights_and_keeps_their_raw_values() -> None:
    portions = (0.3, 0.3, 0.6, 0.8)
    states = run(inq("relaxation"), torch.randn(1, 500), portions, moving=0.0)
    first, held, second, third = (s["frozen"] == 1 for s in states)
    assert torch.equal(first, held)  # while the fraction stands still, so does the subset
    assert bool((first & ~second).any()) and bool((second & ~third).any())
    assert abs((first & second).sum().item() - 0.3 * 0.6 * 500) < 40  # independent subsets
    released = first & ~second
    w = states[0]["w"]
    assert torch.equal(states[2]["w"], w)
    assert torch.equal(states[2]["seen"][released], w[released])
    assert not torch.equal(states[0]["seen"][released], w[released])


def test_frozen_weights_are_seen_on_their_levels_and_live_ones_as_they_are() -> None:
    method = inq("magnitude")
    (s,) = run(method, torch.randn(6, 9), (0.4,), moving=0.0)
    frozen = s["frozen"] == 1
    assert torch.equal(s["seen"][frozen], method.harden(s["w"], s, 0.5)[frozen])
    assert torch.equal(s["seen"][~frozen], s["w"][~frozen])


def relaxed_mask(fraction: torch.Tensor, n: int, width: float, partition: str = "magnitude") -> torch.Tensor:
    w = torch.linspace(1.0, 2.0, n)[None]
    method, values = inq(partition, width), {"freeze_fraction": fraction}
    _, _, state = method.initialize(w, values, Draw(0, 0, 0))
    return method.prepare(w, state, values, Draw(0, 0, 0))["frozen"][0].flip(0)  # in the order of freezing


def test_the_relaxed_mask_is_a_smooth_step_over_the_ranks() -> None:
    n, width = 40, 0.3
    for fraction in (0.1, 0.45, 0.95):
        distance = (fraction * 1.3 - (np.arange(n) + 0.5) / n) / width  # of each rank from the front
        t = np.clip(distance, 0, 1)
        expected = 3 * t**2 - 2 * t**3
        found = relaxed_mask(torch.tensor(fraction), n, width)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("width", [1e-6, 0.05, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("n", [1, 5, 200])
def test_the_relaxed_mask_begins_empty_and_ends_full(width: float, n: int) -> None:
    assert relaxed_mask(torch.tensor(0.0), n, width).eq(0).all()
    assert relaxed_mask(torch.tensor(1.0), n, width).eq(1).all()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-3, 1), st.integers(1, 50))
def test_the_relaxed_mask_grows_with_the_fraction(a: float, b: float, width: float, n: int) -> None:
    low, high = (relaxed_mask(torch.tensor(f), n, width) for f in sorted((a, b)))
    assert bool((high >= low).all()) and bool((low >= 0).all()) and bool((high <= 1).all())
    assert bool((low.diff() <= 0).all())  # what comes first in the order is frozen most


@pytest.mark.parametrize("fraction", [0.1, 0.35, 0.5, 0.9])
def test_the_relaxed_mask_tends_to_the_exact_partition(fraction: float) -> None:
    n = 2000
    exact = relaxed_mask(torch.tensor(fraction), n, 0.0)
    distances = [
        (relaxed_mask(torch.tensor(fraction), n, width) - exact).abs().mean().item() for width in (0.2, 0.1, 0.01, 1e-9)
    ]
    assert distances == sorted(distances, reverse=True)
    assert all(d <= width for d, width in zip(distances, (0.2, 0.1, 0.01, 1 / n), strict=True))


@given(st.floats(0, 1), st.sampled_from([0.05, 0.1, 0.3]))
def test_the_mean_of_the_relaxed_mask_is_close_to_the_fraction(fraction: float, width: float) -> None:
    """Where the window lies inside the ranks, exactly f (1 + omega) - omega / 2, the rest of the sum being O(1 / n)."""
    n = 1000
    mean = relaxed_mask(torch.tensor(fraction), n, width).mean().item()
    assert abs(mean - fraction) <= width / 2 + 1 / n
    if width <= fraction * (1 + width) <= 1:
        assert mean == pytest.approx(fraction * (1 + width) - width / 2, abs=1e-4)


@pytest.mark.parametrize("partition", ["magnitude", "random", "relaxation"])
def test_derivative_of_the_relaxed_mask(partition: str) -> None:
    method = inq(partition, 0.2)
    w = torch.randn(4, 25)
    cotangent, other = torch.randn(4, 25), torch.randn(4, 25)
    _, _, initial = method.initialize(w, {}, Draw(0, 0, 0))

    def function(fraction: torch.Tensor) -> torch.Tensor:
        values = {"freeze_fraction": fraction}
        state = method.prepare(w, initial, values, Draw(0, 0, 0))
        seen, (updated, _) = (
            method.weight(w, state, values, Draw(0, 0, 0)),
            method.update(w, other, state, values, Draw(0, 0, 0)),
        )
        return (cotangent * seen).sum() + (other * updated).sum()

    for start in (0.15, 0.4, 0.77):
        fraction = torch.tensor(start, requires_grad=True)
        assert torch.autograd.gradcheck(function, fraction)
        (g,) = torch.autograd.grad(function(fraction), fraction)
        assert g != 0


def test_the_exact_partition_has_no_derivative() -> None:
    fraction = torch.tensor(0.4, requires_grad=True)
    assert not relaxed_mask(fraction, 50, 0.0).requires_grad


@pytest.mark.parametrize("partition", ["magnitude", "random"])
def test_of_equal_weights_the_first_ones_freeze_mapped_or_not(partition: str) -> None:
    method = inq(partition)
    w = torch.randint(-3, 4, (4, 25), generator=torch.Generator().manual_seed(0)).to(torch.float64)
    state = {"scale": torch.ones(1, 1), "frozen": torch.zeros(4, 25), "key": w.abs(), "fraction": torch.zeros(())}

    def frozen(fraction: torch.Tensor) -> torch.Tensor:
        return method.prepare(w, state, {"freeze_fraction": fraction}, Draw(0, 0, 0))["frozen"]

    fractions = torch.linspace(0, 1, 34)  # none of them half-way between two counts
    order = np.argsort(-w.abs().flatten().numpy(), kind="stable")
    for fraction, mapped in zip(fractions, torch.func.vmap(frozen)(fractions), strict=True):
        expected = np.zeros(100)
        expected[order[: count(float(fraction), 100)]] = 1
        assert np.array_equal(frozen(fraction).flatten().numpy(), expected)
        assert torch.equal(mapped, frozen(fraction))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_count_of_frozen_weights_is_that_of_the_ranks_in_the_same_precision(dtype: torch.dtype) -> None:
    for n in (1, 2, 3, 5, 8, 13, 72, 1000):
        exact = [(i + 0.5) / n for i in range(n)]
        fractions = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0, *exact[:20]], dtype=dtype)
        nearby = torch.cat([fractions.nextafter(torch.zeros((), dtype=dtype)), fractions])
        ranks = (torch.arange(n, dtype=dtype) + 0.5) / n
        found = [masks.count(n, float(f), dtype) for f in nearby]
        assert found == [int((ranks <= f).sum()) for f in nearby]
        assert [masks.count(n, float(f), dtype) for f in ("nan", "inf", "-inf")] == [0, n, 0]
