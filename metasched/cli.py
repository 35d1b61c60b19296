"""The command line: parse, load the configuration, call one function. Heavy modules are imported by the commands."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from metasched.errors import MetaschedError, printable
from metasched.signals import Terminated, leaving
from metasched.training.ranks import serve, serves

if TYPE_CHECKING:
    from metasched.config import Experiment
    from metasched.exchange.format import ScheduleFile
    from metasched.fields import FieldInfo
    from metasched.files import RunFolder

Result = dict[str, Any]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        the exit code: 0; 2 for a mistake of the user or a disk that takes nothing more, 1 for a run that is stopped
        because its numbers are not finite, each with one line on stderr; 130 or 143 when interrupted or terminated.
    """
    arguments = argparse.Namespace()

    def say(stopped: type[KeyboardInterrupt]) -> None:
        how = "terminated" if issubclass(stopped, Terminated) else "interrupted"
        run, command = getattr(arguments, "resumable", None), getattr(arguments, "command", say).__name__
        _tell(f"metasched: {how}{f'; go on with `metasched {command} --resume {run}`' if run else ''}")

    with warnings.catch_warnings(), leaving(say):
        warnings.showwarning = lambda message, *_: _tell(f"metasched: warning: {printable(str(message))}")
        try:
            _parse(sys.argv[1:] if argv is None else argv, arguments)
            if not serves():
                arguments.command(arguments)
            elif arguments.command in _SPREAD:
                serve()
        except MetaschedError as error:
            for line in str(error).splitlines():
                _tell(f"metasched: error: {line}")
            return error.exit_code
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            where = printable(str(error.filename or "output"))
            _tell(f"metasched: error: {where}: cannot be written ({error.strerror})")
            return 2
        except KeyboardInterrupt as stopped:
            say(type(stopped))
            return 143 if isinstance(stopped, Terminated) else 130
    return 0


def train(arguments: argparse.Namespace) -> None:
    """Learns a schedule and compares it, or goes on with that."""
    with _resumable_folder(arguments) as (experiment, folder), closing(_console(arguments)) as console:
        from metasched.meta.train import train

        result = train(experiment, folder, console)
    _print({"folder": str(folder.path), **result}, arguments.json)


def online(arguments: argparse.Namespace) -> None:
    """Trains once, and learns while it does."""
    experiment = _load(arguments)
    from metasched.loading import require_learnable

    require_learnable(experiment)
    from metasched.meta.train_online import run

    with _run_folder(experiment, arguments) as folder, closing(_console(arguments)) as console:
        result = run(experiment, folder, console, compared=arguments.compare)
    _print({"folder": str(folder.path), **result}, arguments.json)


def compare(arguments: argparse.Namespace) -> None:
    """Plays schedules on the same seeds, or goes on with that."""
    with _resumable_folder(arguments) as (experiment, folder), closing(_console(arguments)) as console:
        from metasched.evaluation.compare import run

        result = run(experiment, [Path(path) for path in arguments.schedule], folder, console)
    _print({"folder": str(folder.path), **result}, arguments.json)


def tune(arguments: argparse.Namespace) -> None:
    """Tunes a hand-coded family by search, or goes on with that."""
    with _resumable_folder(arguments) as (experiment, folder), closing(_console(arguments)) as console:
        from metasched.meta.tune import tune

        result = tune(experiment, folder, console)
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

    with _run_folder(experiment, arguments) as folder, closing(_console(arguments)) as console:
        result = sensitivity(experiment, arguments.schedule, arguments.runs, folder, console)
    _print({"folder": str(folder.path), **result}, arguments.json)


def dashboard(arguments: argparse.Namespace) -> None:
    """Makes the wandb workspace of an experiment's project."""
    experiment = _load(arguments)
    from metasched.tracking.dashboard import publish

    _print({"workspace": publish(experiment, arguments.entity)}, arguments.json)


