"""What every method promises. To add a method: one row in CASES."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import words
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from metasched.core.randomness import Draw
from metasched.methods import METHODS, build_method
from metasched.methods.base import Method, State, Values
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.quantizers.levels import level_set
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.sgd import SGD
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

CASES: dict[str, MethodConfig] = {
    "ste": MethodConfig(name="ste"),
    "ste_pow2_channel": MethodConfig(name="ste", levels="pow2_4", scale="pow2", granularity="channel"),
    "ana": MethodConfig(name="ana", noise="uniform", forward="expectation"),
    "ana_mode": MethodConfig(name="ana", noise="triangular", forward="mode", activation_levels="uint2"),
    "ana_random": MethodConfig(name="ana", noise="normal", forward="random", scale="max", granularity="channel"),
    "ana_fixed": MethodConfig(name="ana", noise="logistic", forward="mode", backward="fixed", activation_scale=0.25),
    "blend": MethodConfig(name="blend"),
    "blend_channel": MethodConfig(
        name="blend",
        levels="pow2_4",
        activation_levels="uint2",
        scale="max",
        granularity="channel",
        activation_scale=0.5,
    ),
    "blend_float": MethodConfig(name="blend", weight_gradient="float"),
    "widths": MethodConfig(name="widths"),
    "widths_channel": MethodConfig(name="widths", window="normal", scale="pow2", granularity="channel"),
    "rates": MethodConfig(name="rates"),
    "temperature": MethodConfig(name="temperature"),
    "temperature_channel": MethodConfig(
        name="temperature",
        levels="pow2_4",
        activation_levels="uint2",
        scale="max",
        granularity="channel",
        activation_scale=0.5,
    ),
    "parq": MethodConfig(name="parq"),
    "parq_channel": MethodConfig(name="parq", levels="int3", granularity="channel", activation_scale=0.5),
    "inq": MethodConfig(name="inq", levels="pow2_5", scale="pow2"),
    "inq_random": MethodConfig(name="inq", partition="random", scale="least_squares", granularity="channel"),
    "inq_relaxation": MethodConfig(name="inq", partition="relaxation"),
    "inq_hard": MethodConfig(name="inq", live="hard"),
    "inq_hard_pow2": MethodConfig(name="inq", live="hard", levels="pow2_3", scale="pow2", partition="random"),
    "oscillation": MethodConfig(name="oscillation"),
    "oscillation_channel": MethodConfig(
        name="oscillation", momentum=0.3, levels="pow2_3", scale="max", granularity="channel"
    ),
    "pruning": MethodConfig(name="pruning", sparsity=0.5),
    "pruning_pow2": MethodConfig(name="pruning", levels="pow2_3", scale="pow2", granularity="channel"),
    "quant_noise": MethodConfig(name="quant_noise"),
    "quant_noise_blocks": MethodConfig(
        name="quant_noise", noise_block=4, levels="pow2_3", scale="max", granularity="channel", activation_scale=0.5
    ),
    "rounding": MethodConfig(name="rounding"),
    "rounding_normal": MethodConfig(
        name="rounding", levels="normal2", activation_levels="midrise2", scale="max", granularity="channel"
    ),
    "admm": MethodConfig(name="admm", sparsity=0.5, projection_every=1),
    "admm_prune": MethodConfig(name="admm", constraint="prune", levels="pow2_3", scale="pow2", granularity="channel"),
    "admm_quantize": MethodConfig(name="admm", constraint="quantize", levels="int3", scale="least_squares"),
    "joint": MethodConfig(name="joint"),
    "joint_expectation": MethodConfig(name="joint", forward="expectation", scale="max", partition="random"),
    "joint_of_widths": MethodConfig(name="joint", of="widths+blend+rates+inq", scale="least_squares"),
    "gxnor": MethodConfig(name="gxnor", noise="uniform"),
    "gxnor_states": MethodConfig(name="gxnor", levels="states3", scale="least_squares", granularity="channel"),
    "metropolis": MethodConfig(name="metropolis", half_width=0.25),
    "metropolis_adaptive": MethodConfig(name="metropolis", cooling="adaptive", uphill=0.4),
    "metropolis_states": MethodConfig(name="metropolis", levels="balanced3", scale="max", uphill=0.2),
    "dpq": MethodConfig(name="dpq", groups=1, codes=4),
    "dpq_soft": MethodConfig(name="dpq", groups=1, codes=4, selection="soft"),
    "bayesian_bits": MethodConfig(name="bayesian_bits", activation_levels="uint2"),
    "dpq_vq": MethodConfig(name="dpq", groups=1, codes=2, lookup="vq", selection="soft"),
    "adaround": MethodConfig(name="adaround"),
    "adaround_pow2": MethodConfig(name="adaround", levels="pow2_3", scale="pow2", granularity="channel"),
}
WITHOUT_LEVEL_SETS = {"dpq", "bayesian_bits"}  # methods whose deployed values are not those of method.levels
WITHOUT_FLOAT_WEIGHTS = {"gxnor", "metropolis"}  # methods whose weights are deployed as they are
ROUNDED = {"adaround"}  # methods whose weights stand still: what is deployed follows from other tensors
METHOD_OF = {name: build_method(config) for name, config in CASES.items()}
WITHOUT_DERIVATIVE = [name for name, m in METHOD_OF.items() if {c.gradient for c in m.controls} == {"none"}]
cases = pytest.mark.parametrize("name", CASES)
on_level_sets = pytest.mark.parametrize("name", [name for name, c in CASES.items() if c.name not in WITHOUT_LEVEL_SETS])
differentiable = pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_DERIVATIVE])
shapes = pytest.mark.parametrize("shape", [(6, 5), (4, 3, 3, 3)], ids=["linear", "conv"])
DRAW = Draw(seed=3, step=7, layer=1)
SGD_SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}


def values(method: Method, share: float, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """All controls at a share of their range."""
    return {c.name: torch.tensor(c.low + share * (c.high - c.low), dtype=dtype) for c in method.controls}


def ended(method: Method) -> dict[str, torch.Tensor]:
    return {c.name: torch.tensor(c.low if c.end is None else c.end) for c in method.controls}


def start(method: Method, shape: tuple[int, ...], share: float = 0.4) -> tuple[torch.Tensor, State]:
    """A weight and its state, prepared at a share of the controls' range."""
    w, trainable, state = method.initialize(0.3 * torch.randn(shape), values(method, share), Draw(3, 0, 1))
    own = {**trainable, **state}
    return w, {**own, **method.prepare(w, own, values(method, share), DRAW)}


