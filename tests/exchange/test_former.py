"""Files from before weights and activations had a noise each: ``noise_scale`` was that of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.evaluation.contenders import read_playable
from metasched.exchange.format import MAX_CONTROLS
from metasched.exchange.pbt import import_policy
from metasched.exchange.player import SchedulePlayer
from metasched.exchange.schedule_file import dumps, loads, read_schedule
from metasched.methods import METHODS
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.tasks.config import TaskConfig
from metasched.training.loop import train
from metasched.training.problem import build_problem

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "formats" / "schedule_v1.json"
NOISES = ("weight_noise", "activation_noise")
STEPS = 6


def edited(edit: Callable[[dict[str, Any]], object]) -> str:
    tree = json.loads(OLD.read_text("ascii"))
    edit(tree)
    return json.dumps(tree)


def test_the_player_gives_each_layer_both_noises() -> None:
    old = json.loads(OLD.read_text("ascii"))
    first = SchedulePlayer(read_schedule(OLD), 5).step()
    for layer, curve in zip(old["layers"], old["values"]["noise_scale"], strict=True):
        assert [first[layer["name"]][name] for name in NOISES] == [curve[0]] * 2
        assert "noise_scale" not in first[layer["name"]]


def test_reading_what_was_read_changes_nothing() -> None:
    once = dumps(read_schedule(OLD))
    assert dumps(loads(once, "schedule.json")) == once and "noise_scale" not in once


@pytest.mark.parametrize("method", ["inq", "mine"])
def test_the_name_is_the_own_one_of_other_methods(method: str) -> None:
    """Of a method that never had it, and of one that this version does not know."""
    assert (method in METHODS) == (method == "inq")
    text = edited(lambda f: f["method"].update(name=method))
    assert "noise_scale" in loads(text, "schedule.json").values


def both(file: dict[str, Any]) -> None:
    file["controls"].append({**file["controls"][0], "name": "activation_noise"})
    file["values"]["activation_noise"] = file["values"]["noise_scale"]


def full(file: dict[str, Any]) -> None:
    for i in range(MAX_CONTROLS - len(file["controls"])):
        file["controls"].append({**file["controls"][0], "name": f"c{i}"})
        file["values"][f"c{i}"] = file["values"]["noise_scale"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (both, "f: controls[0].name: 'noise_scale' is the former name of activation_noise, which is in the file too; "),
        (full, "f: controls: are 65 with the names of this version, which is too many; "),
        (lambda f: f["values"]["noise_scale"].pop(), "f: values.noise_scale: has 2 entries for 3 layers; "),
    ],
)
def test_a_file_that_cannot_be_renamed_is_refused(edit: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(MetaschedError) as caught:
        loads(edited(edit), "f")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("activation_levels", ["ternary", None])
def test_it_is_played_by_its_method_with_and_without_quantized_activations(activation_levels: str | None) -> None:
    path = ROOT / "experiments" / "learned" / "cifar10_ana_family.json"
    assert "noise_scale" in json.loads(path.read_text("ascii"))["values"]
    problem = Experiment(
        task=TaskConfig(model="convnet", width=3, steps=STEPS, batch=16, train=64, validation=32, test=16),
        method=MethodConfig(name="ana", activation_levels=activation_levels),
        run=RunConfig(dtype="float64"),
    ).problem
    built = build_problem(problem)
    schedule = read_playable(path, problem)
    values = schedule(progress_of_steps(STEPS), built.network.layers)
    assert torch.equal(values["weight_noise"], values["activation_noise"])
    declared = [control.name for control in built.network.method.controls]
    assert declared == [*(NOISES if activation_levels else NOISES[:1]), "noise_mean"]
    losses = train(built, values).losses
    assert torch.equal(losses, train(built, {name: values[name] for name in declared}).losses)


def test_a_policy_of_ray_may_have_one_noise_or_one_for_each(tmp_path: Path) -> None:
    def values(config: dict[str, float]) -> Tensors:
        path = tmp_path / "pbt_policy_a.txt"
        path.write_text(json.dumps(["1_x", "2_x", 1, 1, {"noise_mean": 0.1, **config}, {"noise_mean": 0.1, **config}]))
        network = build_problem(
            Experiment(task=TaskConfig(model="mlp"), method=MethodConfig(name="ana")).problem
        ).network
        file = import_policy(
            path,
            total=4,
            name="found",
            method_name="ana",
            method_parameters={},
            controls=network.method.controls,
            layers=network.layers,
        )
        return {name: torch.tensor(file.values[name])[:, 0] for name in NOISES}

    one = values({"noise_scale": 0.5, "noise_scale/linear2": 0.25})
    assert one["weight_noise"].tolist()[:2] == one["activation_noise"].tolist()[:2] == [0.5, 0.25]
    each = values({"noise_scale": 0.5, "activation_noise": 0.75})
    assert set(each["weight_noise"].tolist()) == {0.5} and set(each["activation_noise"].tolist()) == {0.75}
    with pytest.raises(MetaschedError, match="has neither activation_noise nor activation_noise/linear1"):
        values({"weight_noise": 0.5})
