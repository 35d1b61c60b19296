"""A small valid schedule file, kept as it was written: it has to be readable for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "formats" / "schedule_v1_noises.json"


@pytest.fixture
def golden() -> str:
    return GOLDEN.read_text("ascii")
