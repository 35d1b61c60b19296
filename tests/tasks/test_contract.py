"""What holds for every task of the table whose data come with the package."""

from __future__ import annotations

import pytest
import torch

from metasched.tasks import TASKS
from metasched.tasks.build import build_task
from metasched.tasks.check import check_task
from metasched.tasks.config import TaskConfig

# others: test_vision, test_imagenet; text reads a root in place of what every Python has
HERE = [spec.name for spec in TASKS.values() if "root" not in spec.reads or spec.name == "text"]
each = pytest.mark.parametrize("name", HERE)


def test_there_are_some() -> None:
    assert {"digits", "text", "quadratic"} <= {*HERE}


@each
def test_a_batch_is_a_function_of_seed_and_step(name: str) -> None:
    task, again = build_task(TaskConfig(name=name)), build_task(TaskConfig(name=name))
    _ = again.batch(3, 0), torch.rand(3)  # neither earlier batches nor torch's generator matter
    for mine, other in zip(task.batch(3, 7), again.batch(3, 7), strict=True):
        assert torch.equal(mine, other)
    check_task(task)


@each
def test_the_fingerprint_is_that_of_what_the_config_makes(name: str) -> None:
    first, again, other = (build_task(TaskConfig(name=name, data_seed=seed)).fingerprint() for seed in (0, 0, 1))
    assert first == again != other


@each
def test_inputs_are_single_precision_or_integers_on_the_cpu_and_follow_the_task(name: str) -> None:
    task = build_task(TaskConfig(name=name))
    found, moved = (t.outer_batch()[0].dtype for t in (task, task.to("cpu", torch.float64)))
    assert (found, moved) in {(torch.float32, torch.float64), (torch.int64, torch.int64)}
