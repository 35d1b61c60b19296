"""``metasched allocate``: its files, both scores, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metasched.cli import main
from metasched.config.load import load_experiment
from metasched.network.size import network_bytes
from metasched.search.bits.problem import Choice
from metasched.search.bits.rounding import Rounded
from metasched.training.problem import build_problem

EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "task": {"name": "digits", "model": "mlp", "width": 4, "depth": 2, "steps": 6, "batch": 16, "train": 64},
    "method": {
        "name": "ste",
        "levels": "balanced4",
        "scale": "max",
        "granularity": "channel",
        "activation_levels": None,
    },
    "allocate": {"bits": [2, 3, 4], "budget": "3 bits"},
    "run": {"workers": 1},
}


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def call(*options: str) -> tuple[int, str, str]:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        code = main(["allocate", str(tmp_path / "tiny.yaml"), "--folder", str(tmp_path / "run"), *options])
        return code, *capsys.readouterr()

    return call


def counted(run: Callable[[], int], stop: int | None = None) -> tuple[int, int]:
    """Exit code, and how many allocations were scored; one of them is interrupted."""
    calls, score = 0, Rounded.__call__

    def counting(self: Rounded, choice: Choice) -> float:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return score(self, choice)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rounded, "__call__", counting)
        return run(), calls


def test_files_and_the_experiment_with_bits(call, tmp_path: Path) -> None:
    code, out, _ = call()
    assert code == 0 and "bits a weight" in out and "on meta-validation: float " in out
    found = json.loads((tmp_path / "run" / "allocation.json").read_text())
    assert found["layers"] == ["linear1", "linear2"] and found["search"] == "greedy"
    assert found["cost"] <= found["budget"] and found["score"] >= found["uniform"]["score"]
    assert {*found["accuracies"]} == {"float", "allocated", "uniform"}
    mixed = load_experiment(tmp_path / "run" / "allocated.yaml")
    network = build_problem(mixed.problem).network
    assert [rule.match for rule in mixed.quantize.rules] == found["layers"]
    assert [len(network.method_of(i).quantizer.levels.levels) for i in range(2)] == [2**b - 1 for b in found["bits"]]
    assert network_bytes(network) == found["cost"]


def test_progress_is_shown_where_the_number_of_allocations_is_known(call) -> None:
    code, out, _ = call("--allocate.search", "random", "--allocate.evaluations", "4")
    assert code == 0 and re.search(r"^allocations scored by random (\d+)/\1  in \d+ s$", out, re.MULTILINE)
    assert out.index("allocations scored by") < out.index("bits a weight")


def test_a_pretrained_start_is_what_is_rounded(call, tmp_path: Path) -> None:
    code, _, _ = call("--task.pretrained=40", "--allocate.search=exhaustive", "--json")
    assert code == 0
    found = json.loads((tmp_path / "run" / "allocation.json").read_text())
    from metasched.training.loop import score_of

    problem = build_problem(load_experiment(tmp_path / "run" / "allocated.yaml").problem)
    model = problem.task.build()
    model.load_state_dict(problem.task.initial())
    assert found["accuracies"]["float"] == pytest.approx(score_of(problem, model.float().eval(), "validation"))


def test_scored_by_training(call, tmp_path: Path) -> None:
    options = ("--allocate.score=trained", "--allocate.runs=2", "--allocate.search=random", "--allocate.evaluations=3")
    code, _, _ = call(*options)
    assert code == 0
    found = json.loads((tmp_path / "run" / "allocation.json").read_text())
    assert found["accuracies"] == {} and 0 <= found["score"] <= 1
    cells = [json.loads(line) for line in (tmp_path / "run" / "cells.jsonl").read_text().splitlines()]
    assert len(cells) == 2 * len(found["tried"])


def test_the_float_network_has_no_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "float.yaml").write_text("method: {name: float}")
    assert main(["allocate", str(tmp_path / "float.yaml"), "--folder", str(tmp_path / "run")]) == 2
    assert "method.name: is float, which has no bits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--allocate.budget=10"], "allocate.budget: is 10 bytes, and the network takes at least"),
        (["--allocate.bits=[0]"], "--allocate.bits[0]: must be at least 1"),
        (["--allocate.bits=[]"], "allocate.bits: is empty"),
        (["--allocate.resource=latency"], "allocate.latency: is missing"),
        (["--allocate.resource=latency", "--allocate.latency=none.json"], "none.json: cannot be read"),
        (["--allocate.search=exhaustive", "--allocate.evaluations=2"], "allocate.search: exhaustive has more to try"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(call, tmp_path: Path, options: list[str], said: str) -> None:
    code, _, err = call(*options)
    assert code == 2 and said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("search", ["greedy", "random", "tpe", "haq", "autoq"])
def test_a_stopped_search_goes_on_to_the_same_bits(call, tmp_path: Path, search: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "run"
    ask = (f"--allocate.search={search}", *["--allocate.evaluations=12"] * (search != "greedy"))
    assert call(*ask)[0] == 0
    parts.rename(whole)
    total = len((whole / "scores.jsonl").read_text().splitlines())
    assert counted(lambda: call(*ask)[0], stop=4) == (130, 4)
    assert not (parts / "allocation.json").exists()
    assert counted(lambda: main(["allocate", "--resume", str(parts)])) == (0, total - 3)
    for name in ("allocation.json", "allocated.yaml"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert main(["allocate", "--resume", str(parts)]) == 2  # it has finished


def test_a_stopped_search_that_trains_goes_on_with_its_runs(
    call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "run"
    ask = ("--allocate.score=trained", "--allocate.runs=2", "--allocate.search=random", "--allocate.evaluations=3")
    assert call(*ask)[0] == 0
    parts.rename(whole)
    lines = (whole / "cells.jsonl").read_text().splitlines()
    (whole / "DONE").unlink()
    (whole / "allocation.json").rename(tmp_path / "expected.json")
    (whole / "cells.jsonl").write_text("\n".join(lines[:3]) + "\n")  # as a kill leaves it
    assert main(["allocate", "--resume", str(whole), "--allocate.evaluations=4"]) == 2
    assert "allocate.evaluations: is 4, and 3 in the run that is resumed" in capsys.readouterr().err
    assert main(["allocate", "--resume", str(whole)]) == 0
    assert (whole / "allocation.json").read_bytes() == (tmp_path / "expected.json").read_bytes()
    assert (whole / "cells.jsonl").read_text().splitlines() == lines
