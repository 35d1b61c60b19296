"""Resource models by hand, the latency table, and one line for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.network.quantize import quantize
from metasched.network.recipe import Recipe
from metasched.network.size import network_bytes
from metasched.search.bits.problem import BitProblem
from metasched.search.bits.resources import bit_problem, levels_of_bits, read_latency, rules_of
from metasched.search.config import AllocateConfig

X = torch.zeros(1, 2, 5, 5)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 7), nn.ReLU(), nn.Linear(7, 2)
    )


def recipe(levels: str = "balanced4", **more: Any) -> Recipe:
    return Recipe("ste", weights=levels, scale="max", granularity="channel", **{"activations": "uint3", **more})


def made(levels: str = "balanced4", **settings: Any) -> BitProblem:
    return bit_problem(model(), recipe(levels), X, AllocateConfig(**settings))


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_the_size_is_that_of_the_network_with_these_bits(bits: int) -> None:
    p = made(budget=10_000)
    mixed = rules_of(recipe(), {"0": bits, "4": 2})
    network = quantize(model(), recipe(rules=mixed), X)
    assert p.total((p.bits.index(bits), 0)) == network_bytes(network)
    assert p.cost[0][p.bits.index(bits)] == -(-54 * bits // 8)


def test_rules_of_the_recipe_about_levels_do_not_count() -> None:
    mine = recipe(rules=[{"match": "0", "channel_bits": "242"}, {"match": "4", "levels": "int8"}])
    p = bit_problem(model(), mine, X, AllocateConfig(budget=10_000))
    assert (p.cost, p.fixed) == ((q := made(budget=10_000)).cost, q.fixed)


def test_bit_operations() -> None:
    p = made(resource="operations", budget=10**9)
    assert p.macs == (54 * 9, 27 * 7)
    assert p.cost[0][0] == 54 * 9 * 2 * 3 and p.cost[1][-1] == 27 * 7 * 8 * 3
    assert p.fixed == 14 * 32 * 3
    floats = bit_problem(model(), recipe(activations=None), X, AllocateConfig(resource="operations", budget=10**9))
    assert floats.cost[0][0] == 54 * 9 * 2 * 32


def test_latency_and_a_budget_in_uniform_bits(tmp_path: Path) -> None:
    times = {"0": {"2": 1.0, "4": 2.5, "8": 4}, "4": {"2": 0.5, "4": 0.25, "8": 1.0}, "6": {}}
    (tmp_path / "t.json").write_text(json.dumps(times))
    p = made(resource="latency", latency=str(tmp_path / "t.json"), bits=(2, 8, 4), budget="4 bits")
    assert p.bits == (2, 4, 8) and p.cost == ((1.0, 2.5, 4.0), (0.5, 0.25, 1.0))
    assert p.budget == 2.75 and p.unit == "ms" and p.fits((1, 1)) and not p.fits((2, 0))


def refused(tmp_path: Path, table: Any, **settings: Any) -> str:
    path = tmp_path / "t.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    given = {"resource": "latency", "latency": str(path), "bits": (2, 4), "budget": 9.0, **settings}
    with pytest.raises(MetaschedError) as caught:
        made(**given)
    said = str(caught.value)
    assert "\n" not in said and said.startswith(str(path))
    return said


FULL = {"0": {"2": 1, "4": 2}, "4": {"2": 1, "4": 2}}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"0": FULL["0"]}, "has no layer '4'; add it"),
        ({**FULL, "4": {"2": 1}}, "has no time of layer '4' at 4 bits; add them"),
        ({**FULL, "4": {"2": 1, "4": 0}}, "4.4: is 0, and no time above 0"),
        ({**FULL, "4": {"2": 1, "4": True}}, "is True, and no time above 0"),
        ({**FULL, "4": {"two": 1}}, "has 'two', which is no number of bits"),
        ([1, 2], "is not a table of layers"),
        ({"0": 3}, "is not a table of layers"),
        ("{", "not JSON"),
        ('{"0": {"2": NaN}}', "must be a finite number"),
    ],
)
def test_latency_tables_that_do_not_fit(table: Any, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, table)


def test_a_budget_in_bits_needs_their_times(tmp_path: Path) -> None:
    assert "has no time of layer '0' at 3 bits" in refused(tmp_path, FULL, budget="3 bits")


@pytest.mark.parametrize(
    ("levels", "settings", "said"),
    [
        ("states2", {}, "method.levels: states2 are not levels of a number of bits"),
        ("balanced4", {"budget": 10}, "allocate.budget: is 10 bytes, and the network takes at least"),
        ("pow2_4", {"bits": (1, 2)}, ""),
        ("int4", {"bits": (1, 9), "budget": "1 bit"}, ""),
        ("balanced4", {"resource": "latency"}, "allocate.latency: is missing"),
    ],
)
def test_settings_that_do_not_fit(levels: str, settings: dict[str, Any], said: str) -> None:
    if not said:
        made(levels, **settings)
        return
    with pytest.raises(MetaschedError) as caught:
        made(levels, **settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_built_method_has_no_family() -> None:
    from metasched.methods import MethodConfig, build_method

    with pytest.raises(MetaschedError, match="has a method that is built already"):
        bit_problem(model(), Recipe(build_method(MethodConfig(name="ste"))), X, AllocateConfig())


def test_families_and_bits() -> None:
    assert [levels_of_bits(recipe("ternary"), b) for b in (1, 2, 8)] == ["binary", "balanced2", "balanced8"]
    assert [levels_of_bits(recipe("pow2_3"), b) for b in (1, 5)] == ["binary", "pow2_5"]


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(MetaschedError, match="cannot be read: Is a directory"):
        read_latency(str(tmp_path))
