"""Compares different methods on the same seeds, which `metasched compare` does for schedules of one method.

    python scripts/compare_methods.py experiments/fashion_gxnor.yaml --output RESULT.json --against ste \
        --arm ste ste method.name=ste --arm gxnor gxnor_cosine \
        --arm metropolis metropolis_constant method.name=metropolis

An arm is a name, a schedule (hand-coded, or a file) and fields in which its experiment differs from the given one. All
arms train for as many steps, from the same ``compare.seeds`` fresh seeds of ``metasched compare``; what counts is the
hardened network after the last step, on test data. Writes the means, standard deviations and paired differences in the
form of experiments/results. Scores are kept beside the output, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from metasched.config import Experiment
from metasched.errors import MetaschedError
from metasched.evaluation.cells import Remembered, cell_scores, played
from metasched.evaluation.compare import fresh_seeds
from metasched.evaluation.comparison import Arm, Comparison
from metasched.files import cpu_model, environment, json_text, write_atomic
from metasched.loading import load_experiment
from metasched.meta.train import given_start
from metasched.schedules.base import Schedule
from metasched.training.pool import Pool
from metasched.training.problem import build_problem


class Contender(NamedTuple):
    """An arm: its name, experiment and schedule."""

    name: str
    experiment: Experiment
    schedule: Schedule


def contender(config: Path, overrides: Sequence[str], arm: Sequence[str]) -> Contender:
    """The arm that NAME SCHEDULE [FIELD=VALUE ...] describe.

    Raises:
        MetaschedError: there is no such schedule, or a field that does not fit.
    """
    if len(arm) < 2:
        raise MetaschedError("--arm", f"is {' '.join(arm)!r}", "give NAME SCHEDULE [FIELD=VALUE ...]")
    name, schedule, *fields = arm
    experiment = load_experiment(config, [*overrides, *(f"--{f}" for f in fields), f"--schedule.start={schedule}"])
    start = given_start(experiment, build_problem(experiment).network)
    if start is None:
        raise MetaschedError(f"--arm {name}", "best is no schedule", "name one, or give a file")
    return Contender(name, experiment, start[1])


def compare_methods(contenders: Sequence[Contender], against: str, cells: Path) -> Comparison:
    """Every arm from the same seeds.

    Raises:
        MetaschedError: two arms of a name, none of the name ``against``, or arms of different steps or data.
    """
    names, first = [c.name for c in contenders], contenders[0].experiment
    if len(set(names)) < len(names) or against not in names:
        raise MetaschedError("--against", f"{against!r} of {', '.join(names)}", "give each arm a name, and one of them")
    for c in contenders:
        own, data = c.experiment, ("name", "root", "train", "validation", "test", "data_seed", "steps", "batch")
        if any(getattr(own.task, f) != getattr(first.task, f) for f in data) or fresh_seeds(own) != fresh_seeds(first):
            raise MetaschedError(f"--arm {c.name}", "has other data, steps or seeds", "arms are to be comparable")
    seeds, steps = fresh_seeds(first), first.task.steps
    work = [
        (c.experiment, played(c.experiment, c.schedule, steps), [s], steps, "test") for c in contenders for s in seeds
    ]
    scores: list[float] = []
    with Pool(first.run.workers) as pool, closing(Remembered(pool, cells)) as remembered:
        for (score,) in remembered.map(cell_scores, work):
            scores.append(score)
            print(f"{names[(len(scores) - 1) // len(seeds)]}: {score:.4f} ({len(scores)}/{len(work)})", flush=True)
    parts = [tuple(scores[i : i + len(seeds)]) for i in range(0, len(scores), len(seeds))]
    arms = [Arm(name, steps, part, steps * len(seeds)) for name, part in zip(names, parts, strict=True)]
    return Comparison(tuple(seeds), tuple(arms), (against,))


def result(comparison: Comparison, command: str) -> dict[str, Any]:
    """What experiments/results/*.json hold."""
    ran_on = environment()
    versions = {name: ran_on[name] for name in ("metasched", "python", "torch", "numpy", "higher")}
    hardware = f"{cpu_model()}, {ran_on['cpu_count']} cores, one thread a run, device {ran_on['device']}"
    return {**comparison.to_dict(), "command": command, "versions": versions, "hardware": hardware}


def main(argv: Sequence[str]) -> int:
    """Run the comparison; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the experiment that all arms share")
    parser.add_argument("--arm", nargs="+", action="append", required=True, metavar="NAME", help="see above")
    parser.add_argument("--against", required=True, metavar="NAME", help="the arm that the others are paired with")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the result, as JSON")
    arguments, overrides = parser.parse_known_args(argv)
    try:
        contenders = [contender(arguments.config, overrides, arm) for arm in arguments.arm]
        comparison = compare_methods(contenders, arguments.against, arguments.output.with_suffix(".cells.jsonl"))
    except MetaschedError as error:
        print(error)
        return error.exit_code
    columns, rows = comparison.rows(contenders[0].experiment.task.steps)
    print("\n".join("  ".join(row) for row in [columns, *rows]))
    shown = ["--task.root=DATA" if word.startswith("--task.root=") else word for word in argv]  # not your folders
    command = shlex.join(["python", "scripts/compare_methods.py", *shown])
    write_atomic(arguments.output, (json_text(result(comparison, command), indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
