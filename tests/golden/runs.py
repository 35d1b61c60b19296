"""Commands whose outcome is recorded: name -> a function that gives its entries (see scripts/golden.py).

What is read from a run folder is named, so that a file may hold more than it did.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

import metasched.commands.train
from metasched import read_schedule
from metasched.cli import main

Entry = torch.Tensor | Mapping[str, torch.Tensor] | list[float] | str
Entries = dict[str, Entry]

STEPS = 6
BASE: dict[str, dict[str, Any]] = {
    "task": {"model": "mlp", "width": 8, "steps": STEPS, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "optimizer": {"lr": 0.02, "eps": 1e-2},  # eps far above rounding, which derivatives through Adam else multiply
    "meta": {"steps": 3, "runs": 2, "confirm_runs": 0},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1, "dtype": "float64"},
}
TRAINED: dict[str, dict[str, dict[str, Any]]] = {
    "inq_pes_network": {
        "method": {"name": "inq"},
        "schedule": {"start": "best", "knots": 4, "hidden": 4, "directions": None},
        "meta": {"estimator": "pes", "window": 2, "select_runs": 1},
        "compare": {"seeds": 2, "baselines": ["inq_linear"]},
    },
    "joint_sweep_family": {
        "method": {"name": "joint"},
        "schedule": {"start": "joint_linear", "kind": "family"},
        "meta": {"estimator": "sweep"},
        "compare": {"seeds": 2, "baselines": ["joint_linear"]},
    },
}
LOGGED = {"outer": ("loss", "gradient_norm"), "online": ("loss", "gradient_norm", "train_loss")}


@contextlib.contextmanager
def prepared(**sections: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
    """A configuration file with these sections besides BASE, and the path of a run folder that is not there yet."""
    names = [*BASE, *(name for name in sections if name not in BASE)]
    settings = {name: {**BASE.get(name, {}), **sections.get(name, {})} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "golden.yaml"
        config.write_text(yaml.safe_dump({"name": "golden", **settings}))
        yield config, Path(folder) / "run"


def command(*arguments: str | Path, code: int = 0) -> None:
    """Runs a command of ``metasched`` in this process, silently."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        found = main([str(a) for a in arguments])
    assert found == code, said.getvalue()


def curves(folder: Path) -> Entries:
    """The schedule that a run has left, {control: [L, K]}."""
    return {name: torch.tensor(own) for name, own in read_schedule(folder / "schedule.json").values.items()}


def scores(folder: Path, *names: str) -> Entries:
    """The scores of some arms of the comparison that a run has left."""
    arms = json.loads((folder / "comparison.json").read_text())["arms"]
    found = {f"scores {arm['name']} {arm['horizon']}": arm["scores"] for arm in arms if arm["name"] in names}
    assert found.keys() >= {f"scores {name} {STEPS}" for name in names}, list(found)
    return found


def logged(folder: Path, group: str) -> Entries:
    """What a run has logged, [steps] each."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = [f"{group}/{name}" for name in LOGGED[group]]
    return {name: torch.tensor([row[name] for row in rows if name in row]) for name in names}


def compare() -> Entries:
    """``metasched compare`` of two hand-coded schedules at two horizons."""
    arms = ("joint_linear", "joint_ana_static")
    asked = {"seeds": 2, "baselines": list(arms), "horizons": [1, 2]}
    with prepared(method={"name": "joint"}, compare=asked) as (config, folder):
        command("compare", config, "--folder", folder)
        return scores(folder, *arms)


def references() -> Entries:
    """Floors and ceiling, as they are in every comparison."""
    method = {"name": "joint", "scale": "least_squares", "granularity": "channel"}
    with prepared(method=method, compare={"seeds": 2, "baselines": []}) as (config, folder):
        command("compare", config, "--folder", folder)
        return scores(folder, "ste", "lsq", "float")


def trained(name: str, *, stopped: bool = False) -> Entries:
    """``metasched train``; stopped: interrupted after its second outer step, and resumed."""
    sections = TRAINED[name]
    with prepared(**sections) as (config, folder):
        if stopped:
            with mock.patch("metasched.commands.train.write_checkpoint", interrupting(call=3)):
                command("train", config, "--folder", folder, code=130)
            assert not (folder / "schedule.json").exists()
            command("train", "--resume", folder)
        else:
            command("train", config, "--folder", folder)
        arms = ("learned", *sections["compare"]["baselines"])
        return {**logged(folder, "outer"), **curves(folder), **scores(folder, *arms)}


def interrupting(call: int) -> Callable[..., None]:
    """``write_checkpoint`` that is interrupted instead of a call, from 0: the call after n outer steps has number n."""
    write, calls = metasched.commands.train.write_checkpoint, []

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) > call:
            raise KeyboardInterrupt
        write(*arguments)

    return interrupted


def online() -> Entries:
    """``metasched online``: what it played and logged."""
    schedule = {"start": "joint_linear", "knots": 4, "hidden": 4, "directions": None}
    asked = {"every": 3, "window": 1, "lr": 0.5}
    with prepared(method={"name": "joint"}, schedule=schedule, online=asked) as (config, folder):
        command("online", config, "--folder", folder)
        return {**logged(folder, "online"), **curves(folder)}


def sensitivity() -> Entries:
    """``metasched sensitivity``: means over two runs, and their t values."""
    schedule = {"start": "joint_linear", "knots": 4, "hidden": 4, "directions": None}
    with prepared(method={"name": "joint"}, schedule=schedule) as (config, folder):
        command("sensitivity", config, "--folder", folder, "--runs", "2")
        found = json.loads((folder / "sensitivity.json").read_text())
        maps = {f"{kind} {c}": torch.tensor(own[kind]) for c, own in found["maps"].items() for kind in own}
        return {"loss": torch.tensor(found["loss"]), "scores": [found["score"]], **maps}


CASES: dict[str, Callable[[], Entries]] = {
    "compare": compare,
    "references": references,
    **{f"train/{name}": partial(trained, name) for name in TRAINED},
    **{f"train/{name}/resumed": partial(trained, name, stopped=True) for name in TRAINED},
    "online": online,
    "sensitivity": sensitivity,
}
