"""Named streams of random numbers: each reaches what it is for, and nothing else."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import metasched
from metasched.config.schema import Experiment
from metasched.core.randomness import Draw, derive_seed
from metasched.estimators.particles import first_windows
from metasched.estimators.perturbation import direction
from metasched.evaluation.contenders import fresh_seeds
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.tasks.build import build_task
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem, forget
from metasched.training.state import InnerProblem

TASK = TaskConfig(model="mlp", width=4, depth=2, train=200, validation=50, test=50, batch=8, steps=30)
EXPERIMENT = Experiment(task=TASK, method=MethodConfig(name="joint", forward="random", partition="random"))


def inner() -> InnerProblem:
    return build_problem(EXPERIMENT.problem).with_seed(11)


def drawn(purpose: str) -> torch.Tensor:
    return Draw(11, 2, 1).uniform(purpose, torch.empty(40))


def schedule() -> ScheduleNetwork:
    controls = build_method(MethodConfig(name="joint")).controls
    start = hand_coded("joint")["joint_linear"]
    return ScheduleNetwork(controls, start, ["weight_noise"], knots=3, hidden=2, seed=11)


def float_weights() -> Any:
    """Biases: those of quantized layers are drawn by the method anew, and their weights with them."""
    params = inner().initial({c.name: torch.full((2,), 0.5) for c in inner().network.method.controls}).params
    return {name: p for name, p in params.items() if name.startswith("linear3") or name.endswith("bias")}


# what each stream is for, as something that changes with it and with no other
STREAMS: dict[str, Callable[[], Any]] = {
    "weights": float_weights,
    "batches": lambda: [inner().task.batch(11, step).x.sum() for step in range(3)],
    "split": lambda: build_task(TASK).train.x[:20],
    "quadratic": lambda: build_task(TaskConfig(name="quadratic", width=6)).train.y,
    "threshold": lambda: drawn("threshold"),
    "radius": lambda: drawn("radius"),
    "partition": lambda: drawn("partition"),
    "weight": lambda: drawn("weight"),
    "activation": lambda: drawn("activation"),
    "schedule network": lambda: list(schedule().body.parameters()),
    "direction": lambda: direction(schedule(), 11),
    "first window": lambda: first_windows(1, 1000, 11),
    "held out": lambda: inner().task.judged_on(8, 11, 2).outer_batch()[0],
    "compare": lambda: fresh_seeds(EXPERIMENT.seed, EXPERIMENT.compare.seeds),
}
SEEDS = {"inner run", "select", "online", "sensitivity", "forward"}  # seeds of whole inner runs, and of dropout
CHECKS = {"points", "directions", "smoothed gradient"}  # of `metasched check` and of references, which train nothing


def named_in_the_code() -> set[str]:
    """Literal names of streams in calls of derive_seed, generator, permutation and Draw.uniform."""
    found = set()
    for path in Path(metasched.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                place = {"derive_seed": 1, "generator": 1, "permutation": 1, "uniform": 0, "_noisy": 0}.get(name)
                if place is not None and len(node.args) > place:
                    literal = node.args[place]
                    if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                        found.add(literal.value)
    return found


def test_no_stream_has_lost_its_name() -> None:
    """Past runs can be repeated only while the names hold."""
    assert named_in_the_code() >= STREAMS.keys() | SEEDS | CHECKS


def bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().double().flatten().tolist()
    if isinstance(value, dict):
        return {name: bits(v) for name, v in value.items()}
    return [bits(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_with_another_seed_changes_its_own_numbers_and_no_others(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float32)
    forget()
    before = {name: bits(value()) for name, value in STREAMS.items()}

    def other(seed: int, name: str, *indices: int) -> int:
        return derive_seed(seed, f"other {name}" if name == stream else name, *indices)

    for module in [m for name, m in sys.modules.items() if name.startswith("metasched")]:
        if getattr(module, "derive_seed", None) is derive_seed:
            monkeypatch.setattr(module, "derive_seed", other)
    forget()
    after = {name: bits(value()) for name, value in STREAMS.items()}
    forget()
    changed = {name for name in STREAMS if before[name] != after[name]}
    causes = {"split": {"batches", "held out"}}  # the same places of other data
    assert stream in changed and changed - {stream} <= causes.get(stream, set())


@pytest.mark.parametrize("method", ["ste", "joint"])
def test_the_seed_of_the_split_leaves_weights_draws_and_the_order_of_batches_alone(method: str) -> None:
    torch.set_default_dtype(torch.float32)
    settings = replace(EXPERIMENT, method=MethodConfig(name=method))  # type: ignore[arg-type]
    one, two = (build_problem(replace(settings, task=replace(TASK, data_seed=s)).problem).with_seed(3) for s in (0, 1))
    assert not torch.equal(one.task.train.x, two.task.train.x)
    first = {c.name: torch.full((2,), 0.5) for c in one.network.method.controls}
    for a, b in zip(one.initial(first), two.initial(first), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], t) for name, t in b.items())
    places = [
        [(p.task.train.x == x).flatten(1).all(1).nonzero()[0].item() for x in p.task.batch(3, 1).x] for p in (one, two)
    ]
    assert places[0] == places[1]


def test_another_seed_of_the_experiment_leaves_the_data_alone() -> None:
    one, two = (build_problem(replace(EXPERIMENT, seed=s).problem) for s in (0, 1))
    assert torch.equal(one.task.train.x, two.task.train.x) and torch.equal(one.task.test.x, two.task.test.x)
    assert not set(fresh_seeds(EXPERIMENT.seed, EXPERIMENT.compare.seeds)) & set(
        fresh_seeds(1, EXPERIMENT.compare.seeds)
    )
