"""``metasched deploy``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from metasched.cli.experiment import add_imports, add_overrides
from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_folder, resumable_folder
from metasched.core.errors import MetaschedError

if TYPE_CHECKING:
    from metasched.io.run_folder import RunFolder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.usage = "%(prog)s CONFIG [--learn] [options] -o FOLDER [--section.field VALUE ...]"
    add_json(parser)
    parser.add_argument("config", metavar="CONFIG", help="the experiment, a YAML file, or the folder of a run")
    parser.add_argument(
        "--schedule", metavar="NAME_OR_FILE", help="schedule, by its name or file (default: that of the run)"
    )
    first = "learn the schedule first: in a new run folder, or resume the given run if it was stopped"
    parser.add_argument("--learn", action="store_true", help=first)
    longer = "train for N times task.steps [1]"
    parser.add_argument("--horizon", type=_multiple, default=1, metavar="N", help=longer)
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="folder to create; must not exist")
    add_folder(parser)
    add_imports(parser)
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> None:
    """Trains under a schedule, which may be learned first, and writes the network in integers."""
    from metasched.config.load import load_experiment
    from metasched.io.run_folder import RunFolder

    if arguments.folder and not arguments.learn:
        raise MetaschedError("--folder", "has no effect without --learn", "leave it out, or add --learn")
    folder = RunFolder(Path(arguments.config)) if os.path.isdir(arguments.config) else None
    if arguments.learn and not (folder and folder.done.exists()):
        folder = _learned(arguments)
    experiment = load_experiment(folder.config if folder else arguments.config, arguments.overrides)
    schedule = arguments.schedule or (str(folder.schedule) if folder else None)
    if schedule is None:
        fix = "name a hand-coded schedule or a file, give a run folder, or --learn one"
        raise MetaschedError("--schedule", "is missing", fix)
    from metasched.commands.deploy import deploy

    with console_of(arguments) as console:
        result = deploy(
            experiment.problem,
            experiment.seed,
            schedule,
            Path(arguments.output),
            console,
            horizon=arguments.horizon,
        )
    learned = {"run": str(folder.path)} if arguments.learn and folder else {}
    print_result({"folder": arguments.output, **learned, **result}, arguments.json)


def _learned(arguments: argparse.Namespace) -> RunFolder:
    """Learns the schedule to deploy, as ``metasched train`` does, in a run folder that ``train`` can resume."""
    if arguments.schedule:
        raise MetaschedError("--schedule", "cannot be combined with --learn", "leave out one of them")
    config = arguments.config
    arguments.config, arguments.resume = (None, config) if os.path.isdir(config) else (config, None)
    arguments.allow = []
    with resumable_folder("train", arguments) as (experiment, folder), console_of(arguments) as console:
        from metasched.commands.deploy import check
        from metasched.commands.train import train

        check(experiment.problem, Path(arguments.output))
        train(experiment, folder, console)
    arguments.go_on = None
    return folder


def _multiple(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 10_000):
        raise argparse.ArgumentTypeError(f"must be an integer in [1, 10000], got {text[:20]!r}")
    return int(text[:5])
