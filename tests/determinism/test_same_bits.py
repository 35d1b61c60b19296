"""Same seed, same threads, same bits: twice, in any order, in another process, with other threads left behind.

Small pieces of work stand for all that draws random numbers or keeps something. As a program this file prints their
digests: ``python tests/determinism/test_same_bits.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed
from metasched.meta.config import MetaConfig, OnlineConfig
from metasched.meta.online import setting_of, train_online
from metasched.meta.outer import meta_train
from metasched.meta.start import learned_controls
from metasched.methods import METHODS
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_scores, played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.runs.pooled import PooledRuns
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import build_learnable
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.loop import train
from metasched.training.problem import build_problem, forget

RANDOM = ("forward", "partition")  # parameters of some methods that can be ``random``


def digest(value: Any) -> str:
    """Of tensors by their bits, of everything else by its text."""
    found = hashlib.blake2b(digest_size=12)

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found.update(part.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, Mapping):
            for name in sorted(part):
                add([name, part[name]])
        elif isinstance(part, list | tuple):
            for own in part:
                add(own)
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()


def tiny(method: str = "joint", model: str = "mlp", estimator: str = "sweep", workers: int = 1) -> Experiment:
    return Experiment(
        task=TaskConfig(model=model, width=2, depth=3, train=32, validation=16, test=16, batch=8, steps=4),  # type: ignore[arg-type]
        method=MethodConfig(name=method, **{n: "random" for n in METHODS[method].parameters if n in RANDOM}),
        schedule=ScheduleConfig(kind="family" if estimator == "forward" else "network", knots=3, hidden=2),
        meta=MetaConfig(estimator=estimator, steps=2, runs=2, window=2),  # type: ignore[arg-type]
        online=OnlineConfig(every=2, window=2, held_out=8),
        run=RunConfig(workers=workers),
    )


def run_of(method: str, model: str) -> Any:
    """State and losses of an inner run, and the score of a cell."""
    experiment = tiny(method, model)
    start = next(iter(hand_coded(method).values()))
    controls = played(experiment.problem, start, 4)
    outcome = train(build_problem(experiment.problem).with_seed(5), {name: v.float() for name, v in controls.items()})
    return outcome.state, outcome.losses, cell_scores(experiment.problem, controls, [7, 8, 9, 10], 4, "test")


def learned_by(estimator: str, workers: int = 1) -> Any:
    """A schedule after two outer steps, and what was logged, without the times."""
    experiment = tiny(estimator=estimator, workers=workers)
    network, start = build_problem(experiment.problem).network, hand_coded("joint")["joint_linear"]
    learn = (
        ["weight_noise"]
        if estimator == "forward"
        else learned_controls(experiment.method.name, experiment.schedule.learn, network.method.controls)
    )
    seed = derive_seed(experiment.seed, "schedule network")
    schedule = build_learnable(experiment.schedule, network.method.controls, start, learn, network.layers, seed)
    with Pool(workers) as pool:
        outcome = meta_train(
            PooledRuns(experiment.problem, experiment.meta, pool), experiment.seed, schedule, lambda record: None
        )
    return list(schedule.parameters()), [record._replace(seconds=0.0) for record in outcome.history]


def online() -> Any:
    outcome = train_online(setting_of(tiny()), hand_coded("joint")["joint_linear"], 3)
    return outcome.controls, outcome.state


WORK: dict[str, Callable[[], Any]] = {
    **{f"{m} {n}": lambda m=m, n=n: run_of(m, n) for m, n in (("ste", "mlp"), ("ana", "convnet"), ("inq", "mlp"))},
    "joint convnet": lambda: run_of("joint", "convnet"),
    **{e: lambda e=e: learned_by(e) for e in ("sweep", "higher", "forward", "es", "pes", "nres", "auto")},
    "online": online,
}

POOLED = ("sweep", "es", "pes")


def digests(names: list[str]) -> dict[str, str]:
    """Of pieces in this order, in torch's own default dtype, as a user has it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return {name: digest(WORK[name]()) for name in names}
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return digests(list(WORK))


def test_the_pieces_are_different(expected: dict[str, str]) -> None:
    assert len({value for name, value in expected.items() if name != "higher"}) == len(WORK) - 1  # the sweep's numbers


def test_sweep_and_higher_are_two_ways_to_the_same_numbers() -> None:
    """In float32 to 1e-5 of the gradient of the first step; 1e-10 in float64 is held by the tests of the engines."""
    torch.set_default_dtype(torch.float32)
    (_, ours), (_, theirs) = (learned_by(name) for name in ("sweep", "higher"))
    assert ours[0].loss == pytest.approx(theirs[0].loss, rel=1e-6)
    assert ours[0].gradient_norm == pytest.approx(theirs[0].gradient_norm, rel=1e-5)


@pytest.mark.parametrize(("threads", "hash_seed"), [("1", "1"), ("2", "2")])
def test_the_same_bits_in_another_process(expected: dict[str, str], threads: str, hash_seed: str) -> None:
    """Also where torch would take two threads: pools take one for inner runs."""
    names = list(WORK) if threads == "1" else [*POOLED]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-W", "ignore", __file__, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: expected[name] for name in names}


def test_the_same_bits_with_two_workers(expected: dict[str, str]) -> None:
    torch.set_default_dtype(torch.float32)
    assert digest(learned_by("pes", workers=2)) == expected["pes"]


def global_state() -> dict[str, Any]:
    """What a library has no business to change."""
    return {
        "torch's generator": digest(torch.random.get_rng_state()),
        "numpy's generator": repr(np.random.get_state()),
        "python's generator": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "errors of numpy": np.geterr(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
    }


@pytest.mark.parametrize("name", random.Random(1).sample(list(WORK), len(WORK)))
def test_the_same_bits_in_any_order_and_nothing_global_changes(expected: dict[str, str], name: str) -> None:
    """Whatever the global generators say; in pools, which take one thread, with two threads around them."""
    forget()
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(2 if name in POOLED else 1)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    before = global_state()
    outcome = WORK[name]()
    assert global_state() == before
    assert digest(outcome) == expected[name]


def test_one_thread_and_two_agree_to_rounding() -> None:
    """Not to the bit: sums are added in another order. Over few steps that stays rounding; docs/reliability.md."""

    def weights(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        experiment = tiny("ana", "convnet")
        controls = played(experiment.problem, hand_coded("ana")["ana_static"], 4)
        problem = build_problem(experiment.problem).with_seed(5)
        end = train(problem, {name: v.float() for name, v in controls.items()}).state
        return torch.cat([p.flatten() for p in end.params.values()])

    torch.set_default_dtype(torch.float32)
    one, two = weights(1), weights(2)
    assert float((one - two).norm() / one.norm()) <= 1e-5


if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[1:])))
