"""The run folder of a command: a new one, or that of a run to resume."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from metasched.cli.experiment import add_experiment, load
from metasched.core.errors import MetaschedError
from metasched.core.imports import allowed

if TYPE_CHECKING:
    from metasched.config.schema import Experiment
    from metasched.io.run_folder import RunFolder
    from metasched.tracking.console import Console


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the folder of a new run."""
    parser.add_argument("--folder", help="run folder (default: a new one in run.folder)")


def add_resumable(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``resumable_folder``: an experiment, or a run to resume."""
    add_folder(parser)
    resume = "resume the stopped run in this folder, with bitwise equal results"
    parser.add_argument("--resume", metavar="RUN", help=resume)
    allow = "with --resume: a field that may differ from that of the run (repeatable)"
    parser.add_argument("--allow", metavar="FIELD", action="append", default=[], help=allow)
    add_experiment(parser, required=False)


@contextmanager
def resumable_folder(
    command: str, arguments: argparse.Namespace, console: Console, *, learns: bool = True, many: bool = False
) -> Iterator[tuple[Experiment, RunFolder]]:
    """An experiment with its run folder, a new one or that of a run to resume.

    Args:
        command: name of the command.
        arguments: arguments of ``add_resumable``; their ``go_on`` is set to the command line that resumes the run.
        console: shows in one line what will be done, before torch is loaded.
        learns: whether the experiment must have something to learn.
        many: whether it may have several tasks.

    Raises:
        MetaschedError: incompatible arguments, or a mistake in the experiment or the folder.
    """
    if arguments.resume is None and arguments.config is None:
        arguments.parser.error("the following arguments are required: CONFIG (or --resume RUN)")
    if arguments.resume is None and arguments.allow:
        raise MetaschedError("--allow", "has no effect without --resume", "leave it out")
    if arguments.resume is not None and arguments.folder:
        raise MetaschedError(
            "--folder", "cannot be combined with --resume", "leave it out: a run is resumed in its own folder"
        )
    if arguments.resume is None:
        experiment = load(arguments, console, learns=learns, many=many)
        with run_folder(command, experiment, arguments) as folder:
            yield experiment, folder
        return
    from metasched.io.run_folder import RunFolder

    folder = RunFolder.resume(arguments.resume, command)
    console.note(f"resumes {folder.path}")
    try:
        from metasched.config.load import require_learnable, require_one_task
        from metasched.meta.resume import resumed_experiment

        arguments.go_on = _go_on(command, folder)
        config = Path(arguments.config) if arguments.config else None
        experiment = resumed_experiment(folder, config, arguments.overrides, arguments.allow)
        if not many:
            require_one_task(experiment, command)
        if learns:
            require_learnable(experiment.method, experiment.schedule.learn)
        yield experiment, folder
        folder.finish()
    finally:
        folder.release()


@contextmanager
def run_folder(command: str, experiment: Experiment, arguments: argparse.Namespace) -> Iterator[RunFolder]:
    """A run folder with what is needed to repeat the run; a mistake that shows before work starts leaves no folder."""
    from metasched.commands.folders import begun
    from metasched.config.writing import to_dict
    from metasched.io.run_folder import RunFolder

    path = arguments.folder
    place = Path(path or experiment.run.folder)
    made = [p for p in (place, *place.parents) if not os.path.exists(p)]  # Path.exists raises if the name is too long
    folder = RunFolder.claim(path, command) if path else RunFolder.create(place, experiment.name, command)
    with begun(folder, to_dict(experiment), made if path else [folder.path, *made]):
        if "resume" in arguments:
            arguments.go_on = _go_on(command, folder)
        yield folder


def _go_on(command: str, folder: RunFolder) -> str:
    own = "".join(f" --import {package}" for package in allowed())
    return f"metasched {command} --resume {folder.path}{own}"
