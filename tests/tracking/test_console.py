from __future__ import annotations

import io

from metasched.tracking.console import open_console

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


def use(stream: io.StringIO) -> str:
    console = open_console(stream)
    console.note("a note [red]with brackets[/red]")
    console.outer(2, 3, METRICS)
    console.outer(3, 3, METRICS)
    console.table("scores [x]", ["arm", "score"], [["learned", 0.87123456], ["[b]", 1], ["nan", float("nan")]])
    console.close()
    return stream.getvalue()


def test_plain_lines() -> None:
    step = "loss 0.5123  score 0.8750  skipped 1  seconds 1.3  |gradient| 1.2e-03"
    assert use(io.StringIO()) == (
        "a note [red]with brackets[/red]\n"
        f"outer step 2/3  {step}\n"
        f"outer step 3/3  {step}\n"
        "scores [x]\n"
        "  arm      score\n"
        "  learned  0.8712\n"
        "  [b]      1\n"
        "  nan      nan\n"
    )


def test_terminal_shows_the_same_and_gives_the_cursor_back() -> None:
    text = use(Terminal())
    for part in ("a note [red]with brackets[/red]", "3/3", "loss 0.5123", "scores [x]", "0.8712", "[b]"):
        assert part in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_interrupted_progress_gives_the_cursor_back() -> None:
    stream = Terminal()
    console = open_console(stream)
    console.outer(1, 3, METRICS)
    console.close()
    assert stream.getvalue().count("\x1b[?25h") == 1
