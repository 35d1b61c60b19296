"""A small valid schedule file, kept as it was written when version 1 was new: it has to be readable for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "formats" / "schedule_v1.json"


@pytest.fixture
def golden() -> str:
    return GOLDEN.read_text("ascii")
