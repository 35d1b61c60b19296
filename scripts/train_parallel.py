"""Trains one network under one schedule, with each batch split over the processes of torchrun.

    torchrun --nproc_per_node 8 scripts/train_parallel.py experiments/imagenet_gxnor.yaml --schedule gxnor_cifar10 \
        --task.root DATA --task.train 1000000 --task.steps 20000 --run.device cuda --output network.pt

Writes the hardened parameters and the buffers, and prints the test score with a hash of the final state, which is equal
in all processes. Without torchrun, ``--parts N`` computes N parts one after the other, with the bits of N processes.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from metasched.config.load import load_experiment
from metasched.config.schema import Experiment
from metasched.contrib.data_parallel import Alone, Exchange, digest, process_group, train_in_parts
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.io.atomic import write_atomic
from metasched.meta.start import given_start
from metasched.runs.cells import played
from metasched.runs.ranks import launched
from metasched.training.faults import broken
from metasched.training.loop import harden, hardened_score
from metasched.training.problem import build_problem


def play(experiment: Experiment, exchange: Exchange, output: Path | None) -> str:
    """Trains, writes the network if ``output`` is given, and returns a summary.

    Raises:
        MetaschedError: no such schedule, batches that cannot be split, or a run that diverged.
    """
    problem = build_problem(experiment.problem).with_seed(derive_seed(experiment.seed, "parallel"))
    named = given_start(experiment.problem, experiment.schedule.start)
    if named is None:
        raise MetaschedError("--schedule", "best is no schedule", "name one, or give a file")
    like = next(problem.network.module.parameters())
    controls = {name: v.to(like) for name, v in played(experiment.problem, named[1], problem.steps).items()}
    state = train_in_parts(problem, controls, exchange).state
    if broken(state):
        raise MetaschedError("task.steps", "training went to numbers that are not finite", "try another schedule")
    said = f"{exchange.parts} parts, {problem.steps} steps, state {digest(state)}"
    if output is None:
        return said
    params, buffers = harden(problem, state)
    file = io.BytesIO()
    torch.save({name: t.cpu() for name, t in {**params, **buffers}.items()}, file)
    write_atomic(output, file.getvalue())
    return f"{said}, test score {hardened_score(problem, state, 'test'):.4f}"


def main(argv: Sequence[str]) -> int:
    """Parse, train; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the experiment; its fields can be overridden")
    parser.add_argument("--schedule", required=True, metavar="NAME_OR_FILE", help="hand-coded one or a file")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the network, for torch.load")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="parts of a batch, without torchrun [1]")
    arguments, overrides = parser.parse_known_args(argv)
    leads = not launched() or os.environ["RANK"] == "0"
    try:
        experiment = load_experiment(arguments.config, [*overrides, f"--schedule.start={arguments.schedule}"])
        if arguments.parts < 1 or (arguments.parts > 1 and launched()):
            problem = f"is {arguments.parts}" if arguments.parts < 1 else "is for one process"
            raise MetaschedError("--parts", problem, "give at least 1; torchrun has a part for each process")
        with process_group() as together:
            exchange = together or Alone(arguments.parts)
            said = play(experiment, exchange, arguments.output if leads else None)
    except MetaschedError as error:
        if leads:
            print(error)
        return error.exit_code
    if leads:
        print(said)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
