"""Inner runs on one process and on two: the same results in the same order, and the same mistakes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest
import torch

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.methods.config import MethodConfig
from metasched.quantizers.levels import level_set
from metasched.runs.cells import cell_score, played
from metasched.runs.pool import Pool
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig

EXPERIMENT = Experiment(
    task=TaskConfig(name="quadratic", width=6),
    method=MethodConfig(name="joint", scale="max", activation_levels=None),
    optimizer=OptimizerConfig(name="sgd", lr=0.1),
    quantize={"last": True},  # pyright: ignore
)


@pytest.fixture(scope="module")
def two() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def test_inner_runs_give_the_same_bits_in_the_same_order(two: Pool) -> None:
    torch.set_default_dtype(torch.float32)  # as the workers have it
    controls = played(EXPERIMENT.problem, hand_coded("joint")["joint_linear"], 10)
    work = [(EXPERIMENT.problem, controls, seed, 10, "validation") for seed in range(6)]
    with Pool(1) as one:
        alone = list(one.map(cell_score, work))
    assert list(two.map(cell_score, work)) == alone
    assert len(set(alone)) == 6


def test_results_come_in_the_order_of_the_arguments_not_of_their_ends(two: Pool) -> None:
    slow_first = [(40_000,), (3,), (1,), (2,)]
    assert list(two.map(math.factorial, slow_first)) == [math.factorial(n) for (n,) in slow_first]


def test_mistakes_cross_the_processes_whole(two: Pool) -> None:
    for pool in (Pool(1), two):
        with pytest.raises(MetaschedError) as caught:
            list(pool.map(level_set, [("ternary", "a"), ("quaternary", "b")]))
        assert (caught.value.path, caught.value.fix) != ("", "") and caught.value.path == "b"


def test_numbers_of_workers() -> None:
    assert Pool(0).workers == os.cpu_count()
    assert Pool(3).workers == 3


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(MetaschedError, match=r"run\.workers: a worker process ended before its work was done"):
        with Pool(2) as pool:
            list(pool.map(os._exit, [(1,)]))
