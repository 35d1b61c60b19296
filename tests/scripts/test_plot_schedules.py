"""Schedule files drawn side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from loading import loaded
from PIL import Image

ROOT = Path(__file__).parents[2]
FILES = [str(ROOT / "experiments" / "baselines" / f"inq_{name}.json") for name in ("linear", "cubic")]


def test_a_panel_for_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = loaded(ROOT / "scripts" / "plot_schedules.py")
    widths = []
    for files in (FILES[:1], FILES):
        script.main([*files, "--control", "freeze_fraction", "-o", str(tmp_path / "out.png")])
        with Image.open(tmp_path / "out.png") as picture:
            widths.append(picture.width)
    assert widths[1] > 1.5 * widths[0]
    with pytest.raises(SystemExit):
        script.main([FILES[0], "--control", "weight_noise", "-o", str(tmp_path / "none.png")])
    assert "inq_linear.json has no control weight_noise; it has freeze_fraction" in capsys.readouterr().err
    for wrong, said in ((["nothing.json"], "nothing.json"), (FILES[:1] * 2, "a second schedule named 'inq_linear'")):
        with pytest.raises(SystemExit) as stopped:
            script.main([*wrong, "--control", "freeze_fraction", "-o", str(tmp_path / "none.png")])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()
