"""Batches in parts: one part is plain training, parts average to the batch, two processes hold the bits of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from loading import loaded
from torch import nn
from torch.nn import functional as F

from metasched.contrib.data_parallel import Alone, PartOfTask, averaged, digest, step_in_parts, train_in_parts
from metasched.core.errors import MetaschedError
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors, rows
from metasched.network.quantize import quantize
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train_parallel.py"
STEPS = 5


def problem(method: MethodConfig, norm: bool = True) -> InnerProblem:
    def build() -> nn.Module:
        middle = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(nn.Linear(6, 8), *middle, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    draws = torch.Generator().manual_seed(5)
    y = torch.arange(48) % 3
    part = Split(torch.randn(48, 6, generator=draws) + 2 * F.one_hot(y, 6), y)
    task = SupervisedTask("blobs", part, part, part, build, F.cross_entropy, F.cross_entropy, batch_size=12)
    rule, hyper = recipe(OptimizerConfig(lr=0.05))
    return InnerProblem(quantize(build(), build_method(method), part.x[:2]), task, rule, hyper, STEPS, seed=1)


def controls_of(inner: InnerProblem, value: float = 0.6) -> Tensors:
    return {c.name: torch.full((STEPS, 2), value * c.high) for c in inner.network.method.controls}


@pytest.mark.parametrize(
    "method",
    [
        MethodConfig(name="gxnor"),
        MethodConfig(name="metropolis", energy="batch", cooling="adaptive", blocks=2),
        MethodConfig(name="inq"),
    ],
    ids=["gxnor", "batch_metropolis", "inq"],
)
def test_one_part_is_plain_training_and_two_are_not(method: MethodConfig) -> None:
    inner = problem(method)
    plain, one, two = (
        train(inner, controls_of(inner)),
        train_in_parts(inner, controls_of(inner)),
        train_in_parts(inner, controls_of(inner), Alone(2)),
    )
    assert digest(plain.state) == digest(one.state) != digest(two.state)
    assert torch.equal(plain.losses, one.losses) and bool(two.losses.isfinite().all())


def test_without_normalization_the_parts_average_to_the_step_of_the_batch() -> None:
    inner = problem(MethodConfig(name="ste"), norm=False)
    state = inner.initial({})
    whole, loss, _ = inner_step(inner, state, {}, 0, differentiable=False)
    for parts in (2, 3, 6):
        own = [replace(inner, task=part) for part in split(inner.task, parts)]
        found, mean = step_in_parts(own, Alone(parts), state, {}, 0)
        assert float(mean) == pytest.approx(float(loss), rel=1e-12)
        for name, p in whole.params.items():
            torch.testing.assert_close(found.params[name], p, rtol=1e-7, atol=1e-9)


def split(task: SupervisedTask, parts: int) -> list[PartOfTask]:
    made = [PartOfTask(**vars(task), part=i, parts=parts) for i in range(parts)]
    batches = [part.batch(3, 2) for part in made]
    assert torch.equal(torch.cat([b.x for b in batches]), task.batch(3, 2).x)
    assert {len(b.y) for b in batches} == {12 // parts}
    return made


def test_the_order_of_the_sum_is_that_of_the_parts() -> None:
    values = [torch.tensor(v) for v in (1.0, 2.0**60, -(2.0**60), 3.0)]
    assert float(averaged([{"a": v} for v in values])["a"]) == 0.75  # 1 is lost, 3 is not
    counts = [{"n": torch.tensor(4)}, {"n": torch.tensor(4)}]
    assert averaged(counts)["n"].dtype == torch.int64 and int(averaged(counts)["n"]) == 4


def test_batches_that_cannot_be_split_are_refused() -> None:
    inner = problem(MethodConfig(name="gxnor"))
    for parts, use in ((5, 10), (12, 24)):
        with pytest.raises(MetaschedError, match=rf"^task\.batch: 12 examples cannot be split .*; use {use}$"):
            train_in_parts(inner, controls_of(inner), Alone(parts))


def test_another_bit_is_another_digest() -> None:
    inner = problem(MethodConfig(name="gxnor"))
    state = inner.initial(rows(controls_of(inner), 0))
    other = {**state.buffers, "1.running_var": state.buffers["1.running_var"] * (1 + 2.0**-52)}
    assert digest(state) == digest(state._replace(buffers=dict(state.buffers)))
    assert digest(state) != digest(state._replace(buffers=other))


# two processes

TINY = {
    "task": {"model": "mlp", "width": 3, "steps": 4, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "method": {"name": "gxnor"},
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded(SCRIPT)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    torch.set_default_dtype(torch.float32)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    return [str(config), "--schedule", "gxnor_linear", "--output", str(tmp_path / "network.pt")]


def as_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**launch, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)


def test_two_processes_hold_the_bits_of_one(
    script: ModuleType,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert script.main([*arguments, "--parts", "2"]) == 0
    expected, network = capsys.readouterr().out, (tmp_path / "network.pt").read_bytes()
    assert expected.startswith("2 parts, 4 steps, state ") and "test score" in expected
    as_rank_0(monkeypatch)
    environment = os.environ | {"RANK": "1", "LOCAL_RANK": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as other:
        assert script.main(arguments) == 0
        assert other.wait(120) == 0 and other.stdout is not None and other.stdout.read() == ""
    assert capsys.readouterr().out == expected and (tmp_path / "network.pt").read_bytes() == network
    kept = torch.load(tmp_path / "network.pt", weights_only=True)
    assert set(kept["linear1.weight"].unique().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.slow
def test_ranks_that_hold_other_bits_are_found_out(
    script: ModuleType,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    as_rank_0(monkeypatch)
    environment = os.environ | {"RANK": "1", "LOCAL_RANK": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments, "--seed=5"], env=environment, cwd=tmp_path
    ) as other:
        assert script.main(arguments) == 2
        assert other.wait(120) == 2
    assert capsys.readouterr().out.startswith(
        "torchrun: after step 3, the state of rank 1 differs from that of rank 0; use"
    )


def test_mistakes_are_one_line(script: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        (["--parts", "0"], "--parts: is 0; give at least 1"),
        (["--schedule", "best"], "--schedule: best is no schedule"),
        (["--parts", "3"], "task.batch: 16 examples cannot be split into 3 equal parts"),
    ):
        assert script.main([*arguments, *more]) == 2
        assert capsys.readouterr().out.startswith(message)
