"""Rules taken from learned schedules: exact where the schedule is a rule already, and honest about the distance."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from loading import loaded

from metasched import read_schedule
from metasched.exchange.played import PlayedSchedule
from metasched.schedules.base import progress_of_steps

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded(ROOT / "scripts" / "distil.py")


def values(path: str | Path) -> torch.Tensor:
    played = PlayedSchedule(read_schedule(path))
    return played(progress_of_steps(25), played.layers)["weight_noise"].detach()


def test_a_level_rule_is_the_least_squares_line_over_depth(script, tmp_path, capsys) -> None:
    learned = "digits_ana"
    script.main([learned, "--form", "level", "--name", "rule", "-o", str(tmp_path / "rule.json")])
    spent = [read_schedule(path).provenance.spent for path in (tmp_path / "rule.json", learned)]
    assert spent[0] == spent[1] != ()  # a rule costs what it was taken from
    found, wanted = values(tmp_path / "rule.json"), values(learned)
    slope, offset = np.polyfit(np.arange(9) / 8, wanted[:-1].mean(0).numpy(), 1)
    assert bool((found[-1] == 0).all())
    torch.testing.assert_close(found[0], torch.tensor(offset + slope * np.arange(9) / 8))
    assert torch.equal(found[0], found[23])
    off = float((found - wanted).square().mean().sqrt())
    said = capsys.readouterr().out
    assert f"root mean square {off:.3f}" in said and f"{offset:.3f} {slope:+.3f} d" in said


def test_a_rule_of_a_rule_is_itself(script, tmp_path) -> None:
    for form, name in (("level", "rule_ana"), ("window", "rule_inq")):
        rule = ROOT / "experiments" / "learned" / f"{name}.json"
        again, said = script.distil(read_schedule(rule), form, "again")
        assert all("root mean square 0.0" in line for line in said if "root mean square" in line), said
        assert again.provenance.kind == "learned" and again.provenance.citation.startswith(f"{form} rule")


def test_the_kept_rules_are_those_of_the_kept_schedules(script) -> None:
    for form, name, source in (("level", "rule_ana", "digits_ana"), ("window", "rule_inq", "digits_inq")):
        kept = read_schedule(ROOT / "experiments" / "learned" / f"{name}.json")
        made, _ = script.distil(read_schedule(source), form, name)
        for control, curves in made.values.items():
            np.testing.assert_allclose(np.array(kept.values[control]), np.array(curves), atol=1e-3)
