"""``metasched deploy``."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from metasched.cli.experiment import add_imports, add_overrides
from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_folder, resumable_folder
from metasched.core.errors import MetaschedError

if TYPE_CHECKING:
    from metasched.io.run_folder import RunFolder

_SAVED = (".pt", ".pt2", ".pth", ".ckpt")


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.usage = (
        "%(prog)s CONFIG [--learn] [options] -o FOLDER [--section.field VALUE ...]\n"
        "       %(prog)s PACKAGE.MODULE:FUNCTION --import PACKAGE -o FOLDER"
    )
    add_json(parser)
    what = "the experiment, a YAML file, the folder of a run, or a function that returns a converted network and data"
    parser.add_argument("config", metavar="CONFIG", help=what)
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
    """Writes a network in integers: one that it trains under a schedule, or a converted one of the user's."""
    if (what := _own(arguments.config)) is not None:
        _deploy_own(what, arguments)
        return
    from metasched.config.load import load_experiment, require_one_task
    from metasched.io.run_folder import RunFolder

    if arguments.folder and not arguments.learn:
        raise MetaschedError("--folder", "has no effect without --learn", "leave it out, or add --learn")
    folder = RunFolder(Path(arguments.config)) if os.path.isdir(arguments.config) else None
    learns = arguments.learn and not (folder and folder.done.exists())
    if learns:
        folder = _learned(arguments)
    experiment = load_experiment(folder.config if folder else arguments.config, arguments.overrides)
    require_one_task(experiment, "deploy")
    schedule = arguments.schedule or (str(folder.schedule) if folder else None)
    if schedule is None:
        fix = "name a hand-coded schedule or a file, give a run folder, or --learn one"
        raise MetaschedError("--schedule", "is missing", fix)
    from metasched.commands.deploy import check, deploy

    with console_of(arguments) as console:
        if not learns:
            check(experiment.problem, Path(arguments.output))
        task, steps = experiment.task.label, arguments.horizon * experiment.task.steps
        console.note(f"{experiment.name}: {experiment.method.name} on {task}, {steps} steps under {schedule}")
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


def _own(config: str) -> str | None:
    """The argument if it is ``package.module:function``, and None if it is an experiment or a run.

    Raises:
        MetaschedError: it is a saved module.
    """
    if config.endswith(_SAVED):
        fix = "give `PACKAGE.MODULE:FUNCTION --import PACKAGE`, a function that returns the converted network and data"
        raise MetaschedError(config, "is a saved module, and loading one may run code that is in the file", fix)
    return config if re.fullmatch(r"[^\W\d][\w.]*:\w+", config) and not os.path.lexists(config) else None


def _deploy_own(where: str, arguments: argparse.Namespace) -> None:
    for option in ("schedule", "learn", "horizon", "folder", "overrides"):
        value = getattr(arguments, option)
        if value != arguments.parser.get_default(option):
            name = value[0].partition("=")[0] if option == "overrides" else f"--{option}"
            problem = "has no effect on a converted network, which is not trained again"
            raise MetaschedError(name, problem, "leave it out")
    from metasched.commands.deploy import deploy_own

    with console_of(arguments) as console:
        result = deploy_own(where, Path(arguments.output), console)
    print_result({"folder": arguments.output, **result}, arguments.json)


def _learned(arguments: argparse.Namespace) -> RunFolder:
    """Learns the schedule to deploy, as ``metasched train`` does, in a run folder that ``train`` can resume."""
    if arguments.schedule:
        raise MetaschedError("--schedule", "cannot be combined with --learn", "leave out one of them")
    config = arguments.config
    arguments.config, arguments.resume = (None, config) if os.path.isdir(config) else (config, None)
    arguments.allow = []
    with (
        console_of(arguments) as console,
        resumable_folder("train", arguments, console) as (experiment, folder),
    ):
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
