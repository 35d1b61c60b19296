"""Forward mode against reverse mode, through every rule and surrogate, and on the quadratic against its closed form."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from learning import shrunk
from torch import nn
from torch.autograd import forward_ad

from metasched.commands.check import random_controls
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw, generator
from metasched.engines import find_unroll, tangent
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.tangent import Slope, slope_along, tangents
from metasched.estimators import build_estimator
from metasched.estimators.base import Estimate
from metasched.estimators.forward import Forward, directions
from metasched.estimators.reverse import Floored, Reverse
from metasched.meta.config import MetaConfig
from metasched.meta.outer import check_estimator
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.network.quantize import quantize
from metasched.quantizers.levels import level_set
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.quantizers.stair import stair
from metasched.runs.local import Along, LocalRuns
from metasched.runs.pooled import local_runs
from metasched.schedules.base import progress_of_steps
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tasks.quadratic import quadratic_task
from metasched.training.optimizers import OPTIMIZERS
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

RULES = {
    "sgd": OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.01),
    "adam": OptimizerConfig(name="adam", lr=0.05, eps=1e-3),
    "adamw": OptimizerConfig(name="adamw", lr=0.05, eps=1e-3, weight_decay=0.1),
}
OBJECTIVES = ["hardened", "relaxed", "trajectory"]
METHODS = ["ana", "inq", "joint"]


def experiment(method: str = "joint", rule: str = "adam", steps: int = 3, **settings: Any) -> Experiment:
    tiny = shrunk(
        Experiment(
            task=TaskConfig(model="mlp", width=4, train=64, validation=32),
            optimizer=RULES[rule],
            method=MethodConfig(name=method, **settings),  # type: ignore[arg-type]
            meta=MetaConfig(estimator="forward"),
        )
    )
    return replace(tiny, task=replace(tiny.task, steps=steps))


def family(problem: InnerProblem, start: str, learn: list[str]) -> ScheduleFamily:
    controls, layers = problem.network.method.controls, problem.network.layers
    base = hand_coded(start.split("_")[0])[start]
    schedule = ScheduleFamily(controls, base, [c.name for c in controls if c.name in learn], knots=9, layers=layers)
    draws = generator(0, "a member of the family")
    with torch.no_grad():
        for p in schedule.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draws)
    return schedule


# --- the product with a direction ---


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", METHODS)
def test_the_family_gets_the_gradient_of_reverse_mode(method, rule):
    """Every method with every rule; the objectives in turn, so that each meets all methods and all rules."""
    whole = experiment(method, rule)
    objective = OBJECTIVES[(METHODS.index(method) + [*RULES].index(rule)) % 3]
    runs = replace(local_runs(whole.problem, whole.meta), outer=OuterLoss(objective))  # type: ignore[arg-type]
    schedule = family(runs.problem, f"{method}_linear", learn=["weight_noise", "freeze_fraction"])
    forward, reverse = Forward(0.02), Reverse(0.02)
    found = forward.estimate(schedule, runs, [1], forward.begin(schedule, runs))
    expected = reverse.estimate(schedule, runs, [1], {})
    for ours, theirs in zip(found.found, expected.found, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-12)
        assert ours.diagnostics.score == theirs.diagnostics.score
        assert ours.diagnostics.dead_layers == theirs.diagnostics.dead_layers
        assert ours.diagnostics.nonfinite == 0 and ours.diagnostics.seconds > 0
        assert ours.diagnostics.gradient_norm == pytest.approx(theirs.diagnostics.gradient_norm, rel=1e-10)
        assert [g.shape for g in ours.gradient] == [p.shape for p in schedule.parameters()]
        a, b = (torch.stack(g.gradient) for g in (ours, theirs))
        assert float((a - b).norm()) <= 1e-10 * float(b.norm())
        assert int((b != 0).sum()) >= 4


SURROGATES = [
    {"forward": "expectation", "noise": "normal"},
    {"forward": "random", "noise": "logistic", "scale": "max"},
    {"forward": "mode", "backward": "fixed"},
    {"forward": "mode", "noise": "uniform", "granularity": "channel", "scale": "least_squares"},
    {"partition": "relaxation", "levels": "pow2_3", "scale": "pow2"},
    {"partition": "random", "activation_levels": None},
]


@pytest.mark.parametrize("settings", SURROGATES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_a_slope_is_the_product_of_the_derivative_with_the_direction(model, settings):
    whole = experiment(steps=3, **settings)
    here = build_problem(replace(whole, task=replace(whole.task, model=model)).problem, relaxation=0.3).with_seed(1)
    controls = random_controls(here.network.method.controls, here.steps, len(here.network.layers), 0, 0)
    draws = generator(0, "direction")
    direction = {name: torch.randn(v.shape, generator=draws) for name, v in controls.items()}
    found = slope_along(here, controls, direction, OuterLoss())
    expected = control_gradient(find_unroll("unroll"), here, controls, OuterLoss())
    product = sum(float((expected.wrt[name] * direction[name]).sum()) for name in controls)
    assert found.slope == pytest.approx(product, rel=1e-10) and product != 0
    assert found.loss == pytest.approx(expected.loss, rel=1e-12) and found.score == expected.score


@pytest.mark.pairwise
@pytest.mark.parametrize("noise", NOISE_FAMILIES)
@pytest.mark.parametrize("forward", ["expectation", "mode", "random"])
@pytest.mark.parametrize("backward_scale", [None, 0.4])
def test_the_stair_has_one_derivative_both_ways(forward, noise, backward_scale):
    draws = generator(0, "stair")
    x, *moved = (torch.randn(3, 50, generator=draws) for _ in range(5))
    mean, scale = torch.tensor([[0.1], [-0.1], [0.0]]), torch.tensor([[0.3], [0.6], [0.0]])  # the last has no noise
    uniform = torch.rand(3, 50, generator=draws) if forward == "random" else None

    def function(x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        options = {"family": noise, "forward": forward, "uniform": uniform, "backward_scale": backward_scale}
        return stair(x, level_set("pow2_3"), mean=mean, scale=scale, **options)

    primals = (x, mean, scale)
    directions = (moved[0], moved[1][:, :1], moved[2][:, :1])
    leaves = [p.clone().requires_grad_() for p in primals]
    backward = torch.autograd.grad((function(*leaves) * moved[3]).sum(), leaves)
    for chosen in ((0, 1, 2), (0,), (1,), (2,)):  # inputs without a tangent are left out
        with tangents():
            duals = [
                forward_ad.make_dual(p, d) if i in chosen else p
                for i, (p, d) in enumerate(zip(primals, directions, strict=True))
            ]
            found = forward_ad.unpack_dual(function(*duals)).tangent
        assert found is not None
        expected = sum(float((backward[i] * directions[i]).sum()) for i in chosen)
        assert float((found * moved[3]).sum()) == pytest.approx(expected, rel=1e-12, abs=1e-12)


# --- closed form ---


@dataclass(frozen=True)
class Gain(Method):
    """A method that scales its weight, which starts at 1, by its one control."""

    controls: tuple[Control, ...] = (Control("gain", 0.0, 2.0, "factor", "free", end=None),)
    quantizes: Quantizes = "weight"
    bits: float = 1.0

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        return torch.ones_like(w), {}, {}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return controls["gain"] * w

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return x

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return w

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return x


class Line(nn.Module):
    """The gain g_t = 1 + slope u_t + 0 unused, on one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, progress: torch.Tensor, layers: Any) -> Tensors:
        return {"gain": (1 + self.slope * progress)[:, None]}


