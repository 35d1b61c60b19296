"""A Ray cluster of two nodes on this machine: the bits of one process, errors, and a node that dies."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from metasched.config.load import experiment_of
from metasched.core.errors import MetaschedError
from metasched.runs.cells import cell_scores, played
from metasched.runs.cluster import Cluster
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.runs.where import open_pool
from metasched.schedules.table import hand_coded

RAY = RunConfig(where="ray")
SMALL = {"model": "mlp", "width": 2, "depth": 3, "train": 32, "validation": 16, "test": 16, "batch": 8, "steps": 4}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A cluster with a head without cores and a node with one, and that node."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    here = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", here)  # nodes find what this process does, as where metasched is installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own
        # Ray takes 127.0.0.1 for the address of the machine in its network; these are loopback as well
        head = {"num_cpus": 0, "node_ip_address": "127.0.0.2", "include_dashboard": False}
        cluster = Nodes(initialize_head=True, head_node_args=head)
        node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.3")
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster, node
        cluster.shutdown()


def _waits(path: str, value: int) -> int:
    """Says that it has begun, and ends once it is told to."""
    open(f"{path}.{value}", "w").close()
    while not os.path.exists(path):
        time.sleep(0.02)
    return value * value


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning:ray")
def test_a_cluster_has_the_bits_of_one_process_even_where_a_node_dies(nodes: tuple[Any, Any], tmp_path: Any) -> None:
    cluster, node = nodes
    problem = experiment_of({"task": SMALL, "method": {"name": "ana"}}).problem
    controls = played(problem, hand_coded("ana")["ana_static"], 4)
    work = [(problem, controls, [seed], 4, "validation") for seed in range(6)]
    with Pool(1) as pool:
        alone = list(pool.map(cell_scores, work))

    with open_pool(RAY) as ray:
        assert isinstance(ray, Cluster) and ray.workers == 1
        assert list(ray.map(cell_scores, work)) == alone
        assert list(ray.map(math.isqrt, [(i * i,) for i in range(5)])) == list(range(5))
        with pytest.raises(ValueError, match="nonnegative"):
            list(ray.map(math.isqrt, [(4,), (-1,)]))

        gate = str(tmp_path / "gate")
        found = ray.map(_waits, [(gate, i) for i in range(3)])
        while not os.path.exists(f"{gate}.0"):
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)  # while it is at the first run
        cluster.add_node(num_cpus=1, node_ip_address="127.0.0.4")
        open(gate, "w").close()
        assert list(found) == [0, 1, 4]
        assert list(ray.map(cell_scores, work)) == alone


def test_without_a_cluster_the_message_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(MetaschedError, match="ray start --head"), open_pool(RAY):
        pass


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MetaschedError, match=r"metasched\[ray\]"), open_pool(RAY):
        pass


def test_the_place_must_be_that_where_the_command_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetaschedError, match="torchrun has not started this command"):
        open_pool(RunConfig(where="torchrun"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for where in ("local", "ray"):
        with pytest.raises(MetaschedError, match="torchrun has started this command"):
            open_pool(RunConfig(where=where))  # type: ignore[arg-type]


def test_here_there_are_worker_processes() -> None:
    with open_pool(RunConfig(workers=1)) as pool:
        assert pool.workers == 1 and list(pool.map(abs, [(-1,)])) == [1]
    assert torch.get_num_threads() >= 1
