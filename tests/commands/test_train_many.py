"""``metasched train`` over several tasks, from the command line to its files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import metasched
import metasched.commands.train_many as command
from metasched.cli import main
from metasched.config.load import experiment_of
from metasched.core import imports
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.over_tasks import PlayedTask, over_tasks, rows
from metasched.evaluation.statistics import paired_difference
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import read_schedule
from metasched.families.family import TaskFamily
from metasched.families.survey import survey
from metasched.io.json_lines import read_json_lines
from metasched.meta.checkpoint import read_checkpoint
from metasched.meta.outer import averages
from metasched.methods.config import MethodConfig
from metasched.network.recipe import Recipe
from metasched.runs.cells import played
from metasched.schedules.base import progress_of_steps
from metasched.schedules.learnable import build_learnable
from metasched.schedules.shared import SharedSchedule
from metasched.schedules.table import hand_coded
from metasched.training.problem import build_problem

pytestmark = pytest.mark.usefixtures("blank_plots", "own_imports")


@pytest.fixture
def own_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test allows to be imported it does not allow to others."""
    monkeypatch.setattr(imports, "_ALLOWED", set(imports._ALLOWED))


MLP = {"task.model": "mlp", "task.width": 3}
TINY: dict[str, Any] = {
    "name": "tiny",
    "task": {"batch": 16, "train": 64, "validation": 32, "test": 32},
    "optimizer": {"lr": 0.05},
    "method": {"name": "widths", "activation_levels": None},
    "schedule": {"start": "widths_constant_100", "knots": 4, "hidden": 4, "directions": 4},
    "meta": {"estimator": "es", "steps": 3, "runs": 2, "lr": 2.0, "confirm_runs": 2},
    "compare": {"seeds": 2, "baselines": ["widths_constant_150"]},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1},
    "tasks": {
        "per_step": 2,
        "examples": 3,
        "entries": [
            {"name": "short", "set": MLP, "draw": {"task.steps": {"from": 3, "to": 6}}},
            {"name": "deep", "set": {**MLP, "task.depth": 4}, "draw": {"task.steps": [5, 9]}},
        ],
    },
}


def run(*arguments: str | Path) -> int:
    torch.set_default_dtype(torch.float32)
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run("train", config, "--folder", folder) == 0
    return folder


def left(folder: Path) -> dict[str, Any]:
    """What a run leaves that is no time and no place."""
    metrics = [
        {k: v for k, v in row.items() if k != "outer/seconds"}
        for row in read_json_lines(folder / "metrics.jsonl")
        if "artifact" not in row
    ]
    files = ("over_tasks.json", "schedule.json", "schedule_learned.json")
    return {"metrics": metrics, **{f: (folder / f).read_bytes() for f in files if (folder / f).exists()}}


def test_what_a_run_leaves(whole: Path) -> None:
    found = json.loads((whole / "over_tasks.json").read_text())
    assert found["unit"] == "task" and len(found["tasks"]) in (2, 3)
    arms = set(found["tasks"][0]["scores"])
    assert arms == {"learned", "start", "widths_constant_150", "ste", "lsq", "float"}
    assert set(found["differences"]) == arms - {"learned"}
    learned, ste = ([sum(t["scores"][arm]) / 2 for t in found["tasks"]] for arm in ("learned", "ste"))
    wanted, difference = paired_difference(learned, ste), found["differences"]["ste"]
    assert (difference["mean"], difference["low"]) == pytest.approx((wanted.mean, wanted.low))
    assert difference["n"] == wanted.n
    assert all(t["features"]["horizon"] == pytest.approx(math.log10(t["steps"])) for t in found["tasks"])

    confirmed = found["confirmed"]
    assert "fresh tasks of 2 meta-validation seeds" in confirmed["text"]
    assert (whole / "schedule_learned.json").exists() != confirmed["gain"]
    file = read_schedule(whole / ("schedule.json" if confirmed["gain"] else "schedule_learned.json"))
    assert file.provenance.tasks == ("short", "deep") and len(file.layers) == 4  # of the deeper entry
    assert file.form is not None and len(file.form.numbers) == 1 + len(file.form.features)
    assert [spent.by for spent in file.provenance.spent] == ["es", "confirm"]

    outer = [row for row in read_json_lines(whole / "metrics.jsonl") if "outer/step" in row]
    assert [row["outer/step"] for row in outer] == [1, 2, 3]
    assert all(any(f"estimator/loss/{name}" in row for name in ("short", "deep")) for row in outer)


