"""Pruning: counts, the order, what stands still, and the schedule against torch's own."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import metasched
from metasched import Recipe, quantize
from metasched.config.load import experiment_of, with_fields
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.evaluation.references import reference_arms
from metasched.methods import build_method
from metasched.methods.base import State
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.training.problem import build_problem

DRAW = Draw(0, 0, 0)


def pruned_at(w: torch.Tensor, share: float, sparsity: float = 0.9, levels: str = "int4") -> tuple[torch.Tensor, State]:
    method = build_method(MethodConfig(name="pruning", sparsity=sparsity, levels=levels, scale="max"))
    w, _, state = method.initialize(w, {}, DRAW)
    controls = {"sparsity": torch.tensor(share)}
    state = method.prepare(w, state, controls, DRAW)
    return method.weight(w, state, controls, DRAW), state


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_smallest_weights_are_zero_and_their_number_is_exact(share: float, sparsity: float) -> None:
    w = torch.randn(20, 10)
    seen, state = pruned_at(w, share, sparsity)
    number = round(200 * share * sparsity)
    assert int(state["pruned"].sum()) == number
    smallest = w.abs().flatten().argsort()[:number]
    assert state["pruned"].flatten()[smallest].eq(1).all()
    assert seen.flatten()[smallest].eq(0).all()
    free = state["pruned"] == 0
    ste = build_method(MethodConfig(name="ste", levels="int4", scale="max"))
    _, _, own = ste.initialize(w, {}, DRAW)
    assert torch.equal(seen[free], ste.weight(w, own, {}, DRAW)[free])


def test_the_number_is_exact_where_magnitudes_are_equal() -> None:
    _, state = pruned_at(torch.ones(8, 10), 1.0, 0.35)
    assert int(state["pruned"].sum()) == 28
    assert state["pruned"].flatten()[:28].eq(1).all()


def test_a_pruned_weight_stands_still_and_comes_back_when_others_are_smaller() -> None:
    method = build_method(MethodConfig(name="pruning", sparsity=0.5, levels="int4", scale="max"))
    w = torch.tensor([[1.0, 0.1, 0.5, 0.2]])
    w, _, state = method.initialize(w, {}, DRAW)
    controls = {"sparsity": torch.tensor(1.0)}
    state = method.prepare(w, state, controls, DRAW)
    assert state["pruned"].tolist() == [[0.0, 1.0, 0.0, 1.0]]
    moved, state = method.update(w, torch.tensor([[1.0, 9.0, 0.15, 9.0]]), state, controls, DRAW)
    assert moved.tolist() == [[1.0, 0.1, 0.15, 0.2]]
    state = method.prepare(moved, state, controls, DRAW)
    assert state["pruned"].tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert method.harden(moved, state, 0.5)[0, 1:3].tolist() == [0.0, 0.0]


def test_no_gradient_reaches_a_pruned_weight() -> None:
    w = torch.randn(6, 6, requires_grad=True)
    seen, state = pruned_at(w, 1.0, 0.5)
    (g,) = torch.autograd.grad(seen.square().sum(), w)
    assert g[state["pruned"] == 1].eq(0).all()
    assert g[(state["pruned"] == 0) & (seen != 0)].ne(0).all()


def test_cubic_is_the_schedule_of_torch() -> None:
    """torch.ao.pruning's CubicSL, over 60 of 101 steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.pruning import CubicSL, WeightNormSparsifier

        model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        sparsifier = WeightNormSparsifier(sparsity_level=0.9)
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        scheduler = CubicSL(sparsifier, init_sl=0.0, init_t=0, delta_t=1, total_t=60)
        theirs = []
        for _ in range(60):
            theirs.append(sparsifier.groups[0]["sparsity_level"])
            scheduler.step()
    layer = Layer("0", 0.0, "linear", "weight", 4, 16, 1.6)
    ours = hand_coded("pruning")["pruning_cubic"](progress_of_steps(101), [layer])["sparsity"][:60, 0]
    torch.testing.assert_close(0.9 * ours, torch.tensor(theirs), rtol=1e-12, atol=1e-12)


