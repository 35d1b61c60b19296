"""Philox: the published vectors, an implementation in Python's integers, and numbers that belong to their index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metasched.contrib.kernels.philox import philox, uniform

WORD = 2**32 - 1
# Random123 (Salmon et al., SC 2011), kat_vectors, philox4x32 with 10 rounds: counter, key, numbers
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (  # the digits of pi
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def numbers(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    words = [torch.tensor([word], dtype=torch.int64) for word in counter]
    return tuple(int(word) for word in philox((words[0], words[1], words[2], words[3]), key))


def reference(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """With a key schedule of its own, in integers without a size."""
    x = list(counter)
    for r in range(10):
        k = [(key[0] + r * 0x9E3779B9) % 2**32, (key[1] + r * 0xBB67AE85) % 2**32]
        high_a, low_a = divmod(0xD2511F53 * x[0], 2**32)
        high_b, low_b = divmod(0xCD9E8D57 * x[2], 2**32)
        x = [high_b ^ x[1] ^ k[0], low_b, high_a ^ x[3] ^ k[1], low_a]
    return tuple(x)


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert numbers(counter, key) == reference(counter, key) == expected


@given(st.tuples(*[st.integers(0, WORD)] * 4), st.tuples(*[st.integers(0, WORD)] * 2))
def test_every_counter_and_key(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    assert numbers(counter, key) == reference(counter, key)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(1, 41))
def test_uniform_numbers_are_the_words_in_their_order(seed: int, offset: int, n: int) -> None:
    found = uniform(seed, offset, n)
    assert found.dtype == torch.float32 and found.shape == (n,)
    key = (seed % 2**32, seed >> 32)
    words = [w for j in range(-(-n // 4)) for w in reference((j, 0, offset % 2**32, offset >> 32), key)]
    assert [int(x) for x in found.double() * 2**24] == [w >> 8 for w in words[:n]]
    assert bool((found < 1).all())


def test_uniform_numbers_are_uniform_and_streams_are_apart() -> None:
    one, two, three = uniform(1, 0, 100_000), uniform(1, 1, 100_000), uniform(2, 0, 100_000)
    for x in (one, two, three):
        assert stats.kstest(x.double().numpy(), "uniform").pvalue > 1e-3
    for x in (two, three, one.roll(1), one.roll(4)):
        correlation = torch.corrcoef(torch.stack([one, x]))[0, 1]
        assert abs(float(correlation)) < 4 / 100_000**0.5


def test_seeds_and_offsets_have_their_range() -> None:
    for seed, offset in ((-1, 0), (0, -1), (2**63, 0), (0, 2**63)):
        with pytest.raises(AssertionError):
            uniform(seed, offset, 1)
