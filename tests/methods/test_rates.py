"""Rates: parameter groups of torch, decay in closed form, STE without a schedule, exact hypergradients in both."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from metasched import build_problem, find_unroll, hand_coded, progress_of_steps, train
from metasched.config.schema import Experiment
from metasched.core.randomness import Draw
from metasched.engines import UNROLLS
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import TOLERANCE, error_against_differences, outer_loss
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.state import InnerProblem

STEPS = 5
LEARNED = {"scale": "learned", "activation_scale": "learned", "granularity": "channel"}


def problem_of(name: str, optimizer: str = "adam", steps: int = STEPS, **method: Any) -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=6, steps=steps, batch=16, train=64, validation=16, test=16),
        optimizer=OptimizerConfig(name=optimizer, lr=0.05, eps=1e-3),
        method=MethodConfig(name=name, **method),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem).with_seed(3)


def played(problem: InnerProblem, name: str = "rates_constant") -> dict[str, torch.Tensor]:
    return hand_coded("rates")[name](progress_of_steps(problem.steps), problem.network.layers)


@pytest.mark.parametrize("scales", [{"scale": "max"}, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_without_a_schedule_it_is_ste_bit_for_bit(optimizer: str, scales: dict[str, Any]) -> None:
    ours, floor = (problem_of(name, optimizer, **scales) for name in ("rates", "ste"))
    found, expected = train(ours, played(ours)), train(floor, {})
    assert torch.equal(found.losses, expected.losses)
    assert all(torch.equal(p, expected.state.params[name]) for name, p in found.state.params.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_rate_is_that_of_a_parameter_group_in_torch(optimizer: str) -> None:
    """Float network (blend 0, of which every activation is hardtanh): the same steps in plain torch."""
    problem = problem_of("joint", optimizer, of="blend+rates", scale="max")
    layers = problem.network.layers
    controls = {c.name: torch.zeros(STEPS, len(layers)) for c in problem.network.method.controls}
    controls["lr_scale"] = 0.5 + torch.rand(STEPS, len(layers), generator=torch.Generator().manual_seed(1))
    controls["weight_decay"] += 0.03
    found = train(problem, controls)
    model = problem.task.build()
    for name, child in list(model.named_children()):
        if isinstance(child, torch.nn.ReLU):
            model.set_submodule(name, torch.nn.Hardtanh())
    model.load_state_dict({**model.state_dict(), **problem.initial(problem.network.neutral()).params})
    weights = [model.get_parameter(f"{layer.name}.weight") for layer in layers]
    rest = [p for p in model.parameters() if all(p is not w for w in weights)]
    groups = [{"params": [w]} for w in weights] + [{"params": rest}]
    theirs = (
        torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.Adam(groups, lr=0.05, eps=1e-3)
    )
    for step in range(STEPS):
        x, y = problem.task.batch(3, step)
        loss = F.cross_entropy(model(x), y)
        assert torch.allclose(loss, found.losses[step], rtol=0, atol=1e-12), step
        for i, group in enumerate(theirs.param_groups[:-1]):
            group["lr"] = 0.05 * float(controls["lr_scale"][step, i])
        theirs.zero_grad()
        loss.backward()
        before = [w.detach().clone() for w in weights]
        theirs.step()
        with torch.no_grad():
            for w, old in zip(weights, before, strict=True):
                w -= 0.03 * old
    for name, p in model.named_parameters():
        assert torch.allclose(p, found.state.params[name], rtol=0, atol=1e-12), name


def test_the_formula() -> None:
    method = build_method(MethodConfig(name="rates"))
    w, u, row = torch.randn(4, 3), torch.randn(4, 3), {"lr_scale": torch.tensor(2.5), "weight_decay": torch.tensor(0.1)}
    found, _ = method.update(w, u, {}, row, Draw(0, 0, 0))
    assert torch.allclose(found, w + 2.5 * (u - w) - 0.1 * w)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("control", ["lr_scale", "weight_decay"])
def test_hypergradients_are_those_of_central_differences(control: str, optimizer: str) -> None:
    """Where the forward pass is smooth, over several steps and through every engine."""
    problem = problem_of("joint", optimizer, of="ana+rates", forward="expectation", noise="normal", steps=4)
    layers = problem.network.layers
    shape = (4, len(layers))
    controls = {c.name: torch.full(shape, 0.5 * c.high) for c in problem.network.method.controls}
    controls["noise_mean"] = torch.zeros(shape)
    controls |= {"lr_scale": torch.full(shape, 1.3), "weight_decay": torch.full(shape, 0.02)}
    outer = OuterLoss("relaxed")
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(4))

    def along(h: float) -> float:
        return outer_loss(problem, {**controls, control: controls[control] + h * direction}, outer)

    for engine in UNROLLS:
        slope = float((control_gradient(find_unroll(engine), problem, controls, outer).wrt[control] * direction).sum())
        error = error_against_differences(along, slope)
        assert slope != 0 and error is not None and error <= TOLERANCE, engine


@pytest.mark.parametrize("scales", [{"scale": "max"}, LEARNED], ids=["fixed", "learned"])
def test_on_a_hard_path_the_engines_agree(scales: dict[str, Any]) -> None:
    problem = problem_of("joint", of="widths+rates", **scales)
    controls = {
        c.name: torch.full((STEPS, len(problem.network.layers)), 0.8 * min(1.0, 20 * c.high))
        for c in problem.network.method.controls
    }
    controls["weight_decay"] = torch.full_like(controls["lr_scale"], 0.01)
    found = [control_gradient(find_unroll(e), problem, controls, OuterLoss("hardened")).wrt for e in sorted(UNROLLS)]
    for other in found[1:]:
        assert all(torch.allclose(other[name], g, rtol=1e-8, atol=1e-12) for name, g in found[0].items())
    assert all(bool(g.any()) for g in found[0].values())


def test_the_rising_rate_is_a_line_in_logarithms() -> None:
    problem = problem_of("rates")
    values = played(problem, "rates_rising")["lr_scale"]
    depths = torch.tensor([layer.depth for layer in problem.network.layers], dtype=values.dtype)
    u = progress_of_steps(STEPS)[:, None]
    assert torch.allclose(values.log(), math.log(0.9) - 0.5 * (2 * depths - 1) + 1.3 * (2 * u - 1))