def small_network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 4))


@pytest.mark.parametrize("of", [{"name": "pruning"}, {"name": "joint", "of": "rates+pruning"}])
def test_a_global_budget_prunes_what_torch_prunes(of: dict[str, Any]) -> None:
    """torch.nn.utils.prune.global_unstructured, on three layers together, at half and at the whole target."""
    method = MethodConfig(**of, sparsity=0.8, budget="global", levels="int4", scale="max", activation_levels=None)
    net = quantize(small_network(), build_method(method), torch.zeros(1, 6), last=True)
    params, state = net.initialize(dict(net.module.named_parameters()), net.neutral(), 0)
    for share in (0.5, 1.0):
        theirs = small_network()
        amount = round(sum(layer.num_weights for layer in net.layers) * 0.8 * share)
        linears = [(m, "weight") for m in theirs if isinstance(m, nn.Linear)]
        prune.global_unstructured(linears, pruning_method=prune.L1Unstructured, amount=amount)
        row = {**net.neutral(), "sparsity": net.zero.new_full((3,), share)}
        found = net.prepare(params, state, row, 0, 0)
        for layer, (module, _) in zip(net.layers, linears, strict=True):
            assert torch.equal(found[f"{layer.name}/pruned"], 1 - module.get_buffer("weight_mask"))
        shares = [float(found[f"{layer.name}/pruned"].mean()) for layer in net.layers]
        assert max(shares) - min(shares) > 0.05  # which a target for each layer would not do


def test_the_control_of_a_global_budget_is_one_for_the_network() -> None:
    config = MethodConfig(name="pruning", sparsity=0.8, budget="global", levels="int4", scale="max")
    (control,) = build_method(config).controls
    assert (control.granularity, control.gradient) == ("network", "none")


def test_a_global_budget_in_an_own_loop() -> None:
    recipe = Recipe("pruning", sparsity=0.8, budget="global", weights="int4", scale="max", last=True)
    module, player = metasched.prepare(small_network(), recipe, torch.zeros(1, 6), "pruning_at_once", total_steps=3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        module(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        player.step()
    pruned = [t for name, t in module.named_buffers() if name.endswith("pruned")]
    assert sum(int(t.sum()) for t in pruned) == round(0.8 * (120 + 300 + 60))


def test_levels_without_a_zero_are_refused() -> None:
    with pytest.raises(MetaschedError, match=r"method.levels: is binary, which has no 0"):
        build_method(MethodConfig(name="pruning", levels="binary"))
    with pytest.raises(MetaschedError, match="which has no 0"):
        build_method(MethodConfig(name="joint", of="ana+pruning", levels="binary"))


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_sparsities_are_refused(sparsity: float) -> None:
    with pytest.raises((MetaschedError, ValueError), match="sparsity"):
        MethodConfig(name="pruning", sparsity=sparsity)


def layers_of_two_sizes() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))


@pytest.mark.parametrize("of", [{"method": "pruning"}, {"method": "joint", "of": "ana+pruning"}, {"method": "admm"}])
def test_a_rule_gives_layers_a_target_of_their_own(of: dict[str, Any]) -> None:
    rules = [{"match": "Linear", "sparsity": 0.6}, {"match": "2", "sparsity": 0.25}]
    recipe = Recipe(**of, rules=rules, levels="int4", activations=None, scale="max", last=True, sparsity=0.8)
    network = quantize(layers_of_two_sizes(), recipe, torch.zeros(1, 10))
    controls = {**network.neutral(), "sparsity": torch.tensor([1.0, 1.0, 0.5])}
    params, state = network.initialize(dict(network.module.named_parameters()), controls, 0)
    state = network.prepare(params, state, controls, 0, 0)
    found = [int(state[f"{name}/pruned"].sum()) for name in ("0", "2", "4")]
    assert found == [round(200 * 0.6), round(600 * 0.25), round(120 * 0.6 * 0.5)]


