"""The HTML report: whole, self-contained, and safe with whatever a file's name holds."""

from __future__ import annotations

import sys
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
from metasched.evaluation.page import POINTS
from metasched.evaluation.report import write_report
from metasched.evaluation.tuned_rate import TunedRate
from metasched.io.run_folder import RunFolder
from metasched.methods.config import MethodConfig
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tracking.plots import plot_comparison

HOSTILE = '<script>alert(1)</script>$x$&"'


class Page(HTMLParser):
    """Elements that are open, all attributes that point somewhere, and the text of each table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pointers: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.pointers += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


@pytest.fixture
def written(tmp_path: Path) -> str:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=4, train=100, batch=10, steps=5), method=MethodConfig(name="ana")
    )
    family = hand_coded("ana")
    arms = (
        Arm(HOSTILE, 5, (0.5, 0.6, 0.7), 15),
        Arm("ana_static", 5, (0.4, 0.5, 0.5), 15),
        Arm("ana_linear", 5, (0.1, 0.2, 0.3), 15),
        Arm("lsq", 5, (0.1, 0.1, 0.1), 15, tuned=TunedRate(0.02, ((0.01, 0.25), (0.02, 0.75)), 4, 40)),
    )
    comparison = Comparison((1, 2, 3), arms, (HOSTILE,))
    folder = RunFolder(tmp_path)
    plot_comparison(folder.plots / "comparison.png", {5: {arm.name: arm.scores for arm in arms}})
    schedules = {HOSTILE: family["ana_cubic"], "ana_static": family["ana_static"], "ana_linear": family["ana_linear"]}
    contenders = {name: Contender(experiment.problem, schedule) for name, schedule in schedules.items()}
    path = write_report(to_dict(replace(experiment, name="tiny")), comparison, contenders, folder)
    return path.read_text("utf-8")


def test_it_is_well_formed_and_needs_nothing_else(written: str) -> None:
    page = Page(written)
    assert page.open == []
    assert page.pointers and all(pointer.startswith("data:image/png;base64,") for pointer in page.pointers)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert "url(" not in written and "@import" not in written


def test_its_table_is_the_comparison(written: str) -> None:
    rows = Page(written).rows
    assert [row[0] for row in rows[:5]] == ["schedule", HOSTILE, "ana_static", "ana_linear", "lsq"]
    assert rows[0][-1] == "p (Holm)"
    assert rows[2][1:4] == ["0.4667", "0.0577", "3"]
    assert rows[4][1:5] == ["0.1000", "0.0000", "3", "0.02"]
    assert any(cell.startswith("+0.4000 [") for cell in rows[3])


def test_it_shows_what_was_tried_to_tune_learning_rates(written: str) -> None:
    assert Page(written).rows[5:] == [
        ["arm", "learning rate", "mean", "n"],
        ["lsq", "0.01", "0.2500", "4"],
        ["lsq", "0.02", "0.7500", "4", "chosen"],
    ]


def test_its_pictures_are_pictures(written: str) -> None:
    assert len(Page(written).pointers) == 1 + 1 + 3  # differences, scores, a schedule each
    assert torch.get_default_dtype() == torch.float64  # drawing left no trace


def test_a_comparison_without_a_run_folder_has_a_page_too(tmp_path: Path) -> None:
    arms = (Arm(HOSTILE, 5, (0.5, 0.6, 0.7), 15), Arm("ste", 5, (0.1, 0.2, float("nan")), 15))
    values = {"weight_noise": torch.linspace(1, 0, POINTS)[:, None]}
    comparison = Comparison((1, 2, 3), arms, (HOSTILE,), (Drawn(HOSTILE, ("0",), values),))
    text = comparison.report(tmp_path / "a.html", HOSTILE).read_text("utf-8")
    page = Page(text)
    assert page.open == [] and "script" not in page.tags and len(page.pointers) == 3
    assert [row[0] for row in page.rows] == ["schedule", HOSTILE, "ste"]
    assert comparison == comparison_of(comparison.to_dict())  # what is drawn is no part of the result
    assert len(Page(comparison_of(comparison.to_dict()).report(tmp_path / "b.html").read_text("utf-8")).pointers) == 2


def test_without_pandas_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MetaschedError, match=r"^pandas: is not installed; pip install 'metasched\[dataframe\]'$"):
        Comparison((1,), (Arm("ste", 5, (0.1,), 5),), ()).to_dataframe()
