"""Approximates a learned schedule by a simple rule with two to seven numbers per control.

    python scripts/distil.py digits_inq --form window --name rule_inq -o experiments/learned/rule_inq.json

``level`` is for a control that hardly changes before its end: a value a + b d, kept until the last step, where d is the
relative depth of the layer. ``window`` is the nearest schedule of the family in schedules/family.py. Both are fitted by
least squares at 25 knots. Prints the numbers and the distance between the rule and the schedule.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from metasched.exchange.export import export
from metasched.exchange.format import Provenance, ScheduleFile
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.methods import build_method
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.family import ScheduleFamily

KNOTS = 25


def level(values: torch.Tensor, depth: torch.Tensor, control: Control) -> tuple[torch.Tensor, str]:
    """Values [K, L] of a + b d for depths d [L], with the control's end in the last row; and the rule as text."""
    held = values[:-1].mean(0) if control.end is not None else values.mean(0)
    design = torch.stack([torch.ones_like(depth), depth], dim=1)
    a, b = torch.linalg.lstsq(design, held[:, None]).solution[:, 0].tolist()
    rule = (a + b * depth).clamp(control.low, control.high).expand_as(values).clone()
    if control.end is not None:
        rule[-1] = control.end
    return rule, f"{control.name} = {a:.3f} {b:+.3f} d until the last step"


def distil(file: ScheduleFile, form: str, name: str) -> tuple[ScheduleFile, list[str]]:
    """The rule as a schedule file, and as text."""
    method = build_method(MethodConfig(name=file.method.name, **file.method.parameters))  # type: ignore[arg-type]
    learned = PlayedSchedule(file)
    knots, layers = progress_of_steps(KNOTS), learned.layers
    values = {n: v.detach() for n, v in learned(knots, layers).items()}
    moving = [c for c in method.controls if float(values[c.name].std()) > 0]
    rule, said = dict(values), []
    if form == "window":
        family = ScheduleFamily(method.controls, learned, [c.name for c in moving], knots=KNOTS, layers=layers)
        rule |= {n: v.detach() for n, v in family.at_knots(layers).items()}
        for control, window in zip(family.learned, family.windows, strict=True):
            numbers = ", ".join(f"{n} {float(p.detach()):+.3f}" for n, p in window.named_parameters())
            said.append(f"{control.name}: {numbers} (metasched/schedules/family.py)")
    else:
        depth = torch.tensor([layer.depth for layer in layers], dtype=torch.float64)
        for control in moving:
            rule[control.name], words = level(values[control.name], depth, control)
            said.append(words)
    for control in moving:
        off = rule[control.name] - values[control.name]
        said.append(f"{control.name}: root mean square {float(off.square().mean().sqrt()):.3f} from what was learned")
    origin = f"{form} rule taken from {file.provenance.name}: {'; '.join(said)}"
    made = export(
        lambda progress, layers: rule,
        method_name=file.method.name,
        method_parameters=file.method.parameters,
        controls=method.controls,
        layers=layers,
        knots=knots,
        interpolation="linear",
        provenance=Provenance(kind="learned", name=name, citation=origin, spent=file.provenance.spent),
    )
    return made, said


def main(argv: Sequence[str] | None = None) -> None:
    """Read, fit, write and say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("schedule", help="schedule file, or the name of a learned schedule")
    parser.add_argument("--form", choices=["level", "window"], required=True)
    parser.add_argument("--name", required=True, help="of the rule")
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args(argv)
    made, said = distil(read_schedule(asked.schedule), asked.form, asked.name)
    write_schedule(asked.output, made)
    print("\n".join(said))


if __name__ == "__main__":
    main()