def hooks(
    method: Method, w: torch.Tensor, state: State, x: torch.Tensor, controls: Values
) -> dict[str, Callable[[], Any]]:
    return {
        "initialize": lambda: method.initialize(w, controls, DRAW),
        "prepare": lambda: method.prepare(w, state, controls, DRAW),
        "weight": lambda: method.weight(w, state, controls, DRAW),
        "activation": lambda: method.activation(x, state, controls, DRAW),
        "penalty": lambda: method.penalty(w, state, controls),
        "update": lambda: method.update(w, w + 0.01, state, controls, DRAW),
        "harden": lambda: method.harden(w, state, 0.5),
        "harden_activation": lambda: method.harden_activation(x, state, 0.5),
        "levels_of": lambda: method.levels_of(state),
    }


def bits(value: object) -> bytes:
    """Of tensors in nested tuples and dicts."""
    return pickle.dumps(tree_map(lambda t: (t.dtype, t.shape, t.tolist()) if isinstance(t, torch.Tensor) else t, value))


def test_every_method_of_the_table_has_a_row() -> None:
    quantizers = set(METHODS) - {"float"}  # which quantizes nothing: tests/methods/test_float_network.py
    assert {config.name for config in CASES.values()} == quantizers


@cases
def test_it_declares_its_controls(name: str) -> None:
    controls = METHOD_OF[name].controls
    assert len({c.name for c in controls}) == len(controls)
    for c in controls:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", c.name)
        assert c.low < c.high and c.unit
        assert c.end is None or c.low <= c.end <= c.high
        assert 0 <= c.dwell <= 1


