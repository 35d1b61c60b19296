"""``metasched show --figure``: schedule files as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metasched.evaluation.comparison import Drawn
from metasched.evaluation.drawing import schedules_svg
from metasched.evaluation.figures import progress
from metasched.exchange.format import ScheduleFile
from metasched.exchange.played import PlayedSchedule
from metasched.io.atomic import write_atomic
from metasched.schedules.feedback import open_loop


def write_figure(path: str | Path, names: Sequence[str], files: Sequence[ScheduleFile]) -> None:
    """Writes the curves of schedules, each on its own layers, as SVG.

    Args:
        path: of the file.
        names: of the schedules, as they were given; a path is shown by its last part.
        files: the schedules.

    Raises:
        MetaschedError: the file cannot be written.
    """
    drawn = []
    for name, file in zip(names, files, strict=True):
        played = PlayedSchedule(file)
        layers = tuple(layer.name for layer in played.layers)
        drawn.append(Drawn(Path(name).name, layers, open_loop(played(progress(), played.layers))))
    write_atomic(Path(path), schedules_svg(drawn).encode())
