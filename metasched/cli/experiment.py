"""The experiment of a command: arguments and loading."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metasched.config.fields import FieldInfo
    from metasched.config.schema import Experiment
    from metasched.tracking.console import Console


def add_experiment(parser: argparse.ArgumentParser, *, required: bool = True, listed: bool = True) -> None:
    """Adds the file of an experiment and its overrides, which the help lists, or says where they are listed."""
    parser.usage = "%(prog)s CONFIG [options] [--section.field VALUE ...]"
    nargs = None if required else "?"
    parser.add_argument("config", metavar="CONFIG", nargs=nargs, help="the experiment, a YAML file")
    add_imports(parser)
    add_overrides(parser, listed=listed)
    if not listed:
        parser.epilog = "Each field of the experiment has an option --section.field, as in `metasched train --help`."


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Code of the user's own; ``imports_of`` reads it before there is a parser."""
    own = "import this package, with the tasks, methods and optimizers in it; only if you trust it (repeatable)"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="PACKAGE", help=own)


def imports_of(argv: Sequence[str]) -> list[str]:
    """The packages that a command line allows to be imported.

    >>> imports_of(["train", "a.yaml", "--import", "mine", "--import=other"])
    ['mine', 'other']
    """
    pairs = zip(argv, [*argv, ""][1:], strict=True)
    given = ((word, after) if word == "--import" else word.partition("=")[::2] for word, after in pairs)
    return [package for option, package in given if option == "--import" and package]


def add_overrides(parser: argparse.ArgumentParser, *, listed: bool = True) -> None:
    """Adds one option per field of an experiment; all append to ``overrides``, an argument of load_experiment.

    Args:
        parser: of the command.
        listed: whether its help lists them.
    """
    from metasched.config.fields import fields

    title = "fields of the experiment, which override the file (values are YAML)"
    group = parser.add_argument_group(title if listed else None)
    for field in fields():
        group.add_argument(
            f"--{field.path}",
            dest="overrides",
            action="append",
            default=[],
            metavar=field.type,
            type=lambda text, path=field.path: f"--{path}={text}",
            help=_about(field).replace("%", "%%") if listed else argparse.SUPPRESS,
        )


def load(
    arguments: argparse.Namespace, console: Console | None = None, *, learns: bool = False, many: bool = False
) -> Experiment:
    """Loads the experiment with its overrides.

    Args:
        arguments: those of ``add_experiment``.
        console: shows in one line what will be trained, before torch is loaded, which takes seconds.
        learns: whether it must have something to learn.
        many: whether it may have several tasks.
    """
    from metasched.config.load import load_experiment, require_learnable, require_one_task

    def show(experiment: Experiment) -> None:
        if console is not None:
            task, several = experiment.task, len(experiment.tasks.entries)
            on = f"tasks of {several} entries" if several else f"{task.label}, {task.steps} steps"
            console.note(f"{experiment.name}: {experiment.method.name} on {on}")

    experiment = load_experiment(arguments.config, arguments.overrides, show)
    if not many:
        require_one_task(experiment, arguments.command)
    if learns:
        require_learnable(experiment.method, experiment.schedule.learn)
    return experiment


def _about(field: FieldInfo) -> str:
    from metasched.io.json_text import json_text

    default = json_text(field.default).strip('"')
    return field.description if field.default is None else f"{field.description} [{default}]"
