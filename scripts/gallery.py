"""Writes docs/gallery.md and its pictures from the learned schedules of the package, and the pictures of methods.md.

    python scripts/gallery.py

Each schedule has a picture, what it does, what was measured of it (by ``metasched list``), and how to play it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from metasched import Layer, PlayedSchedule, hand_coded, list_schedules, read_schedule
from metasched.evaluation.comparison import Drawn
from metasched.evaluation.drawing import schedules_svg
from metasched.exchange.shipped import ShippedSchedule

DOCS = Path(__file__).parents[1] / "docs"
OF_METHODS = {  # a hand-coded schedule of each method that has one that moves: pictures of docs/methods.md
    "widths": "widths_narrowing",
    "rates": "rates_rising",
    "ana": "ana_input_first",
    "blend": "blend_input_first",
    "temperature": "temperature_hestia",
    "parq": "parq_sigmoid_10",
    "inq": "inq_input_first",
    "oscillation": "oscillation_mobilenetv2_4bit",
    "pruning": "pruning_cubic",
    "quant_noise": "quant_noise_input_first",
    "rounding": "rounding_input_first",
    "bayesian_bits": "bayesian_bits_rising",
    "dpq": "dpq_exponential",
    "adaround": "adaround_cosine",
    "admm": "admm_growing",
    "joint": "joint_input_first",
    "gxnor": "gxnor_input_first",
    "metropolis": "metropolis_restarts",
}
LAYERS = tuple(
    Layer(name, depth, "conv", "weight+activation", 72, 576, 1.585)
    for name, depth in (("input", 0.0), ("middle", 0.5), ("output", 1.0))
)
POINTS = 41  # of a curve: small files
_HEAD = """# Gallery

These are the learned schedules that come with metasched, drawn by `scripts/gallery.py` from their files.
To choose one, see [Which schedule](which_schedule.md).

- Each curve is a layer, violet at the input and brown at the output. Controls that never move are left out.
- `metasched show NAME` prints the numbers, and `metasched.load("NAME")` plays one in your own loop.
- Scores are hardened test scores on the task that a schedule was learned on, over n seeds. *No schedule* is `ste`, at
  the learning rate of that comparison. Schedules that are not above it are shown too.
"""


def main() -> None:
    """Writes the page and the pictures."""
    folder = DOCS / "images" / "gallery"
    folder.mkdir(exist_ok=True)
    shipped = learned()
    for one in shipped:
        (folder / f"{one.name}.svg").write_text(picture(one.name))
    (DOCS / "gallery.md").write_text(page(shipped))
    controls = DOCS / "images" / "controls"
    controls.mkdir(exist_ok=True)
    for method in OF_METHODS:
        (controls / f"{method}.svg").write_text(controls_of(method))


def learned() -> list[ShippedSchedule]:
    """The learned schedules of the package."""
    return [shipped for shipped in list_schedules() if shipped.kind == "learned"]


def picture(name: str) -> str:
    """A learned schedule as SVG."""
    played = PlayedSchedule(read_schedule(name))
    progress = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    layers = tuple(layer.name for layer in played.layers)
    return schedules_svg([Drawn(name, layers, played(progress, played.layers))])


def controls_of(method: str) -> str:
    """The controls of a method under a hand-coded schedule, for three layers, as SVG."""
    name = OF_METHODS[method]
    progress = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    values = hand_coded(method)[name](progress, LAYERS)
    return schedules_svg([Drawn(name, tuple(layer.name for layer in LAYERS), values)])


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
