"""Stacked runs by replays of a recorded step: the numbers of the plain loop, whatever was in the tensors before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from stacked_runs import METHODS, SEEDS, controls_of, distance, own, problem
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from metasched.core.errors import MetaschedWarning
from metasched.methods import METHODS as TABLE
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors, rows, rows_of
from metasched.quantizers import constants
from metasched.tasks import supervised
from metasched.training.capture import Capture, Function, Replay, operations
from metasched.training.loop import take_steps
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.replayed import Recorded, record, replay, stacked_steps
from metasched.training.stacked import mappable, of_run, stacked
from metasched.training.state import InnerProblem, TrainingState

ALL = torch.tensor(SEEDS)
MORE = {
    "blend": MethodConfig(name="blend", scale="learned", activation_scale="learned"),
    "widths": MethodConfig(name="widths", scale="learned", activation_scale="clip"),
    "temperature": MethodConfig(name="temperature"),
    "parq": MethodConfig(name="parq"),
    "oscillation": MethodConfig(name="oscillation"),
    "pruning": MethodConfig(name="pruning", sparsity=0.5),
    "quant_noise": MethodConfig(name="quant_noise", noise_block=3),
    "rounding": MethodConfig(name="rounding", levels="normal2", scale="max"),
    "admm": MethodConfig(name="admm", sparsity=0.5, scale="least_squares", projection_every=2),
    "adaround": MethodConfig(name="adaround", scale="max"),
    "bayesian_bits": MethodConfig(name="bayesian_bits", activation_scale="learned"),
    "joint_of_three": MethodConfig(name="joint", of="widths+inq+rates", scale="learned"),
    "ste_uneven": MethodConfig(name="ste", levels="pow2_5", activation_levels="uint4", scale="max"),
    "rates": MethodConfig(name="rates"),
    "float": MethodConfig(name="float"),
}
CASES = {**METHODS, **MORE}
QUICK = ("ste", "ana_random", "inq_hard", "joint", "gxnor", "widths")
# the CPU's powers may differ from Python's by a rounding, which a few steps of Adam hardly enlarge
OFF = {"sgd": 0.0, "adam": 1e-12}


def begun(inner: InnerProblem) -> tuple[InnerProblem, TrainingState, Tensors]:
    """The problem for stacked runs, their first state, and the controls {control: [T, N, L]}."""
    controls, inner = controls_of(inner), mappable(inner)
    firsts = [rows(own(controls, i), 0) for i in range(len(SEEDS))]
    state = stacked(inner, [inner.with_seed(s).initial(f) for s, f in zip(SEEDS, firsts, strict=True)])
    return inner, state, {name: v.transpose(0, 1) for name, v in controls.items()}


def taken(inner: InnerProblem, state: TrainingState, controls: Tensors, steps: range) -> TrainingState:
    for done in take_steps(inner, state, rows_of(controls, steps), steps, seeds=ALL):
        state = done.state
    return state


def poisoned(made: Recorded) -> Recorded:
    """After each replay, what the host must fill again holds what no computation survives."""

    def again() -> None:
        made.again()
        for value in made.values._values.values():
            value.tensor.fill_(torch.nan if value.tensor.is_floating_point() else 2**40)
        for t in (*made.row.values(), *(now for now, _ in made.hyper.values())):
            t.fill_(torch.nan)

    return replace(made, again=again)


def worst(inner: InnerProblem, capture: Capture = operations) -> float:
    inner, state, controls = begun(inner)
    steps = range(inner.steps)
    made = poisoned(record(inner, state, controls, steps, SEEDS, capture))
    *_, last = replay(made, state, controls, steps)
    return distance(taken(inner, state, controls, steps), last.state)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_replays_are_the_steps_of_every_method(method: str) -> None:
    optimizer = "adam" if list(CASES).index(method) % 2 else "sgd"
    inner = problem(CASES[method], optimizer=optimizer, width=4)
    assert worst(replace(inner, steps=3)) <= OFF[optimizer]


def test_all_methods_are_among_them() -> None:
    assert {config.name for config in CASES.values()} == {*TABLE} - {"dpq"}  # which has no layer here


def test_convolutions_are_replayed() -> None:
    assert worst(replace(problem(METHODS["ana_mode"], "convnet"), steps=3)) <= OFF["adam"]


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_learning_rates_that_change_and_clipped_gradients(rule: Any) -> None:
    config = OptimizerConfig(name=rule, lr=0.05, clip_norm=0.5, weight_decay=0.01, eps=1e-3)
    optimizer, hyper = recipe(config)
    rates = {**hyper, "lr": (0.05, 0.02, 0.04, 0.01, 0.0)}
    assert worst(replace(problem(METHODS["ste"], width=4), optimizer=optimizer, hyper=rates)) <= 1e-12


def test_a_recording_is_replayed_from_any_state_and_leaves_what_it_gave() -> None:
    inner, start, controls = begun(problem(METHODS["joint"], width=4))
    first, later = range(2), range(2, 5)
    middle = taken(inner, start, controls, first)
    made = record(inner, start, controls, later, SEEDS, operations)
    ends = [list(replay(made, middle, rows_of(controls, later), later))[-1].state for _ in range(2)]
    expected = taken(inner, middle, controls, later)
    assert distance(expected, ends[0]) <= OFF["adam"] and distance(ends[0], ends[1]) == 0
    assert ends[0].optimizer["step"].dtype == torch.int64 and int(ends[0].optimizer["step"]) == 5
    assert distance(of_run(expected, 1), of_run(ends[1], 1)) <= OFF["adam"]


def test_losses_and_gradients_are_those_of_each_step() -> None:
    inner, state, controls = begun(replace(problem(METHODS["ana_random"], optimizer="sgd", width=4), steps=10))
    steps = range(10)
    plain = take_steps(inner, state, controls, steps, seeds=ALL)
    for a, b in zip(plain, stacked_steps(inner, state, controls, steps, ALL, operations), strict=True):
        assert a.step == b.step and torch.equal(a.loss, b.loss)
        assert all(torch.equal(g, b.gradients[name]) for name, g in a.gradients.items())
        assert all(torch.equal(values, b.row[name]) for name, values in a.row.items())


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is() -> None:
    inner = replace(problem(METHODS["ste"], width=4), steps=10)

    def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets) * torch.tensor(2.0)

    assert isinstance(inner.task, supervised.SupervisedTask)
    inner, state, controls = begun(replace(inner, task=replace(inner.task, criterion=criterion)))
    with pytest.warns(MetaschedWarning, match="one by one: .* makes a tensor of numbers"):
        *_, last = stacked_steps(inner, state, controls, range(10), ALL, operations)
    assert distance(taken(inner, state, controls, range(10)), last.state) == 0


def test_a_capture_that_fails_is_not_the_end() -> None:
    def failing(function: Function) -> Replay:
        raise RuntimeError("no memory\nfor a graph")

    inner, state, controls = begun(replace(problem(METHODS["ste"], width=4), steps=10))
    with pytest.warns(MetaschedWarning, match="no memory for a graph"):
        *_, last = stacked_steps(inner, state, controls, range(10), ALL, failing)
    assert distance(taken(inner, state, controls, range(10)), last.state) == 0


@pytest.fixture
def _forgetting() -> Iterator[None]:
    """What is remembered holds no tensors of a GPU that is not there."""

    def forget() -> None:
        for remembered in (constants._constants, constants._row):
            remembered.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.usefixtures("_forgetting")
@pytest.mark.parametrize("method", ["ana_random"])
def test_nothing_is_copied_from_the_host_during_a_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that say that they are on a GPU. Backward passes need a real one, and are left out."""
    inner, state, controls = begun(problem(METHODS[method], width=4))
    monkeypatch.setattr(torch.autograd, "grad", lambda total, at, **_: tuple(map(torch.zeros_like, at)))
    with FakeTensorMode():

        def there(t: torch.Tensor) -> torch.Tensor:
            return torch.empty(t.shape, dtype=t.dtype, device="cuda" if t.dim() else "cpu")

        parts = ({name: there(t) for name, t in part.items()} for part in state)
        task = inner.task
        assert isinstance(task, supervised.SupervisedTask)
        task = replace(task, train=supervised.Split(*map(there, task.train)))  # type: ignore[arg-type]
        fake = {name: there(v) for name, v in controls.items()}
        made = record(
            replace(inner, task=task), TrainingState(*parts), fake, range(2), SEEDS, lambda function: function
        )
        assert made.found[0].device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("method", ["ste", "ana_expectation", "ana_random", "inq", "joint", "gxnor"])
def test_cuda_graphs_take_the_steps_of_the_loop(method: str, model: str) -> None:
    from metasched.training.capture import cuda_graph

    inner, state, controls = begun(problem(METHODS[method], model))
    placed = replace(inner, task=inner.task.to("cuda", torch.float64))
    placed.network.module.to("cuda")
    moved = TrainingState(
        *({name: t.cuda() if t.dim() or name != "step" else t for name, t in part.items()} for part in state)
    )
    on_gpu, steps = {name: v.cuda() for name, v in controls.items()}, range(inner.steps)
    made = record(placed, moved, on_gpu, steps, SEEDS, cuda_graph)
    *_, last = replay(made, moved, on_gpu, steps)
    assert distance(taken(placed, moved, on_gpu, steps), last.state) <= 1e-8
