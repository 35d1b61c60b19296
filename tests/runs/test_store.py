"""The store of runs: what is written can be read, by whomever and however it was written, and played again."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from metasched.config.load import experiment_of
from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods.base import Control
from metasched.runs.cells import CachedPool, cell_scores, played
from metasched.runs.pool import Pool
from metasched.runs.store import DEPTHS, MOMENTS, GridSchedule, Store, grid_of, read_store, store_at
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.training.problem import build_problem

LAYERS = [Layer(f"l{i}", i / 4, "conv", "weight+activation", 9, 90, 1.585) for i in range(5)]
WIDTH = Control("width", 0.25, 4.0, "one", "free", end=None, scale="log")
NOISE = Control("noise", 0.0, 1.0, "one", "nonincreasing", end=0.0, dwell=0.2)
WIDE = Control("rate", 0.1, 10.0, "one", "free", end=None, scale="log", granularity="network")


def problem(method: str = "widths") -> ProblemConfig:
    task = {"model": "mlp", "width": 3, "steps": 9, "batch": 16, "train": 32, "validation": 16, "test": 16}
    return experiment_of({"task": task, "method": {"name": method}}).problem


def values(config: ProblemConfig, steps: int = 9) -> dict[str, torch.Tensor]:
    return played(config, hand_coded("widths")["widths_narrowing"], steps)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config, path = problem(), tmp_path / "runs.jsonl"
    store = Store(path)
    store.add(config, values(config), [3, 4], 9, "validation", [0.5, math.nan])
    store.add(config, values(config, 5), [3], 5, "test", [0.25])
    one, other = read_store(path)
    assert one["task"] == build_problem(config).fingerprint and one["method"] == "widths"
    assert (one["steps"], one["part"], one["seeds"], one["scores"][0]) == (9, "validation", [3, 4], 0.5)
    assert math.isnan(one["scores"][1]) and other["scores"] == [0.25]
    assert one["features"]["horizon"] == math.log10(9) and other["features"]["horizon"] == math.log10(5)
    assert len(one["grid"]["weight_width"]) == len(MOMENTS) and len(one["grid"]["weight_width"][0]) == len(DEPTHS)
    assert store_at(None) is None and len(read_store(path)) == 2


def test_floors_are_not_stored(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.jsonl")
    store.add(problem("ste"), {}, [1], 9, "test", [0.5])
    assert read_store(tmp_path / "runs.jsonl") == []


@pytest.mark.parametrize("control", [WIDTH, NOISE, WIDE], ids=lambda c: c.name)
def test_a_schedule_that_is_linear_in_the_learned_space_is_played_again_from_its_grid(control: Control) -> None:
    progress = progress_of_steps(17)
    if control is NOISE:  # linear between the moments, and at its end from there on
        table = torch.stack([(1 - progress / 0.75).clamp_min(0)] * 5, 1)
    else:
        depth = torch.tensor([0.0 if control is WIDE else layer.depth for layer in LAYERS], dtype=torch.float64)
        table = (0.3 - 0.8 * progress[:, None] + 0.5 * depth).exp()
    grid = grid_of(control, table, LAYERS)
    again = GridSchedule([control], {control.name: grid})(progress, LAYERS)[control.name]
    torch.testing.assert_close(again, table, rtol=1e-12, atol=1e-12)
    deeper = GridSchedule([control], {control.name: grid})(progress_of_steps(6), LAYERS[:1])[control.name]
    assert deeper.shape == (6, 1) and bool((deeper >= control.low).all() and (deeper <= control.high).all())
    if control.end is not None:
        assert deeper[-1, 0] == control.end


def test_what_a_crash_has_left_of_a_line_is_left_out(tmp_path: Path) -> None:
    config, path = problem(), tmp_path / "runs.jsonl"
    Store(path).add(config, values(config), [1], 9, "validation", [0.5])
    with path.open("ab") as file:
        file.write(b'{"task": "abc", "sco')
    Store(path).add(config, values(config), [2], 9, "validation", [0.25])
    with pytest.warns(UserWarning, match="1 lines are incomplete"):
        rows = read_store(path)
    assert [row["seeds"] for row in rows] == [[1], [2]]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(MetaschedError, match="line 1: is no line of a store"):
        read_store(path)
    with pytest.raises(MetaschedError, match=r"run\.store: .*cannot be written"):
        Store(tmp_path / "nowhere" / "runs.jsonl")


def write(path: str, name: int) -> None:
    store = Store(Path(path))
    for i in range(200):
        store._append(json.dumps({"writer": name, "i": i, "text": "x" * 3000}).encode() + b"\n")


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=write, args=(str(path), n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for name in range(2):
        assert [row["i"] for row in rows if row["writer"] == name] == list(range(200))


def test_a_pool_with_a_cache_stores_what_it_computes_once(tmp_path: Path) -> None:
    config, path = problem(), tmp_path / "runs.jsonl"
    work: list[Any] = [(config, values(config), [1, 2], 9, "validation")]
    with Pool(1) as pool:
        for _ in range(2):
            cells = CachedPool(pool, tmp_path / "cells.jsonl", store=Store(path))
            (scores,) = cells.map(cell_scores, work)
            cells.close()
    (row,) = read_store(path)
    assert row["scores"] == scores and row["seeds"] == [1, 2]
