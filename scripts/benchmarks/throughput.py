r"""Throughput of learning: what starts take, and evolution strategies on two worker processes against one process.

    python scripts/benchmarks/throughput.py --root DATA --json experiments/results/throughput.json

DATA is the folder of FashionMNIST. Goals are printed beside the medians. Wall times mean something on an idle machine
only. ``bound`` does on a busy one too: it is the speed-up that CPU times allow, c1 / (p + w/2), with the CPU seconds of
a step in one process, c1, and with two workers those of the asking process, p, and of both workers together, w.
``apart`` is what the machine allows: 2 a / b, with the seconds a of a step in one process, and b of two processes that
do one each at the same time and share nothing.
Memory is the largest sum of PSS (shared pages are divided among those who share them) over the processes of a program
that learns on all of FashionMNIST, 1,000 images of it for meta-validation, once they are loaded.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from metasched.config.load import experiment_of
from metasched.config.schema import Experiment
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.meta.outer import meta_train
from metasched.runs import pool as pools
from metasched.runs.local import Run
from metasched.runs.pool import Pool
from metasched.runs.pooled import PooledRuns, answer
from metasched.schedules.learnable import LearnableSchedule, build_learnable
from metasched.schedules.table import hand_coded
from metasched.training.problem import build_problem

WORKERS = 2
GOALS = {
    "start of two workers, s": 2.0,
    "--version, s": 0.5,
    "first line, s": 2.0,
    "first inner runs, s": 5.0,
    "memory of two workers / one process": 1.3,
    "outer steps of two workers / one process": 1.9,
}
MiB = 2**20


def experiment(task: Mapping[str, Any], runs: int = 5) -> Experiment:
    """One outer step of evolution strategies for the joint method on a ternary CNN of nine convolutions."""
    return experiment_of(
        {
            "name": "throughput",
            "task": {"model": "convnet", "width": 8, "depth": 9, "steps": 30, "batch": 64, **task},
            "method": {"name": "joint", "forward": "mode", "backward": "noise"},
            "schedule": {"kind": "family", "start": "joint_ana_static"},
            "meta": {"estimator": "es", "steps": 1, "runs": runs, "sigma": 0.5},
        }
    )


def schedule_of(case: Experiment) -> LearnableSchedule:
    """The schedule that is learned, at its start."""
    network = build_problem(case.problem).network
    start = hand_coded(case.method.name)[case.schedule.start]
    learn = [control.name for control in network.method.controls]
    return build_learnable(case.schedule, network.method.controls, start, learn, network.layers, 0)


def outer_step(case: Experiment, schedule: LearnableSchedule, pool: Pool) -> torch.Tensor:
    """The parameters of the schedule after one outer step."""
    runs = PooledRuns(case.problem, case.meta, pool)
    found = meta_train(runs, case.seed, copy.deepcopy(schedule), lambda record: None)
    return torch.cat([p.detach().flatten() for p in found.schedule.parameters()])


def starts(case: Experiment, rounds: int) -> dict[str, list[float]]:
    """Seconds until two workers have answered, for each way to start them; the task is built before."""
    build_problem(case.problem)
    found: dict[str, list[float]] = {}
    usual = pools.start_method
    for _ in range(rounds):
        for method in ("fork", "forkserver"):  # the server starts in the first round, and stays
            pools.start_method = lambda method=method: method
            since = time.perf_counter()
            with Pool(WORKERS) as pool:
                list(pool.map(time.sleep, [(0.0,)] * WORKERS))
                found.setdefault(method, []).append(time.perf_counter() - since)
    pools.start_method = usual
    return found


def sizes(case: Experiment) -> dict[str, int]:
    """Bytes that a piece of work and its answer take between processes, and those of the task's data."""
    problem = build_problem(case.problem)
    layers = len(problem.network.layers)
    neutral = {n: v.expand(problem.steps, layers).double() for n, v in problem.network.neutral().items()}
    work = (case.problem, case.meta, "judged", [Run(neutral, 0)])
    data = [getattr(problem.task, part).x for part in ("train", "validation", "test")]
    return {
        "work": len(pickle.dumps((answer, work))),
        "answer": len(pickle.dumps(answer(*work))),
        "data": sum(x.nbytes for x in data),
    }


