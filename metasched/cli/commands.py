"""The table of commands. To add a command, write its file and add its row here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from metasched.cli import (
    allocate,
    arena,
    calibrate,
    check,
    compare,
    dashboard,
    deploy,
    export,
    import_,
    inspect,
    list_,
    online,
    play,
    portfolio,
    sensitivity,
    show,
    train,
    tune,
)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        about: description for the help.
        add: adds the arguments to a parser.
        run: runs the command.
        spread: whether its work is distributed over the processes of torchrun.
    """

    about: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    spread: bool = False


COMMANDS = {
    "train": Command(
        "learn a schedule, compare it with hand-coded ones, and write it to a run folder",
        train.add,
        train.run,
        spread=True,
    ),
    "online": Command(
        "train once, and adapt the schedule while training by looking a few steps ahead",
        online.add,
        online.run,
        spread=True,
    ),
    "compare": Command(
        "play schedules on the same seeds and compare the hardened networks on test data",
        compare.add,
        compare.run,
        spread=True,
    ),
    "tune": Command(
        "tune a hand-coded family by search, for as many inner steps as learning takes",
        tune.add,
        tune.run,
        spread=True,
    ),
    "arena": Command(
        "play many arms on many tasks, and say what each gives on a task that nobody has seen",
        arena.add,
        arena.run,
    ),
    "portfolio": Command(
        "build or show an ordered list of schedules to try first, for a method and its bits",
        portfolio.add,
        portfolio.run,
    ),
    "play": Command(
        "train under the first schedules of a portfolio, and judge the one that is best on validation",
        play.add,
        play.run,
    ),
    "dashboard": Command(
        "create the wandb workspace of the experiment's project: schedules, scores, diagnostics",
        dashboard.add,
        dashboard.run,
    ),
    "check": Command(
        "check an experiment: are its hypergradients correct?",
        check.add,
        check.run,
    ),
    "inspect": Command(
        "list what an experiment quantizes, and what stays in float and why",
        inspect.add,
        inspect.run,
    ),
    "allocate": Command(
        "search the bits of each layer's weights under a budget of bytes, bit operations or milliseconds",
        allocate.add,
        allocate.run,
    ),
    "sensitivity": Command(
        "show when and in which layer a change of a schedule would help",
        sensitivity.add,
        sensitivity.run,
        spread=True,
    ),
    "deploy": Command(
        "train under a schedule, or take a converted network, and write it as integers, packed and as ONNX",
        deploy.add,
        deploy.run,
    ),
    "calibrate": Command(
        "quantize a trained network from a few unlabelled batches",
        calibrate.add,
        calibrate.run,
    ),
    "export": Command(
        "write the learned schedule of a run",
        export.add,
        export.run,
    ),
    "import": Command(
        "convert a policy of Ray Tune's population-based training, or a schedule of QuantLab, to a schedule file",
        import_.add,
        import_.run,
    ),
    "list": Command(
        "list the schedules that come with metasched, and the searches for bits",
        list_.add,
        list_.run,
    ),
    "show": Command(
        "describe a schedule",
        show.add,
        show.run,
    ),
}
