"""The benchmark of surrogate trust: its statistics on planted data, its extremes, the table made from its result."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from loading import loaded

from metasched.tasks.config import TaskConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trust() -> ModuleType:
    file = ROOT / "scripts" / "benchmarks" / "surrogate_trust.py"
    return loaded(file)


def test_knots_are_factors_of_the_noise_and_shifts_of_the_freeze_fraction(trust):
    case = trust.Case("joint", "mode", "noise", 0.5, 0.1)
    u = torch.linspace(0, 1, 7)
    at_zero = trust.controls_of(torch.zeros(2, 4), case, steps=7, num_layers=3)
    assert {name: tuple(v.shape) for name, v in at_zero.items()} == dict.fromkeys(
        ("weight_noise", "activation_noise", "noise_mean", "freeze_fraction"), (7, 3)
    )
    assert bool((at_zero["weight_noise"] == 0.5).all()) and not bool(at_zero["noise_mean"].any())
    assert torch.equal(at_zero["activation_noise"], at_zero["weight_noise"])
    torch.testing.assert_close(at_zero["freeze_fraction"][:, 1], u.clamp(0.01, 0.99))
    theta = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    moved = trust.controls_of(theta, case, steps=7, num_layers=3)
    torch.testing.assert_close(
        (moved["weight_noise"][:, 0] / 0.5).log(), torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0, 0.0, 0.0])
    )
    shift = torch.logit(moved["freeze_fraction"]) - torch.logit(at_zero["freeze_fraction"])
    torch.testing.assert_close(shift[:, 2], torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]))


def test_statistics_of_planted_directions(trust):
    draws = torch.Generator().manual_seed(0)
    truth = torch.tensor([1.0, 2.0, -1.0, 0.5])
    truths = truth + 0.1 * torch.randn(50, 4, generator=draws)
    across = torch.tensor([2.0, -1.0, 0.0, 0.0])
    broken = torch.tensor([[float("nan"), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [float("inf"), 1.0, 1.0, 1.0]])

    along = trust.compare(torch.cat([1e20 * truth.expand(5, 4), broken]), truths)
    assert (along["runs"], along["pairs"], along["unusable"]) == (8, 50, 3)
    assert along["one_run"][0] > 0.99 and along["mean_of_runs"][0] > 0.99 and along["ceiling"] > 0.99
    assert along["size"] == pytest.approx(1e20, rel=0.05)
    assert trust.compare(-truth.expand(5, 4), truths)["one_run"][0] < -0.99

    half = trust.compare(torch.cat([truth.expand(10, 4), across.expand(10, 4)]), truths)
    estimate, low, high = half["one_run"]
    assert low < 0.5 < high and estimate == pytest.approx(0.5, abs=0.05)
    assert half["mean_of_runs"][0] == pytest.approx(0.5**0.5, abs=0.05)  # the part across does not cancel, but spreads

    nothing = trust.compare(broken, truths)
    assert nothing["one_run"] is None and nothing["mean_of_runs"] is None and nothing["size"] is None
    few = trust.compare(torch.cat([truth.expand(2, 4), broken]), truths)  # 2 of 5 prove nothing
    assert few["one_run"] is None and few["unusable"] == 3 and few["size"] is not None
    noise = trust.compare(truth.expand(5, 4), torch.randn(50, 4, generator=draws))
    assert abs(noise["ceiling"]) < 0.5


def test_extremes_of_the_noise_width(trust):
    """Wide noise: the surrogate points the right way. Narrow noise: it explodes, by orders of magnitude."""
    task = TaskConfig(model="mlp", width=16, train=200, validation=200, batch=32, steps=20)
    (wide,) = trust.measure(trust.Case("ana", "mode", "noise", 0.75, None), task, runs=6, pairs=12)
    assert wide["control"] == "noise" and wide["unusable"] == 0
    estimate, low, _ = wide["one_run"]
    assert estimate > 0.3 and low > 0 and wide["size"] < 10
    (narrow,) = trust.measure(trust.Case("ana", "mode", "noise", 0.1, None), task, runs=2, pairs=2)
    assert narrow["size"] is None or narrow["size"] > 1e3


def test_the_documented_table_is_that_of_the_recorded_result(trust):
    result = json.loads((ROOT / "experiments" / "results" / "surrogate_trust.json").read_text())
    assert (ROOT / "docs" / "tables" / "surrogate_trust.md").read_text() == trust.markdown(result)
    cases = [trust.Case(**{f: row[f] for f in trust.Case._fields}) for row in result["rows"]]
    assert list(dict.fromkeys(cases)) == list(trust.CASES)
    assert all(row["runs"] == result["setting"]["runs"] >= 8 for row in result["rows"])
