"""The adjoint sweep against plain unrolling: no bit may differ, whatever is stored; and nothing may stay behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.commands.check import random_controls
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw, generator
from metasched.engines import find_unroll, replay
from metasched.engines import sweep as engine
from metasched.engines.base import ControlGradient, OuterLoss, control_gradient
from metasched.engines.memory import Plan, plan, predicted_bytes, recomputed_steps, stored_states
from metasched.engines.sweep import unroll as sweep
from metasched.engines.unroll import unroll
from metasched.meta.config import MetaConfig
from metasched.methods import build_method
from metasched.methods.ana import ANA
from metasched.methods.base import State, Values
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.network.quantize import quantize
from metasched.runs.local import Run
from metasched.runs.pooled import local_runs
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

STEPS = 8
OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": OptimizerConfig(name="adam", lr=0.05, eps=1e-3, weight_decay=0.01),
    "adamw": OptimizerConfig(name="adamw", lr=0.05, eps=1e-3, weight_decay=0.1),
}
METHODS = {
    "ana": MethodConfig(name="ana", forward="expectation"),
    "ana random": MethodConfig(name="ana", forward="random", noise="normal", scale="max"),
    "ana fixed": MethodConfig(name="ana", forward="mode", backward="fixed"),
    "inq": MethodConfig(name="inq", activation_levels=None),
    "inq random": MethodConfig(name="inq", partition="random", granularity="channel", scale="least_squares"),
    "inq relaxation": MethodConfig(name="inq", partition="relaxation", levels="pow2_3", scale="pow2"),
    "joint": MethodConfig(name="joint"),
    "joint random": MethodConfig(name="joint", forward="random", partition="relaxation"),
}
PLANS = {
    "every state": Plan((1,), 1),
    "every third": Plan((3, 1), 1),
    "two levels": Plan((4, 2, 1), 1),
    "some kept": Plan((3, 1), 4),
    "all kept": Plan((1,), STEPS),
}
OBJECTIVES = ["hardened", "relaxed", "trajectory"]


def network(dropout: bool = False) -> nn.Module:
    hidden = [nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU()]
    first = [nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), *([nn.Dropout(0.4)] if dropout else [])]
    return nn.Sequential(*first, *hidden, nn.Linear(4, 3))


def problem(
    method: MethodConfig,
    optimizer: str = "adam",
    steps: int = STEPS,
    dtype: torch.dtype = torch.float64,
    dropout: bool = False,
) -> InnerProblem:
    draws = generator(0, "test data")

    def split(n: int) -> Split:
        return Split(torch.randn(n, 6, generator=draws, dtype=dtype), torch.randint(3, (n,), generator=draws))

    def score(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) == targets).to(outputs.dtype).mean()

    build = partial(network, dropout)
    task = SupervisedTask("blobs", split(32), split(16), split(4), build, F.cross_entropy, score, batch_size=8)
    quantized = quantize(build().to(dtype), build_method(method).relaxed(0.3), task.train.x[:2])
    rule, hyper = recipe(OPTIMIZERS[optimizer])
    return InnerProblem(quantized, task, rule, hyper, steps, seed=3)


def controls_of(problem: InnerProblem) -> Tensors:
    drawn = random_controls(problem.network.method.controls, problem.steps, len(problem.network.layers), 0, 0)
    like = next(problem.network.module.parameters())
    return {name: v.to(like.dtype) for name, v in drawn.items()}


def assert_same(found: ControlGradient, expected: ControlGradient) -> None:
    assert (found.loss, found.score, found.dead_layers) == (expected.loss, expected.score, expected.dead_layers)
    assert found.nonfinite == expected.nonfinite == 0
    for name, slope in expected.wrt.items():
        assert bool(slope.any()) and torch.equal(found.wrt[name], slope), name


@pytest.mark.parametrize(("optimizer", "dtype"), [*((o, torch.float64) for o in OPTIMIZERS), ("adam", torch.float32)])
@pytest.mark.parametrize("method", METHODS)
def test_no_bit_differs_from_unrolling(method, optimizer, dtype):
    """Every method with every optimizer; the plans and the objectives in turn, so that all pairs of them are met."""
    here = problem(METHODS[method], optimizer, dtype=dtype)
    controls = controls_of(here)
    turn = list(METHODS).index(method) + list(OPTIMIZERS).index(optimizer)
    outer = OuterLoss(OBJECTIVES[turn % 3])  # type: ignore[arg-type]
    expected = control_gradient(unroll, here, controls, outer)
    for chosen in PLANS.values():
        assert_same(control_gradient(partial(sweep, plan=chosen), here, controls, outer), expected)
    assert_same(control_gradient(find_unroll("sweep"), here, controls, outer), expected)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs(steps):
    here = problem(METHODS["joint"], steps=steps)
    controls, outer = controls_of(here), OuterLoss("trajectory")
    assert_same(
        control_gradient(find_unroll("sweep"), here, controls, outer), control_gradient(unroll, here, controls, outer)
    )


def test_controls_that_are_not_differentiated_get_nothing():
    here = problem(METHODS["ana"])
    controls = controls_of(here)
    controls["noise_mean"].requires_grad_()
    loss = find_unroll("sweep")(here, controls, OuterLoss()).loss
    (found,) = torch.autograd.grad(loss, controls["noise_mean"])
    (expected,) = torch.autograd.grad(unroll(here, controls, OuterLoss()).loss, controls["noise_mean"])
    assert torch.equal(found, expected)
    controls["noise_mean"].requires_grad_(False)
    assert not find_unroll("sweep")(here, controls, OuterLoss()).loss.requires_grad


def test_the_loss_is_an_ordinary_tensor_with_one_way_back():
    here = problem(METHODS["ana"])
    theta = torch.tensor(0.5, requires_grad=True)
    shape = (STEPS, len(here.network.layers))

    def through(estimate) -> torch.Tensor:
        noise = theta.expand(shape)
        controls = {"weight_noise": noise, "activation_noise": noise, "noise_mean": torch.zeros(shape)}
        return 3 * estimate(here, controls, OuterLoss()).loss.square()

    loss = through(find_unroll("sweep"))
    (found,) = torch.autograd.grad(loss, theta, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(through(unroll), theta)[0], rtol=1e-13, atol=0)
    with pytest.raises(AssertionError, match="unroll again"):
        loss.backward()


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_hyper_parameters(name):
    here = problem(METHODS["ana"], "sgd")
    controls, slopes = controls_of(here), []
    for values in (torch.full((STEPS,), 0.05), torch.tensor(0.05)):
        leaf = values.requires_grad_()
        for estimate in (unroll, find_unroll("sweep")):
            loss = estimate(replace(here, hyper={**here.hyper, name: leaf}), controls, OuterLoss()).loss
            slopes.extend(torch.autograd.grad(loss, leaf))
    assert bool(slopes[0][1:].all()) and torch.equal(slopes[1], slopes[0])
    torch.testing.assert_close(slopes[3], slopes[2], rtol=1e-12, atol=0)  # a sum over steps, in another order
    torch.testing.assert_close(slopes[2], slopes[0].sum(), rtol=1e-12, atol=0)


@dataclass(frozen=True)
class Late(ANA):
    """ANA whose scale becomes a function of the control from some step on: a constant of the start no longer."""

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        return {"scale": state["scale"] * (1 + controls["noise_mean"])} if draw.step >= 5 else state


def test_a_state_that_starts_to_carry_a_derivative_late():
    here = problem(METHODS["ana"])
    method = here.network.method
    assert isinstance(method, ANA)
    here = replace(here, network=replace(here.network, method=Late(method.quantizer, method.noise)))
    controls, outer = controls_of(here), OuterLoss()
    expected = control_gradient(unroll, here, controls, outer)
    for chosen in PLANS.values():
        assert_same(control_gradient(partial(sweep, plan=chosen), here, controls, outer), expected)


class Remembering(nn.Module):
    """Writes its input into a buffer, with its derivative."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.detach = detach
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.mul_(0.5).add_(x.detach().mean() if self.detach else x.mean())
        return x + self.seen


