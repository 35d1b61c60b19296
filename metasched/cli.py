"""The command line: parse, load the configuration, call one function. Heavy modules are imported by the commands."""

from __future__ import annotations

import argparse
import difflib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from metasched.errors import MetaschedError

if TYPE_CHECKING:
    from metasched.config import Experiment
    from metasched.fields import FieldInfo
    from metasched.files import RunFolder

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0, 2 for a mistake of the user (one line on stderr), 130 when interrupted."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"metasched: warning: {message}", file=sys.stderr)
        try:
            arguments = _parse(sys.argv[1:] if argv is None else argv)
            arguments.command(arguments)
        except MetaschedError as error:
            for line in str(error).splitlines():
                print(f"metasched: error: {line}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("metasched: interrupted", file=sys.stderr)
            return 130
    return 0


def train(arguments: argparse.Namespace) -> None:
    """Learns a schedule and compares it."""
    experiment = _load(arguments)
    from metasched.loading import require_learnable

    require_learnable(experiment)
    from metasched.meta.train import train

    with _run_folder(experiment, arguments.folder) as folder, closing(_console(arguments)) as console:
        result = train(experiment, folder, console)
    _print({"folder": str(folder.path), **result}, arguments.json)


def online(arguments: argparse.Namespace) -> None:
    """Trains once, and learns while it does."""
    experiment = _load(arguments)
    from metasched.loading import require_learnable

    require_learnable(experiment)
    from metasched.meta.train_online import run

    with _run_folder(experiment, arguments.folder) as folder, closing(_console(arguments)) as console:
        result = run(experiment, folder, console, compared=arguments.compare)
    _print({"folder": str(folder.path), **result}, arguments.json)


def compare(arguments: argparse.Namespace) -> None:
    """Plays schedules on the same seeds."""
    experiment = _load(arguments)
    from metasched.evaluation.compare import run

    with _run_folder(experiment, arguments.folder) as folder, closing(_console(arguments)) as console:
        result = run(experiment, [Path(path) for path in arguments.schedule], folder, console)
    _print({"folder": str(folder.path), **result}, arguments.json)


def check(arguments: argparse.Namespace) -> None:
    """Tries an experiment out."""
    experiment = _load(arguments)
    from metasched.meta.check import check

    with closing(_console(arguments)) as console:
        result = check(experiment, console)
    _print(result, arguments.json)


def sensitivity(arguments: argparse.Namespace) -> None:
    """Shows where a change of a schedule would help."""
    experiment = _load(arguments)
    from metasched.loading import require_learnable

    require_learnable(experiment)
    from metasched.meta.sensitivity import sensitivity

    with _run_folder(experiment, arguments.folder) as folder, closing(_console(arguments)) as console:
        result = sensitivity(experiment, arguments.schedule, arguments.runs, folder, console)
    _print({"folder": str(folder.path), **result}, arguments.json)


def export(arguments: argparse.Namespace) -> None:
    """Writes a run's learned schedule."""
    from metasched.exchange.export import dumps, read_schedule, write_schedule
    from metasched.files import RunFolder

    folder = RunFolder(Path(arguments.run))
    if not folder.schedule.is_file():
        fix = "give the folder of a `metasched train` run that has come to its end"
        raise MetaschedError(arguments.run, f"holds no {folder.schedule.name}", fix)
    schedule = read_schedule(folder.schedule)
    if arguments.output is None:
        sys.stdout.write(dumps(schedule))
    else:
        write_schedule(arguments.output, schedule)


def show(arguments: argparse.Namespace) -> None:
    """Describes a schedule file."""
    from metasched.exchange.export import read_schedule
    from metasched.exchange.summary import show_schedule, summarize

    schedule = read_schedule(arguments.schedule)
    if arguments.json:
        _print(summarize(schedule), as_json=True)
    else:
        with closing(_console(arguments)) as console:
            show_schedule(schedule, console)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise MetaschedError("", message, f"see `{self.prog} --help`")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from metasched.files import version

    about = "Learns annealing schedules for training quantized networks."
    parser = _Parser(prog="metasched", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"metasched {version() or '(not installed)'}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(run: Callable[[argparse.Namespace], None], about: str, json: bool = True) -> _Parser:
        added = commands.add_parser(run.__name__, help=about, description=about, allow_abbrev=False)
        added.set_defaults(command=run, parser=added)
        if json:
            added.add_argument("--json", action="store_true", help="print the result as JSON; all else goes to stderr")
        return added

    learn = command(train, "learn a schedule, compare it with the hand-coded ones, leave it in a run folder")
    adapt = command(online, "train once, and adapt the schedule while training by looking a few steps ahead")
    adapt.add_argument("--compare", action="store_true", help="also train from fresh seeds with and without adapting")
    play = command(compare, "play schedules on the same seeds and compare the hardened networks on test data")
    play.add_argument("--schedule", nargs="+", action="extend", default=[], metavar="FILE", help="also these schedules")
    look = command(check, "try an experiment out: are its hypergradients right?")
    feel = command(sensitivity, "where in time and in which layer would a change of a schedule help?")
    feel.add_argument("--schedule", metavar="NAME_OR_FILE", help="hand-coded one or a file (default: schedule.start)")
    feel.add_argument("--runs", type=int, default=8, metavar="N", help="inner runs that are differentiated [8]")
    for added in (learn, adapt, play, feel):
        added.add_argument("--folder", help="run folder (default: a new one in run.folder)")
    for added in (learn, adapt, play, look, feel):
        added.usage = "%(prog)s CONFIG [options] [--section.field VALUE ...]"
        added.add_argument("config", metavar="CONFIG", help="the experiment, a YAML file")
        _add_overrides(added)

    copy = command(export, "write the schedule that a run has learned", json=False)
    copy.add_argument("run", metavar="RUN", help="run folder")
    copy.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    describe = command(show, "describe a schedule file")
    describe.add_argument("schedule", metavar="SCHEDULE", help="schedule file (JSON)")

    arguments, extra = parser.parse_known_args(argv)
    if extra:
        _refuse(extra, arguments.parser)
    return arguments


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    """One option for each field of an experiment; all append to ``overrides``, as load_experiment takes them."""
    from metasched.fields import fields

    group = parser.add_argument_group("fields of the experiment, instead of what the file says (values are YAML)")
    for field in fields():
        group.add_argument(
            f"--{field.path}",
            dest="overrides",
            action="append",
            default=[],
            metavar=field.type,
            type=lambda text, path=field.path: f"--{path}={text}",
            help=_about(field).replace("%", "%%"),
        )


def _about(field: FieldInfo) -> str:
    from metasched.files import json_text

    default = json_text(field.default).strip('"')
    return field.description if field.default is None else f"{field.description} [{default}]"


def _refuse(extra: list[str], parser: argparse.ArgumentParser) -> NoReturn:
    """The error for arguments that no option takes."""
    name = next((argument for argument in extra if argument.startswith("-")), extra[0]).split("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise MetaschedError(name, "unknown argument", f"{hint}See `{parser.prog} --help`")


def _load(arguments: argparse.Namespace) -> Experiment:
    from metasched.loading import load_experiment

    return load_experiment(arguments.config, arguments.overrides)


@contextmanager
def _run_folder(experiment: Experiment, path: str | None) -> Iterator[RunFolder]:
    """A run folder with what is needed to repeat the run; a mistake that shows before work starts leaves no folder."""
    from metasched.files import RunFolder, environment, json_text, write_atomic
    from metasched.loading import dump_yaml

    place = Path(path or experiment.run.folder)
    made = [p for p in (place, *place.parents) if not p.exists()]
    folder = RunFolder.claim(path) if path else RunFolder.create(place, experiment.name)
    try:
        write_atomic(folder.config, dump_yaml(experiment).encode())
        write_atomic(folder.environment, json_text(environment(), indent=2).encode())
        yield folder
    except MetaschedError:
        folder.discard(made if path else [folder.path, *made])
        raise
    folder.finish()


def _console(arguments: argparse.Namespace) -> Any:
    from metasched.tracking.console import open_console

    return open_console(sys.stderr if arguments.json else sys.stdout)


def _print(result: Result, as_json: bool) -> None:
    from metasched.files import json_text

    if as_json:
        print(json_text(result, indent=2))
    else:
        for key, value in result.items():
            if not isinstance(value, dict | list):  # what has a structure was shown as a table
                text = value if isinstance(value, str) else json_text(value).strip('"')
                print(f"{key}: {text}")
