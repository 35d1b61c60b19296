"""What is read from a comparison's result file, and that it can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loading import loaded
from PIL import Image

ROOT = Path(__file__).parents[2]
RESULT = {
    "learned": ["learned_60"],
    "arms": [
        {"name": name, "horizon": horizon, "scores": [score, score + 0.1]}
        for name, horizon, score in [
            ("learned_60", 30, 0.5),
            ("learned_600", 30, 0.7),
            ("random_600", 30, 0.6),
            ("ana_static", 30, 0.4),
            ("learned_600", 90, 0.9),
        ]
    ],
}


def test_arms_are_told_apart_by_what_found_them_and_for_how_much(tmp_path: Path) -> None:
    script = loaded(ROOT / "scripts" / "compute_curve.py")
    found, free = script.curves(RESULT)
    assert {name: {cost: scores[0] for cost, scores in curve.items()} for name, curve in found.items()} == {
        "learned": {2: 0.5, 20: 0.7},
        "random": {20: 0.6},
    }
    assert {name: scores[0] for name, scores in free.items()} == {"ana_static": 0.4}
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    script.main([str(tmp_path / "result.json"), str(tmp_path / "curve.png")])
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 400
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None and (193, 39, 45) in {rgb for _, rgb in colours}  # the learned curve stands out
    with pytest.raises(SystemExit):
        script.main([])
