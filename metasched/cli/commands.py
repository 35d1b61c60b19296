"""The table of commands: to add one, write its file and add its row here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from metasched.cli import check, compare, dashboard, deploy, export, import_, online, sensitivity, show, train, tune


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        about: what it does, as its help says it.
        add: adds its arguments to its parser.
        run: does it.
        spread: its work goes over the processes of torchrun, if it has started several.
    """

    about: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    spread: bool = False


COMMANDS = {
    "train": Command(
        "learn a schedule, compare it with the hand-coded ones, leave it in a run folder",
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
    "dashboard": Command(
        "make the wandb workspace of the experiment's project: schedules, scores, health",
        dashboard.add,
        dashboard.run,
    ),
    "check": Command(
        "try an experiment out: are its hypergradients right?",
        check.add,
        check.run,
    ),
    "sensitivity": Command(
        "where in time and in which layer would a change of a schedule help?",
        sensitivity.add,
        sensitivity.run,
        spread=True,
    ),
    "deploy": Command(
        "train under a schedule and write the hardened network as integers, packed and as ONNX",
        deploy.add,
        deploy.run,
    ),
    "export": Command(
        "write the schedule that a run has learned",
        export.add,
        export.run,
    ),
    "import": Command(
        "make a schedule file of a policy of Ray Tune's population-based training, or of QuantLab",
        import_.add,
        import_.run,
    ),
    "show": Command(
        "describe a schedule file",
        show.add,
        show.run,
    ),
}