def cpu_of(pid: int) -> float:
    """CPU seconds of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds_apart(case: Experiment, schedule: LearnableSchedule, pool: Pool) -> float:
    """Wall seconds in which two processes that share nothing do an outer step each."""
    since = time.perf_counter()
    other = os.fork()
    outer_step(case, schedule, pool)
    if not other:
        os._exit(0)
    os.waitpid(other, 0)
    return time.perf_counter() - since


def steps_of_both(case: Experiment, rounds: int) -> list[dict[str, float]]:
    """Rounds of an outer step in one process and on two workers; the parameters after it must have the same bits."""
    found, schedule = [], schedule_of(case)
    with Pool(WORKERS) as two, Pool(1) as one:
        assert two._executor is not None
        workers = list(two._executor._processes)
        for i in range(rounds + 1):  # the first one warms up
            clock, cpu = time.perf_counter(), time.process_time()
            alone = outer_step(case, schedule, one)
            alone_wall, alone_cpu = time.perf_counter() - clock, time.process_time() - cpu
            clock, cpu, theirs = time.perf_counter(), time.process_time(), sum(map(cpu_of, workers))
            shared = outer_step(case, schedule, two)
            wall, own = time.perf_counter() - clock, time.process_time() - cpu
            theirs = sum(map(cpu_of, workers)) - theirs
            assert torch.equal(alone, shared)
            if i:
                bound = alone_cpu / (own + theirs / WORKERS)
                apart = WORKERS * alone_wall / seconds_apart(case, schedule, one)
                row = {"one": alone_wall, "two": wall, "ratio": alone_wall / wall, "bound": bound, "apart": apart}
                found.append(row | {"cpu_one": alone_cpu, "cpu_asking": own, "cpu_workers": theirs})
    return found


def tree(pid: int) -> list[int]:
    """A process and those that it has started."""
    children = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return [pid, *(p for child in children for p in tree(child))]


def memory_of(workers: int, task: Mapping[str, Any]) -> int:
    """The largest sum of PSS, in bytes, over the processes of a program, during an outer step."""
    words = [sys.executable, __file__, "--learn", str(workers), json.dumps(dict(task))]
    program, most = subprocess.Popen(words, stdout=subprocess.PIPE), 0
    assert program.stdout is not None and program.stdout.readline()  # the data are loaded
    while program.poll() is None:
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in tree(program.pid)]
            most = max(most, 1024 * sum(int(r.partition("\nPss:")[2].split()[0]) for r in rollups if r))
        time.sleep(0.1)
    assert program.returncode == 0
    return most


def seconds_until(line: str, *words: str) -> float:
    """Wall seconds from the start of ``metasched`` to a line that begins so."""
    since = time.perf_counter()
    command = [sys.executable, "-m", "metasched", *words]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert program.stdout is not None
    seen = next((time.perf_counter() - since for text in program.stdout if text.startswith(line)), None)
    program.kill()
    program.communicate()
    assert seen is not None, f"no line begins with {line!r}"
    return seen


def commands(rounds: int) -> dict[str, list[float]]:
    """Seconds that commands take to begin; the first inner runs are a pair of one step, wandb offline."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "first.yaml"
        config.write_text(
            "name: first\ntask: {steps: 1}\nmethod: {name: joint}\nschedule: {start: joint_ana_static}\n"
            f"meta: {{estimator: es, runs: 1, steps: 2}}\nrun: {{folder: {folder}/runs, workers: {WORKERS}}}\n"
        )
        asked: dict[str, Callable[[], float]] = {
            "--version, s": lambda: seconds_until("metasched ", "--version"),
            "first line, s": lambda: seconds_until("first: ", "train", str(config)),
            "first inner runs, s": lambda: seconds_until("outer step 1/", "train", str(config)),
        }
        for _ in range(rounds):
            for name, ask in asked.items():
                found.setdefault(name, []).append(ask())
    return found


def learn(workers: int, task: Mapping[str, Any]) -> None:
    """What ``memory_of`` starts."""
    case = experiment(task, runs=2)
    schedule = schedule_of(case)
    print(flush=True)
    with Pool(workers) as pool:
        outer_step(case, schedule, pool)


def main() -> None:
    """Measures, shows and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of FashionMNIST; without it memory is measured on digits")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--learn", nargs=2, metavar=("WORKERS", "TASK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.learn:
        learn(int(arguments.learn[0]), json.loads(arguments.learn[1]))
        return
    rounds = arguments.rounds
    large = {"name": "fashion_mnist", "root": arguments.root, "validation": 1000, "steps": 10} if arguments.root else {}
    began = commands(rounds)
    started = starts(experiment({}), rounds)
    steps = steps_of_both(experiment({}), rounds)
    memory = {str(n): memory_of(n, large) for n in (1, WORKERS)}
    found = {
        **{name: statistics.median(seconds) for name, seconds in began.items()},
        "start of two workers, s": statistics.median(started["fork"]),
        "memory of two workers / one process": memory[str(WORKERS)] / memory["1"],
        "outer steps of two workers / one process": statistics.median(row["ratio"] for row in steps),
    }
    for name, value in found.items():
        print(f"{name}: {value:.2f}, asked {GOALS[name]}")
    print(f"speed-up that CPU times allow: {statistics.median(row['bound'] for row in steps):.2f}")
    print(f"speed-up of two processes apart: {statistics.median(row['apart'] for row in steps):.2f}")
    print(f"memory: {', '.join(f'{n}: {m / MiB:.0f} MiB' for n, m in memory.items())}")
    bytes_of = {"digits": sizes(experiment({})), **({"fashion_mnist": sizes(experiment(large))} if large else {})}
    print(f"bytes: {bytes_of}")
    if arguments.json:
        result = {
            "environment": environment(),
            "cpu": cpu_model(),
            "medians": found,
            "goals": GOALS,
            "commands": began,
            "starts": started,
            "steps": steps,
            "memory": memory,
            "bytes": bytes_of,
        }
        write_atomic(arguments.json, (json_text(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
