"""The HTML report: whole, self-contained, and safe with whatever a file's name holds."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Mapping
from colorsys import hls_to_rgb
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.errors import MetaschedError
from metasched.evaluation.comparison import Arm, Comparison, Drawn, comparison_of
from metasched.evaluation.contenders import Contender
from metasched.evaluation.figures import POINTS, compute_figure
from metasched.evaluation.look import DARK, LIGHT, LINE_DARK, LINE_LIGHT, TEXT, hue
from metasched.evaluation.report import write_report
from metasched.evaluation.tuned_rate import TunedRate
from metasched.exchange.format import Spent
from metasched.io.run_folder import RunFolder
from metasched.methods.config import MethodConfig
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem

PROBLEM = Experiment(
    task=TaskConfig(model="mlp", width=4, train=100, batch=10, steps=5), method=MethodConfig(name="ana")
)
HOSTILE = '<script>alert(1)</script>$x$&"'


class Page(HTMLParser):
    """Elements that are open, all attributes that point somewhere, the text of table rows, and what charts say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pointers: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.charts: list[str] = []
        self.lost: list[str] = []  # tables outside of a place that scrolls
        self.fields: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.pointers += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "table" and self._class != "wide":
            self.lost.append(tag)
        if tag == "svg" and found.get("role") == "img":
            self.charts.append(found["aria-label"] or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "svg", "polyline"):
            self.fields.append({"tag": tag, **found})
        self._class = found.get("class")
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


@pytest.fixture
def written(tmp_path: Path) -> str:
    experiment = PROBLEM
    family = hand_coded("ana")
    arms = (
        Arm(HOSTILE, 5, (0.5, 0.6, 0.7), 15),
        Arm("ana_static", 5, (0.4, 0.5, 0.5), 15),
        Arm("ana_linear", 5, (0.1, 0.2, 0.3), 15),
        Arm("lsq", 5, (0.1, 0.1, 0.1), 15, tuned=TunedRate(0.02, ((0.01, 0.25), (0.02, 0.75)), 4, 40)),
    )
    comparison = Comparison((1, 2, 3), arms, (HOSTILE,))
    folder = RunFolder(tmp_path)
    folder.environment.write_text('{"command": "metasched train a.yaml", "torch": "0"}')
    rows = [{"outer/step": i + 1, "outer/score": 0.5 + i / 4, "outer/loss": 1.0} for i in range(2)]
    folder.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    schedules = {HOSTILE: family["ana_cubic"], "ana_static": family["ana_static"], "ana_linear": family["ana_linear"]}
    contenders = {name: Contender(experiment.problem, schedule) for name, schedule in schedules.items()}
    start = ("ana_linear", contenders["ana_linear"])
    path = write_report(to_dict(replace(experiment, name="tiny")), comparison, contenders, folder, start=start)
    return path.read_text("utf-8")


def test_it_is_well_formed_and_loads_nothing(written: str) -> None:
    page = Page(written)
    assert page.open == [] and page.pointers == []
    assert page.tags.count("script") == 1 and not {"link", "iframe", "img", "object"} & {*page.tags}
    assert "url(" not in written and "@import" not in written and "://" not in written
    assert "default-src 'none'" in written  # and a browser would not load it either


def test_every_table_scrolls_in_its_own_place_and_its_cells_know_their_column(written: str) -> None:
    page = Page(written)
    assert page.lost == [] and page.tags.count("table") == 3
    assert all(field["data-label"] for field in page.fields if field["tag"] == "td")


def test_its_first_words_are_the_verdict_then_the_schedules(written: str) -> None:
    text = written[written.index("<h1>") :]
    order = [
        text.index(part) for part in ('class="verdict', "<dl>", "Schedules</h2>", "Learning</h2>", "After 5 steps</h2>")
    ]
    assert order == sorted(order)
    assert "Above no schedule.</strong> After 5 steps: &lt;script&gt;" in text


def test_its_table_is_the_comparison(written: str) -> None:
    rows = Page(written).rows
    assert [row[0] for row in rows[:5]] == ["schedule", HOSTILE, "ana_static", "ana_linear", "lsq"]
    assert rows[2][1:4] == ["0.4667", "0.0577", "3"]
    assert rows[4][1:5] == ["0.1000", "0.0000", "3", "0.02"]
    assert rows[5] == ["schedule", f"{HOSTILE} - this", "95 % interval", "p", "p (Holm)"]
    assert [row[0] for row in rows[6:9]] == ["lsq", "ana_linear", "ana_static"]
    assert rows[7][1] == "+0.4000"


def test_it_shows_what_was_tried_to_tune_learning_rates(written: str) -> None:
    assert Page(written).rows[9:] == [
        ["arm", "learning rate", "mean", "n", "chosen"],
        ["lsq", "0.01", "0.2500", "4"],
        ["lsq", "0.02", "0.7500", "4", "yes"],
    ]


