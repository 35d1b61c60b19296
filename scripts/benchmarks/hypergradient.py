r"""What a hypergradient costs: CPU time and memory of each engine, which all give the same numbers.

    python scripts/benchmarks/hypergradient.py --json experiments/results/hypergradient_engines.json \
        --table docs/tables/hypergradient_engines.md

Every measurement has a process of its own with one thread and a warm-up of two steps; the engines alternate. Seconds
are process time, n times; bytes are the most that live tensors take beside what was there before the run, counted
exactly from torch's record of every allocation, once, in a process that is not timed. Inputs are random, and the noise
stays about half a quantum. What the file already holds is not measured again: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from engines import CASES, ENGINES, QUICK, WORKLOADS, Case, built, engines_of, obstacle, run

from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment, version
from metasched.io.json_text import json_text

AGREEMENT = 1e-8  # relative, in float64; in float32 Adam amplifies what TorchOpt rounds in another way
AGREED_STEPS = 5


def measured(quantity: str, engine: str, case: Case) -> dict[str, Any]:
    """``seconds`` or ``bytes`` of one run in this process, or why it is ``left_out``."""
    problem, controls = built(case)
    reason = obstacle(engine, problem, controls)
    if reason:
        return {"left_out": reason}
    run(engine, replace(problem, steps=2), controls)
    if quantity == "bytes":
        return {"bytes": peak_bytes(lambda: run(engine, problem, controls))}
    start = time.process_time()
    run(engine, problem, controls)
    return {"seconds": time.process_time() - start}


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of live tensors during ``work()`` beside those that are there before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    results = record.profiler and record.profiler.kineto_results
    assert results is not None
    events: list[Any] = results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def disagreement(dtype: str, case: Case) -> dict[str, float]:
    """The largest relative distance of each engine's gradient to plain unrolling, in ``float32`` or ``float64``."""
    torch.set_default_dtype(getattr(torch, dtype))
    problem, controls = built(case)
    wrt = {name: run(name, problem, controls) for name in ENGINES if not obstacle(name, problem, controls)}
    right = wrt["unroll"]
    return {
        name: max(float((slopes[c] - right[c]).norm() / right[c].norm()) for c in right)
        for name, slopes in wrt.items()
        if slopes
    }


def in_its_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """``function(*arguments)`` in a fresh process of one thread, forked from a server that has imported torch."""
    # the server of Python 3.11 does not look where this script does
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engines"])
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        return executor.submit(function, *arguments).result()


def measurements(cell: dict[str, Any], case: Case, repeats: int) -> Iterator[None]:
    """Fills a cell with what it lacks; a step of the iteration is one measurement."""
    for done in range(repeats):
        for name in engines_of(case):
            row = cell["engines"].setdefault(name, {})
            if "left_out" in row or len(row.setdefault("seconds", [])) > done:
                continue
            if "bytes" not in row:
                row |= in_its_own_process(measured, "bytes", name, case)
                yield
            if "left_out" not in row:
                row["seconds"].append(in_its_own_process(measured, "seconds", name, case)["seconds"])
                yield


def agreement(result: dict[str, Any], case: Case) -> None:
    """Checks, once for a workload and its optimizer, that all engines give the same gradient."""
    key = f"{case.workload}, {case.optimizer}"
    if key not in result["disagreement"]:
        few = case._replace(steps=AGREED_STEPS)
        found = {dtype: in_its_own_process(disagreement, dtype, few) for dtype in ("float32", "float64")}
        assert max(found["float64"].values()) <= AGREEMENT, found
        result["disagreement"][key] = found


def complete(result: dict[str, Any], cases: Sequence[Case], repeats: int, save: Callable[[], None]) -> None:
    """Measures what is missing of every case; ``save()`` is called after each measurement."""
    for case in cases:
        agreement(result, case)
        cells = [cell for cell in result["cells"] if cell["case"] == list(case)]
        if not cells:
            cells = [{"case": list(case), "environment": environment(), "cpu": cpu_model(), "engines": {}}]
            cells[0]["environment"]["torchopt"] = version("torchopt")
            result["cells"] += cells
        for _ in measurements(cells[0], case, repeats):
            cells[0]["load"] = os.getloadavg()[2]
            save()
        for name, row in cells[0]["engines"].items():
            print(*case, name, _cell(row), sep=", ", file=sys.stderr)


def markdown(result: dict[str, Any]) -> str:
    """Tables for the documentation, generated from the JSON alone: one for each workload and optimizer."""
    parts = []
    for workload, optimizer in dict.fromkeys(tuple(cell["case"][:2]) for cell in result["cells"]):
        cells = {c["case"][2]: c for c in result["cells"] if c["case"][:2] == [workload, optimizer]}
        horizons = sorted(cells)
        lines = [["engine", *(f"T = {steps}" for steps in horizons)], ["---"] * (1 + len(horizons))]
        for name in ENGINES:
            rows = [cells[steps]["engines"].get(name) for steps in horizons]
            if any(rows):
                lines.append([name, *(_cell(row) if row else "" for row in rows)])
        parts.append(f"**{workload}, {optimizer}**")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    last = result["cells"][-1]
    versions = ", ".join(f"{name} {last['environment'][name]}" for name in ("torch", "higher", "torchopt"))
    parts.append(
        f"CPU seconds: median (lowest to highest) of {_counts(result)} processes; MiB: the most that live tensors of "
        "the run take. "
        f"{versions}, {last['cpu']}, one thread: `{result['command']}`."
    )
    return "\n\n".join(parts) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if "left_out" in row:
        return row["left_out"]
    seconds, size = row["seconds"], f"{row['bytes'] / 2**20:.1f} MiB"
    if not seconds:  # stopped in between
        return size
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {size}"


def _counts(result: dict[str, Any]) -> str:
    rows = [row for cell in result["cells"] for row in cell["engines"].values()]
    return " or ".join(map(str, sorted({len(row["seconds"]) for row in rows if row.get("seconds")})))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the JSON and, if asked, the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--table", type=Path, metavar="MD", help="also write the tables, in markdown")
    parser.add_argument("--quick", action="store_true", help="T = 10 only, once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--case", nargs=3, action="append", metavar=("WORKLOAD", "OPTIMIZER", "T"), help="instead of all"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    given = [Case(workload, optimizer, int(steps)) for workload, optimizer, steps in arguments.case or ()]
    result: dict[str, Any] = {
        "command": "python scripts/benchmarks/hypergradient.py",
        "workloads": {name: workload._asdict() for name, workload in WORKLOADS.items()},
        "disagreement": {},
        "cells": [],
    }
    if arguments.json.exists():
        result = json.loads(arguments.json.read_text("utf-8"))

    def save() -> None:
        write_atomic(arguments.json, json_text(result, indent=1).encode() + b"\n")

    cases = QUICK if arguments.quick else given or CASES
    complete(result, cases, 1 if arguments.quick else arguments.repeats, save)
    if arguments.table:
        write_atomic(arguments.table, markdown(result).encode())


if __name__ == "__main__":
    main()
