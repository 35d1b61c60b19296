"""The gallery shows the learned schedules that ship, as they are."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from metasched.schedules.table import families

ROOT = Path(__file__).parents[2]
GALLERY = runpy.run_path(str(ROOT / "scripts" / "gallery.py"))


def test_the_page_is_what_the_script_writes() -> None:
    shipped = GALLERY["learned"]()
    assert (ROOT / "docs" / "gallery.md").read_text("utf-8") == GALLERY["page"](shipped)
    pictures = {path.stem for path in (ROOT / "docs" / "images" / "gallery").glob("*.svg")}
    assert pictures == {one.name for one in shipped}


def test_each_method_with_a_schedule_has_a_picture_of_its_controls() -> None:
    page = (ROOT / "docs" / "methods.md").read_text("utf-8")
    moving = {family for family in families() if family not in ("float", "ste")}  # these have no control
    assert {*GALLERY["OF_METHODS"]} == moving
    for method, name in GALLERY["OF_METHODS"].items():
        assert f"![Controls of {name} by layer over progress](images/controls/{method}.svg)" in page
        kept = (ROOT / "docs" / "images" / "controls" / f"{method}.svg").read_text("utf-8")
        drawn = GALLERY["controls_of"](method)
        assert ElementTree.fromstring(drawn).get("aria-label", "").startswith(f"{name}: ")
        assert len(kept) == len(drawn)  # last digits may differ between processors


def test_a_picture_is_of_the_schedule() -> None:
    kept = (ROOT / "docs" / "images" / "gallery" / "digits_inq.svg").read_text("utf-8")
    drawn = GALLERY["picture"]("digits_inq")
    for text in (kept, drawn):
        assert ElementTree.fromstring(text).get("aria-label", "").startswith("digits_inq: freeze_fraction of ")
    assert len(kept) == len(drawn)  # last digits may differ between processors
