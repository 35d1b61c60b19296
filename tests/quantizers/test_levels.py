"""Level sets: counts and values of the papers, thresholds, and INQ's rule for powers of two."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.core.errors import MetaschedError
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet, binary, integers, level_set, powers_of_two, ternary
from metasched.quantizers.scales import scale_of

NAMES = [
    "binary",
    "ternary",
    "int1",
    "int4",
    "uint1",
    "uint8",
    "balanced2",
    "balanced5",
    "pow2_2",
    "pow2_9",
    "midrise1",
    "midrise5",
    "normal1",
    "normal4",
]


@pytest.mark.parametrize(("bits", "count"), [(2, 3), (3, 5), (4, 9), (5, 17)])
def test_inq_spends_one_bit_on_zero(bits: int, count: int) -> None:
    levels = powers_of_two(bits).levels
    assert len(levels) == count
    n1 = 0
    n2 = n1 + 1 - 2 ** (bits - 1) // 2  # INQ, section 2.1
    assert [q for q in levels if q > 0] == [2.0**n for n in range(n2, n1 + 1)]
    assert sorted(-q for q in levels) == list(levels)


def test_integer_sets() -> None:
    assert ternary().levels == (-1, 0, 1) == integers(2, signed=True, balanced=True).levels
    assert binary().levels == (-1, 1)
    assert integers(3, signed=False, balanced=False).levels == tuple(range(8))
    assert integers(3, signed=True, balanced=False).levels == (-4, -3, -2, -1, 0, 1, 2, 3)
    assert integers(3, signed=True, balanced=True).levels == (-3, -2, -1, 0, 1, 2, 3)
    assert integers(4, signed=True, balanced=True).thresholds == tuple(q + 0.5 for q in range(-7, 7))


@given(st.lists(st.integers(-(2**20), 2**20), min_size=2, max_size=20, unique=True))
def test_thresholds_are_midpoints_and_jumps_add_up(values: list[int]) -> None:
    levels = LevelSet(tuple(sorted(float(v) for v in values)))
    q = np.array(levels.levels)
    np.testing.assert_array_equal(levels.thresholds, q[:-1] + np.diff(q) / 2)
    np.testing.assert_array_equal(np.cumsum([q[0], *levels.jumps]), q)
    assert levels.bits == pytest.approx(np.log2(len(values)))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_has_its_number_of_levels(name: str) -> None:
    expected = {
        "binary": 2,
        "ternary": 3,
        "int1": 2,
        "int4": 16,
        "uint1": 2,
        "uint8": 256,
        "balanced2": 3,
        "balanced5": 31,
        "pow2_2": 3,
        "pow2_9": 257,
        "midrise1": 2,
        "midrise5": 32,
        "normal1": 2,
        "normal4": 16,
    }
    assert len(level_set(name).levels) == expected[name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Ternary",
        "int",
        "int0",
        "int10",
        "uint0",
        "balanced1",
        "balanced0",
        "pow2_1",
        "pow2",
        "pow2_-3",
        "4",
        "midrise0",
        "normal10",
        "normal",
    ],
)
def test_other_names_are_refused_with_the_field_that_names_them(name: str) -> None:
    with pytest.raises(MetaschedError, match=r"^method\.levels: unknown level set '.*'; use binary, ternary"):
        level_set(name, "method.levels")


def inq_rule(w: float, bits: int) -> float:
    """The rule of the paper for n1 = 0: sgn(w) b where (a + b) / 2 <= |w| < 3 b / 2, else 0."""
    neighbours = [0.0, *(2.0**-k for k in reversed(range(2 ** (bits - 2))))]
    for a, b in pairwise(neighbours):
        if (a + b) / 2 <= abs(w) < 3 * b / 2:
            return float(np.sign(w) * b)
    return 0.0


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_the_midpoints_are_the_rule_of_inq(bits: int) -> None:
    w = np.linspace(-1.49, 1.49, 2001) + 1e-7  # the paper's rule is symmetric, ours right continuous: avoid ties
    expected = [inq_rule(x, bits) for x in w]
    assert hard(torch.from_numpy(w), powers_of_two(bits)).tolist() == expected
    assert set(expected) == set(powers_of_two(bits).levels)


def test_weights_that_outgrow_the_top_level_stay_on_it() -> None:
    # n1 = 0, five bits: INQ-pytorch sends 1.49 to 1 and 1.5 to 0
    assert inq_rule(1.5, 5) == 0
    assert hard(torch.tensor([1.49, 1.5, 100.0, -1.49, -1.5, -100.0]), powers_of_two(5)).tolist() == [
        1,
        1,
        1,
        -1,
        -1,
        -1,
    ]


def test_hard_is_right_continuous_and_keeps_nan() -> None:
    x = torch.tensor([-0.5, 0.5, 0.0, -torch.inf, torch.inf, torch.nan])
    y = hard(x, ternary())
    assert y[:5].tolist() == [0, 1, 0, -1, 1]
    assert y[5].isnan()
    assert hard(torch.tensor([0.5]).nextafter(torch.tensor([0.0])), ternary()).item() == 0


@pytest.mark.parametrize("bits", range(1, 10))
def test_mid_rise_and_normal_levels_are_two_to_the_bits_around_a_zero_that_is_none(bits: int) -> None:
    for name in ("midrise", "normal"):
        levels = np.array(level_set(f"{name}{bits}").levels)
        assert len(levels) == 2**bits and (np.diff(levels) > 0).all()
        np.testing.assert_array_equal(levels, -levels[::-1])
        assert 0 not in levels
    np.testing.assert_array_equal(np.diff(level_set(f"midrise{bits}").levels), 1)


def test_mid_rise_is_its_formula_between_the_outermost_levels() -> None:
    x = torch.linspace(-3.99, 3.99, 1001)
    assert torch.equal(hard(x, level_set("midrise3")), x.floor() + 0.5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_normal_levels_halve_equal_probabilities_and_are_nearly_the_best_for_normal_weights(bits: int) -> None:
    levels = level_set(f"normal{bits}")
    share = torch.special.ndtr(torch.tensor(levels.levels))
    torch.testing.assert_close(share, (torch.arange(2**bits) + 0.5) / 2**bits, rtol=0, atol=1e-12)
    w = torch.special.ndtri((torch.arange(20_000) + 0.5) / 20_000)[None]  # a normal sample without chance
    errors = {}
    for name in ("normal", "midrise", "int"):
        own = level_set(f"{name}{bits}")
        scale = scale_of(w, own, "least_squares", "tensor")
        errors[name] = float((hard(w / scale, own) * scale - w).square().mean())
    best = {2: 0.1175, 3: 0.03454, 4: 0.009497}[bits]  # Lloyd and Max
    assert 0.99 * best < errors["normal"] < 1.06 * best
    assert errors["normal"] < errors["midrise"] < errors["int"]