def test_its_charts_say_what_they_show(written: str) -> None:
    page = Page(written)
    said = page.charts
    layers = ", ".join(f"linear{i} from 0.5 to 0" for i in (1, 2, 3))
    assert said[0] == f"{HOSTILE}, weight_noise over progress: {layers}"
    names = [f"{name}, weight_noise" for name in ("start: ana_linear", "best published: ana_static")]
    assert [text.split(" over ")[0] for text in said[1:3]] == names
    of = "meta-validation, mean over inner runs"
    assert f"Score of hardened networks, {of} over outer step: score from 0.5 to 0.75" in said
    assert f"Scores. {HOSTILE}: 0.6000; ana_static: 0.4667; ana_linear: 0.2000; lsq: 0.1000" in said
    assert any(text.startswith(f"{HOSTILE} minus each other. lsq: +0.5000, p ") for text in said)
    assert any(text.startswith(f"Score over compute. 1 {HOSTILE}") for text in said) is False  # no arm cost anything
    assert torch.get_default_dtype() == torch.float64  # drawing left no trace


def test_a_curve_of_its_charts_is_that_of_the_schedule(written: str) -> None:
    page = Page(written)
    chart = next(field for field in page.fields if "data-range" in field)
    line = page.fields[page.fields.index(chart) + 1]
    left, right, top, bottom = map(float, (chart["data-frame"] or "").split())
    x0, x1, y0, y1 = map(float, (chart["data-range"] or "").split())
    points = torch.tensor([[float(v) for v in pair.split(",")] for pair in (line["points"] or "").split()])
    u = x0 + (points[:, 0] - left) / (right - left) * (x1 - x0)
    values = y0 + (bottom - points[:, 1]) / (bottom - top) * (y1 - y0)
    network = build_problem(PROBLEM.problem).network
    schedule = hand_coded("ana")["ana_cubic"](u.double().clamp(0, 1), network.layers)
    control = next(name for name, v in schedule.items() if float(v.max()) > float(v.min()))
    torch.testing.assert_close(values.double(), schedule[control][:, 0].double(), atol=0.01, rtol=0)


def test_it_says_where_it_was_measured(written: str) -> None:
    for part in ("<dt>command</dt><dd>metasched train a.yaml</dd>", "<dt>torch</dt>", "<dt>processor</dt>"):
        assert part in written


def luminance(color: tuple[float, float, float]) -> float:
    """Relative luminance of WCAG 2, of sRGB in [0, 1]."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def rgb(color: str) -> tuple[float, float, float]:
    r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_its_text_can_be_read(colors: Mapping[str, str]) -> None:
    ratios = {(ink, on): contrast(rgb(colors[ink]), rgb(colors[on])) for ink in TEXT for on in ("page", "card")}
    assert min(ratios.values()) >= 4.5, ratios
    assert contrast(rgb("#ffffff"), rgb("#767676")) == pytest.approx(4.54, abs=0.01)  # the known limit of grey text


@pytest.mark.parametrize(("colors", "line"), [(LIGHT, LINE_LIGHT), (DARK, LINE_DARK)], ids=["light", "dark"])
def test_its_curves_can_be_seen(colors: Mapping[str, str], line: tuple[int, int]) -> None:
    drawn = [hls_to_rgb(hue(i, 20) / 360, line[1] / 100, line[0] / 100) for i in range(20)]
    assert min(contrast(color, rgb(colors["page"])) for color in drawn) >= 3


def test_a_comparison_without_a_run_folder_has_a_page_too(tmp_path: Path) -> None:
    arms = (Arm(HOSTILE, 5, (0.5, 0.6, 0.7), 15), Arm("ste", 5, (0.1, 0.2, float("nan")), 15))
    values = {"weight_noise": torch.linspace(1, 0, POINTS)[:, None]}
    comparison = Comparison((1, 2, 3), arms, (HOSTILE,), (Drawn(HOSTILE, ("0",), values),))
    text = comparison.report(tmp_path / "a.html", HOSTILE).read_text("utf-8")
    page = Page(text)
    assert page.open == [] and page.tags.count("script") == 1 and len(page.charts) == 3
    assert [row[0] for row in page.rows] == ["schedule", HOSTILE, "ste", "schedule", "ste"]
    assert comparison == comparison_of(comparison.to_dict())  # what is drawn is no part of the result
    assert len(Page(comparison_of(comparison.to_dict()).report(tmp_path / "b.html").read_text("utf-8")).charts) == 2


def test_costs_stand_apart(tmp_path: Path) -> None:
    spent = [(Spent(by="es", inner_steps=n),) for n in (300, 300, 3000)] + [()]
    arms = tuple(Arm(f"arm {i}", 5, (0.5, 0.6 + i / 10), 10, s) for i, s in enumerate(spent))
    text = compute_figure(Comparison((1, 2), arms, ("arm 0",)), 5)
    across = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    assert len(across) == 4 and min(b - a for a, b in itertools.pairwise(sorted(across))) >= 16.9
    assert ">none</text>" in text and ">1,000</text>" in text


def test_without_pandas_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MetaschedError, match=r"^pandas: is not installed; pip install 'metasched\[dataframe\]'$"):
        Comparison((1,), (Arm("ste", 5, (0.1,), 5),), ()).to_dataframe()
