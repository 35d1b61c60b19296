"""The examples of both trainers: what they play is what the plain player gives, also across a stop in the middle."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from loading import loaded

from metasched.exchange.player import SchedulePlayer

ROOT = Path(__file__).parents[2]
LEARNED = "digits_ana"
STEPS, STOP = 12, 5

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, whose warnings differ from release to release


def load(name: str, package: str, extra: str) -> ModuleType:
    pytest.importorskip(package, reason=f"optional: {extra}")
    return loaded(ROOT / "examples" / f"{name}.py")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("huggingface_trainer", "transformers", "transformers"),
        ("lightning_trainer", "pytorch_lightning", "lightning"),
    ],
)
def test_the_example_goes_on_where_it_stopped(
    name: str, package: str, extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_default_dtype(torch.float32)
    example = load(name, package, extra)
    player = SchedulePlayer(LEARNED, STEPS)
    wanted = [(step, player.at(step)) for step in range(STEPS)]
    parts = ["--folder", str(tmp_path / "run"), "--steps", str(STEPS)]
    stopped = example.main([*parts, "--stop", str(STOP)])
    resumed = example.main([*parts, "--resume"])
    assert stopped.played + resumed.played == wanted and len(stopped.played) == STOP

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("step", "accuracy"))]
    last = next(line for line in lines if line.startswith("step  10 weight_noise:"))
    shown = [(layer, f"{values['weight_noise']:.3f}") for layer, values in wanted[10][1].items()]
    assert re.findall(r"(conv\d) (\d\.\d{3})", last) == shown
    assert lines[-1] == f"accuracy of the hardened network: {resumed.accuracy:.4f}"
