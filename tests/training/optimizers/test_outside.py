"""An optimizer from outside the package: one file and one row, and the settings that each row makes known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from metasched.commands.check import random_controls
from metasched.config.load import load_experiment
from metasched.config.schema import Experiment
from metasched.config.writing import dump_yaml, to_dict
from metasched.core.errors import MetaschedError
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.methods.config import MethodConfig
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers import OPTIMIZERS
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.problem import build_problem


@pytest.fixture
def lion(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "outside")
    monkeypatch.delitem(sys.modules, "lion", raising=False)
    import_module("lion")
    yield
    OPTIMIZERS.pop("lion")


def load(tmp_path: Path, optimizer: str, *overrides: str) -> Experiment:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"optimizer: {optimizer}\n")
    return load_experiment(path, overrides)


@pytest.mark.usefixtures("lion")
def test_it_is_read_from_yaml_and_written_back(tmp_path: Path) -> None:
    got = load(tmp_path, "{name: lion, parameters: {beta3: 0.5}}", "--optimizer.parameters.sharpness=20")
    assert recipe(got.optimizer).hyper == {"lr": 0.01, "beta3": 0.5, "sharpness": 20.0}
    again = tmp_path / "again.yaml"
    again.write_text(dump_yaml(to_dict(got)))
    assert load_experiment(again) == got and hash(load_experiment(again)) == hash(got)


@pytest.mark.usefixtures("lion")
def test_it_trains_and_all_engines_agree_with_clipping_and_groups(tmp_path: Path) -> None:
    settings = "{name: lion, lr: 0.05, clip_norm: 0.1, groups: [{match: norm, lr_factor: 0.5}], warmup: 0.3}"
    method = MethodConfig(name="ana", noise="normal", forward="expectation")
    task = TaskConfig(model="mlp", width=4, train=32, validation=16, batch=8, steps=4)
    problem = build_problem(Experiment(task=task, method=method, optimizer=load(tmp_path, settings).optimizer).problem)
    controls = random_controls(problem.network.method.controls, 4, len(problem.network.layers), 0, 0)
    found = [control_gradient(find_unroll(e), problem, controls, OuterLoss()) for e in ("unroll", "sweep", "higher")]
    for name, slope in found[0].wrt.items():
        assert slope.norm() > 0
        for other in found[1:]:
            torch.testing.assert_close(other.wrt[name], slope, rtol=1e-4, atol=1e-7)  # in float32


MISTAKES: list[tuple[str, str]] = [
    ("{name: adm}", "optimizer.name: unknown name 'adm'; did you mean 'adam'? Known: adam, adamw, lion, sgd"),
    (
        "{momentum: 0.5}",
        "optimizer.momentum: has no effect, because optimizer.name is adam; leave it out; it is for sgd",
    ),
    ("{name: sgd, eps: 1e-3}", "optimizer.eps: has no effect, because optimizer.name is sgd; leave it out; it is for"),
    ("{nesterov: true}", "optimizer.nesterov: has no effect, because optimizer.name is adam"),
    ("{name: sgd, momentum: 0, nesterov: true}", "optimizer.nesterov: has no effect, because optimizer.momentum is 0"),
    ("{name: lion, weight_decay: 0.1}", "optimizer.weight_decay: has no effect, because optimizer.name is lion"),
    ("{name: lion, groups: [{match: bias, weight_decay: 0}]}", "optimizer.groups[0].weight_decay: has no effect"),
    ("{step_gamma: 0.5}", "optimizer.step_gamma: has no effect, because optimizer.decay is constant; leave it out; it"),
    ("{decay: step, pct_start: 0.5}", "optimizer.pct_start: has no effect, because optimizer.decay is step"),
    ("{decay: one_cycle, warmup: 0.1}", "optimizer.warmup: one_cycle has a warm-up of its own; leave it out, and set"),
    ("{clip_norm: 1, clip_value: 1}", "optimizer.clip_value: cannot be used together with optimizer.clip_norm"),
    ("{clip_norm: 0}", "optimizer.clip_norm: must be greater than 0, got 0"),
    ("{warmup: 1}", "optimizer.warmup: must be less than 1, got 1"),
    ("{parameters: {beta3: 0.9}}", "optimizer.parameters: adam has no parameter 'beta3'; leave it out"),
    ("{name: lion, parameters: {beta4: 0.9}}", "optimizer.parameters: unknown name 'beta4'; did you mean 'beta3'?"),
    (
        "{name: lion, parameters: {beta3: 2}}",
        "optimizer.parameters.beta3: must be from 0 to 1, got 2; the default is 0.9",
    ),
    ("{parameters: {beta3: x}}", "optimizer.parameters.beta3: must be a valid number"),
    ("{parameters: 3}", "optimizer.parameters: must be a mapping, got 3; give {name: float}"),
    (
        "{groups: [{match: bias, mtch: norm}]}",
        "optimizer.groups[0].mtch: unknown field; did you mean match? Known: match, lr_factor",
    ),
    ("{groups: [{lr_factor: 1}]}", "optimizer.groups[0].match: an item is missing"),
    ("{groups: [{match: norm, lr_factor: -1}]}", "optimizer.groups[0].lr_factor: must be at least 0, got -1"),
    (
        "{groups: [3]}",
        "optimizer.groups[0]: must be a section, got 3; it has the fields match, lr_factor, weight_decay",
    ),
    ("{groups: 3}", "optimizer.groups: must be a list, got 3; give [{match, lr_factor, weight_decay}, ...], such as"),
]


@pytest.mark.usefixtures("lion")
@pytest.mark.parametrize(("settings", "line"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_line(tmp_path: Path, settings: str, line: str) -> None:
    with pytest.raises(MetaschedError) as caught:
        load(tmp_path, settings)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValueError, match="unknown name 'lion'; Known: adam, adamw, sgd"):
        OptimizerConfig(name="lion")
    with pytest.raises(MetaschedError, match=r"optimizer\.parameters: adam has no parameter 'beta3'"):
        recipe(OptimizerConfig(parameters={"beta3": 1.0}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_row_reads_the_learning_rate(name: str) -> None:
    spec: Any = OPTIMIZERS[name]
    assert {"lr"} <= spec.reads
