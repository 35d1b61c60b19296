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
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.base import State
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded

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
