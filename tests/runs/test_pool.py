"""Inner runs on one process and on two: the same results in the same order, and the same mistakes."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.io.lock import Held, Lock
from metasched.methods.config import MethodConfig
from metasched.quantizers.levels import level_set
from metasched.runs import pool as pool_module
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


WORKS_ON = torch.ones(2**25)  # 128 MiB


@pytest.fixture(params=["fork", "forkserver"])
def two(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(pool_module, "start_method", lambda: request.param)
    with Pool(2) as pool:
        yield pool


def test_inner_runs_give_the_same_bits_in_the_same_order(two: Pool) -> None:
    controls = played(EXPERIMENT.problem, hand_coded("joint")["joint_linear"], 10)
    work = [(EXPERIMENT.problem, controls, seed, 10, "validation") for seed in range(6)]
    with Pool(1) as one:
        alone = list(one.map(cell_score, work))
    assert list(two.map(cell_score, work)) == alone
    assert len(set(alone)) == 6


@pytest.mark.parametrize("two", ["fork"], indirect=True)
def test_forks_share_the_memory_of_this_process_and_hold_none_of_its_locks(two: Pool, tmp_path: Path) -> None:
    assert two._executor is not None and len(two._executor._processes) == 2  # they have started before any work
    asked = f"float(__import__('sys').modules[{__name__!r}].WORKS_ON.sum())"
    assert list(two.map(eval, [(asked,)] * 4)) == [float(len(WORKS_ON))] * 4
    for pid in two._executor._processes:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        own = next(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))
        assert own < WORKS_ON.nbytes / 1024 / 2  # KiB: it has copied nothing of it
    lock = Lock(tmp_path / "lock")
    with Pool(2):
        lock.release()
        deadline = time.monotonic() + 10
        while True:  # a fork that has just started drops it in a moment
            try:
                Lock(tmp_path / "lock").release()
                break
            except Held:
                assert time.monotonic() < deadline, "a fork holds the lock"


def test_a_process_of_one_thread_is_forked_and_one_of_several_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    assert pool_module.start_method() == "forkserver"
    done.set()
    other.join()
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # whoever runs this test may have threads
    for accelerator in (False, True):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda found=accelerator: found)
        forked = sys.platform == "linux" and not accelerator
        assert pool_module.start_method() == ("fork" if forked else "forkserver")


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
