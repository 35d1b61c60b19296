"""What ``metasched show`` prints and draws."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from metasched.commands.show import write_figure
from metasched.core.errors import MetaschedError
from metasched.evaluation.comparison import Drawn
from metasched.evaluation.drawing import schedules_svg
from metasched.exchange.baselines import file_named
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.sparklines import ASCII
from metasched.exchange.summary import show_both, show_schedule
from metasched.tracking.console import open_console

NS = "{http://www.w3.org/2000/svg}"


def test_equal_neighbours_share_a_row_and_a_step_has_both_its_sides() -> None:
    stream = io.StringIO()
    show_schedule(file_named("inq_alexnet_5bit"), open_console(stream), ASCII)
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("  ")]
    layers = PlayedSchedule(file_named("inq_alexnet_5bit")).layers
    assert lines[1].split("  ")[1] == f"{layers[0].name} to {layers[-1].name} ({len(layers)})"
    assert "u<" in lines[0] and len(lines) == 2


def test_a_narrow_terminal_gets_narrow_lines() -> None:
    stream = io.StringIO()
    show_schedule(file_named("digits_inq"), open_console(stream), ASCII, columns=46)
    rows = [line for line in stream.getvalue().splitlines() if line.startswith("  ")]
    assert len(rows) == 4 and max(map(len, rows)) <= 46
    assert "<" not in rows[0]  # no moment before a jump: it has none


def test_two_schedules_show_where_they_differ_most() -> None:
    first, second = file_named("inq_linear"), file_named("inq_cubic")
    stream = io.StringIO()
    show_both(first, second, open_console(stream), ASCII)
    a, b = PlayedSchedule(first), PlayedSchedule(second)
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)
    off = (a(u, a.layers)["freeze_fraction"] - b(u, a.layers)["freeze_fraction"])[:, 0]
    row = next(line for line in stream.getvalue().splitlines() if " to " in line or line.startswith("  conv"))
    said, at = map(float, row.split()[-2:])
    worst = int(off.abs().argmax())
    assert said == pytest.approx(float(off[worst]), abs=2e-3) and at == pytest.approx(float(u[worst]), abs=0.01)
    stream = io.StringIO()
    show_both(first, first, open_console(stream))
    assert stream.getvalue().splitlines()[-1].endswith(": the same")


def test_a_figure_has_a_panel_for_each_control_that_moves_and_a_curve_for_each_layer(tmp_path: Path) -> None:
    write_figure(
        tmp_path / "a.svg", ["x/<one>.json", "inq_linear"], [file_named("ana_cubic"), file_named("inq_linear")]
    )
    tree = ElementTree.parse(tmp_path / "a.svg").getroot()
    heads = [text.text for text in tree.iter(f"{NS}text") if text.get("class") == "head"]
    assert "<one>.json: weight_noise" in heads and "inq_linear: freeze_fraction" in heads
    layers = PlayedSchedule(file_named("ana_cubic")).layers
    legend = len(layers)
    assert len(list(tree.iter(f"{NS}polyline"))) == len(heads) * len(layers) + legend
    moving = schedules_svg([Drawn("a", ("x",), {"c": torch.ones(3, 1), "d": torch.eye(3)[:, :1]})])
    assert "a: d</text>" in moving and "a: c</text>" not in moving
    with pytest.raises(MetaschedError, match="cannot be written"):
        write_figure(tmp_path / "nowhere" / "a.svg", ["a"], [file_named("ana_cubic")])
