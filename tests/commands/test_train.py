"""What ``train`` may read, and how its verdict names the winner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import metasched.commands.train
from metasched.commands.train import train
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.evaluation.compare import compare
from metasched.evaluation.comparison import Comparison
from metasched.evaluation.config import CompareConfig
from metasched.io.run_folder import RunFolder
from metasched.meta.config import MetaConfig
from metasched.meta.start import learned_controls
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.schedules.config import ScheduleConfig
from metasched.tasks import TASKS
from metasched.tasks.config import TaskConfig
from metasched.tasks.digits import digits_task
from metasched.tasks.supervised import SupervisedTask
from metasched.tracking.config import TrackingConfig
from metasched.tracking.console import open_console
from metasched.training import problem


class Sealed(SupervisedTask):
    """A task whose test split cannot be read before the seal is broken."""

    broken = False

    def __getattribute__(self, name: str) -> Any:
        assert name != "test" or Sealed.broken, "the test split was read"
        return super().__getattribute__(name)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> SupervisedTask:
        return Sealed(**vars(SupervisedTask(**vars(self)).to(device, dtype)))


def test_the_test_split_is_read_by_the_comparison_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*arguments: Any) -> Comparison:
        Sealed.broken = True
        return compare(*arguments)

    monkeypatch.setattr(Sealed, "broken", False)
    monkeypatch.setitem(TASKS, "digits", replace(TASKS["digits"], builder=lambda c: Sealed(**vars(digits_task(c)))))
    monkeypatch.setattr(metasched.commands.train, "compare", opened)
    problem.forget()
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=2, steps=3, batch=16, train=32, validation=16, test=16),
        method=MethodConfig(name="inq"),
        schedule=ScheduleConfig(start="best", knots=3, hidden=2),
        meta=MetaConfig(steps=1, runs=1, select_runs=1),
        compare=CompareConfig(seeds=2, baselines=("inq_linear",), tune_floors=5),
        tracking=TrackingConfig(wandb="disabled"),
        run=RunConfig(workers=1),
    )
    with open(tmp_path / "out", "w") as stream:
        result = train(experiment, RunFolder.claim(tmp_path / "run"), open_console(stream))
    problem.forget()
    assert Sealed.broken and result["verdict"][0]["horizon"] == 3


def test_learned_controls() -> None:
    controls = build_method(MethodConfig(name="joint")).controls
    assert learned_controls(Experiment().method.name, Experiment().schedule.learn, controls) == [
        "weight_noise",
        "activation_noise",
        "noise_mean",
        "freeze_fraction",
    ]
    some = Experiment(schedule=ScheduleConfig(learn=("freeze_fraction",)))
    assert learned_controls(some.method.name, some.schedule.learn, controls) == ["freeze_fraction"]
    wrong = Experiment(schedule=ScheduleConfig(learn=("weight_noise", "noise")))
    with pytest.raises(MetaschedError, match=r"schedule\.learn\[1\]: joint has no control 'noise'"):
        learned_controls(wrong.method.name, wrong.schedule.learn, controls)


@pytest.mark.parametrize(
    ("activation_levels", "now"), [("ternary", ["weight_noise", "activation_noise"]), (None, ["weight_noise"])]
)
def test_the_former_name_of_two_controls_is_refused_with_what_to_write(
    activation_levels: str | None, now: list[str]
) -> None:
    controls = build_method(MethodConfig(name="ana", activation_levels=activation_levels)).controls
    with pytest.raises(MetaschedError) as caught:
        learned_controls("ana", ("noise_mean", "noise_scale"), controls)
    became, written = " and ".join(now), ", ".join(now)
    assert str(caught.value) == f"schedule.learn[1]: 'noise_scale' has become {became}; write {written} in its place"
    with pytest.raises(MetaschedError, match="inq has no control 'noise_scale'"):
        learned_controls("inq", ("noise_scale",), build_method(MethodConfig(name="inq")).controls)