@cases
@shapes
def test_hooks_are_pure(name: str, shape: tuple[int, ...]) -> None:
    method = METHOD_OF[name]
    w, state = start(method, shape)
    x, controls = torch.randn(2, 5), values(method, 0.6)
    arguments = (w, state, x, controls)
    before = bits(arguments)
    for hook, call in hooks(method, *arguments).items():
        first = bits(call())
        torch.rand(3)  # what the global generator does is nobody's business
        assert bits(call()) == first, hook
        assert bits(arguments) == before, hook


@pytest.mark.pairwise
@cases
@shapes
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_whole_range_of_the_controls_is_accepted(name: str, shape: tuple[int, ...], share: float) -> None:
    method = METHOD_OF[name]
    w, state = start(method, shape, share)
    w, x = w.requires_grad_(), torch.randn(2, 5, requires_grad=True)
    controls = values(method, share)
    seen = method.weight(w, state, controls, DRAW), method.activation(x, state, controls, DRAW)
    gradients = torch.autograd.grad(sum(s.sum() for s in seen), [w, x])  # pyright: ignore
    assert all(bool(t.isfinite().all()) for t in (*seen, *gradients))


@pytest.mark.pairwise
@cases
@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_are_kept(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    method = METHOD_OF[name].relaxed(0.1)
    controls = values(method, 0.4, dtype)
    w, trainable, own = method.initialize(torch.randn(shape, dtype=dtype), controls, DRAW)
    initial = {**trainable, **own}
    state = method.prepare(w, initial, controls, DRAW)
    updated, after = method.update(w, w + 1, state, controls, DRAW)
    x = torch.randn(2, 7, dtype=dtype)
    like_w = (w, method.weight(w, state, controls, DRAW), updated, method.harden(w, state, 0.5))
    like_x = (method.activation(x, state, controls, DRAW), method.harden_activation(x, state, 0.5))
    assert {(t.shape, t.dtype) for t in like_w} == {(torch.Size(shape), dtype)}
    assert {(t.shape, t.dtype) for t in like_x} == {(x.shape, dtype)}
    kinds = [{key: (t.shape, t.dtype) for key, t in s.items()} for s in (initial, state, after)]
    assert kinds[0] == kinds[1] == kinds[2]


@cases
def test_state_is_a_flat_dict_of_tensors(name: str) -> None:
    _, state = start(METHOD_OF[name], (4, 3))
    assert type(state) is dict and state
    assert all(type(key) is str and "/" not in key and type(t) is torch.Tensor for key, t in state.items())


@on_level_sets
@shapes
def test_hardened_values_are_exactly_on_the_levels(name: str, shape: tuple[int, ...]) -> None:
    method, config = METHOD_OF[name], CASES[name]
    w, state = start(method, shape)
    w = 3 * w
    levels = method.levels_of(state)
    assert levels.shape == (*state["scale"].shape, len(level_set(config.levels).levels))
    distance = (method.harden(w, state, 0.5)[..., None] - levels).abs().amin(-1)
    assert distance.max().item() == 0
    nearest = (w[..., None] - levels).abs().amin(-1)
    free = state["frozen"] < 1 if "level" in state else nearest >= 0  # a held weight keeps the level it froze at
    if "pruned" in state:
        free &= state["pruned"] == 0
    if config.name in ROUNDED:
        free &= False
    assert torch.allclose((method.harden(w, state, 0.5) - w).abs()[free], nearest[free], rtol=0, atol=1e-12)
    assert config.activation_levels is not None
    quanta = method.harden_activation(3 * torch.randn(500), state, 0.5) / config.activation_scale
    assert set(quanta.tolist()) == set(level_set(config.activation_levels).levels)


@pytest.mark.pairwise
@cases
@shapes
@pytest.mark.parametrize("relaxation", [0.0, 0.2])
def test_at_the_end_of_the_run_training_sees_the_hardened_network(
    name: str, shape: tuple[int, ...], relaxation: float
) -> None:
    method = METHOD_OF[name].relaxed(relaxation) if relaxation else METHOD_OF[name]
    w, state = start(method, shape)
    x, controls = torch.randn(50), ended(method)
    state = method.prepare(w, state, controls, DRAW)
    assert torch.equal(method.activation(x, state, controls, DRAW), method.harden_activation(x, state, 0.5))
    if CASES[name].name not in ROUNDED:
        assert torch.equal(method.weight(w, state, controls, DRAW), method.harden(w, state, 0.5))


@cases
@shapes
def test_hardened_values_are_those_that_levels_of_gives(name: str, shape: tuple[int, ...]) -> None:
    method = METHOD_OF[name]
    w, state = start(method, shape)
    levels, hard = method.levels_of(state), method.harden(w, state, 0.5)
    assert (levels.diff(dim=-1) >= 0).all()
    assert bool((hard.reshape(*w.shape[:1], -1, 1) == levels.reshape(len(levels), -1, levels.shape[-1])).any(-1).all())


@on_level_sets
def test_the_surrogate_width_is_that_of_the_hardened_derivative(name: str) -> None:
    method, config = METHOD_OF[name], CASES[name]
    w, state = start(method, (6, 5))
    w.requires_grad_()
    levels = level_set(config.levels)
    for surrogate in (0.1, 0.5):
        (slope,) = torch.autograd.grad(method.harden(w, state, surrogate).sum(), w)
        u = (w / state["scale"])[..., None] - torch.tensor(levels.thresholds)
        inside = (u.abs() < surrogate) * torch.tensor(levels.jumps)
        as_it_is = config.name in WITHOUT_FLOAT_WEIGHTS | ROUNDED
        expected = torch.ones_like(w) if as_it_is else inside.sum(-1) / (2 * surrogate)
        assert torch.allclose(slope, expected * (1 - state["pruned"]) if "pruned" in state else expected)


@cases
def test_it_is_a_value(name: str) -> None:
    method = METHOD_OF[name]
    assert dataclasses.is_dataclass(method)
    assert hash(method) == hash(build_method(CASES[name])) and method == build_method(CASES[name])
    assert pickle.loads(pickle.dumps(method)) == method == copy.deepcopy(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, dataclasses.fields(method)[0].name, None)
    others = {build_method(c) for c in CASES.values()}
    assert len(others) == len(CASES)


@cases
def test_relaxing_changes_nothing_but_the_mask(name: str) -> None:
    method = METHOD_OF[name]
    relaxed = method.relaxed(0.25)
    assert type(relaxed) is type(method)
    assert (relaxed.controls, relaxed.quantizes, relaxed.bits) == (method.controls, method.quantizes, method.bits)
    assert relaxed.relaxed(0.25) == relaxed
    assert (relaxed != method) == bool({"freeze_fraction", "sparsity"} & {c.name for c in method.controls})


@differentiable
def test_every_control_has_a_gradient_in_each_of_100_draws(name: str) -> None:
    """In what is seen, or in the derivative of that: the width of a surrogate acts through the latter alone."""
    method = METHOD_OF[name].relaxed(0.1)
    for i in range(100):
        share = 0.05 + 0.9 * i / 99
        w, trainable, state = method.initialize(torch.randn(5, 8), values(method, share), Draw(i, 0, 0))
        state = {**trainable, **state}
        leaves = {key: v.requires_grad_() for key, v in values(method, share).items()}
        leaves |= {c.name: torch.tensor(c.low) for c in method.controls if c.gradient == "none"}
        draw = Draw(i, 1, 0)
        w, x = w.detach().requires_grad_(), torch.randn(300).requires_grad_()
        state = method.prepare(w, state, leaves, draw)
        seen = (
            method.weight(w, state, leaves, draw),
            method.activation(x, state, leaves, draw),
            method.update(w, w + 0.1 * torch.randn_like(w), state, leaves, draw)[0],
            *(() if (term := method.penalty(w, state, leaves)) is None else (term,)),
        )
        asked = {key: leaf for key, leaf in leaves.items() if leaf.requires_grad}
        if not asked:
            continue
        loss = sum((s * torch.randn_like(s)).sum() for s in seen)
        penalty = method.penalty(w, state, leaves)
        loss = loss if penalty is None else loss + penalty
        slopes = torch.autograd.grad(loss, [w, x], create_graph=True, allow_unused=True)  # pyright: ignore
        loss = loss + sum((g * torch.randn_like(g)).sum() for g in slopes if g is not None)
        for key, g in zip(asked, torch.autograd.grad(loss, list(asked.values()), allow_unused=True), strict=True):  # pyright: ignore
            assert g is not None and g.isfinite() and g != 0, (key, i)


@differentiable
def test_every_control_of_the_first_step_reaches_the_loss_of_the_third(name: str) -> None:
    """Where the forward pass is hard, the noise acts through the backward pass alone, so through what training does."""
    method = METHOD_OF[name].relaxed(0.3)
    problem = small_problem(method)
    rows = [{c.name: torch.full((2,), 0.3 - 0.02 * k) for c in method.controls} for k in range(3)]
    without = {c.name for c in method.controls if c.gradient == "none"}
    first = {key: v.requires_grad_(key not in without) for key, v in rows[0].items()}
    state = problem.initial({key: v.detach() for key, v in first.items()})
    state = state._replace(params={key: p.detach().requires_grad_() for key, p in state.params.items()})
    for step, row in enumerate([first, *rows[1:]]):
        state, loss, _ = inner_step(problem, state, row, step, differentiable=True)
    network = problem.network
    model = network.hardened_model(network.call(state.buffers), state.params, state.method)
    loss = problem.task.loss(model, problem.task.validation)
    asked = {key: leaf for key, leaf in first.items() if leaf.requires_grad}
    if not asked:
        return
    for key, g in zip(asked, torch.autograd.grad(loss, list(asked.values()), allow_unused=True), strict=True):
        assert g is not None and bool(g.isfinite().all()) and bool(g.any()), key


@pytest.mark.parametrize("forward", ["mode", "random"])
def test_the_width_of_the_noise_moves_the_weights_though_the_forward_pass_is_hard(forward: str) -> None:
    method = build_method(MethodConfig(name="ana", noise="uniform", forward=forward))  # pyright: ignore
    problem = small_problem(method)
    ends = []
    for noise in (0.2, 0.4):
        noises = dict.fromkeys(("weight_noise", "activation_noise"), torch.full((2,), noise))
        controls = {**noises, "noise_mean": torch.zeros(2)}
        state = problem.initial(controls)
        for step in range(2):
            state, _, _ = inner_step(problem, state, controls, step, differentiable=False)
        ends.append(state.params["0.weight"])
    assert not torch.equal(*ends)


def small_problem(method: Method) -> InnerProblem:
    """Three steps of a multilayer perceptron on 40 points of three classes."""
    draws = torch.Generator().manual_seed(5)
    y = torch.arange(40) % 3
    part = Split(torch.randn(40, 6, generator=draws) + 2 * F.one_hot(y, 6), y)
    if method.tables:
        network = quantize(words.build(), method, words.task().train.x[:2])
        return InnerProblem(network, words.task(), SGD(), SGD_SETTINGS, steps=3, seed=1)
    task = SupervisedTask("blobs", part, part, part, build_small, F.cross_entropy, F.cross_entropy, batch_size=20)
    network = quantize(build_small(), method, part.x[:2])
    return InnerProblem(network, task, SGD(), SGD_SETTINGS, steps=3, seed=1)


def build_small() -> nn.Module:
    norms = [nn.BatchNorm1d(8), nn.BatchNorm1d(8)]
    return nn.Sequential(nn.Linear(6, 8), norms[0], nn.ReLU(), nn.Linear(8, 8), norms[1], nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("name", ["inq", "inq_random", "inq_relaxation", "inq_hard", "joint", "joint_expectation"])
def test_choosing_and_restoring_frozen_weights_maps_over_tasks(name: str) -> None:
    method, controls = METHOD_OF[name], values(METHOD_OF[name], 0.4)
    each = [method.initialize(torch.randn(4, 3), controls, Draw(i, 0, 0)) for i in range(5)]
    w = torch.stack([w for w, _, _ in each])
    state = {key: torch.stack([s[key] for _, _, s in each]) for key in each[0][2]}

    def step(w: torch.Tensor, state: State, seed: int | torch.Tensor) -> tuple[torch.Tensor, State]:
        draw = Draw(seed, 7, 1)
        prepared = method.prepare(w, state, controls, draw)
        return method.update(w, w + 1, prepared, controls, draw)

    mapped, after = torch.func.vmap(step)(w, state, torch.arange(5))
    for i, (one, _, own) in enumerate(each):
        expected, expected_state = step(one, own, i)
        assert torch.equal(mapped[i], expected)
        assert all(torch.equal(after[key][i], t) for key, t in expected_state.items())
