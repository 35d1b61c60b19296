"""The learning rate that learning starts with is tuned at its start, on meta-validation, with a budget of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from metasched import load_experiment, read_schedule
from metasched.cli import main
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.contenders import fresh_seeds
from metasched.exchange.format import Spent
from metasched.io.json_lines import read_json_lines
from metasched.meta.checkpoint import Checkpoint, write_checkpoint
from metasched.meta.config import MetaConfig
from metasched.meta.rate import with_best_rate
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_score, played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.table import floor_of
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console
from metasched.tracking.tracker import Memory
from metasched.training.optimizers.config import OptimizerConfig

pytestmark = pytest.mark.usefixtures("blank_plots")

EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=3, steps=4, batch=16, train=64, validation=32, test=32),
    optimizer=OptimizerConfig(lr=0.02),
    method=MethodConfig(name="rates"),
    meta=MetaConfig(tune_lr=10),
    run=RunConfig(workers=1),
)


class Asked:
    """A pool that does the work and keeps what it was asked."""

    workers = 1

    def __init__(self) -> None:
        self.asked = list[tuple[float, tuple[int, ...], int, str]]()

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        for config, controls, seeds, steps, part in arguments:
            self.asked.append((config.optimizer.lr, tuple(seeds), steps, part))
            yield function(config, controls, seeds, steps, part)


def test_it_is_the_best_of_five_by_runs_of_the_floor() -> None:
    """Against each run done by itself."""
    seeds = [derive_seed(EXPERIMENT.seed, "tune rate", i) for i in range(2)]
    means = {}
    for lr in (0.005, 0.01, 0.02, 0.04, 0.08):
        problem = replace(EXPERIMENT, optimizer=OptimizerConfig(lr=lr)).problem
        controls = played(problem, floor_of(EXPERIMENT.method, "schedule.start"), 4)
        means[lr] = sum(cell_score(problem, controls, seed, 4, "validation") for seed in seeds) / 2
    best = max(means, key=lambda lr: means[lr])
    assert best != 0.02 and sorted(means.values())[-1] > sorted(means.values())[-2], "a tie would show nothing"

    pool = Asked()
    found, rate = with_best_rate(EXPERIMENT, None, pool, Memory(), open_console(StringIO()))
    assert found == replace(EXPERIMENT, optimizer=OptimizerConfig(lr=best)) and rate is not None
    assert rate.lr == best and rate.inner_steps == 5 * 2 * 4 and dict(rate.tried) == pytest.approx(means)
    assert {(steps, part) for _, _, steps, part in pool.asked} == {(4, "validation")}
    assert {seed for _, own, _, _ in pool.asked for seed in own} == {*seeds}
    assert not {*seeds} & {derive_seed(0, stream, i) for stream in ("tune floors", "select") for i in range(100)}
    assert not {*seeds} & {*fresh_seeds(EXPERIMENT.seed, 100)}


def test_without_a_budget_the_rate_stays() -> None:
    experiment = replace(EXPERIMENT, meta=MetaConfig())
    assert with_best_rate(experiment, None, Asked(), Memory(), open_console(StringIO())) == (experiment, None)


def test_a_method_without_a_floor_needs_a_named_start() -> None:
    experiment = replace(EXPERIMENT, method=MethodConfig(name="metropolis"))
    with pytest.raises(MetaschedError, match=r"schedule\.start"):
        with_best_rate(experiment, None, Asked(), Memory(), open_console(StringIO()))


def write(path: Path, lr: float, **meta: Any) -> Path:
    document = {
        "name": "tiny",
        "task": {"model": "mlp", "width": 3, "steps": 4, "batch": 16, "train": 64, "validation": 32, "test": 32},
        "optimizer": {"lr": lr},
        "method": {"name": "rates"},
        "schedule": {"start": "floor", "knots": 3, "hidden": 2},
        "meta": {"steps": 2, "runs": 2, "confirm_runs": 2, **meta},
        "compare": {"seeds": 2, "baselines": []},
        "tracking": {"wandb": "disabled"},
        "run": {"workers": 1, "dtype": "float64"},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_run_that_tunes_is_a_run_at_that_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuning, plain = tmp_path / "tuning", tmp_path / "plain"
    config = write(tmp_path / "tuning.yaml", 0.02, tune_lr=10)
    assert main(["train", str(config), "--folder", str(tuning), "--json"]) == 0
    out, said = capsys.readouterr()
    experiment = load_experiment(config)
    with Pool(1) as pool:
        tuned, rate = with_best_rate(experiment, None, pool, Memory(), open_console(StringIO()))
    assert rate is not None and rate.lr != 0.02
    assert f"floor: learning rate {rate.lr:.3g}" in said and json.loads(out)["inner_steps"]["tuning"] == 40

    config = write(tmp_path / "plain.yaml", tuned.optimizer.lr)
    assert main(["train", str(config), "--folder", str(plain)]) == 0
    (mine, its) = (json.loads((f / "comparison.json").read_text())["arms"] for f in (tuning, plain))
    assert [arm["scores"] for arm in mine] == [arm["scores"] for arm in its]
    names = ["schedule.json", *(["schedule_learned.json"] if (plain / "schedule_learned.json").exists() else [])]
    for name in names:
        assert read_schedule(tuning / name).values == read_schedule(plain / name).values
    learned = read_schedule(tuning / names[-1]).provenance
    assert learned.spent[0] == Spent(by="tune_lr", inner_steps=40)
    assert learned.citation is not None and f"at learning rate {rate.lr:.3g}, which was tuned there" in learned.citation


def test_a_stopped_run_goes_on_at_the_tuned_rate(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = write(tmp_path / "tiny.yaml", 0.02, tune_lr=10)
    assert main(["train", str(config), "--folder", str(whole)]) == 0

    def stopped(path: Path, checkpoint: Checkpoint) -> None:
        write_checkpoint(path, checkpoint)
        raise KeyboardInterrupt

    with mock.patch("metasched.commands.train.write_checkpoint", stopped):
        assert main(["train", str(config), "--folder", str(parts)]) == 130
    assert main(["train", "--resume", str(parts)]) == 0
    of = [(folder / "schedule.json").read_text() for folder in (whole, parts)]
    assert of[0] == of[1]
    rates = [
        [(row["floors/lr"], row["floors/score"]) for row in read_json_lines(f / "metrics.jsonl") if "floors/lr" in row]
        for f in (whole, parts)
    ]
    assert rates[0] == rates[1] and len(rates[0]) == 5