def quadratic(steps: int) -> LocalRuns:
    task = quadratic_task(torch.tensor([0.7]), torch.tensor([0.4]))
    network = quantize(task.build(), Gain(), task.train.x[:2], last=True)
    hyper = {"lr": 0.3, "momentum": 0.0, "weight_decay": 0.0}
    here = InnerProblem(network, task, OPTIMIZERS["sgd"].rule(), hyper, steps, seed=0)
    return LocalRuns(here, here, OuterLoss("hardened"), find_unroll("unroll"))


def test_closed_form_on_the_quadratic():
    """w_{t+1} = w_t - lr g a (g w - b), and its derivative in the gain's slope; at the end the gain is 1."""
    found = Forward(0.0).estimate(Line(), quadratic(8), [0], {})
    a, b, lr, w, dw = 0.7, 0.4, 0.3, 1.0, 0.0
    for t in range(8):
        u = t / 7
        g = 1 + 0.5 * u
        dw = dw - lr * a * (g * g * dw + u * (2 * g * w - b))
        w = w - lr * g * a * (g * w - b)
    (one,) = found.found
    assert one.loss == pytest.approx(a * (w - b) ** 2 / 2, rel=1e-12)
    assert float(one.gradient[0]) == pytest.approx(a * (w - b) * dw, rel=1e-12)


# --- what it costs ---


@dataclass(frozen=True)
class Counting:
    """Runs that note what they are asked for, and answer with the place of the question."""

    problem: InnerProblem
    asked: list[Along] = field(default_factory=list)

    def slopes(self, runs: list[Along]) -> list[Slope]:
        self.asked.extend(runs)
        return [Slope(1.0, 0.5, float(i + 1), 0.25, 1.0) for i in range(len(runs))]


def test_a_run_for_each_parameter_that_moves_something():
    runs = Counting(quadratic(4).problem)
    schedule = Line()
    found = Forward(0.0).estimate(schedule, runs, [7, 8], {})  # type: ignore[arg-type]
    assert [run.seed for run in runs.asked] == [7, 8]
    for run in runs.asked:
        torch.testing.assert_close(run.controls["gain"][:, 0], torch.tensor([1.0, 7 / 6, 4 / 3, 1.5]))
        torch.testing.assert_close(run.direction["gain"][:, 0], torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))
        assert not run.controls["gain"].requires_grad and not run.direction["gain"].requires_grad
    assert [[g.tolist() for g in one.gradient] for one in found.found] == [[1.0, [0.0, 0.0]], [2.0, [0.0, 0.0]]]
    assert found.inner_steps == 2 * 4 and found.notes == {"tangents": 1.0} and found.state == {}
    assert [one.diagnostics.dead_layers for one in found.found] == [0.25, 0.25]


