"""``metasched sensitivity``: its numbers against single reverse passes, what it leaves, shows and refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched import load_experiment
from metasched.commands.sensitivity import PARTS, cells, slopes
from metasched.core.randomness import derive_seed
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.estimators.auto import MODES, Auto
from metasched.estimators.reverse import Floored
from metasched.runs.pooled import local_runs
from metasched.schedules.base import progress_of_steps
from metasched.schedules.learnable import build_learnable
from metasched.schedules.table import hand_coded
from metasched.tracking.plots import plot_sensitivity

Cli = Callable[..., int]
RUNS = 3
ANA = [
    "--method.name=ana",
    "--schedule.start=best",
    "--compare.baselines=[]",
    "--run.dtype=float64",
]


@pytest.fixture(scope="module")
def felt(cli: Cli, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished command, on the default schedule."""
    folder = tmp_path_factory.mktemp("sensitivity") / "run"
    assert cli("sensitivity", config, *ANA, "--runs", RUNS, "--folder", folder) == 0
    return folder


def read(folder: Path) -> Any:
    return json.loads((folder / "sensitivity.json").read_text())


def test_what_it_leaves(felt: Path) -> None:
    left = {p.relative_to(felt).as_posix() for p in felt.rglob("*") if p.is_file()}
    own = {"sensitivity.json", "plots/sensitivity.png"}
    assert left == own | {"DONE", "PID", "config.resolved.yaml", "environment.json"}
    assert (felt / "plots" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_its_numbers_are_those_of_single_reverse_passes(felt: Path) -> None:
    torch.set_default_dtype(torch.float32)  # as the command line ran in
    found, experiment = read(felt), load_experiment(felt / "config.resolved.yaml")
    runs = local_runs(experiment.problem, experiment.meta)
    seeds = [derive_seed(experiment.seed, "sensitivity", i) for i in range(RUNS)]
    problem, learn = runs.problem, ["weight_noise", "activation_noise", "noise_mean"]
    layers, controls = problem.network.layers, problem.network.method.controls
    start = derive_seed(experiment.seed, "schedule network")
    base = hand_coded("ana")["ana_linear"]
    schedule = build_learnable(experiment.schedule, controls, base, learn, layers, start)
    floored = Floored(schedule, controls, experiment.meta.noise_floor)
    values = {n: v.detach() for n, v in floored(progress_of_steps(problem.steps), layers).items()}
    assert found["schedule"] == "ana_linear" and found["layers"] == [layer.name for layer in layers]
    single = [control_gradient(find_unroll("unroll"), problem.with_seed(s), values, OuterLoss()) for s in seeds]
    assert found["loss"] == pytest.approx(np.mean([g.loss for g in single]))
    assert set(found["maps"]) == set(found["table"]) == set(learn)
    for control in learn:
        wrt = np.stack([g.wrt[control].numpy() for g in single])  # [runs, 6, L]
        error = wrt.std(0, ddof=1) / math.sqrt(RUNS)
        np.testing.assert_allclose(found["maps"][control]["mean"], wrt.mean(0), rtol=1e-9, atol=1e-15)
        t = np.divide(wrt.mean(0), error, out=np.zeros_like(error), where=error > 0)
        np.testing.assert_allclose(found["maps"][control]["t"], t, rtol=1e-6)
        thirds = wrt.reshape(RUNS, 3, 2, -1).sum(2)
        rows = {(row["layer"], row["part"]): row for row in found["table"][control]}
        assert len(rows) == 3 * len(layers)
        for p, part in enumerate(PARTS):
            for i, layer in enumerate(found["layers"]):
                of_runs = thirds[:, p, i]
                assert rows[layer, part]["slope"] == pytest.approx(of_runs.mean(), rel=1e-9, abs=1e-15)
                assert rows[layer, part]["t"] == pytest.approx(
                    of_runs.mean() / of_runs.std(ddof=1) * math.sqrt(RUNS), rel=1e-6
                )
    notes = Auto(experiment.meta.noise_floor, experiment.meta.sigma)
    first = notes.estimate(schedule, runs, seeds, notes.begin(schedule, runs))
    assert found["verdict"] == MODES[int(first.notes.pop("mode"))]
    assert first.line is not None and first.line.endswith(found["measures"].pop("why"))
    assert found["measures"] == pytest.approx(first.notes, rel=1e-6)


def test_slopes_that_are_clear_say_less_or_more() -> None:
    draws = torch.Generator().manual_seed(0)
    truth = torch.tensor([1.0, -1.0]).repeat_interleave(3)[:, None].expand(-1, 2) * torch.tensor([1.0, 0.0])
    of_runs = truth + 0.1 * torch.randn(8, 6, 2, generator=draws)
    of_runs[:, :, 1] -= of_runs[:, :, 1].mean(0)  # no slope at all in the second layer
    advice = {(c.layer, c.part): c.advice for c in cells(of_runs, ["a", "b"])}
    assert [advice["a", part] for part in PARTS] == ["less", "unclear", "more"]  # the middle third holds both signs
    assert {advice["b", part] for part in PARTS} == {"unclear"}


def test_from_one_run_nothing_is_clear() -> None:
    one = slopes(torch.ones(1, 3, 2))
    assert bool((one.mean == 1).all()) and bool(one.t.isnan().all())
    assert {c.advice for c in cells(torch.ones(1, 6, 1), ["a"])} == {"unclear"}
    assert {c.advice for c in cells(torch.zeros(0, 6, 1), ["a"])} == {"unclear"}


def test_json_and_the_tables(cli: Cli, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--runs=2", "--schedule", "inq_cubic", f"--run.folder={tmp_path}"]
    assert cli("sensitivity", config, *short, "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["schedule"] == "inq_cubic" and Path(result["folder"]).parent == tmp_path
    assert result["verdict"] in MODES and Path(result["plot"]).is_file() and Path(result["data"]).is_file()
    assert "freeze_fraction of inq_cubic, 2 runs of 6 steps" in captured.err
    assert f"meta.estimator: auto would begin with {result['verdict']}: {result['measures']['why']}" in captured.err


def test_a_schedule_file(cli: Cli, config: Path, trained: Path, tmp_path: Path) -> None:
    file = trained / "schedule.json"
    assert cli("sensitivity", config, "--runs=2", "--schedule", file, "--folder", tmp_path / "run") == 0
    assert read(tmp_path / "run")["schedule"] == trained.name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--runs=1"], "--runs: must be at least 2, got 1"),
        (["--runs=many"], "argument --runs: invalid int value: 'many'"),
        (["--schedule=inq_liner"], "--schedule: 'inq_liner' is neither a hand-coded schedule of inq nor a file"),
        (["--schedule=nowhere.json"], "nowhere.json: cannot be read"),
        (["--schedule.start=inq_liner"], "schedule.start: 'inq_liner' is neither"),
        (["--method.name=ste"], "there is nothing to learn for ste"),
    ],
)
def test_mistakes(
    cli: Cli, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert cli("sensitivity", config, f"--run.folder={tmp_path / 'runs'}", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metasched: error: ") and expected in line
    assert list(tmp_path.iterdir()) == []


def test_maps_without_a_finite_number_are_drawn(tmp_path: Path) -> None:
    empty = torch.full((4, 30), math.nan)
    plot_sensitivity(tmp_path / "a" / "x.png", {"c": (empty, empty)}, [str(i) for i in range(30)])
    assert (tmp_path / "a" / "x.png").read_bytes().startswith(b"\x89PNG")