@pytest.mark.parametrize("detach", [True, False])
def test_buffers_that_carry_a_derivative_are_refused(detach):
    here = problem(METHODS["ana"])

    def build() -> nn.Module:
        return nn.Sequential(network(), Remembering(detach))

    quantized = quantize(build(), here.network.method, here.task.train.x[:2], last=True)
    here = replace(here, task=replace(here.task, model=build), network=quantized)
    controls, outer = controls_of(here), OuterLoss()
    if detach:
        expected = control_gradient(unroll, here, controls, outer)
        assert_same(control_gradient(find_unroll("sweep"), here, controls, outer), expected)
    else:
        with pytest.raises(MetaschedError, match=r"model\.1\.seen: is a buffer .*; detach"):
            control_gradient(find_unroll("sweep"), here, controls, outer)


# --- replay ---


@pytest.mark.parametrize("estimator", ["sweep", "higher"])
def test_dropout_is_replayed(estimator):
    here = problem(METHODS["ana"], dropout=True)
    controls, outer = controls_of(here), OuterLoss("trajectory")
    expected = control_gradient(unroll, here, controls, outer)
    torch.manual_seed(17)  # of no effect
    found = control_gradient(find_unroll(estimator), here, controls, outer)
    if estimator == "sweep":
        assert_same(found, expected)
    for name, slope in expected.wrt.items():
        torch.testing.assert_close(found.wrt[name], slope, rtol=1e-10, atol=1e-12)


