"""Named independent streams: golden seeds, and draws that depend on their key alone."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metasched.core.randomness import Draw, derive_seed, generator, permutation

KEYS = st.tuples(st.integers(0, 2**63 - 1), st.sampled_from(["weights", "batches", "weight", "key"])).flatmap(
    lambda head: st.lists(st.integers(0, 10**6), max_size=3).map(lambda indices: (*head, *indices))
)


def test_golden_seeds() -> None:
    """Past runs can be repeated only while these hold. Source: ``printf 0/weights | b2sum -l 64``, halved."""
    assert derive_seed(0, "weights") == 4283426181684004966
    assert derive_seed(1, "batches", 2) == 5637557274208707637


@given(st.lists(KEYS, unique=True, min_size=2, max_size=20))
def test_different_keys_have_different_seeds(keys: list[tuple[int | str, ...]]) -> None:
    seeds = {derive_seed(*key) for key in keys}  # pyright: ignore
    assert len(seeds) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)


def test_indices_do_not_run_together() -> None:
    assert (
        len({derive_seed(1, "a", 11), derive_seed(1, "a", 1, 1), derive_seed(11, "a", 1), derive_seed(1, "a1", 1)}) == 4
    )


def test_generators_start_anew_at_each_call() -> None:
    first = torch.rand(5, generator=generator(0, "a", 1))
    torch.rand(3)
    assert torch.equal(first, torch.rand(5, generator=generator(0, "a", 1)))
    assert not torch.equal(first, torch.rand(5, generator=generator(0, "a", 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_shape_and_dtype_of_the_tensor(dtype: torch.dtype) -> None:
    draws = Draw(1, 2, 3).uniform("weight", torch.empty(200, 50, dtype=dtype))
    assert draws.shape == (200, 50) and draws.dtype == dtype
    assert bool((draws >= 0).all()) and bool((draws < 1).all())
    assert stats.kstest(draws.double().flatten().numpy(), stats.uniform.cdf).pvalue > 0.01


def test_draws_of_other_steps_layers_seeds_and_purposes_are_independent() -> None:
    like = torch.empty(10_000)
    draws = [
        Draw(0, 0, 0).uniform("weight", like),
        Draw(1, 0, 0).uniform("weight", like),
        Draw(0, 1, 0).uniform("weight", like),
        Draw(0, 0, 1).uniform("weight", like),
        Draw(0, 0, 0).uniform("activation", like),
    ]
    correlation = torch.corrcoef(torch.stack(draws))
    assert (correlation - torch.eye(5)).abs().max().item() < 0.04  # four standard errors
    copied = pickle.loads(pickle.dumps(Draw(0, 1, 0)))
    assert torch.equal(copied.uniform("weight", like), draws[2])


def test_permutations() -> None:
    order = Draw(0, 3, 1).permutation("order", 50)
    assert sorted(order.tolist()) == list(range(50)) and order.tolist() != list(range(50))
    assert torch.equal(order, Draw(0, 3, 1).permutation("order", 50))
    assert not torch.equal(order, Draw(0, 4, 1).permutation("order", 50))


def test_mapped_over_seeds_each_run_sees_the_draws_of_its_own() -> None:
    seeds = [0, 7, 2**63 - 1]

    def draw(seed: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own = Draw(seed, 2, 1)
        return own.uniform("weight", like), own.permutation("order", 9), permutation(seed, "batches", 4, n=9)

    uniform, order, batches = torch.vmap(draw)(torch.tensor(seeds), torch.empty(3, 4, 2, dtype=torch.float32))
    for i, seed in enumerate(seeds):
        assert torch.equal(uniform[i], Draw(seed, 2, 1).uniform("weight", torch.empty(4, 2, dtype=torch.float32)))
        assert torch.equal(order[i], Draw(seed, 2, 1).permutation("order", 9))
        assert torch.equal(batches[i], torch.randperm(9, generator=generator(seed, "batches", 4)))
