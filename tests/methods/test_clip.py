"""The learned clip of activations (PACT): the paper's formulas, autograd, torch's optimizer, exact hypergradients."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from metasched import MetaschedError, QuantizedModule, build_method, build_problem, quantize, train
from metasched.commands import check as gate
from metasched.config.schema import Experiment
from metasched.core.randomness import Draw
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import TOLERANCE, error_against_differences, outer_loss, uphill
from metasched.meta.config import MetaConfig
from metasched.methods import METHODS
from metasched.methods.config import MethodConfig
from metasched.methods.tensors import LayerQuantizer
from metasched.quantizers.levels import LevelSet, integers, ternary
from metasched.quantizers.scales import scale_of
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console
from metasched.training.optimizers.config import GroupConfig, OptimizerConfig
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

UINT2 = integers(2, signed=False, balanced=False)
STEPS = 4


def clipped(levels: LevelSet) -> LayerQuantizer:
    return LayerQuantizer(ternary(), levels, activation_scale="clip")


def experiment(method: str = "ste", optimizer: OptimizerConfig | None = None, **own: Any) -> Experiment:
    return Experiment(
        task=TaskConfig(model="mlp", width=6, steps=STEPS, batch=16, train=64, validation=16, test=16),
        method=MethodConfig(name=method, scale="least_squares", activation_scale="clip", **own),
        optimizer=optimizer or OptimizerConfig(name="sgd", lr=0.05),
        run=RunConfig(dtype="float64"),
    )


def problem_of(of: Experiment) -> InnerProblem:
    return build_problem(of.problem).with_seed(3)


def test_the_forward_pass_and_gradients_of_the_paper() -> None:
    """Section 3: y = (|x| - |x - alpha| + alpha) / 2, rounded to 2^k - 1 steps of alpha; autograd of it by hand."""
    x, upstream = 3 * torch.randn(400, requires_grad=True), torch.randn(400)
    alpha, theirs = (torch.tensor(1.7, requires_grad=True) for _ in range(2))
    y = clipped(UINT2).harden_activation(x, {"activation_clip": alpha}, 0.5)
    of_x, of_alpha = torch.autograd.grad(y, [x, alpha], upstream)
    soft = (x.abs() - (x - theirs).abs() + theirs) / 2
    rounded = torch.floor(soft * 3 / 1.7 + 0.5) * 1.7 / 3
    assert torch.allclose(y, rounded, rtol=0, atol=1e-12)
    their_x, their_alpha = torch.autograd.grad(soft, [x, theirs], upstream)
    assert torch.allclose(of_x, their_x, rtol=0, atol=1e-12)
    assert torch.allclose(of_alpha, their_alpha, rtol=1e-12)
    assert torch.allclose(of_alpha, upstream[x >= 1.7].sum(), rtol=1e-12)


def test_at_the_clip_itself_the_gradient_is_that_of_the_side_above() -> None:
    alpha = torch.tensor(1.5, requires_grad=True)
    y = clipped(UINT2).harden_activation(torch.tensor([1.5, 0.0]), {"activation_clip": alpha}, 0.5)
    assert [torch.autograd.grad(y[i], alpha, retain_graph=True)[0].item() for i in (0, 1)] == [1.0, 0.0]


def test_levels_of_both_signs_clip_on_both_sides_and_lsq_differs_by_the_rounding_error() -> None:
    levels = integers(3, signed=True, balanced=False)  # -4 .. 3
    x = 5 * torch.randn(500)
    alpha, scale = torch.tensor(2.0, requires_grad=True), torch.tensor(2.0 / 3, requires_grad=True)
    ours = clipped(levels).harden_activation(x, {"activation_clip": alpha}, 0.5)
    lsq = LayerQuantizer(ternary(), levels, activation_scale="learned")
    other = lsq.harden_activation(x, {"activation_scale": scale}, 0.5)
    assert torch.allclose(ours, other, rtol=1e-12)
    z = 3 * x / 2
    below, above = z <= -4, z >= 3
    inside = ~below & ~above
    of_alpha, of_scale = (torch.autograd.grad(y.sum(), p)[0] for y, p in ((ours, alpha), (other, scale)))
    assert torch.allclose(of_alpha, above.sum() - 4 / 3 * below.sum())
    rounding = (torch.floor(z + 0.5) - z)[inside].sum()
    assert torch.allclose(of_scale, 3 * of_alpha + rounding, rtol=1e-9)


def test_where_the_forward_pass_is_the_clip_it_has_the_true_gradient() -> None:
    """The expectation under uniform noise of half a quantum, against torch.clamp in float64."""
    method = build_method(experiment("ana", noise="uniform", forward="expectation").method)
    controls = {"activation_noise": torch.tensor(0.5), "noise_mean": torch.tensor(0.0)}
    x, alpha = 2 * torch.randn(200), torch.tensor(1.3, requires_grad=True)
    y = method.activation(x, {"activation_clip": alpha}, controls, Draw(0, 0, 0))
    expected = torch.maximum(torch.minimum(x, alpha), -alpha)
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)
    weights = torch.randn(200)
    found, true = (torch.autograd.grad(out, alpha, weights)[0] for out in (y, expected))
    assert torch.allclose(found, true, rtol=1e-12)


def test_it_starts_at_the_least_squares_of_the_first_batch() -> None:
    x = torch.randn(30, 4).abs()
    trainable, state = clipped(UINT2).fit_activation(x)
    scale = scale_of(x.reshape(1, -1), UINT2, "least_squares", "tensor").reshape(())
    assert state == {} and torch.equal(trainable["activation_clip"], 3 * scale)


@pytest.mark.filterwarnings("ignore")
def test_brevitas_clips_and_rounds_to_the_same_values() -> None:
    """Its unsigned quantizer with the learned threshold alpha: values and straight-through gradients in x."""
    pytest.importorskip("brevitas", reason="optional: brevitas")
    from brevitas.core.quant import IntQuant  # pyright: ignore

    x = (2 * torch.randn(300, dtype=torch.float32)).requires_grad_()
    alpha, zero = torch.tensor(1.5, dtype=torch.float32), torch.tensor(0.0)
    theirs = IntQuant(narrow_range=False, signed=False, input_view_impl=nn.Identity())(
        alpha / 3, zero, torch.tensor(2.0), x
    )
    ours = clipped(UINT2).harden_activation(x, {"activation_clip": alpha}, 0.5)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    # beyond the clip by more than half a step: there brevitas masks by the rounded value, the paper by the value
    off = ((x - 1.5).abs() > 0.3) & (x.abs() > 0.3)
    found, other = (torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs))
    assert torch.equal(found[off], other[off])


@pytest.mark.parametrize("engine", ["unroll", "sweep"])
def test_hypergradients_against_central_differences(engine: str) -> None:
    """Where the forward pass is the clip: rates and the noise of weights, through four steps that move the clip."""
    of = experiment(
        "joint",
        OptimizerConfig(name="sgd", lr=0.3, momentum=0.9, weight_decay=0.01),
        of="ana+rates",
        noise="uniform",
        forward="expectation",
    )
    problem = problem_of(of)
    size = (STEPS, len(problem.network.layers))
    half, none = torch.full(size, 0.5), torch.zeros(size)
    controls = {"weight_noise": half + 0.1, "activation_noise": half, "noise_mean": none}
    controls |= {"lr_scale": torch.full(size, 1.3), "weight_decay": none + 0.02}
    clips = [name for name in problem.initial(problem.network.neutral()).params if name.endswith("activation_clip")]
    assert len(clips) == size[1]
    before, after = (
        problem.initial({n: v[0] for n, v in controls.items()}).params,
        train(problem, controls).state.params,
    )
    assert all(abs(float(after[n] - before[n])) > 1e-3 for n in clips)
    objective = OuterLoss("relaxed")
    learned = ("weight_noise", "lr_scale", "weight_decay")
    leaves = {n: v.clone().requires_grad_(n in learned) for n, v in controls.items()}
    found = control_gradient(find_unroll(engine), problem, leaves, objective)
    for name in learned:
        direction = uphill(found.wrt[name], 0, 0, 0)

        def moved(h: float, name: str = name, direction: torch.Tensor = direction) -> float:
            return outer_loss(problem, {**controls, name: controls[name] + h * direction}, objective)

        error = error_against_differences(moved, float((found.wrt[name] * direction).sum()))
        assert error is not None and error < TOLERANCE, name


def test_the_gate_holds_engines_against_each_other_where_the_gradient_is_not_that_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def agreement(*arguments: Any) -> Any:
        raise InterruptedError

    monkeypatch.setattr(gate, "_by_agreement", agreement)
    of = experiment("ana", noise="normal", forward="expectation")
    with pytest.raises(InterruptedError):
        gate.check(replace(of, meta=MetaConfig(objective="relaxed")), open_console(io.StringIO()))


def test_the_decay_of_the_clip_is_that_of_the_optimizer() -> None:
    """One step of SGD, by hand, with lambda alpha^2 / 2 in the loss; and a decay of scales only."""
    decays = {
        "all": OptimizerConfig(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.3),
        "clips": OptimizerConfig(
            name="sgd", lr=0.1, momentum=0.0, groups=(GroupConfig(match="scale", weight_decay=0.3),)
        ),
    }
    for optimizer in decays.values():
        problem = problem_of(experiment(optimizer=optimizer))
        row = problem.network.neutral()
        start = problem.initial(row)
        after, _, gradients = inner_step(problem, start, row, 0, differentiable=False)
        for name in (n for n in start.params if n.endswith("activation_clip")):
            alpha = start.params[name]
            assert gradients[name] != 0
            assert torch.allclose(after.params[name], alpha - 0.1 * (gradients[name] + 0.3 * alpha), rtol=0, atol=1e-14)


def test_a_clip_stays_above_zero() -> None:
    end = train(problem_of(experiment(optimizer=OptimizerConfig(name="sgd", lr=50.0, momentum=0.0))), {}).state.params
    assert all(float(p) >= 1e-6 for n, p in end.items() if n.endswith("activation_clip"))


def test_a_plain_loop_with_torchs_optimizer_is_the_inner_run() -> None:
    problem = problem_of(experiment("widths"))
    controls = hand_coded("widths")["widths_narrowing"](progress_of_steps(STEPS), problem.network.layers)
    expected = train(problem, controls)
    start = problem.initial({n: v[0] for n, v in controls.items()})
    model = problem.task.build()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start.params[name])
    network = quantize(model, problem.network.method, problem.task.batch(3, 0)[0])
    rows = [
        {x.name: {c: float(v[t, i]) for c, v in controls.items()} for i, x in enumerate(network.layers)}
        for t in range(STEPS)
    ]
    module = QuantizedModule(network, rows[0], 3, problem.task.batch(3, 0)[0])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        x, y = problem.task.batch(3, step)
        loss = nn.functional.cross_entropy(module(x, rows[step], step), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.settle()
        assert torch.allclose(loss, expected.losses[step], rtol=0, atol=1e-12)
    found = module.parameters_by_name()
    clips = [name for name in found if name.endswith("activation_clip")]
    assert len(clips) == len(problem.network.layers)
    assert all(torch.allclose(found[n], expected.state.params[n], rtol=0, atol=1e-10) for n in clips)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("float", "dpq")])
def test_every_method_takes_it(method: str) -> None:
    own: dict[str, Any] = {"live": "hard"} if method == "inq" else {}
    built = build_method(MethodConfig(name=method, activation_scale="clip", activation_levels="uint2", **own))
    state = {"activation_clip": torch.tensor(1.5, requires_grad=True)}
    assert built.fits_activations and {"activation_clip"} == set(built.fit_activation(torch.randn(4, 3), {})[0])
    x = torch.randn(100)
    ended = {c.name: torch.tensor(c.low if c.end is None else c.end) for c in built.controls}
    y = built.activation(x, state, ended, Draw(0, 0, 0))
    assert torch.equal(y, built.harden_activation(x, state, 0.5))
    assert torch.autograd.grad(y.sum(), state["activation_clip"])[0] == (x >= 1.5).sum()
    assert set((y / 0.5).detach().round(decimals=9).tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_it_is_refused_where_scales_cannot_be_learned() -> None:
    with pytest.raises(MetaschedError, match=r"method\.activation_scale: cannot be learned by float"):
        build_method(MethodConfig(name="float", activation_scale="clip"))
