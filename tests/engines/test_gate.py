"""The gate: hypergradients against central differences where the forward is smooth, against each other where not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import words
from torch import nn
from torch.nn import functional as F

from metasched.commands.check import random_controls, relative_distance
from metasched.core.randomness import generator
from metasched.engines import UNROLLS, find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import (
    TOLERANCE,
    error_against_differences,
    outer_loss,
    span,
    uphill,
)
from metasched.methods import METHODS, build_method
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.tasks.quadratic import quadratic_task
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem

RELAXATION = 0.3
NUM_STEPS = 3
NUM_POINTS = 20
MOST_DRAWS = 2 * NUM_POINTS  # half of the points, at most, may fall on a kink

OBJECTIVES = ["hardened", "relaxed", "trajectory"]
OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": OptimizerConfig(name="adam", lr=0.05, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.01),
    "adamw": OptimizerConfig(name="adamw", lr=0.05, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
}

# method -> its configurations with a smooth forward, taken in turn; a new method needs a row
SOFT: dict[str, list[MethodConfig]] = {
    "float": [],
    "ste": [],
    "widths": [],
    "rates": [],  # beside a smooth method: a row of joint
    "ana": [MethodConfig(name="ana", noise=noise, forward="expectation") for noise in NOISE_FAMILIES],  # type: ignore[arg-type]
    "blend": [],  # its forward has the quantizer in it from the first step on
    "temperature": [
        MethodConfig(name="temperature"),
        MethodConfig(name="temperature", scale="learned", granularity="channel"),
        MethodConfig(name="temperature", levels="int3", activation_levels="uint2", scale="max"),
    ],
    "parq": [],  # its derivative in the weight is a surrogate
    "inq": [
        MethodConfig(name="inq", activation_levels=None),
        MethodConfig(name="inq", activation_levels=None, partition="random", scale="max", granularity="channel"),
        MethodConfig(name="inq", activation_levels=None, partition="relaxation", levels="pow2_3", scale="pow2"),
    ],
    "oscillation": [],  # its control has no derivative
    "pruning": [],  # beside a smooth method: BESIDE
    "quant_noise": [],  # its mask is drawn
    "rounding": [],  # its levels are drawn
    "admm": [],  # beside a smooth method: BESIDE
    "joint": [
        MethodConfig(name="joint", noise="uniform", forward="expectation"),
        MethodConfig(name="joint", noise="triangular", forward="expectation", partition="random"),
        MethodConfig(name="joint", noise="normal", forward="expectation", partition="relaxation"),
        MethodConfig(name="joint", noise="logistic", forward="expectation", scale="least_squares"),
        MethodConfig(name="joint", of="ana+rates+inq", noise="normal", forward="expectation", scale="learned"),
    ],
    "gxnor": [],  # a sampled jump is never smooth
    "metropolis": [],
    "bayesian_bits": [],  # its weights are rounded
    "dpq": [
        MethodConfig(name="dpq", groups=2, codes=4, selection="soft"),
        MethodConfig(name="dpq", groups=2, codes=4, selection="soft", lookup="vq"),
    ],
    "adaround": [
        MethodConfig(name="adaround", scale="max", activation_levels=None),
        MethodConfig(
            name="adaround", scale="least_squares", levels="int3", granularity="channel", activation_levels=None
        ),
        MethodConfig(name="adaround", scale="pow2", levels="pow2_3", activation_levels=None),
    ],
}


def _pulled(constraint: str) -> MethodConfig:
    given = {"of": "ana+admm", "noise": "normal", "forward": "expectation"}
    return MethodConfig(name="joint", **given, constraint=constraint, projection_every=1)


# method that is not smooth by itself -> configurations of joint in which it changes a smooth one
BESIDE = {
    "pruning": [
        MethodConfig(name="joint", of="ana+pruning", noise="normal", forward="expectation", sparsity=sparsity)
        for sparsity in (0.3, 0.7)
    ],
    "admm": [_pulled("prune"), _pulled("both")],
    "admm quantize": [_pulled("quantize")],
}

ONCE = {*BESIDE, "dpq"}  # with one optimizer, where slow tests do not run
ONLY_SLOW = {"admm", "admm quantize", "adaround"}  # adaround: a layer of it is gated in tests/calibration

# what is hard in the forward pass, or has a surrogate backward pass
HARD: dict[str, MethodConfig] = {
    "widths": MethodConfig(name="widths"),
    "rates": MethodConfig(name="rates", scale="learned"),
    "widths and rates": MethodConfig(name="joint", of="widths+rates", scale="learned", activation_scale=0.5),
    "ana mode": MethodConfig(name="ana", noise="uniform", forward="mode"),
    "ana random": MethodConfig(name="ana", noise="normal", forward="random"),
    "ana fixed": MethodConfig(name="ana", noise="triangular", forward="expectation", backward="fixed"),
    "blend": MethodConfig(name="blend", scale="learned"),
    "parq": MethodConfig(name="parq", scale="learned"),
    "inq ternary": MethodConfig(name="inq"),
    "inq hard": MethodConfig(name="inq", live="hard", scale="learned", activation_levels=None),
    "pruning": MethodConfig(name="pruning", sparsity=0.6, scale="learned"),
    "quant_noise": MethodConfig(name="quant_noise", noise_block=2, scale="learned"),
    "rounding": MethodConfig(name="rounding", scale="learned"),
    "rounding normal": MethodConfig(name="rounding", levels="normal3", scale="least_squares", activation_levels=None),
    "admm": MethodConfig(name="admm", sparsity=0.6, projection_every=2, scale="max"),
    "joint mode": MethodConfig(name="joint", noise="logistic", forward="mode"),
    "joint random": MethodConfig(name="joint", forward="random", backward="fixed", partition="relaxation"),
    "gxnor": MethodConfig(name="gxnor"),
    "metropolis": MethodConfig(name="metropolis"),
    "bayesian_bits": MethodConfig(name="bayesian_bits", activation_scale="learned"),
    "dpq": MethodConfig(name="dpq", groups=2, codes=4),
    "adaround": MethodConfig(name="adaround", scale="max"),
}


def build() -> nn.Module:
    """Two quantized layers with an activation each, and a last one in float."""
    return nn.Sequential(
        nn.Linear(6, 5, bias=False),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 4, bias=False),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Linear(4, 3),
    )


@cache
def task() -> SupervisedTask:
    draws = generator(0, "test data")

    def split(n: int) -> Split:
        return Split(torch.randn(n, 6, generator=draws), torch.randint(3, (n,), generator=draws))

    def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) == targets).to(outputs.dtype).mean()

    return SupervisedTask("blobs", split(32), split(16), split(4), build, F.cross_entropy, accuracy, batch_size=8)


def inner_problem(method: MethodConfig, optimizer: OptimizerConfig, steps: int = NUM_STEPS) -> InnerProblem:
    built = build_method(method).relaxed(RELAXATION)
    own = words.task() if built.tables else task()
    network = quantize(words.build() if built.tables else build(), built, own.train.x[:2])
    rule, hyper = recipe(optimizer)
    return InnerProblem(network, own, rule, hyper, steps, seed=0)


def controls_at(problem: InnerProblem, index: int) -> dict[str, torch.Tensor]:
    method, layers = problem.network.method, problem.network.layers
    found = random_controls(method.controls, problem.steps, len(layers), 0, index)
    return found | {c.name: torch.full_like(found[c.name], c.low) for c in method.controls if c.gradient == "none"}


def test_every_method_has_its_row():
    assert set(SOFT) == set(METHODS)
    for name, configs in SOFT.items():
        controls = [c for c in build_method(MethodConfig(name=name)).controls if c.gradient != "none"]
        assert not controls or configs or any(config.name == name for config in HARD.values())
        for config in configs:
            assert config.name == name
            assert METHODS[name].smooth(config)
    for config in HARD.values():
        assert not METHODS[config.name].smooth(config)
    assert {config.noise for config in SOFT["ana"]} == {config.noise for config in SOFT["joint"]} == set(NOISE_FAMILIES)


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        pytest.param(name, optimizer, marks=pytest.mark.slow if name in ONCE and optimizer != "adam" else ())
        for name, configs in {**SOFT, **BESIDE}.items()
        if configs
        for optimizer in OPTIMIZERS
    ],
)
def test_controls_against_finite_differences(method, optimizer):
    """Relative error at most 1e-6, which implies equal sign, for each control at 20 random points, layers in turn."""
    outer = OuterLoss("relaxed")
    problems = [inner_problem(config, OPTIMIZERS[optimizer]) for config in SOFT.get(method) or BESIDE[method]]
    spans = {c.name: span(c) for c in problems[0].network.method.controls}
    names = list(spans)
    points = dict.fromkeys(names, 0)
    for index in range(MOST_DRAWS):
        problem = problems[index % len(problems)].with_seed(index)
        controls = controls_at(problem, index)
        slopes = {e: control_gradient(find_unroll(e), problem, controls, outer) for e in UNROLLS}
        for name in (n for n in names if points[n] < NUM_POINTS):
            direction = uphill(slopes["unroll"].wrt[name], points[name] % 2, 0, index, spans[name])
            along = cache(
                lambda h, p=problem, c=controls, n=name, d=direction: outer_loss(p, {**c, n: c[n] + h * d}, outer)
            )
            found = [float((slope.wrt[name] * direction).sum()) for slope in slopes.values()]
            errors = [error_against_differences(along, derivative) for derivative in found]
            if None in errors:  # at a kink; one estimator right there and the other not would be no kink
                assert errors == [None] * len(UNROLLS)
                continue
            assert max(errors) <= TOLERANCE, (name, index, errors)
            points[name] += 1
    assert points == dict.fromkeys(names, NUM_POINTS)


def hyper_cases() -> list[tuple[str, str, float]]:
    used = [(o, h, value) for o, config in OPTIMIZERS.items() for h, value in recipe(config).hyper.items()]
    return [*used, *((o, h, 0.0) for o, h, _ in used)]


@pytest.mark.parametrize(("optimizer", "name", "value"), hyper_cases())
def test_hyper_parameters_against_finite_differences(optimizer, name, value):
    """[T] tensors in ``InnerProblem.hyper``; also where the value is exactly 0, which ``higher`` has no gradient for.

    On a quadratic, whose gradients stay away from 0: next to it Adam with eps or beta2 of 0 is as good as a jump.
    """
    rule, hyper = recipe(OPTIMIZERS[optimizer])
    quadratic = quadratic_task(torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.75, -0.25, 0.5]))
    method = build_method(MethodConfig(name="ana", noise="normal", forward="expectation", activation_levels=None))
    network = quantize(quadratic.build(), method, quadratic.train.x[:2], last=True)
    values, outer = torch.full((NUM_STEPS,), value), OuterLoss("relaxed")
    passed = 0
    for index in range(8):
        problem = InnerProblem(network, quadratic, rule, hyper, NUM_STEPS, seed=index)
        controls = controls_at(problem, index)
        slopes = []
        for estimator in UNROLLS:
            leaf = values.clone().requires_grad_()
            loss = find_unroll(estimator)(replace(problem, hyper={**hyper, name: leaf}), controls, outer).loss
            slopes.extend(torch.autograd.grad(loss, leaf))
        direction = uphill(slopes[0][:, None], 0, 1, index)[:, 0]
        along = cache(
            lambda h, p=problem, c=controls, d=direction: outer_loss(
                replace(p, hyper={**hyper, name: values + h * d}), c, outer
            )
        )
        errors = [error_against_differences(along, float((slope * direction).sum())) for slope in slopes]
        if None in errors:
            assert errors == [None] * len(UNROLLS)
            continue
        assert bool(slopes[0].any())
        assert max(errors) <= TOLERANCE, (index, errors)
        passed += 1
    assert passed >= 5


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", HARD)
def test_estimators_agree_where_the_forward_is_hard(method, objective):
    turn = list(HARD).index(method) + OBJECTIVES.index(objective)  # each optimizer meets each objective and each method
    optimizer = list(OPTIMIZERS.values())[turn % len(OPTIMIZERS)]
    problem = inner_problem(HARD[method], optimizer, steps=6)
    controls, outer = controls_at(problem, 0), OuterLoss(objective)
    ours, theirs = (control_gradient(find_unroll(e), problem, controls, outer) for e in ("unroll", "higher"))
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-12)
    assert theirs.score == ours.score and theirs.dead_layers == ours.dead_layers
    if objective != "trajectory":
        assert outer_loss(problem, controls, outer) == pytest.approx(ours.loss, rel=1e-12)
    for name in (c.name for c in problem.network.method.controls if c.gradient != "none"):
        slope = ours.wrt[name]
        assert slope.norm() > 0
        assert relative_distance(theirs.wrt[name], slope) <= 1e-10, name


def test_trajectory_is_the_mean_over_the_last_fifth_of_the_steps():
    method = MethodConfig(name="ana", noise="normal", forward="mode")
    whole = inner_problem(method, OPTIMIZERS["sgd"], steps=6)  # steps 4 and 5
    controls = controls_at(whole, 0)
    ends = [outer_loss(replace(whole, steps=n), controls, OuterLoss("hardened")) for n in (5, 6)]
    found = control_gradient(find_unroll("unroll"), whole, controls, OuterLoss("trajectory"))
    assert found.loss == pytest.approx(sum(ends) / 2, rel=1e-12)


def test_relative_distance():
    a = torch.tensor([3.0, 4.0])
    assert relative_distance(a, a.clone()) == 0
    assert relative_distance(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_distance(a, torch.zeros(2)) == 1
    assert relative_distance(a, -a) == 2
    assert relative_distance(a, torch.tensor([3.0, float("nan")])) == float("inf")