def test_the_loss_is_known_where_no_parameter_moves_anything():
    schedule = Line()
    schedule.forward = lambda progress, layers: {"gain": torch.ones(len(progress), 1)}  # type: ignore[method-assign]
    runs = Counting(quadratic(4).problem)
    (found,) = Forward(0.0).estimate(schedule, runs, [7], {}).found  # type: ignore[arg-type]
    assert found.loss == 1.0 and len(runs.asked) == 1


def test_no_step_outlives_the_next_one(monkeypatch):
    """A tensor that its graph holds is alive: so the graphs of the steps before are gone."""
    made: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def noted(*arguments, differentiable):
        alive.append(sum(ref() is not None for ref in made))
        result = step(*arguments, differentiable=differentiable)
        made.extend(weakref.ref(v) for v in (*result[0].params.values(), *result[2].values()))
        return result

    step = tangent.inner_step
    monkeypatch.setattr(tangent, "inner_step", noted)
    here = build_problem(experiment("ana", steps=4).problem)
    controls = random_controls(here.network.method.controls, 4, len(here.network.layers), 0, 0)
    slope_along(here, controls, controls, OuterLoss())
    assert len(made) > 4 and alive == [0, 0, 0, 0]


# --- directions, and what goes wrong ---


def test_directions_are_the_columns_of_the_jacobian():
    here = build_problem(experiment().problem)
    learned = family(here, "joint_cosine", learn=["weight_noise", "freeze_fraction"])
    schedule = Floored(learned, here.network.method.controls, 0.35)
    controls, found = directions(schedule, here)
    values = schedule(progress_of_steps(here.steps), here.network.layers)
    assert len(found) == sum(p.numel() for p in schedule.parameters())
    draws = generator(0, "seeds")
    for name, value in values.items():
        assert torch.equal(controls[name], value)
        seed = torch.randn(value.shape, generator=draws)
        expected = torch.zeros(len(found))
        if value.requires_grad:
            rows = torch.autograd.grad(value, list(schedule.parameters()), seed, allow_unused=True)
            expected = torch.stack([torch.tensor(0.0) if r is None else r for r in rows])
        columns = torch.stack([(column[name] * seed).sum() for column in found])
        torch.testing.assert_close(columns, expected, rtol=1e-10, atol=1e-13)


def test_a_run_that_is_not_finite_is_counted():
    whole = experiment("ana", forward="expectation")
    here = build_problem(whole.problem)
    controls = random_controls(here.network.method.controls, here.steps, len(here.network.layers), 0, 0)
    controls["noise_mean"][1, 1] = float("nan")
    broken = slope_along(here, controls, {n: torch.ones_like(v) for n, v in controls.items()}, OuterLoss("relaxed"))
    assert math.isnan(broken.loss)

    class Broken(Counting):
        def slopes(self, runs: list[Along]) -> list[Slope]:
            return [broken] * len(runs)

    estimate: Estimate = Forward(0.0).estimate(Line(), Broken(quadratic(4).problem), [0], {})  # type: ignore[arg-type]
    assert estimate.found[0].diagnostics.nonfinite == 1  # the loss


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return 2 * grad


class Double(nn.Module):
    """A model's own function, which nobody taught to go forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Double.apply(x)


def test_an_operation_without_a_forward_derivative_is_refused_in_a_line():
    task = quadratic_task(torch.tensor([0.7]), torch.tensor([0.4]))
    network = quantize(nn.Sequential(nn.Linear(1, 1, bias=False), Double()), Gain(), task.train.x[:2], last=True)
    own = replace(task, model=lambda: nn.Sequential(nn.Linear(1, 1, bias=False), Double()))
    hyper = {"lr": 0.3, "momentum": 0.0, "weight_decay": 0.0}
    here = InnerProblem(network, own, OPTIMIZERS["sgd"].rule(), hyper, 2, seed=0)
    gains = {"gain": torch.ones(2, 1)}
    with pytest.raises(MetaschedError, match=r"^model: has an operation without a forward derivative .*sweep$"):
        slope_along(here, gains, gains, OuterLoss())


def test_a_network_is_refused_before_anything_is_done():
    assert build_estimator(MetaConfig(estimator="forward", noise_floor=0.1)) == Forward(0.1)
    check_estimator(experiment().problem, experiment().meta, "family")
    with pytest.raises(MetaschedError, match=r"^meta\.estimator: .* set schedule\.kind to family"):
        check_estimator(experiment().problem, experiment().meta, "network")
