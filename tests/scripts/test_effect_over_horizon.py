"""The effect over the horizon: its points are paired differences, and the plot has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from loading import loaded
from PIL import Image
from scipy import stats

ROOT = Path(__file__).parents[2]
SCORES = {("a", 30): [0.5, 0.7, 0.6], ("ste", 30): [0.4, 0.5, 0.6], ("a", 90): [0.9, 0.8], ("ste", 90): [0.8, 0.9]}


def test_points_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = loaded(ROOT / "scripts" / "effect_over_horizon.py")
    result, file = {"arms": [{"name": n, "horizon": h, "scores": s} for (n, h), s in SCORES.items()]}, tmp_path / "r"
    file.write_text(json.dumps(result))
    found, d = script.read(f"{file}:a:ste"), np.subtract(SCORES["a", 30], SCORES["ste", 30])
    half = stats.t.ppf(0.975, 2) * d.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found, [30, d.mean(), d.mean() - half, d.mean() + half])
    assert script.read(f"{file}:a:ste:90").mean == pytest.approx(0.0)
    script.main([str(tmp_path / "p.png"), "--line", "digits", f"{file}:a:ste", f"{file}:a:ste:90"])
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 400
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None and (31, 119, 180) in {rgb for _, rgb in colours}  # the line
    for wrong in (f"{file}:a", f"{file}:b:ste", f"{file}:a:ste:x", f"{tmp_path / 'none'}:a:ste"):
        with pytest.raises(SystemExit):
            script.main([str(tmp_path / "q.png"), "--line", "digits", wrong])
        assert "error: " in capsys.readouterr().err and not (tmp_path / "q.png").exists()