def test_targets_by_rule_are_reached_in_an_own_loop() -> None:
    rules = [{"match": "0", "sparsity": 0.3}]
    recipe = Recipe("pruning", rules=rules, levels="balanced8", activations=None, scale="max", last=True, sparsity=0.9)
    x = torch.randn(32, 10)
    module, player = metasched.prepare(layers_of_two_sizes(), recipe, x, schedule="pruning_cubic", total_steps=10)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
        player.step()
    plain = metasched.convert(module)
    zeros = [int((plain.get_parameter(f"{name}.weight") == 0).sum()) for name in ("0", "2", "4")]
    for zero, target in zip(zeros, (200 * 0.3, 600 * 0.9, 120 * 0.9), strict=True):
        assert target <= zero <= target + 20  # a few kept weights are nearest to 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"method": "ste"},
            r"^rule '0': sparsity: is not a parameter of ste by layer; leave it out; it is for",
        ),
        ({"method": "joint"}, r"^rule '0': sparsity: is not a parameter of joint by layer; leave it out; it is for"),
        (
            {"method": "pruning", "budget": "global"},
            r"of pruning by layer; leave it out, or set method.budget to layer$",
        ),
        ({"method": "admm", "constraint": "quantize"}, r"of admm by layer; leave it out, or set method.constraint to"),
    ],
)
def test_a_target_by_rule_that_nothing_reads_is_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaschedError, match=message):
        Recipe(**recipe, rules=[{"match": "0", "sparsity": 0.5}])


@pytest.mark.parametrize("sparsity", [0.0, 1.0, float("nan"), "half"])
def test_impossible_targets_by_rule_are_refused(sparsity: Any) -> None:
    with pytest.raises(MetaschedError, match=r"^rule '0': sparsity: "):
        Recipe("pruning", rules=[{"match": "0", "sparsity": sparsity}])


@pytest.mark.parametrize("of", [{"method": "pruning"}, {"method": "joint", "of": "pruning"}, {"method": "admm"}])
def test_a_target_that_leaves_no_weight_is_refused(of: dict[str, Any]) -> None:
    recipe = Recipe(**of, rules=[{"match": "4", "sparsity": 0.999}], levels="int4", activations=None, last=True)
    message = r"^model\.4: has 120 weights, of which a sparsity of 0\.999 leaves none; lower that, or"
    with pytest.raises(MetaschedError, match=message):
        quantize(layers_of_two_sizes(), recipe, torch.zeros(1, 10))


def test_an_experiment_with_targets_by_rule_compares_with_floors_that_have_none() -> None:
    method = {"name": "pruning", "levels": "int4", "scale": "max"}
    rules = [{"match": "linear1", "sparsity": 0.5}]
    task = {"name": "digits", "model": "mlp", "width": 8, "depth": 2, "steps": 5, "train": 64}
    experiment = experiment_of({"name": "x", "task": task, "method": method, "quantize": {"rules": rules}})
    assert build_problem(experiment.problem).network.method_of(0).target == 0.5  # pyright: ignore
    assert build_problem(experiment.problem).network.method_of(1).target == 0.9  # pyright: ignore
    for _, floor in reference_arms(experiment.problem):
        assert len(build_problem(floor.problem).network.layers) in (0, 2)
    other = with_fields(experiment, ["method.name=ste"], "--arm x")
    assert other.method.name == "ste" and other.quantize.rules[0].sparsity is None
    with pytest.raises(MetaschedError, match=r"^quantize\.rules\[0\]\.sparsity: is not a parameter of ste by layer"):
        experiment_of({"name": "x", "method": {"name": "ste"}, "quantize": {"rules": rules}})
