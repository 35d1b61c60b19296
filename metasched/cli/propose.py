"""``metasched propose``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_output, put_schedule
from metasched.core.errors import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    about = "runs of other tasks: the file of their run.store"
    parser.add_argument("--store", required=True, metavar="FILE", help=about)
    add_output(parser)
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Proposes a schedule for the experiment's task; `metasched compare --schedule` says whether it is any good."""
    experiment = load(arguments)
    from metasched.commands.propose import propose

    file, said = propose(experiment, Path(arguments.store))
    put_schedule(file, arguments.output)
    print(printable(said), file=sys.stderr)