def test_a_step_with_dropout_is_a_function_of_seed_and_step():
    here = problem(METHODS["ana"], dropout=True)
    now = {name: v[0] for name, v in controls_of(here).items()}
    state = here.initial(now)
    before = torch.get_rng_state()
    (first, loss, _), (again, same, _) = (inner_step(here, state, now, 4, differentiable=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert loss == same and all(torch.equal(first.params[name], p) for name, p in again.params.items())
    frozen = replace(here.task, train=Split(here.task.train.x[:8], here.task.train.y[:8]))  # one batch, at every step
    here = replace(here, task=frozen)
    losses = {
        float(inner_step(p, state, now, step, differentiable=False)[1])
        for p, step in ((here, 4), (here, 5), (here.with_seed(4), 4))
    }
    assert max(losses) - min(losses) > 1e-3 and len(losses) == 3  # the order of the batch moves the last digits only


# --- cost ---


@pytest.fixture
def few_objects() -> Iterator[None]:
    """``gc.get_objects`` gives what is made from here on: to look through a million older ones takes long."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def states_and_tensors() -> tuple[int, int]:
    gc.collect()
    alive = gc.get_objects()
    return sum(type(o) is TrainingState for o in alive), sum(issubclass(type(o), torch.Tensor) for o in alive)


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("name", ["two levels", "some kept"])
def test_nothing_stays_behind(name):
    """Not even until the next collection of garbage."""
    here = problem(METHODS["joint"])
    controls, outer = controls_of(here), OuterLoss("trajectory")
    counts = []
    for repeats in (3, 13):
        for _ in range(repeats):
            found = control_gradient(partial(sweep, plan=PLANS[name]), here, controls, outer)
            del found
        gc.disable()
        try:
            alive = [o for o in gc.get_objects() if type(o) is TrainingState]
            assert alive == []
        finally:
            gc.enable()
        counts.append(states_and_tensors())
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("few_objects")
def test_a_loss_that_is_dropped_takes_its_states_along():
    here = problem(METHODS["ana"])
    controls = {name: v.requires_grad_() for name, v in controls_of(here).items()}
    before = states_and_tensors()
    loss = find_unroll("sweep")(here, controls, OuterLoss()).loss
    assert states_and_tensors()[1] > before[1] + STEPS
    del loss
    assert states_and_tensors() == before


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("name", PLANS)
def test_as_many_steps_and_states_as_planned(name, monkeypatch):
    here, chosen = problem(METHODS["inq"]), PLANS[name]
    taken, live = [], []
    step = replay.inner_step

    def counted(*arguments, differentiable, seeds):
        taken.append(differentiable)
        live.append(len({id(o) for o in gc.get_objects() if type(o) is TrainingState}))
        return step(*arguments, differentiable=differentiable, seeds=seeds)

    monkeypatch.setattr(replay, "inner_step", counted)
    control_gradient(partial(sweep, plan=chosen), here, controls_of(here), OuterLoss())
    assert len(taken) == STEPS + recomputed_steps(chosen, STEPS) and sum(taken) == STEPS
    # beside the stored ones: the start, the one that moves, its copy with leaves, and for each kept step the one after
    assert max(live) <= stored_states(chosen, STEPS) + chosen.kept + 4


def test_the_measured_cost_and_a_budget():
    here = problem(METHODS["ana"], steps=12)
    controls, outer = controls_of(here), OuterLoss()
    state, graph, judgement = engine.cost(here, controls, outer)
    values = sum(p.numel() for p in here.network.module.parameters())
    statistics = sum(b.numel() for b in here.network.module.buffers())
    # weights and Adam's two moments, its step, two scales, and whether all was finite
    assert state == 8 * (3 * values + statistics + 1 + 2) + 1
    assert graph > 8 * 8 * (5 + 4) * 2 and judgement > 8 * 16 * (5 + 4)  # what batch normalization saves, at least
    assert engine.cost(here.with_seed(9), controls, outer) == (state, graph, judgement)
    expected = control_gradient(unroll, here, controls, outer)
    for kept in (1, 7):
        budget = predicted_bytes(Plan((1,), kept), 12, state, graph) + judgement
        assert plan(12, state, graph, budget - judgement).kept == kept
        assert_same(control_gradient(find_unroll("sweep", budget), here, controls, outer), expected)
    with pytest.raises(MetaschedError, match=r"meta\.memory: is less than the 1 MiB"):
        control_gradient(find_unroll("sweep", graph), here, controls, outer)


def test_the_budget_of_a_configuration_reaches_the_sweep():
    task = TaskConfig(model="mlp", width=4, train=64, validation=32, batch=16, steps=6)
    default = Experiment(task=task, method=MethodConfig(name="ana"))
    assert default.meta.estimator == "sweep" and default.meta.memory is None
    layers = len(build_problem(default.problem).network.layers)
    noise = torch.full((6, layers), 0.5)
    controls = {"weight_noise": noise, "activation_noise": noise, "noise_mean": torch.zeros(6, layers)}
    large, by_unroll, small = (
        replace(default, meta=MetaConfig(**meta))
        for meta in ({"memory": 2**30}, {"estimator": "unroll"}, {"memory": 1000})
    )
    run = Run(controls, seed=5)
    (expected,) = local_runs(by_unroll.problem, by_unroll.meta).gradients([run])
    for experiment in (default, large):
        assert_same(local_runs(experiment.problem, experiment.meta).gradients([run])[0], expected)
    with pytest.raises(MetaschedError, match=r"meta\.memory: is less than"):
        local_runs(small.problem, small.meta).gradients([run])
