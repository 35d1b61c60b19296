"""Two processes, by torchrun and as torchrun would start them: the bits of one process, one voice, errors of either."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from learning import learn

from metasched.config.schema import Experiment
from metasched.meta.config import MetaConfig
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.runs.pool import Mapper, Pool
from metasched.runs.ranks import launched, serves
from metasched.runs.where import open_pool
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import build_learnable
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem

Cli = Callable[..., int]
ROOT = Path(__file__).parents[2]


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_run_on_two_ranks_leaves_the_bits_of_one_process(trained: Path, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = torchrun("-m", "metasched", "train", config, "--folder", folder)
    assert done.returncode == 0, done.stderr
    for name in ("schedule.json", "comparison.json"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()
    cells = [sorted((path / "cells.jsonl").read_text().splitlines()) for path in (folder, trained)]
    assert cells[0] == cells[1]
    assert (folder / "DONE").exists() and done.stdout.count("outer step 2/2") == 1  # one rank speaks


@pytest.fixture
def rank_1(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Another process, as torchrun would start it; this one is rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**launch, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    program = "import sys; from metasched.cli import main; sys.exit(main(['train', 'x.yaml']))"
    environment = os.environ | {"RANK": "1", "LOCAL_RANK": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def learned(pool: Mapper) -> list[torch.Tensor]:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=2, depth=3, train=32, validation=16, test=16, batch=8, steps=4),
        method=MethodConfig(name="gxnor"),
        schedule=ScheduleConfig(knots=3, hidden=2, directions=None),
        meta=MetaConfig(steps=2, runs=3),
    )
    network, start = build_problem(experiment.problem).network, hand_coded("gxnor")["gxnor_linear"]
    controls, layers = network.method.controls, network.layers
    schedule = build_learnable(experiment.schedule, controls, start, ["temperature"], layers, 0)
    learn(experiment, schedule, pool, lambda record: None)
    return [p.detach() for p in schedule.parameters()]


def test_two_ranks_answer_in_the_order_of_the_work_and_learn_what_one_process_learns(
    rank_1: subprocess.Popen[str],
) -> None:
    torch.set_default_dtype(torch.float32)
    with open_pool(RunConfig(workers=7)) as ranks:
        assert ranks.workers == 2
        ids = list(ranks.map(os.getpid, [()] * 5))
        assert ids == [os.getpid(), rank_1.pid, os.getpid(), rank_1.pid, os.getpid()]
        assert list(ranks.map(math.isqrt, [(i * i,) for i in range(5)])) == list(range(5))
        with pytest.raises(ValueError, match="nonnegative"):
            list(ranks.map(math.isqrt, [(4,), (-1,)]))  # the second is rank 1's
        assert list(ranks.map(math.isqrt, [])) == [] and list(ranks.map(math.isqrt, [(9,)])) == [3]
        together = learned(ranks)
    assert rank_1.wait(60) == 0 and rank_1.communicate()[1] == ""
    with Pool(1) as pool:
        alone = learned(pool)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_without_torchrun_there_are_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")  # by some other program
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launched() and not serves()
    with open_pool(RunConfig(workers=1)) as pool:
        assert pool.workers == 1 and list(pool.map(abs, [(-1,)])) == [1]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launched() and serves()
    monkeypatch.setenv("RANK", "0")
    assert launched() and not serves()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_mistake_is_one_line_of_one_rank(
    rank: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli("train", "a.yaml", "--folder") == 2
    assert len(capsys.readouterr().err.splitlines()) == (1 if rank == "0" else 0)
    assert cli("show", "there_is_no_such.json") == (2 if rank == "0" else 0)  # one process is enough for that
