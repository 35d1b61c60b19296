"""Meta-training holds as much after 300 outer steps as after 3, in a process that has done some before."""

from __future__ import annotations

import gc
import resource
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from learning import learn

from metasched.config.schema import Experiment
from metasched.meta.config import MetaConfig
from metasched.meta.outer import OuterStep
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig


class Held(NamedTuple):
    tensors: int
    values: int  # in all of them
    resident: int  # bytes


def held() -> Held:
    gc.collect()
    alive = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(len(alive), sum(t.numel() for t in alive), pages * resource.getpagesize())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident size is read as Linux reports it")
@pytest.mark.parametrize("memory", [None, 2**22])
def test_no_leak(memory: int | None) -> None:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=2, steps=3, batch=8, train=32, validation=16),
        method=MethodConfig(name="ana"),
        schedule=ScheduleConfig(knots=3, hidden=2, directions=None),
        meta=MetaConfig(steps=301, runs=1, noise_floor=0.1, memory=memory),
        run=RunConfig(workers=1),
    )
    controls = build_method(experiment.method).controls
    start = hand_coded("ana")["ana_static"]
    schedule = ScheduleNetwork(controls, start, [c.name for c in controls], knots=3, hidden=2, seed=0)
    warm_up = replace(experiment, meta=replace(experiment.meta, steps=10))  # what is taken once is no leak
    after: dict[int, Held] = {}

    def log(record: OuterStep) -> None:
        if record.step + 1 in (3, 300):
            after[record.step + 1] = held()

    with Pool(1) as pool:
        learn(
            warm_up,
            schedule,
            pool,
            lambda record: print(held().tensors),
        )
        learn(experiment, schedule, pool, log)
    assert after[300].tensors == after[3].tensors and after[300].values == after[3].values
    assert abs(after[300].resident - after[3].resident) < 10**6
