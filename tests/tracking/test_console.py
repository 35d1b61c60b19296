from __future__ import annotations

import io
import re

import pytest

from metasched.tracking.console import open_console, watched

METRICS = {
    "outer/step": 2,
    "outer/loss": 0.51234,
    "outer/score": 0.875,
    "outer/skipped": 1,
    "outer/seconds": 1.26,
    "outer/gradient_norm": 0.00123,
    "outer/clipped": 3,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A second more at each look."""

    def __init__(self) -> None:
        self.now = -1.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def use(stream: io.StringIO) -> str:
    console = open_console(stream, Clock())
    console.note("a note [red]with brackets[/red]")
    console.progress("outer step", 1, 3)
    console.outer(2, 3, METRICS)
    console.outer(3, 3, METRICS)
    console.table("scores [x]", ["arm", "score"], [["learned", 0.87123456], ["[b]", 1], ["nan", float("nan")]])
    console.close()
    return stream.getvalue()


def test_plain_lines() -> None:
    step = "loss 0.5123  score 0.8750  skipped 1  |gradient| 1.2e-03"
    assert use(io.StringIO()) == (
        "a note [red]with brackets[/red]\n"
        f"outer step 2/3  {step}  1.0/s, 1 s left\n"
        f"outer step 3/3  {step}  in 2 s\n"
        "scores [x]\n"
        "  arm      score\n"
        "  learned  0.8712\n"
        "  [b]      1\n"
        "  nan      nan\n"
    )


def test_plain_lines_are_a_few_whatever_there_is_to_do() -> None:
    stream = io.StringIO()
    console = open_console(stream, Clock())
    assert list(watched(console, "runs", range(200), 200)) == list(range(200))
    assert [list(watched(console, "parts", [[1, 2], [3]], 3))] == [[[1, 2], [3]]]
    lines = stream.getvalue().splitlines()
    assert lines[:5] == [
        "runs 40/200  1.0/s, 2:40 left",
        "runs 80/200  1.0/s, 2:00 left",
        "runs 120/200  1.0/s, 1:20 left",
        "runs 160/200  1.0/s, 40 s left",
        "runs 200/200  in 3:20",
    ]
    assert lines[5:] == ["parts 2/3  2.0/s, 0 s left", "parts 3/3  in 2 s"]


def test_fast_work_has_no_two_lines_in_a_second() -> None:
    times = iter([0.0, 0.5, 1.1, 1.2, 1.3, 1.4])
    stream = io.StringIO()
    assert len(list(watched(open_console(stream, lambda: next(times)), "runs", range(5), 5))) == 5
    assert stream.getvalue() == "runs 2/5  1.8/s, 2 s left\nruns 5/5  in 1 s\n"


def test_a_line_comes_after_a_minute_in_any_case() -> None:
    times = iter([0.0, 10.0, 61.0, 70.0])
    stream = io.StringIO()
    console = open_console(stream, lambda: next(times))
    for done in range(4):
        console.progress("runs", done, 1000)
    assert stream.getvalue() == "runs 2/1000  30.5 s each, 8:27:19 left\n"


def test_a_resumed_bar_counts_from_where_it_starts() -> None:
    stream = io.StringIO()
    console = open_console(stream, Clock())
    console.progress("runs", 90, 100)
    console.progress("runs", 95, 100)
    console.progress("runs", 100, 100)
    assert stream.getvalue() == "runs 100/100  in 2 s\n"


def test_terminal_shows_the_same_and_gives_the_cursor_back() -> None:
    text = use(Terminal())
    for part in ("a note [red]with brackets[/red]", "3/3", "loss 0.5123", "scores [x]", "0.8712", "[b]", "in 2 s"):
        assert part in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


@pytest.mark.parametrize(("name", "value"), [("JPY_PARENT_PID", "1"), ("TERM", "dumb")])
def test_a_cell_of_a_notebook_keeps_no_refresh_of_a_bar(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert use(Terminal()) == use(io.StringIO())


@pytest.mark.parametrize(("columns", "shown"), [(80, "score 0.8750"), (60, "loss 0.5123"), (40, "in 2 s")])
def test_a_bar_cuts_no_number_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, shown: str) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", use(Terminal()))
    assert shown in text and "…" not in text
    assert ("━" in text) == (columns >= 60)


def test_a_table_breaks_no_name_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["temperature_hestia", 0.8602, "+0.0072 [-0.0150, +0.0294]", "falls slowly"]]

    def shown(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        stream = Terminal()
        open_console(stream).table("scores", ["schedule", "mean", "difference", "what"], rows)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).splitlines()

    assert any(line.startswith("temperature_hestia  0.8602") for line in shown(60))
    assert shown(40)[2:] == [
        "temperature_hestia",
        "  mean: 0.8602; difference: +0.0072",
        "  [-0.0150, +0.0294]; what: falls",
        "  slowly",
    ]


def test_interrupted_progress_gives_the_cursor_back() -> None:
    stream = Terminal()
    console = open_console(stream)
    console.outer(1, 3, METRICS)
    console.close()
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_without_color_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    colored = re.compile(r"\x1b\[[0-9;]*3[0-9]")

    def shown() -> str:
        stream = Terminal()
        open_console(stream).table("scores", ["arm"], [["learned"], ["ste"]], marked=("learned",))
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colored.search(shown())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colored.search(shown()) and "learned" in shown()