def test_the_file_plays_on_each_task_what_was_learned_for_it(whole: Path, config: Path) -> None:
    """The weights follow from the last checkpoint, and the file gives their schedule at the features of each task."""
    experiment = experiment_of(yaml.safe_load(config.read_text()))
    found = json.loads((whole / "over_tasks.json").read_text())
    file = read_schedule(whole / ("schedule.json" if found["confirmed"]["gain"] else "schedule_learned.json"))
    assert file.form is not None and (file.form.kind, file.form.base) == ("network", "widths_constant_100")
    family = TaskFamily(experiment)
    network = build_problem(survey(family, experiment.seed).reference.problem).network
    controls, base = network.method.controls, hand_coded("widths")["widths_constant_100"]
    seed, learn = derive_seed(experiment.seed, "schedule network"), [c.name for c in controls]
    shared = SharedSchedule(build_learnable(experiment.schedule, controls, base, learn, network.layers, seed))
    with torch.no_grad():
        shared.weights.copy_(averages(read_checkpoint(whole / "checkpoint.pt").state)["weights"])
    assert PlayedSchedule(file).reads
    for task in (family.sample(i) for i in range(4)):
        steps, layers = task.experiment.task.steps, build_problem(task.problem).network.layers
        with torch.no_grad():
            wanted = shared.at(task.features)(progress_of_steps(steps), layers)
        for name, values in played(task.problem, PlayedSchedule(file), steps).items():
            torch.testing.assert_close(values, wanted[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("function", "call"), [("write_checkpoint", 3), ("write_schedule", 1), ("publish_tasks", 1)])
def test_a_stopped_run_leaves_what_a_whole_one_leaves(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, call: int
) -> None:
    own, calls = getattr(command, function), [0]

    def stops(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return own(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(command, function, stops)
        assert run("train", config, "--folder", tmp_path / "run") == 130
    assert run("train", "--resume", tmp_path / "run") == 0
    assert left(tmp_path / "run") == left(whole)


def test_the_number_of_workers_changes_no_bit(config: Path, whole: Path, tmp_path: Path) -> None:
    assert run("train", config, "--folder", tmp_path / "run", "--run.workers=2") == 0
    two, one = left(tmp_path / "run"), left(whole)
    strip = [{k: v for k, v in json.loads(d["over_tasks.json"]).items()} for d in (one, two)]
    assert strip[0] == strip[1] and two["metrics"] == one["metrics"]
    for name in ("schedule.json", "schedule_learned.json"):
        if name in one:
            files = [json.loads(d[name]) for d in (one, two)]
            assert files[0]["values"] == files[1]["values"]


def test_another_task_is_not_resumed(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(command, "meta_train", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("train", config, "--folder", tmp_path / "run") == 130
    (tmp_path / "run" / "task.json").write_text('{"fingerprint": "another"}')
    assert run("train", "--resume", tmp_path / "run") == 2
    assert "has another fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--schedule.start=best"], "schedule.start: is chosen on one task"),
        (["--schedule.directions=null"], "schedule.directions: is null"),
        (["--meta.tune_lr=5"], "meta.tune_lr: tunes the rate of one task"),
        (["--meta.search_steps=50"], "meta.search_steps: searches on one task"),
        (["--compare.horizons=[1, 3]"], "compare.horizons: is of one task"),
        (["--compare.tune_floors=as_learned"], "compare.tune_floors: is of one task"),
        (["--meta.estimator=pes"], "meta.estimator: pes carries on"),
        (["--method.name=inq"], "schedule.start"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(
    config: Path, tmp_path: Path, capsys: Any, given: Sequence[str], words: str
) -> None:
    assert run("train", config, "--folder", tmp_path / "run", *given) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert words in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["compare"],
        ["tune"],
        ["online"],
        ["sensitivity"],
        ["check"],
        ["inspect"],
        ["allocate"],
        ["calibrate", "--by", "adaround"],
        ["deploy", "--schedule", "floor", "-o", "out"],
    ],
)
def test_commands_for_one_task_refuse_several(config: Path, capsys: Any, words: list[str], tmp_path: Path) -> None:
    folder = ["--folder", tmp_path / "run"] if words[0] in ("compare", "tune") else []
    assert run(words[0], config, *words[1:], *folder) == 2
    said = capsys.readouterr().err
    assert f"tasks.entries: has several tasks, and `metasched {words[0]}` is for one" in said


def test_a_family_of_one_task_has_no_interval(config: Path, tmp_path: Path, capsys: Any) -> None:
    document = {
        **TINY,
        "tasks": {"examples": 4, "entries": [{"name": "one", "set": {"task.model": "mlp", "task.steps": 3}}]},
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(document))
    assert run("train", tmp_path / "one.yaml", "--folder", tmp_path / "run") == 2
    assert "gives 1 different task in 4 draws" in capsys.readouterr().err


def test_cheap_entries_are_drawn_more_often_unless_that_is_switched_off() -> None:
    made = experiment_of(TINY)
    seen = survey(metasched.TaskFamily(made), 0)
    assert seen.probabilities[0] > 0.5 > seen.probabilities[1] and seen.costs[0] < seen.costs[1]
    assert seen.reference.name == "deep" and "short" in seen.lines()[0]
    off = replace(made, tasks=replace(made.tasks, cheaper=False))
    assert survey(metasched.TaskFamily(off), 0).probabilities == (0.5, 0.5)


def test_tasks_are_the_unit_of_the_interval() -> None:
    scores = [{"a": (0.5, 0.7), "b": (0.4, 0.4)}, {"a": (0.9, 0.9), "b": (0.9, 0.7)}]
    played = [PlayedTask(None, (1, 2), s, 0) for s in scores]  # type: ignore[arg-type]
    d = over_tasks(played, "a", "b")
    assert (d.n, d.mean) == (2, pytest.approx((0.2 + 0.1) / 2))
    assert d == paired_difference([0.6, 0.9], [0.4, 0.8])
    columns, table = rows(played, "a")
    assert [row[0] for row in table] == ["a", "b"] and table[1][3] == "2 of 2" and len(columns) == 4


# --- a task of one's own ---


def made(width: int = 4, shift: float = 0.0) -> metasched.Task:
    def data(n: int, seed: int) -> TensorDataset:
        draws = torch.Generator().manual_seed(seed)
        y = torch.randint(3, (n,), generator=draws)
        return TensorDataset(torch.randn(n, 5, generator=draws, dtype=torch.float32) + shift + F.one_hot(y, 5), y)

    def model() -> nn.Module:
        layers = [nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)]
        return nn.Sequential(*layers)

    return metasched.DataTask(
        model=model,
        train=data(32, 0),
        validation=data(16, 1),
        test=data(16, 2),
        loss=F.cross_entropy,
        score=lambda outputs, y: (outputs.argmax(1) == y).float().mean(),
        batch_size=8,
        worst_score=0.0,
    )


def test_own_tasks_with_drawn_arguments_from_python(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    own = Recipe(MethodConfig(name="widths", activation_levels=None))
    entries = [
        {
            "name": "own",
            "draw": {"task.args.width": [3, 4, 6], "task.args.shift": {"from": 0.1, "to": 1.0}, "task.steps": [4, 8]},
        }
    ]
    sections = {name: TINY[name] for name in ("schedule", "meta", "compare", "run")}
    tasks = {"per_step": 2, "examples": 3, "entries": entries}
    result = metasched.learn(made, own, steps=4, folder=tmp_path / "run", tasks=tasks, **sections)
    found = json.loads((tmp_path / "run" / "over_tasks.json").read_text())
    assert len(found["tasks"]) == 3 and len({t["features"]["width"] for t in found["tasks"]}) > 1
    assert result.schedule.file.layers
    with pytest.raises(MetaschedError, match="`metasched compare` is for one"):
        metasched.compare(made, {}, own, steps=4, tasks=tasks)
