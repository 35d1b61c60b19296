"""The experiment of a command: arguments and loading."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metasched.core.errors import unknown_name

if TYPE_CHECKING:
    from metasched.config.fields import FieldInfo
    from metasched.config.schema import Experiment
    from metasched.tracking.console import Console


KEEP_RUNS = ("train", "tune", "compare", "arena")  # commands that write to ``run.store``


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

    There are too many for a screen, so that ``--help-fields`` lists them, and ``--help`` names it.

    Args:
        parser: of the command.
        listed: whether it has ``--help-fields``.
    """
    from metasched.config.fields import fields

    known = tuple(fields())
    sections = ", ".join(dict.fromkeys(field.path.partition(".")[0] for field in known if "." in field.path))
    about = f"--SECTION.FIELD VALUE overrides the file; VALUE is YAML. Sections: {sections}."
    group = parser.add_argument_group(*(("fields of the experiment", about) if listed else ()))
    if listed:
        group.add_argument(
            "--help-fields", nargs="?", metavar="SECTION", action=_HelpFields, help="list the fields, all or of one"
        )
    for field in known:
        group.add_argument(
            f"--{field.path}",
            dest="overrides",
            action="append",
            default=[],
            metavar=field.type,
            type=lambda text, path=field.path: f"--{path}={text}",
            help=argparse.SUPPRESS,
        )


class _HelpFields(argparse.Action):
    """Prints the fields of a section of the experiment, or all, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, **more)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        from metasched.config.fields import fields

        known = tuple(fields())
        shown = [f for f in known if values is None or values in (f.path, f.path.partition(".")[0])]
        if not shown:
            raise unknown_name(
                "--help-fields", str(values), list(dict.fromkeys(f.path.partition(".")[0] for f in known))
            )
        listing = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
        group = listing.add_argument_group("fields of the experiment, which override the file (values are YAML)")
        for field in shown:
            group.add_argument(f"--{field.path}", metavar=field.type, help=_about(field).replace("%", "%%"))
        print(listing.format_help(), end="")
        parser.exit()


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
    if console is not None and experiment.run.store is not None and arguments.command not in KEEP_RUNS:
        console.note(f"run.store: `metasched {arguments.command}` adds no runs to it")
    if not many:
        require_one_task(experiment, arguments.command)
    if learns:
        require_learnable(experiment.method, experiment.schedule.learn)
    return experiment


def _about(field: FieldInfo) -> str:
    from metasched.io.json_text import json_text

    default = json_text(field.default).strip('"')
    return field.description if field.default is None else f"{field.description} [{default}]"
