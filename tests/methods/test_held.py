"""Frozen weights under hard live weights: STE bit for bit without freezing, kept levels, exact derivatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from metasched import build_method, build_problem, find_unroll, hand_coded, progress_of_steps, train
from metasched.config.schema import Experiment
from metasched.core.randomness import Draw
from metasched.engines import UNROLLS
from metasched.engines.base import OuterLoss, control_gradient
from metasched.methods import held
from metasched.methods.config import MethodConfig
from metasched.methods.inq import INQ
from metasched.network.flat import Tensors, rows
from metasched.runs.config import RunConfig
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

DRAW = Draw(seed=2, step=4, layer=0)
LEARNED = {"scale": "learned", "activation_scale": "learned", "granularity": "channel"}
SCALES = {"fixed": {}, "learned": LEARNED}
scales = pytest.mark.parametrize("own", SCALES.values(), ids=SCALES)
STEPS = 6


def problem_of(name: str, *, steps: int = STEPS, optimizer: str = "adam", **method: Any) -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=6, steps=steps, batch=16, train=64, validation=16, test=16),
        optimizer=OptimizerConfig(name=optimizer, lr=0.05, eps=1e-3),
        method=MethodConfig(name=name, **method),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem).with_seed(3)


def played(problem: InnerProblem, fractions: list[float]) -> Tensors:
    return {"freeze_fraction": torch.tensor(fractions)[:, None].repeat(1, len(problem.network.layers))}


@scales
@pytest.mark.parametrize("partition", ["magnitude", "random", "relaxation"])
def test_without_freezing_it_is_ste_to_the_last_bit(partition: str, own: dict[str, Any]) -> None:
    ours, floor = problem_of("inq", live="hard", partition=partition, **own), problem_of("ste", **own)
    mine, theirs = train(ours, played(ours, [0.0] * STEPS)), train(floor, {})
    assert torch.equal(mine.losses, theirs.losses)
    for part in ("params", "buffers", "optimizer"):
        before, after = getattr(theirs.state, part), getattr(mine.state, part)
        assert before.keys() == after.keys() and all(torch.equal(t, after[name]) for name, t in before.items()), part
    none = hand_coded("inq")["inq_none"](progress_of_steps(STEPS), ours.network.layers)
    assert none["freeze_fraction"].unique(dim=1).flatten().tolist() == [0.0] * (STEPS - 1) + [1.0]
    assert torch.equal(train(ours, none).losses, theirs.losses)  # the last step only freezes


@pytest.mark.parametrize("partition", ["magnitude", "random"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_frozen_weight_never_leaves_its_level_though_its_scale_is_learned(optimizer: str, partition: str) -> None:
    problem = problem_of(
        "inq", steps=40, optimizer=optimizer, live="hard", partition=partition, levels="int3", **LEARNED
    )
    network = problem.network
    controls = played(problem, [min(1.0, 0.05 * step) for step in range(40)])
    state = problem.initial(rows(controls, 0))
    kept: Tensors = {}
    would_move = 0
    first = {layer.name: state.params[f"{layer.name}/scale"] for layer in network.layers}
    for step in range(40):
        state, _, _ = inner_step(problem, state, rows(controls, step), step, differentiable=False)
        hardened = network.harden(state.params, state.method)
        for layer in network.layers:
            own = {key: state.method[f"{layer.name}/{key}"] for key in ("frozen", "level")}
            scale = state.params[f"{layer.name}/scale"]
            levels = (hardened[layer.weight_key] / scale).round()
            frozen = own["frozen"] == 1
            if layer.name in kept:
                before = kept[layer.name].isfinite()
                assert bool((frozen >= before).all())
                assert torch.equal(levels[before], kept[layer.name][before])
                nearest = (state.params[layer.weight_key] / scale).round().clamp(-4, 3)
                would_move += int((nearest[before] != levels[before]).sum())
            assert torch.equal(levels[frozen], own["level"][frozen])
            kept[layer.name] = torch.where(frozen, levels, torch.nan)
    assert would_move > 0  # the nearest level of the stored weight is another one by now
    assert all(not torch.equal(state.params[f"{name}/scale"], scale) for name, scale in first.items())


@scales
def test_what_is_seen_is_what_is_deployed_and_lies_on_the_levels(own: dict[str, Any]) -> None:
    method = build_method(MethodConfig(name="inq", live="hard", levels="pow2_3", **own))
    w, trainable, state = method.initialize(torch.randn(6, 9), {}, DRAW)
    state = method.prepare(w, {**state, **trainable}, {"freeze_fraction": torch.tensor(0.4)}, DRAW)
    state["scale"] = 1.7 * state["scale"]
    seen = method.weight(w, state, {}, DRAW)
    assert torch.equal(seen, method.harden(w, state, 0.5))
    frozen = state["frozen"] == 1
    assert 0 < int(frozen.sum()) < 54
    q = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    nearest = q[(w[..., None] / state["scale"][..., None] - q).abs().argmin(-1)] * state["scale"]
    assert torch.equal(seen[~frozen], nearest[~frozen]) and not torch.equal(seen[frozen], nearest[frozen])


def test_the_derivatives_of_held_weights_by_hand() -> None:
    """In training a frozen weight has none and its scale that of level times scale; deployed, the weight has STE's."""
    method = build_method(MethodConfig(name="inq", live="hard", **LEARNED))
    w = torch.tensor([[0.2, 0.9, -0.7, 1.6]], requires_grad=True)
    scale = torch.tensor([[0.8]], requires_grad=True)
    level, frozen = torch.tensor([[1.0, 1.0, -1.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    state = {"scale": scale, "level": level, "frozen": frozen}
    weights = torch.tensor([[2.0, 3.0, 5.0, 7.0]])
    z, inside = w.detach() / 0.8, torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    of_w, of_s = torch.autograd.grad((method.weight(w, state, {}, DRAW) * weights).sum(), [w, scale])
    live = 1 - frozen
    assert torch.allclose(of_w, weights * live * inside)
    assert torch.allclose(of_s, (weights * (level - live * z * inside)).sum()[None, None])
    of_w, of_s = torch.autograd.grad((method.harden(w, state, 0.5) * weights).sum(), [w, scale])
    assert torch.allclose(of_w, weights * inside)
    assert torch.allclose(of_s, (weights * (level - live * z * inside)).sum()[None, None])


@pytest.mark.parametrize("partition", ["magnitude", "random", "relaxation"])
@scales
def test_the_fraction_against_central_differences(partition: str, own: dict[str, Any]) -> None:
    """It acts through the gradient of a step and the optimizer's proposal: both are smooth in it when relaxed."""
    made = build_method(MethodConfig(name="inq", live="hard", partition=partition, **own))
    assert isinstance(made, INQ)
    method = made.relaxed(0.2)
    w, trainable, initial = method.initialize(torch.randn(4, 25), {}, DRAW)
    w.requires_grad_()
    initial |= trainable
    cotangent, other = torch.randn(4, 25), torch.randn(4, 25)

    def function(fraction: torch.Tensor) -> torch.Tensor:
        values = {"freeze_fraction": fraction}
        state = method.prepare(w, initial, values, DRAW)
        (gradient,) = torch.autograd.grad(
            (cotangent * method.weight(w, state, values, DRAW)).sum(), w, create_graph=True
        )
        updated, _ = method.update(w, w - 0.1 * gradient, state, values, DRAW)
        return (other * updated).sum()

    for start in (0.15, 0.4, 0.77):
        fraction = torch.tensor(start, requires_grad=True)
        assert torch.autograd.gradcheck(function, fraction)
        (g,) = torch.autograd.grad(function(fraction), fraction)
        assert g != 0


class _Ste(torch.autograd.Function):
    """The hard ternary quantizer with the window of clip(x, -1, 1)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.floor(x.clamp(-1, 1) + 0.5).clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return grad * (ctx.saved_tensors[0].abs() < 1)


@pytest.mark.parametrize("engine", UNROLLS)
def test_the_hypergradient_by_hand(engine: str) -> None:
    """Steps of SGD with momentum in plain torch, with the smooth step over ranks: 1e-9."""
    steps, width = 4, 0.3
    base = problem_of("inq", steps=steps, optimizer="sgd", live="hard", partition="random")
    problem = replace(base, network=replace(base.network, method=base.network.method.relaxed(width)))
    layers = problem.network.layers
    fractions = (0.2 * torch.arange(1.0, steps + 1)[:, None] + 0.05 * torch.rand(steps, len(layers))).requires_grad_()
    found = control_gradient(find_unroll(engine), problem, {"freeze_fraction": fractions}, OuterLoss("relaxed", 0.5))
    start = problem.initial({"freeze_fraction": fractions[0].detach()})
    params = {n: p.detach().clone().requires_grad_() for n, p in start.params.items()}
    moments = {n: torch.zeros_like(p) for n, p in params.items()}
    # relaxed, the first in the order are those with the largest mask before: the order of the keys for all time
    ranks = {}
    for layer in layers:
        key = start.method[f"{layer.name}/key"].flatten()
        order = key.argsort(descending=True, stable=True)
        rank = torch.empty_like(key)
        rank[order] = (torch.arange(len(key), dtype=key.dtype) + 0.5) / len(key)
        ranks[layer.name] = rank.reshape(start.method[f"{layer.name}/key"].shape)
    parts = dict(problem.task.build().named_children())

    def loss_of(params: Tensors, masks: Tensors, batch: Any) -> torch.Tensor:
        x = batch.x.flatten(1)
        for i, layer in enumerate(layers):
            w = params[layer.weight_key]
            hard = _Ste.apply(w)
            seen = torch.lerp(hard, hard.detach(), masks[layer.name])  # pyright: ignore
            norm = f"norm{i + 1}"
            x = nn.functional.linear(x, seen)
            x = nn.functional.batch_norm(
                x,
                None,
                None,
                params[f"{norm}.weight"],
                params[f"{norm}.bias"],
                training=True,
                eps=parts[norm].eps,  # pyright: ignore
            )
            x = _Ste.apply(x)
        last = f"linear{len(layers) + 1}"
        out = nn.functional.linear(x, params[f"{last}.weight"], params[f"{last}.bias"])  # pyright: ignore
        return nn.functional.cross_entropy(out, batch.y)

    def masks_at(step: int) -> Tensors:
        z = {x.name: (fractions[step, i] * (1 + width) - ranks[x.name]) / width for i, x in enumerate(layers)}
        return {name: t.clamp(0, 1) ** 2 * (3 - 2 * t.clamp(0, 1)) for name, t in z.items()}

    masks = masks_at(0)
    for step in range(steps):
        masks = masks_at(step)
        loss = loss_of(params, masks, problem.task.batch(3, step))
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        moments = {n: 0.9 * m + g for (n, m), g in zip(moments.items(), grads, strict=True)}
        stepped = {n: p - 0.05 * moments[n] for n, p in params.items()}
        for layer in layers:
            key, m = layer.weight_key, masks[layer.name]
            stepped[key] = stepped[key] + m * (params[key] - stepped[key])
        params = stepped
    outer = loss_of(params, masks, problem.task.outer_batch())
    (expected,) = torch.autograd.grad(outer, fractions)
    assert torch.allclose(torch.tensor(found.loss), outer.detach(), rtol=1e-10)
    assert float(expected.norm()) > 0
    torch.testing.assert_close(found.wrt["freeze_fraction"], expected, rtol=1e-8, atol=1e-12)


def test_levels_now_are_stored_ones_where_frozen_and_nearest_elsewhere() -> None:
    method = build_method(MethodConfig(name="inq", live="hard"))
    w, frozen = torch.tensor([[0.9, 0.9, -0.2]]), torch.tensor([[1.0, 0.0, 0.5]])
    state = {"scale": torch.ones(1, 1), "frozen": frozen, "level": torch.tensor([[-1.0, -1.0, -1.0]])}
    assert held.levels_now(w, state, method.quantizer).tolist() == [[-1.0, 1.0, 0.0]]


def test_published_inq_keeps_no_levels() -> None:
    assert "level" not in build_method(MethodConfig(name="inq")).initialize(torch.randn(3, 4), {}, DRAW)[2]
