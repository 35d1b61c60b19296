"""Writes docs/gallery.md and its pictures from the learned schedules that come with the package.

    python scripts/gallery.py

Each schedule has a picture, what it does, what was measured of it (by ``metasched list``), and how to play it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from metasched import PlayedSchedule, list_schedules, read_schedule
from metasched.evaluation.comparison import Drawn
from metasched.evaluation.drawing import schedules_svg
from metasched.exchange.shipped import ShippedSchedule

DOCS = Path(__file__).parents[1] / "docs"
POINTS = 41  # of a curve: small files
_HEAD = """# Gallery

The learned schedules that come with metasched, drawn by `scripts/gallery.py` from their files. Curves are layers,
violet at the input and brown at the output; controls that never move are left out. `metasched show NAME` has the
numbers, `metasched.load("NAME")` plays one in your own loop. Scores are hardened test scores on the task that a
schedule was learned on, over n seeds; *no schedule* is `ste`, at the learning rate of that comparison. What is not
above it is here too. Which one to use: [Which schedule](which_schedule.md).
"""


def main() -> None:
    """Writes the page and the pictures."""
    folder = DOCS / "images" / "gallery"
    folder.mkdir(exist_ok=True)
    shipped = learned()
    for one in shipped:
        (folder / f"{one.name}.svg").write_text(picture(one.name))
    (DOCS / "gallery.md").write_text(page(shipped))


def learned() -> list[ShippedSchedule]:
    """The learned schedules of the package."""
    return [shipped for shipped in list_schedules() if shipped.kind == "learned"]


def picture(name: str) -> str:
    """A learned schedule as SVG."""
    played = PlayedSchedule(read_schedule(name))
    progress = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    layers = tuple(layer.name for layer in played.layers)
    return schedules_svg([Drawn(name, layers, played(progress, played.layers))])


def page(shipped: list[ShippedSchedule]) -> str:
    """The page, as Markdown."""
    return "\n".join([_HEAD, *(_entry(one) for one in shipped)])


def _entry(one: ShippedSchedule) -> str:
    h = one.headline
    scores = "not measured"
    if h is not None:
        known = [("no schedule", h.floor), ("float", h.ceiling)]
        others = "".join(f", {name} {value:.4f}" for name, value in known if value is not None)
        scores = f"{h.score:.4f}{others}, n = {h.n}"
    return (
        f"## {one.name}\n\n"
        f"{one.summary[:1].upper()}{one.summary[1:]}. Method `{one.method}`.  \n"
        f"Learned on {one.task}: {scores}.  \n"
        f'`metasched.load("{one.name}")`\n\n'
        f"![Controls of {one.name} by layer over progress](images/gallery/{one.name}.svg)\n"
    )


if __name__ == "__main__":
    main()
