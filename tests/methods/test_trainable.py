"""Tensors that a method trains: a learned step size for each layer, with a penalty on it, in every loop and engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.config.schema import Experiment
from metasched.contrib.data_parallel import Alone, train_in_parts
from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.engines import find_unroll
from metasched.engines.base import ControlGradient, OuterLoss, control_gradient
from metasched.engines.finite_differences import error_against_differences, outer_loss, uphill
from metasched.engines.stacked import control_gradients_mapped
from metasched.engines.tangent import slope_along
from metasched.engines.unroll import unroll
from metasched.meta import online
from metasched.meta.config import OnlineConfig
from metasched.meta.online import setting_of, train_online
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.tensors import LayerQuantizer
from metasched.network.flat import Tensors, rows
from metasched.network.module import QuantizedModule
from metasched.network.quantize import quantize
from metasched.quantizers.levels import ternary
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.quantizers.stair import stair
from metasched.quantizers.straight import straight_through
from metasched.runs.local import Reached, Segment, reach, reach_mapped
from metasched.schedules.config import ScheduleConfig
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loop import train
from metasched.training.optimizers.adam import Adam
from metasched.training.optimizers.base import Optimizer
from metasched.training.optimizers.sgd import SGD
from metasched.training.stacked import of_run, train_mapped
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

STEPS, DECAY = 4, 0.3
WIDTH = Control("width", 0.0, 1.0, "quantum", "nonincreasing", end=0.0)
RELAXED = OuterLoss("relaxed")


@dataclass(frozen=True)
class LearnedStep(Method):
    """w_seen = s E[stair(w / s)] under noise of a scheduled width; s is trained, and DECAY / 2 s^2 in the loss."""

    quantizer: LayerQuantizer
    largest: float = 10.0

    @property
    def controls(self) -> tuple[Control, ...]:
        return (WIDTH,)

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        return w, {"step": 0.7 * w.abs().max()}, {"previous": w.new_zeros(())}

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        return {**state, "previous": state["step"].detach()}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        width, none = controls["width"] * NOISE_FAMILIES["normal"].unit, torch.zeros((), dtype=w.dtype)
        levels, s = self.quantizer.levels, state["step"]
        return s * stair(w / s, levels, mean=none, scale=width, family="normal", forward="expectation")

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        raise AssertionError("activations stay in float")

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor:
        return DECAY / 2 * state["step"].square()

    def update_trainable(self, state: State, proposed: State, controls: Values) -> State:
        return {"step": proposed["step"].clamp_max(self.largest)}

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return straight_through(w / state["step"], self.quantizer.levels, surrogate) * state["step"]

    def levels_of(self, state: State) -> torch.Tensor:
        return state["step"] * torch.tensor(self.quantizer.levels.levels)


METHOD = LearnedStep(LayerQuantizer(ternary(), None))
HYPER = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}}
HYPER["adam"] = {"lr": 0.02, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.0}
OPTIMIZERS: dict[str, Optimizer] = {"sgd": SGD(), "adam": Adam()}


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def problem(optimizer: str = "sgd", method: Method = METHOD) -> InnerProblem:
    draws = torch.Generator().manual_seed(5)
    y = torch.arange(40) % 3
    part = Split(torch.randn(40, 6, generator=draws) + 2 * F.one_hot(y, 6), y)
    task = SupervisedTask("blobs", part, part, part, build, F.cross_entropy, F.cross_entropy, batch_size=20)
    network = quantize(build(), method, part.x[:2])
    return InnerProblem(network, task, OPTIMIZERS[optimizer], HYPER[optimizer], STEPS, seed=1)


def controls() -> Tensors:
    return {"width": torch.linspace(0.6, 0.4, STEPS)[:, None] * torch.tensor([1.0, 0.9])}


def test_they_are_parameters_that_the_optimizer_trains() -> None:
    here = problem()
    state = here.initial(rows(controls(), 0))
    assert [name for name in state.params if "/" in name] == ["0/step", "2/step"]
    assert set(state.method) == {"0/previous", "2/previous"} and "momentum_buffer.0/step" in state.optimizer
    after, _, gradients = inner_step(here, state, rows(controls(), 0), 0, differentiable=False)
    for name in ("0/step", "2/step"):
        assert gradients[name] != 0 and after.params[name] == state.params[name] - 0.1 * gradients[name]
    assert set(after.method) == {"0/previous", "2/previous"} and after.method["0/previous"] == state.params["0/step"]


def test_the_penalty_is_in_the_loss() -> None:
    here, now = problem(), rows(controls(), 0)
    with_penalty = inner_step(here, here.initial(now), now, 0, differentiable=False)
    state = here.initial(now)
    network = here.network
    x, y = here.task.batch(here.seed, 0)
    run, penalty = network.model(network.call(network.buffers()), state.params, state.method, now, here.seed, 0)
    outputs = run(x)
    assert penalty is not None and torch.isclose(penalty, DECAY / 2 * sum(state.params[f"{k}/step"] ** 2 for k in "02"))  # pyright: ignore
    assert with_penalty[1] == (F.cross_entropy(outputs, y) + penalty).detach()


def test_the_method_decides_what_becomes_of_them() -> None:
    end = train(problem(method=replace(METHOD, largest=0.1)), controls()).state
    assert end.params["0/step"] == end.params["2/step"] == 0.1


def test_the_deployed_weights_are_on_levels_of_the_trained_step() -> None:
    here = problem()
    end = train(here, controls()).state
    hardened = here.network.harden(end.params, end.method)
    assert set(hardened) == {name for name, _ in here.network.module.named_parameters()}
    levels = METHOD.levels_of({"step": end.params["0/step"]})
    assert set(hardened["0.weight"].flatten().tolist()) <= set(levels.tolist())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_hypergradients_through_them_are_central_differences(optimizer: str) -> None:
    here = problem(optimizer)
    slope = control_gradient(find_unroll("unroll"), here, controls(), RELAXED).wrt["width"]
    for layer in range(2):
        direction = uphill(slope, layer, 0, layer)

        def along(h: float, direction: torch.Tensor = direction) -> float:
            return outer_loss(here, {"width": controls()["width"] + h * direction}, RELAXED)

        error = error_against_differences(along, float((slope * direction).sum()))
        assert error is not None and error <= 1e-6


def by(name: str) -> Callable[[InnerProblem], ControlGradient]:
    return lambda here: control_gradient(find_unroll(name), here, controls(), RELAXED)


def stacked_gradient(here: InnerProblem) -> ControlGradient:
    other, found = control_gradients_mapped(here, [controls(), controls()], [2, here.seed], RELAXED)
    assert not torch.allclose(other.wrt["width"], found.wrt["width"])
    return found


def in_windows(here: InnerProblem) -> ControlGradient:
    """The derivative in the rows of step 0, and in those of a window from the state that step 0 leaves (online)."""
    whole = by("unroll")(here)
    row = rows(controls(), 0)
    since, _, _ = inner_step(here, here.initial(row), row, 0, differentiable=False)
    window = partial(unroll, since=since, window=range(1, STEPS))
    found = control_gradient(window, here, {n: v[1:] for n, v in controls().items()}, RELAXED)
    return found._replace(wrt={n: torch.cat([whole.wrt[n][:1], v]) for n, v in found.wrt.items()})


DIFFERENTIATED: dict[str, Callable[[InnerProblem], ControlGradient]] = {
    "sweep": by("sweep"),
    "higher": by("higher"),
    "stacked sweep": stacked_gradient,
    "window": in_windows,
}


@pytest.mark.parametrize("engine", DIFFERENTIATED)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_engine_gives_the_same(engine: str, optimizer: str) -> None:
    here = problem(optimizer)
    expected, found = by("unroll")(here), DIFFERENTIATED[engine](here)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    torch.testing.assert_close(found.wrt["width"], expected.wrt["width"], rtol=1e-9, atol=1e-13)


def test_forward_mode_gives_the_same() -> None:
    here, slope = problem(), by("unroll")(problem()).wrt["width"]
    direction = torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0))
    found = slope_along(here, controls(), {"width": direction}, RELAXED)
    assert found.slope == pytest.approx(float((slope * direction).sum()), rel=1e-9)


def stacked_run(here: InnerProblem) -> TrainingState:
    stacked = train_mapped(here, {n: v.expand(2, *v.shape) for n, v in controls().items()}, [2, here.seed])
    return of_run(stacked, 1)


def in_segments(here: InnerProblem, go: Callable[..., list[Reached]]) -> TrainingState:
    """By two segments of the same run, beside one of another seed, so that they can be stacked."""
    seeds, since = (2, here.seed), [None, None]
    for stop in (1, STEPS):
        segments = [Segment(controls(), seed, start, stop) for seed, start in zip(seeds, since, strict=True)]
        since = go(here, segments, RELAXED)
    assert since[1] is not None
    return since[1].state


def one_by_one(here: InnerProblem, segments: Sequence[Segment], outer: OuterLoss) -> list[Reached]:
    return [reach(here.with_seed(s.seed), s, outer) for s in segments]


TRAINED: dict[str, Callable[[InnerProblem], TrainingState]] = {
    "stacked": stacked_run,
    "parts of a batch": lambda here: train_in_parts(here, controls(), Alone(2)).state,
    "segments": lambda here: in_segments(here, one_by_one),
    "stacked segments": lambda here: in_segments(here, reach_mapped),
}


@pytest.mark.parametrize("loop", TRAINED)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_loop_trains_the_same(loop: str, optimizer: str) -> None:
    here = problem(optimizer)
    alone, other = train(here, controls()).state, TRAINED[loop](here)
    assert list(other.params) == list(alone.params) and set(other.method) == set(alone.method)
    for name, p in alone.params.items():
        torch.testing.assert_close(other.params[name], p, rtol=1e-10, atol=1e-12)


def test_online_learning_trains_the_same_under_what_it_played(monkeypatch: pytest.MonkeyPatch) -> None:
    here = problem()
    monkeypatch.setattr(online, "build_problem", lambda experiment, relaxation=0.0: here)
    config = Experiment(
        schedule=ScheduleConfig(knots=3, hidden=2, learn=("width",)), online=OnlineConfig(every=2, window=2)
    )

    def start(progress: torch.Tensor, layers: Sequence[Layer]) -> Tensors:
        return {"width": 0.6 * (1 - progress)[:, None].expand(-1, len(layers))}

    found = train_online(setting_of(config), start, here.seed)
    expected = train(here, found.controls).state
    assert found.state.params.keys() == expected.params.keys()
    assert all(torch.equal(found.state.params[name], p) for name, p in expected.params.items())


def test_an_own_loop_trains_saves_and_penalizes_them() -> None:
    here = problem()
    expected = train(here, controls()).state
    first = here.initial(rows(controls(), 0)).params
    module = QuantizedModule(replace_weights(here, first), values(0), seed=here.seed)
    assert sum(1 for p in module.parameters()) == len(first)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        x, y = here.task.batch(here.seed, step)
        loss = F.cross_entropy(module(x, values(step), step), y) + module.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.settle()
        assert module.penalty() == 0
    trained = here.network.trainable(module.parameters_by_name())
    for name, p in trained.items():
        torch.testing.assert_close(p.detach(), expected.params[name], rtol=0, atol=1e-10)
        assert p != first[name]
    again = QuantizedModule(here.network, values(0), seed=here.seed)
    again.load_state_dict(module.state_dict())
    hardened = here.network.harden(expected.params, expected.method)
    for name, p in again.hardened().items():
        torch.testing.assert_close(p, hardened[name], rtol=0, atol=1e-10)


def replace_weights(here: InnerProblem, params: Tensors):
    """The network with the weights that a run of the problem starts from."""
    module = build()
    module.load_state_dict({name: params[name] for name, _ in module.named_parameters()})
    return quantize(module, METHOD, here.task.train.x[:2])


def values(step: int) -> dict[str, dict[str, float]]:
    return {name: {"width": float(controls()["width"][step, i])} for i, name in enumerate(("0", "2"))}
