"""The code gives what it gave when the golden values were recorded (see scripts/golden.py, which records them).

On the recorded processor, instruction set and version of torch: the same bits. Elsewhere the numbers agree to 1e-12 of
the largest of their entry (a few cases less, see there), and scores (shares of examples) are equal. Nothing is skipped
anywhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loading import loaded

ROOT = Path(__file__).parents[2]


GOLDEN = loaded(ROOT / "scripts" / "golden.py")
WORK = {file: GOLDEN.cases(file) for file in GOLDEN.FILES}
RECORDED = {file: GOLDEN.golden(file) for file in GOLDEN.FILES}


@pytest.mark.parametrize(("file", "case"), [(file, case) for file, work in WORK.items() for case in work])
def test_it_gives_what_it_gave(file: str, case: str) -> None:
    bits = GOLDEN.same_machine(RECORDED[file]["environment"])
    found = GOLDEN.record(WORK[file][case])
    differences = GOLDEN.differences(found, RECORDED[file]["cases"][case], bits=bits, tolerance=GOLDEN.tolerance(case))
    assert differences == []


@pytest.mark.parametrize("file", WORK)
def test_every_case_is_recorded_and_no_other(file: str) -> None:
    assert list(RECORDED[file]["cases"]) == list(WORK[file])


def test_resumed_runs_are_recorded_with_the_bits_of_whole_ones() -> None:
    runs = RECORDED["runs"]["cases"]
    resumed = [name for name in runs if name.endswith("/resumed")]
    assert len(resumed) == 2
    for name in resumed:
        assert runs[name] == runs[name.removesuffix("/resumed")]


def test_a_last_bit_and_a_small_change_are_seen() -> None:
    values = torch.tensor([1.0, -3.0])
    last_bit = torch.tensor([1.0, -3.0 * (1 + 2**-52)])
    recorded = GOLDEN.record(lambda: {"losses": values, "scores": [0.5], "text": "a 1.5"})

    def lines(bits: bool, **changed: object) -> list[str]:
        entries = {"losses": values, "scores": [0.5], "text": "a 1.5", **changed}
        found = GOLDEN.record(lambda: {name: entry for name, entry in entries.items() if entry is not None})
        return [line.split(":")[0] for line in GOLDEN.differences(found, recorded, bits=bits)]

    assert lines(True) == lines(False) == []
    assert lines(True, losses=last_bit) == ["losses"] and lines(False, losses=last_bit) == []
    assert lines(False, losses=values * (1 + 1e-11)) == ["losses"]
    assert lines(False, losses=values * torch.nan) == ["losses"]
    assert lines(False, scores=[0.5 + 1e-13]) == ["scores"]
    assert lines(False, text="b 1.5") == ["text"] and lines(False, text="a 2e-05") == []
    assert lines(True, text="a 2e-05") == ["text"]
    assert lines(False, scores=None) == ["scores"] and lines(False, more=values) == ["more"]