def deploy(arguments: argparse.Namespace) -> None:
    """Trains under a schedule, which it may learn first, and writes the network as integers."""
    from metasched.files import RunFolder
    from metasched.loading import load_experiment

    if arguments.folder and not arguments.learn:
        raise MetaschedError("--folder", "is for --learn only", "leave it out")
    run = RunFolder(Path(arguments.config)) if os.path.isdir(arguments.config) else None
    if arguments.learn and not (run and run.done.exists()):
        run = _learned(arguments)
    experiment = load_experiment(run.config if run else arguments.config, arguments.overrides)
    schedule = arguments.schedule or (str(run.schedule) if run else None)
    if schedule is None:
        fix = "name a hand-coded schedule or a file, give a run folder, or --learn one"
        raise MetaschedError("--schedule", "is missing", fix)
    from metasched.deploy.deploy import deploy

    with closing(_console(arguments)) as console:
        result = deploy(experiment, schedule, Path(arguments.output), console, horizon=arguments.horizon)
    learned = {"run": str(run.path)} if arguments.learn and run else {}
    _print({"folder": arguments.output, **learned, **result}, arguments.json)


def _learned(arguments: argparse.Namespace) -> RunFolder:
    """Learns the schedule that is deployed, as ``train`` does: in a run folder that can be resumed by it."""
    if arguments.schedule:
        raise MetaschedError("--schedule", "does not go with --learn", "leave one of the two out")
    command, config = arguments.command, arguments.config
    arguments.command, arguments.allow = train, []
    arguments.config, arguments.resume = (None, config) if os.path.isdir(config) else (config, None)
    with _resumable_folder(arguments) as (experiment, folder), closing(_console(arguments)) as console:
        from metasched.deploy.deploy import check
        from metasched.meta.train import train as learn

        check(experiment, Path(arguments.output))
        learn(experiment, folder, console)
    arguments.command, arguments.resumable = command, None
    return folder


def export(arguments: argparse.Namespace) -> None:
    """Writes a run's learned schedule, as a schedule file or in the form of QuantLab."""
    from metasched.exchange.export import read_schedule
    from metasched.files import RunFolder

    if (arguments.to == "quantlab") != (arguments.epochs is not None):
        raise MetaschedError("--epochs", "is for --to quantlab, which needs it", "give both or neither")
    path = Path(arguments.run)
    if not os.path.isfile(path):
        path = RunFolder(path).schedule
    if not os.path.isfile(path):
        fix = "give the folder of a `metasched train` run that has come to its end"
        raise MetaschedError(arguments.run, f"holds no {path.name}", fix)
    schedule = read_schedule(path)
    if arguments.to is None:
        _write(schedule, arguments.output)
    else:
        _write_quantlab(schedule, arguments.epochs, arguments.output)


def import_(arguments: argparse.Namespace) -> None:
    """Makes a schedule file of what population-based training has found, or of a schedule of QuantLab."""
    if arguments.source == "ray" and arguments.total is None:
        arguments.parser.error("the following arguments are required: --total")
    experiment = _load(arguments)
    from metasched.exchange.pbt import import_policy
    from metasched.exchange.quantlab.importing import import_quantlab
    from metasched.loading import to_dict
    from metasched.training.problem import build_problem

    network = build_problem(experiment).network
    schedule = {"ray": import_policy, "quantlab": import_quantlab}[arguments.source](
        arguments.policy,
        total=arguments.total,
        name=experiment.name,
        method_name=experiment.method.name,
        method_parameters={k: v for k, v in to_dict(experiment)["method"].items() if k != "name"},
        controls=network.method.controls,
        layers=network.layers,
    )
    _write(schedule, arguments.output)


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


_SPREAD = (train, online, compare, tune, sensitivity)  # over the processes of torchrun, if it has started several


