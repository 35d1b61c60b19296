"""``allocate``: what is scored is the rounded network, and what is found is a recipe that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import metasched
from metasched.core.errors import MetaschedError
from metasched.network.recipe import Recipe
from metasched.network.size import network_bytes
from metasched.quantizers.levels import level_set
from metasched.search.bits.allocate import allocate
from metasched.search.bits.resources import bit_problem
from metasched.search.bits.rounding import Rounded
from metasched.search.config import AllocateConfig

RECIPE = Recipe("ste", weights="balanced4", activations=None, scale="max", last=True)


def made() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.data[0] *= 20  # pyright: ignore: a layer that suffers from few bits
    x, y = torch.randn(80, 6), torch.randint(3, (80,))
    model(x)
    return model.eval(), x, y


def test_the_score_is_the_loss_of_weights_rounded_by_hand() -> None:
    model, x, y = made()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    settings = AllocateConfig(budget=10**6)
    problem = bit_problem(model, RECIPE, x, settings)
    score = Rounded(model, RECIPE, x, problem, lambda module: F.cross_entropy(module(x), y))
    for choice in ((0, 3, 6), (6, 0, 0)):
        by_hand = nn.Sequential(*(m for m in made()[0]))
        by_hand.load_state_dict(before)
        for name, b in zip(("0", "3", "5"), choice, strict=True):
            w, levels = by_hand.get_parameter(f"{name}.weight").data, level_set(f"balanced{b + 2}")
            step = w.abs().max() / levels.levels[-1]
            w.copy_((w / step).round() * step)
        with torch.no_grad():
            wanted = -float(F.cross_entropy(by_hand.eval()(x), y))
        assert score(choice) == pytest.approx(wanted, rel=1e-12)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("search", ["greedy", "haq"])
def test_a_recipe_that_trains_within_the_budget(search: str) -> None:
    model, x, y = made()

    def loss(module: nn.Module) -> torch.Tensor:
        return (module(x) - model(x)).square().mean()

    found = allocate(model, RECIPE, x, loss, search=search, bits=(2, 4, 6), budget="4 bits", evaluations=27)
    assert found.uniform is not None and found.uniform.choice == (1, 1, 1)
    assert found.best.score >= found.uniform.score and found.problem.fits(found.best.choice)
    assert found.bits == {layer.name: b for layer, b in zip(found.problem.layers, found.bits.values(), strict=True)}
    network = metasched.quantize(model, found.recipe, x)
    assert [len(network.method_of(i).quantizer.levels.levels) for i in range(3)] == [
        2**b - 1 for b in found.bits.values()
    ]
    assert network_bytes(network) == found.best.cost <= found.problem.budget
    assert found.mean_bits == pytest.approx(
        sum(layer.num_weights * int(found.bits[layer.name]) for layer in network.layers) / (54 + 45 + 15)
    )
    assert found.to_dict()["bits"] == [*found.bits.values()]
    module, player = metasched.prepare(model, found.recipe, x, total_steps=2)
    for _ in range(2):
        F.cross_entropy(module(x), y).backward()
        player.step()
    plain = metasched.convert(module)
    for name, b in found.bits.items():
        assert plain.get_parameter(f"{name}.weight").unique().numel() <= 2 ** int(b) - 1


def test_allocated_bits_count_more_than_rules_of_the_recipe() -> None:
    model, x, _ = made()
    given = Recipe("ste", weights="balanced4", activations=None, scale="max", rules=[{"match": "0", "levels": "int8"}])
    found = allocate(model, given, x, lambda m: (m(x) - model(x)).square().mean(), bits=(2, 3), budget="3 bits")
    assert found.bits == {"0": 3, "3": 3}
    network = metasched.quantize(model, found.recipe, x)
    assert len(network.method_of(0).quantizer.levels.levels) == 7


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": -1}, "allocate: budget"),
        ({"bits": (0,)}, "allocate: bits"),
        ({"bits": (10,)}, "allocate: bits"),
        ({"search": "haqq"}, "unknown name 'haqq'; did you mean 'haq'"),
        ({"nothing": 1}, "allocate: nothing"),
        ({"score": "trained"}, "allocate: score: is for experiments"),
        ({"budget": 1.0}, "the network takes at least"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    model, x, _ = made()
    with pytest.raises(MetaschedError) as caught:
        allocate(model, RECIPE, x, lambda m: m(x).square().mean(), **settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "said"), [(lambda m: float("nan"), "is nan for the float network"), (lambda m: None, "gives a NoneType")]
)
def test_losses_that_are_no_numbers(loss: Any, said: str) -> None:
    model, x, _ = made()
    with pytest.raises(MetaschedError, match=f"allocate: loss: {said}"):
        allocate(model, RECIPE, x, loss)
