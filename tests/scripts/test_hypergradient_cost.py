"""The ratio that a search is charged by, on a tiny experiment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loading import loaded

ROOT = Path(__file__).parents[2]
TINY = ["--task.model", "mlp", "--task.width", "4", "--task.steps", "4", "--task.train", "64", "--repeats", "3"]


def test_what_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = loaded(ROOT / "scripts" / "hypergradient_cost.py")
    config = str(ROOT / "experiments" / "digits_inq_family.yaml")
    script.main([config, *TINY, "--json", str(tmp_path / "cost.json")])
    found = json.loads((tmp_path / "cost.json").read_text())
    assert (found["n"], found["steps"], found["estimator"]) == (3, 4, "sweep")
    assert 0 < found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
    assert f"costs {found['ratio']['median']:.2f} plain runs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main([config, *TINY, "--meta.estimator", "es", "--meta.memory", "null"])
    assert "es does not go back through training" in capsys.readouterr().err
    for wrong, said in ((["--repeats", "0"], "give at least 1"), (["--task.stpes", "3"], "task.stpes")):
        with pytest.raises(SystemExit) as stopped:
            script.main([config, *wrong])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
