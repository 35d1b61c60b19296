from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.io.json_lines import JsonLines, read_json_lines
from metasched.io.run_folder import RunFolder
from metasched.tracking.config import TrackingConfig
from metasched.tracking.metrics import AXES, METRICS, unknown_metrics
from metasched.tracking.opening import open_tracker
from metasched.tracking.tracker import Memory, Several


class Failing(Memory):
    """Fails in one of its methods."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.calls = 0

        def fail(*_: Any) -> None:
            self.calls += 1
            raise ConnectionError("no\nnetwork")

        setattr(self, method, fail)


def use(tracker: Several) -> None:
    for step in (1, 2, 3):
        tracker.log({"outer/step": step, "outer/loss": 0.5 / step})
    tracker.artifact(Path("x/schedule.json"), "learned", "schedule", {"sha256": "ab"})
    tracker.table("comparison", ["compare/arm", "compare/score"], [["learned", 0.5]])
    tracker.picture("scores_by_arm", Path("x/comparison.png"))
    tracker.close()


@pytest.mark.parametrize("method", ["log", "artifact", "table", "picture", "close"])
def test_one_that_fails_is_dropped_with_one_warning_and_the_others_go_on(method: str) -> None:
    before, failing, after = Memory(), Failing(method), Memory()
    with pytest.warns(RuntimeWarning) as caught:
        use(Several([before, failing, after]))
    assert [str(w.message) for w in caught] == [
        "Failing failed (ConnectionError: no network); the run goes on without it"
    ]
    assert caught[0].filename == __file__
    assert failing.calls == 1
    for tracker in (before, after):
        assert tracker.rows == [{"outer/step": s, "outer/loss": 0.5 / s} for s in (1, 2, 3)]
        assert tracker.artifacts == [(Path("x/schedule.json"), "learned", "schedule", {"sha256": "ab"})]
        assert tracker.tables == {"comparison": (["compare/arm", "compare/score"], [["learned", 0.5]])}
        assert tracker.pictures == {"scores_by_arm": Path("x/comparison.png")}
        assert tracker.closed


def test_json_lines_hold_everything(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    tracker.log({"outer/step": 1, "outer/loss": float("nan"), "outer/best": float("-inf"), "select/name": "a"})
    assert path.read_text() == '{"outer/step": 1, "outer/loss": "nan", "outer/best": "-inf", "select/name": "a"}\n'
    tracker.artifact(tmp_path / "schedule.json", "learned", "schedule", {"metric": 0.5})
    tracker.table("comparison", ("arm", "score"), [("a", float("inf"))])
    tracker.picture("scores_by_arm", tmp_path / "comparison.png")
    tracker.close()
    assert read_json_lines(path)[1:] == [
        {"artifact": "learned", "kind": "schedule", "file": "schedule.json", "metadata": {"metric": 0.5}},
        {"table": "comparison", "columns": ["arm", "score"], "rows": [["a", "inf"]]},
        {"picture": "scores_by_arm", "file": "comparison.png"},
    ]


def test_json_lines_go_on_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"outer/step": 1}\n{"outer/st')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: the last line is incomplete"):
        assert read_json_lines(path) == [{"outer/step": 1}]
    for step in (2, 3):  # opened twice: what is there stays
        tracker = JsonLines(path)
        tracker.log({"outer/step": step})
        tracker.close()
    assert path.read_text() == '{"outer/step": 1}\n{"outer/step": 2}\n{"outer/step": 3}\n'


def test_a_torn_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"outer/step": 1}\n{"outer/st\n{"outer/step": 3}\n')
    with pytest.raises(MetaschedError, match=r"metrics\.jsonl: line 2: is not JSON"):
        read_json_lines(path)


def test_names_of_metrics() -> None:
    plain = [name for name in METRICS if "<" not in name]
    assert unknown_metrics(plain) == []
    assert unknown_metrics(["schedule/weight_noise/features.0.conv"]) == []
    wrong = ["outer/los", "loss", "schedule/weight_noise", "schedule/a/b/c", "outer/loss/x", "xouter/loss"]
    assert unknown_metrics(wrong) == wrong
    assert all(metric.unit and metric.meaning for metric in METRICS.values())
    assert set(AXES.values()) <= set(METRICS)
    with pytest.raises(AssertionError, match="outer/los"):
        Memory().log({"outer/los": 1})


def test_disabled_wandb_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker = open_tracker(Experiment(tracking=TrackingConfig(wandb="disabled")), RunFolder(tmp_path), "outer")
    tracker.log({"outer/step": 1})
    tracker.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"outer/step": 1}


def test_wandb_that_is_not_installed_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(RuntimeWarning, match="Wandb failed .*; the run goes on without it") as caught:
        tracker = open_tracker(Experiment(), RunFolder(tmp_path), "outer")
        use(tracker)
    assert len(caught) == 1
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 6