def _tell(line: str) -> None:
    if not serves():
        print(line, file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise MetaschedError("", message, f"see `{self.prog} --help`")


def _parse(argv: Sequence[str], arguments: argparse.Namespace) -> None:
    from metasched.files import version

    about = "Learns annealing schedules for training quantized networks."
    parser = _Parser(prog="metasched", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"metasched {version() or '(not installed)'}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(run: Callable[[argparse.Namespace], None], about: str, json: bool = True) -> _Parser:
        added = commands.add_parser(run.__name__.rstrip("_"), help=about, description=about, allow_abbrev=False)
        added.set_defaults(command=run, parser=added)
        if json:
            added.add_argument("--json", action="store_true", help="print the result as JSON; all else goes to stderr")
        return added

    learn = command(train, "learn a schedule, compare it with the hand-coded ones, leave it in a run folder")
    adapt = command(online, "train once, and adapt the schedule while training by looking a few steps ahead")
    adapt.add_argument("--compare", action="store_true", help="also train from fresh seeds with and without adapting")
    play = command(compare, "play schedules on the same seeds and compare the hardened networks on test data")
    play.add_argument("--schedule", nargs="+", action="extend", default=[], metavar="FILE", help="also these schedules")
    seek = command(tune, "tune a hand-coded family by search, for as many inner steps as learning takes")
    board = command(dashboard, "make the wandb workspace of the experiment's project: schedules, scores, health")
    board.add_argument("--entity", required=True, help="wandb user or team")
    look = command(check, "try an experiment out: are its hypergradients right?")
    feel = command(sensitivity, "where in time and in which layer would a change of a schedule help?")
    feel.add_argument("--schedule", metavar="NAME_OR_FILE", help="hand-coded one or a file (default: schedule.start)")
    feel.add_argument("--runs", type=int, default=8, metavar="N", help="inner runs that are differentiated [8]")
    ship = command(deploy, "train under a schedule and write the hardened network as integers, packed and as ONNX")
    ship.usage = "%(prog)s CONFIG [--learn] [options] -o FOLDER [--section.field VALUE ...]"
    ship.add_argument("config", metavar="CONFIG", help="the experiment, a YAML file, or the folder of a run")
    ship.add_argument("--schedule", metavar="NAME_OR_FILE", help="hand-coded one or a file (default: the run's)")
    first = "learn it first: in a new run folder, or go on in the given one if that was stopped"
    ship.add_argument("--learn", action="store_true", help=first)
    longer = "train for this multiple of task.steps [1]"
    ship.add_argument("--horizon", type=_multiple, default=1, metavar="N", help=longer)
    ship.add_argument("-o", "--output", metavar="FOLDER", required=True, help="is made; must not be there")
    _add_overrides(ship)
    for added in (learn, adapt, play, seek, feel, ship):
        added.add_argument("--folder", help="run folder (default: a new one in run.folder)")
    resumable = (learn, play, seek)
    resume = "go on with the stopped run in this folder, with the same bits"
    allow = "with --resume: this field may differ from the run's (may be given several times)"
    for added in resumable:
        added.add_argument("--resume", metavar="RUN", help=resume)
        added.add_argument("--allow", metavar="FIELD", action="append", default=[], help=allow)
    for added in (learn, adapt, play, seek, board, look, feel):
        added.usage = "%(prog)s CONFIG [options] [--section.field VALUE ...]"
        nargs = "?" if added in resumable else None
        added.add_argument("config", metavar="CONFIG", nargs=nargs, help="the experiment, a YAML file")
        _add_overrides(added)

    copy = command(export, "write the schedule that a run has learned", json=False)
    copy.add_argument("run", metavar="RUN", help="run folder, or a schedule file")
    copy.add_argument("--to", choices=["quantlab"], help="as a controller of QuantLab (methods ana and inq)")
    copy.add_argument("--epochs", type=int, metavar="N", help="with --to quantlab: epochs of the whole run there")
    copy.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    fetch = command(
        import_, "make a schedule file of a policy of Ray Tune's population-based training, or of QuantLab", json=False
    )
    fetch.usage = "%(prog)s CONFIG FILE [--from quantlab] [--total N] [options] [--section.field VALUE ...]"
    fetch.add_argument("config", metavar="CONFIG", help="the experiment that it is for, a YAML file")
    fetch.add_argument("policy", metavar="FILE", help="pbt_policy_<trial>.txt, or a JSON file of QuantLab")
    kinds = ["ray", "quantlab"]
    fetch.add_argument("--from", dest="source", choices=kinds, default=kinds[0], help="what has written it [ray]")
    whole = "iterations of the whole run in Ray Tune, or epochs in QuantLab (default there: the file's)"
    fetch.add_argument("--total", type=int, metavar="N", help=whole)
    fetch.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    _add_overrides(fetch)
    describe = command(show, "describe a schedule file")
    describe.add_argument("schedule", metavar="SCHEDULE", help="schedule file (JSON)")

    _, extra = parser.parse_known_args(argv, arguments)
    if extra:
        _refuse(extra, arguments.parser)


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


def _multiple(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 10_000):
        raise argparse.ArgumentTypeError(f"must be an integer in [1, 10000], got {text[:20]!r}")
    return int(text[:5])


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
def _resumable_folder(arguments: argparse.Namespace) -> Iterator[tuple[Experiment, RunFolder]]:
    """An experiment with its run folder, a new one or one to go on in."""
    if arguments.resume is None and arguments.config is None:
        arguments.parser.error("the following arguments are required: CONFIG (or --resume RUN)")
    if arguments.resume is None and arguments.allow:
        raise MetaschedError("--allow", "is for --resume only", "leave it out")
    if arguments.resume is not None and arguments.folder:
        raise MetaschedError("--folder", "does not go with --resume", "leave it out: a run goes on in its own folder")
    from metasched.loading import require_learnable

    if arguments.resume is None:
        experiment = _load(arguments)
        if arguments.command is not compare:
            require_learnable(experiment)
        with _run_folder(experiment, arguments) as folder:
            yield experiment, folder
        return
    from metasched.files import RunFolder

    folder = RunFolder.resume(arguments.resume, arguments.command.__name__)
    try:
        from metasched.meta.resume import resumed_experiment

        arguments.resumable = folder.path
        config = Path(arguments.config) if arguments.config else None
        experiment = resumed_experiment(folder, config, arguments.overrides, arguments.allow)
        if arguments.command is not compare:
            require_learnable(experiment)
        yield experiment, folder
        folder.finish()
    finally:
        folder.release()


@contextmanager
def _run_folder(experiment: Experiment, arguments: argparse.Namespace) -> Iterator[RunFolder]:
    """A run folder with what is needed to repeat the run; a mistake that shows before work starts leaves no folder."""
    from metasched.files import RunFolder, environment, json_text, write_atomic
    from metasched.loading import dump_yaml

    path, command = arguments.folder, arguments.command.__name__
    place = Path(path or experiment.run.folder)
    made = [p for p in (place, *place.parents) if not os.path.exists(p)]  # Path.exists raises on a name too long
    folder = RunFolder.claim(path, command) if path else RunFolder.create(place, experiment.name, command)
    try:
        write_atomic(folder.config, dump_yaml(experiment).encode())
        arguments.resumable = folder.path if "resume" in arguments else None
        write_atomic(folder.environment, json_text(environment(), indent=2).encode())
        yield folder
        folder.finish()
    except MetaschedError:
        folder.discard(made if path else [folder.path, *made])
        raise
    finally:
        folder.release()


def _write(schedule: ScheduleFile, output: str | None) -> None:
    from metasched.exchange.export import dumps, write_schedule

    if output is None:
        sys.stdout.write(dumps(schedule))
    else:
        write_schedule(output, schedule)


def _write_quantlab(schedule: ScheduleFile, epochs: int, output: str | None) -> None:
    from metasched.exchange.quantlab.exporting import export_quantlab
    from metasched.files import json_text, write_atomic

    written = export_quantlab(schedule, epochs)
    text = json_text(written.config, indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomic(Path(output), text.encode())
    for fit in written.fits:
        exact = "exact" if fit.largest == 0 else f"off by {fit.largest:.2g} at most, {fit.rms:.2g} root mean square"
        print(f"{fit.layer}: {fit.control} is {exact}", file=sys.stderr)


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
                print(f"{key}: {printable(text)}")
