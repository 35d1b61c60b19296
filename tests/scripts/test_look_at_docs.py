"""A browser finds pages that scroll sideways and texts that are too pale, and nothing in a page without either."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

LOOK = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "look_at_docs.py"))["main"]
PAGE = "<html><body><article><p style='color:{}'>words</p>{}</article></body></html>"
WIDE = "<div style='width:600px'>wide</div>"

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None and shutil.which("google-chrome") is None, reason="optional: Chromium"
)


def test_what_is_wide_or_pale_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.html").write_text(PAGE.format("#555", f"<pre style='overflow-x: auto'>{WIDE}</pre>"))
    assert LOOK([str(tmp_path)]) == 0 and "1 pages" in capsys.readouterr().out
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "bad.html").write_text(PAGE.format("#bbb", WIDE))
    assert LOOK([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "good.html" not in said and "log/bad.html at 390, light: scrolls to 6" in said
    assert "log/bad.html at 1280, light: is too pale\n    contrast 1.92: P. words\n" in said
    assert "bad.html at 1280, light: scrolls" not in said
