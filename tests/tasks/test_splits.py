"""Splits are disjoint, exhaustive, and a function of their arguments."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.tasks.splits import split_indices, stratified_indices

seeds = st.integers(0, 2**32)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 300))
    test = draw(st.integers(0, n))
    return n, draw(st.integers(0, n - test)), test


@given(sizes(), seeds)
def test_parts_are_disjoint_and_exhaustive(sizes: tuple[int, int, int], seed: int):
    n, validation, test = sizes
    parts = split_indices(n, validation, test, seed)
    assert [len(part) for part in parts] == [n - validation - test, validation, test]
    assert sorted(torch.cat(parts).tolist()) == list(range(n))  # no index twice, none missing


@given(sizes(), seeds)
def test_two_calls_are_equal_and_leave_the_global_generator_alone(sizes: tuple[int, int, int], seed: int):
    before = torch.get_rng_state()
    first, second = split_indices(*sizes, seed), split_indices(*sizes, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(before, torch.get_rng_state())


@given(sizes(), seeds)
def test_earlier_cuts_do_not_depend_on_later_ones(sizes: tuple[int, int, int], seed: int):
    n, validation, test = sizes
    parts, without_validation = split_indices(n, validation, test, seed), split_indices(n, 0, test, seed)
    assert torch.equal(parts.test, without_validation.test)
    assert torch.equal(torch.cat([parts.validation, parts.train]), without_validation.train)


def test_golden_split():
    # recorded with torch 2.15: a change of the stream's name or order would silently change every published number
    train, validation, test = split_indices(10, 2, 3, seed=0)
    assert (train.tolist(), validation.tolist(), test.tolist()) == ([9, 6, 3, 0, 4], [5, 7], [1, 2, 8])


labels = st.lists(st.integers(0, 3), min_size=1, max_size=200).map(torch.tensor)


@given(labels, st.data(), seeds)
def test_stratified_parts_are_disjoint_and_have_the_share_of_each_class(
    y: torch.Tensor, data: st.DataObject, seed: int
):
    n = len(y)
    first = data.draw(st.integers(0, n))
    sizes = [first, data.draw(st.integers(0, n - first))]
    parts = stratified_indices(y, sizes, seed)
    assert [len(part) for part in parts] == sizes
    chosen = torch.cat(parts).tolist()
    assert len({*chosen}) == len(chosen) and {*chosen} <= {*range(n)}
    left = torch.bincount(y, minlength=4)
    for part in parts:
        counts = torch.bincount(y[part], minlength=4)
        assert ((counts - len(part) * left / max(1, int(left.sum()))).abs() < 1).all()
        left = left - counts
    assert torch.equal(parts[0], stratified_indices(y, sizes[:1], seed)[0])  # later sizes do not matter


def test_stratified_parts_are_not_sorted_by_class():
    (part,) = stratified_indices(torch.arange(100) // 50, [60], seed=0)
    assert (part[1:] - part[:-1] < 0).sum() > 15
