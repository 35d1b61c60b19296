"""Blend: closed forms, STE at 1 to the last bit, float weights and clipped activations at 0, exact derivatives."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from metasched import build_method, build_problem, find_unroll, hand_coded, hardened_score, progress_of_steps, train
from metasched.commands import check as gate
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.engines import UNROLLS
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import TOLERANCE, error_against_differences, outer_loss
from metasched.engines.tangent import slope_along
from metasched.meta.config import MetaConfig
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.quantizers.levels import level_set
from metasched.runs.config import RunConfig
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.table import has_floor
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.stacked import of_run, train_mapped
from metasched.training.state import InnerProblem

DRAW = Draw(seed=2, step=4, layer=0)
LEARNED = {"scale": "learned", "activation_scale": "learned", "granularity": "channel"}
STEPS = 5


def at(b: float, a: float) -> Tensors:
    return {"weight_blend": torch.tensor(b), "activation_blend": torch.tensor(a)}


def problem_of(name: str, *, steps: int = STEPS, optimizer: str = "adam", **method: Any) -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=6, steps=steps, batch=16, train=64, validation=16, test=16),
        optimizer=OptimizerConfig(name=optimizer, lr=0.05, eps=1e-3),
        method=MethodConfig(name=name, **method),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem).with_seed(3)


def whole_run(problem: InnerProblem, value: float) -> Tensors:
    size = (problem.steps, len(problem.network.layers))
    return {c.name: torch.full(size, value) for c in problem.network.method.controls}


@pytest.mark.parametrize("levels", ["ternary", "binary", "uint2", "pow2_4"])
def test_the_closed_forms_and_their_derivatives(levels: str) -> None:
    """In a share of 0.3: values, slopes in the input, in the blend and in learned scales, written out."""
    method = build_method(MethodConfig(name="blend", levels=levels, activation_levels=levels, **LEARNED))
    q = torch.tensor(level_set(levels).levels)
    x, share = 3 * torch.randn(40, 5), torch.tensor(0.3, requires_grad=True)
    scale, unit = torch.linspace(0.4, 0.9, 40)[:, None].requires_grad_(), torch.tensor(0.7, requires_grad=True)
    state = {"scale": scale, "activation_scale": unit}
    seen = {
        "weight": lambda x: method.weight(x, state, {"weight_blend": share}, DRAW),
        "activation": lambda x: method.activation(x, state, {"activation_blend": share}, DRAW),
    }
    for name, s in (("weight", scale), ("activation", unit)):
        z = (x / s).detach()
        level = q[(z[..., None] - q).abs().argmin(-1)]
        inside = (z > q[0]) & (z < q[-1])
        part = z if name == "weight" else z.clamp(q[0], q[-1])
        # density of uniform noise of half-width 1/2: jumps whose threshold is nearer than 1/2
        thresholds, jumps = (q[1:] + q[:-1]) / 2, q.diff()
        slope = (((z[..., None] - thresholds).abs() < 0.5) * jumps).sum(-1)
        leaf = x.clone().requires_grad_()
        out = seen[name](leaf)
        assert torch.allclose(out, (0.7 * part + 0.3 * level) * s, rtol=0, atol=1e-12)
        weights = torch.randn_like(x)
        of_x, of_share, of_s = torch.autograd.grad((out * weights).sum(), [leaf, share, s])
        through = 0.7 * (inside | (name == "weight")) + 0.3 * slope
        assert torch.allclose(of_x, weights * through)
        assert torch.allclose(of_share, ((level - part) * s * weights).sum())
        lsq = level - z * slope
        clipped = torch.zeros_like(z) if name == "weight" else torch.where(inside, 0.0, part)
        assert torch.allclose(of_s, ((0.7 * clipped + 0.3 * lsq) * weights).sum_to_size(s.shape))


def test_its_two_controls_do_not_mix() -> None:
    method = build_method(MethodConfig(name="blend"))
    w, _, state = method.initialize(torch.randn(6, 9), {}, DRAW)
    x = 2 * torch.randn(50)
    hard_weight, soft_weight = (method.weight(w, state, at(b, 0.5), DRAW) for b in (1.0, 0.0))
    assert torch.equal(hard_weight, method.harden(w, state, 0.5)) and torch.equal(soft_weight, w)
    hard, soft = (method.activation(x, state, at(0.5, a), DRAW) for a in (1.0, 0.0))
    assert torch.equal(hard, method.harden_activation(x, state, 0.5)) and torch.equal(soft, F.hardtanh(x))


@pytest.mark.parametrize("scales", [{}, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_at_1_it_is_ste_to_the_last_bit(optimizer: str, scales: dict[str, Any]) -> None:
    ours, theirs = (problem_of(name, optimizer=optimizer, **scales) for name in ("blend", "ste"))
    schedule = hand_coded("blend")["blend_constant"](progress_of_steps(STEPS), ours.network.layers)
    found, expected = train(ours, schedule), train(theirs, {})
    assert torch.equal(found.losses, expected.losses)
    assert found.state.params.keys() == expected.state.params.keys()
    for part in ("params", "buffers", "optimizer", "method"):
        before, after = getattr(expected.state, part), getattr(found.state, part)
        assert all(torch.equal(t, after[name]) for name, t in before.items()), part
    assert hardened_score(ours, found.state, "test") == hardened_score(theirs, expected.state, "test")


def test_at_0_it_trains_the_float_network_with_clipped_activations() -> None:
    """The same steps in plain torch: float weights, hardtanh in place of each activation."""
    problem = problem_of("blend", optimizer="sgd", scale="max")
    found = train(problem, whole_run(problem, 0.0))
    task, start = problem.task, problem.initial(problem.network.neutral())
    model = task.build()
    for name, child in list(model.named_children()):
        if isinstance(child, torch.nn.ReLU):
            model.set_submodule(name, torch.nn.Hardtanh())
    model.load_state_dict({**model.state_dict(), **start.params})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        x, y = task.batch(3, step)
        loss = F.cross_entropy(model(x), y)
        assert torch.allclose(loss, found.losses[step], rtol=0, atol=1e-12), step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, found.state.params[name], rtol=0, atol=1e-12), name


@pytest.mark.parametrize("scales", [{"scale": "max"}, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("control", ["weight_blend", "activation_blend"])
def test_the_slope_of_the_first_step_is_that_of_central_differences(
    control: str, optimizer: str, scales: dict[str, Any]
) -> None:
    """No weight depends on a control yet. What follows is smooth: a step, and the outer loss, at a blend of 0.

    For the same reason activations are soft while the weights are blended, and only the last of them is not otherwise.
    """
    problem = problem_of("blend", steps=2, optimizer=optimizer, **scales)
    size = len(problem.network.layers)
    layers = range(size) if control == "weight_blend" else [size - 1]
    controls = whole_run(problem, 0.0)
    controls["weight_blend"][0] = torch.linspace(0.2, 0.8, size)
    if control == "activation_blend":
        controls["activation_blend"][0, -1] = 0.4
    outer = OuterLoss("relaxed")
    slopes = [control_gradient(find_unroll(engine), problem, controls, outer).wrt[control][0] for engine in UNROLLS]
    for i in layers:
        direction = torch.zeros(2, size)
        direction[0, i] = 1.0

        def along(h: float, direction: torch.Tensor = direction) -> float:
            return outer_loss(problem, {**controls, control: controls[control] + h * direction}, outer)

        for slope in slopes:
            error = error_against_differences(along, float(slope[i]))
            assert slope[i] != 0 and error is not None and error <= TOLERANCE


@pytest.mark.parametrize("scales", [{}, LEARNED], ids=["fixed", "learned"])
def test_the_gate_is_that_of_a_hard_path(monkeypatch: pytest.MonkeyPatch, scales: dict[str, Any]) -> None:
    monkeypatch.setattr(gate, "POINTS", 3)
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=6, steps=STEPS, batch=16, train=64, validation=16, test=16),
        optimizer=OptimizerConfig(name="adam", lr=0.05, eps=1e-3),
        method=MethodConfig(name="blend", **scales),
        schedule=ScheduleConfig(start="blend_linear"),
        meta=MetaConfig(estimator="sweep"),
    )
    result = gate.check(experiment, open_console(io.StringIO()))
    assert result["controls"].keys() == {"weight_blend", "activation_blend"}
    assert {c["gate"] for c in result["controls"].values()} == {"agreement"} and result["passed"]


@pytest.mark.parametrize("scales", [{}, LEARNED], ids=["fixed", "learned"])
def test_forward_mode_is_reverse_mode(scales: dict[str, Any]) -> None:
    problem = problem_of("blend", **scales)
    controls = whole_run(problem, 0.4)
    direction = {name: torch.rand_like(v) for name, v in controls.items()}
    reverse = control_gradient(find_unroll("sweep"), problem, controls, OuterLoss("hardened")).wrt
    expected = sum(float((reverse[name] * d).sum()) for name, d in direction.items())
    assert slope_along(problem, controls, direction, OuterLoss("hardened")).slope == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scales", [{}, LEARNED], ids=["fixed", "learned"])
def test_stacked_runs_are_single_ones(scales: dict[str, Any]) -> None:
    problem = problem_of("blend", **scales)
    controls = whole_run(problem, 0.6)
    twice = {name: torch.stack([v, v]) for name, v in controls.items()}
    states = train_mapped(problem, twice, [3, 8])
    for i, seed in enumerate((3, 8)):
        alone, one = train(problem.with_seed(seed), controls).state, of_run(states, i)
        for name, p in alone.params.items():
            assert torch.allclose(one.params[name], p, rtol=0, atol=1e-9), name


def test_float_activations_leave_one_control_without_effect() -> None:
    problem = problem_of("blend", activation_levels=None)
    assert problem.network.method.quantizes == "weight"
    half = whole_run(problem, 0.5)
    losses = [train(problem, {**half, name: 0.9 * v}).losses for name, v in half.items()]
    assert not torch.equal(losses[0], train(problem, half).losses)
    assert torch.equal(losses[1], train(problem, half).losses)


def test_alpha_blending_sends_gradients_of_weights_through_the_float_part_alone() -> None:
    """d w_seen / d w = 1 - b; values, the slope in the blend, and activations are those of the default."""
    plain, alpha = (
        build_method(MethodConfig(name="blend", scale="max", weight_gradient=through)) for through in ("both", "float")
    )
    w, _, state = plain.initialize(torch.randn(5, 6), {}, DRAW)
    w.requires_grad_()
    x = torch.randn(30, requires_grad=True)
    for b in (0.0, 0.3, 1.0):
        controls = {name: share.requires_grad_() for name, share in at(b, b).items()}
        g, slopes = torch.randn_like(w), []
        for method in (plain, alpha):
            seen, output = method.weight(w, state, controls, DRAW), method.activation(x, state, controls, DRAW)
            found = torch.autograd.grad((seen * g).sum() + output.sum(), [w, x, *controls.values()])
            slopes.append((seen.detach(), output.detach(), *found))
        both, floats = slopes
        assert all(torch.equal(both[i], floats[i]) for i in (0, 1, 3, 4, 5))
        torch.testing.assert_close(floats[2], (1 - b) * g)


def test_alpha_blending_has_no_floor_and_learns_no_scale_of_weights() -> None:
    assert not has_floor(MethodConfig(name="blend", weight_gradient="float"))
    assert not has_floor(MethodConfig(name="joint", of="blend+rates", weight_gradient="float"))
    assert has_floor(MethodConfig(name="blend")) and has_floor(MethodConfig(name="joint", of="blend+rates"))
    with pytest.raises(MetaschedError, match=r"method.scale"):
        build_method(MethodConfig(name="blend", weight_gradient="float", scale="learned"))
    build_method(MethodConfig(name="blend", weight_gradient="float", activation_scale="learned"))
