"""Prepared networks on several processes, and compiled."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from metasched import MethodConfig, prepare

X = torch.linspace(-2, 2, 8 * 64, dtype=torch.float64).sin().reshape(8, 1, 8, 8)
CASES: list[dict[str, Any]] = [
    {"name": "inq"},
    {"name": "ste", "scale": "learned", "activation_scale": "learned"},
    {"name": "oscillation", "scale": "learned"},
]
COMPILED: list[dict[str, Any]] = [*CASES, {"name": "joint", "scale": "learned", "activation_scale": "learned"}]
SCHEDULES = {"inq": "inq_linear", "joint": "joint_linear"}


def network(method: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU())
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), inner, nn.Flatten(), nn.Linear(128, 3))
    return prepare(model, MethodConfig(**method), X, SCHEDULES.get(method["name"]), 4)


def train(module: nn.Module, player: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
        player.step()
    whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in module.state_dict().items()}
    return {name.removeprefix("module."): t.clone() for name, t in whole.items()}


def worker(rank: int, kind: str, method: dict[str, Any], port: int, folder: str) -> None:
    torch.set_default_dtype(torch.float64)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    module, player = network(method)
    if kind == "ddp":
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(module)
    else:
        from torch.distributed.fsdp import fully_shard

        fully_shard(module[2])
        wrapped = fully_shard(module)
    state = train(wrapped, player, X[4 * rank : 4 * rank + 4])
    if rank == 0:
        torch.save(state, f"{folder}/{kind}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", CASES, ids=lambda case: case["name"])
def test_two_processes_train_as_one_on_the_whole_batch(method: dict[str, Any], kind: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(kind, method, port, str(tmp_path)), nprocs=2)
    found, wanted = torch.load(tmp_path / f"{kind}.pt"), train(*network(method), X)
    assert found.keys() == wanted.keys()
    for name, t in wanted.items():
        torch.testing.assert_close(found[name], t, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("method", COMPILED, ids=lambda case: case["name"])
def test_compiled_networks_train_alike(method: dict[str, Any]) -> None:
    torch._dynamo.reset()
    module, player = network(method)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for _ in range(4):
        optimizer.zero_grad()
        compiled(X).square().mean().backward()
        optimizer.step()
        player.step()
    for name, t in train(*network(method), X).items():
        torch.testing.assert_close(module.state_dict()[name], t, rtol=1e-9, atol=1e-9)
