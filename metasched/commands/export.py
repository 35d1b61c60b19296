"""``metasched export``: the schedule that a run has learned, as a schedule file or in the form of QuantLab."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from metasched.core.errors import MetaschedError
from metasched.exchange.baselines import file_named
from metasched.exchange.format import ScheduleFile
from metasched.exchange.quantlab.exporting import export_quantlab
from metasched.exchange.schedule_file import read_schedule
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder


def schedule_of(run: str) -> ScheduleFile:
    """The schedule of a run folder, or the one that a name or the path of a file means; a folder goes first.

    Raises:
        MetaschedError: the folder holds no schedule, or the file is none, or there is no schedule of that name.
    """
    if not os.path.isdir(run):
        return file_named(run)
    path = RunFolder(Path(run)).schedule
    if not os.path.isfile(path):
        fix = "give the folder of a `metasched train` run that has come to its end"
        raise MetaschedError(run, f"holds no {path.name}", fix)
    return read_schedule(path)


def write_quantlab(schedule: ScheduleFile, epochs: int, output: str | None) -> None:
    """Write a controller of QuantLab for a run of so many epochs, and say on stderr how exact it is.

    Args:
        schedule: of the method ana or inq.
        epochs: of the whole run there.
        output: path of the file; None: standard output.

    Raises:
        MetaschedError: a schedule that QuantLab cannot play, or a file that cannot be written.
    """
    written = export_quantlab(schedule, epochs)
    text = json_text(written.config, indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomic(Path(output), text.encode())
    for fit in written.fits:
        exact = "exact" if fit.largest == 0 else f"off by {fit.largest:.2g} at most, {fit.rms:.2g} root mean square"
        print(f"{fit.layer}: {fit.control} is {exact}", file=sys.stderr)
