"""Policy files of Ray Tune's population-based training become the schedules that its own replay would play."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from metasched.cli import main
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.exchange.format import ScheduleFile
from metasched.exchange.pbt import import_policy, read_policy
from metasched.exchange.player import PlayedSchedule, SchedulePlayer
from metasched.exchange.schedule_file import read_schedule
from metasched.methods.ana import ACTIVATION_NOISE, NOISE_MEAN, WEIGHT_NOISE
from metasched.methods.base import Control
from metasched.methods.inq import FREEZE_FRACTION

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "tests" / "formats" / "pbt_policy_ray.txt"
LAYERS = tuple(Layer(f"conv{i}", i - 1.0, "conv", "weight", 9, 72, 1.0) for i in (1, 2))
FREE = Control("free", -1.0, 1.0, "unit", "free", end=None)


def imported(
    path: Path, total: int, controls: Sequence[Control] = (WEIGHT_NOISE, ACTIVATION_NOISE, NOISE_MEAN)
) -> ScheduleFile:
    return import_policy(
        path,
        total=total,
        name="found",
        method_name="ana",
        method_parameters={"noise": "uniform"},
        controls=controls,
        layers=LAYERS,
    )


def policy(tmp_path: Path, *rows: list[Any]) -> Path:
    path = tmp_path / "pbt_policy_1.txt"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def replayed(rows: Sequence[list[Any]], iterations: int) -> list[float]:
    """What a trial trains with at each iteration if Ray Tune replays it: a change comes once its iteration is done.

    Written from the description of PopulationBasedTrainingReplay, for one key.
    """
    chain, wanted = [], rows[-1][0]
    for row in reversed(rows):
        if row[0] != wanted:
            break
        chain.append(row)
        wanted = row[1]
    chain.reverse()
    current, waiting, seen = chain[0][4]["free"], [(row[3], row[5]["free"]) for row in chain], []
    for iteration in range(1, iterations + 1):
        seen.append(current)
        while waiting and iteration >= waiting[0][0]:
            current = waiting.pop(0)[1]
    return seen


def test_the_file_in_the_folder_of_formats() -> None:
    file = imported(POLICY, 40)
    assert file.progress == (0.0, 0.25, 0.5, 1.0) and file.interpolation == "previous"
    assert file.values == {
        # one noise in the file; it ends at 0, as the method demands
        **dict.fromkeys(("weight_noise", "activation_noise"), ((0.5, 0.4, 0.32, 0.0), (0.5, 0.4, 0.3, 0.0))),
        "noise_mean": ((0.0, 0.01, 0.01, 0.0), (0.0, 0.01, 0.01, 0.0)),
    }
    assert file.method.parameters == {"noise": "uniform"}
    assert (file.provenance.kind, file.provenance.name) == ("learned", "found")
    assert file.provenance.citation == "population-based training by Ray Tune: 2 changes in 40 iterations"


@pytest.mark.parametrize("seed", range(30))
def test_each_iteration_gets_what_the_replay_gives_it(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    total, rows, moment = rng.randint(5, 60), [], 0
    tags = [f"{i}_x" for i in range(4)]
    for _ in range(rng.randint(1, 8)):
        moment = min(moment + rng.randint(1, 7), total - 1)
        target, source = rng.choice(tags), rows[-1][0] if rows and rng.random() < 0.8 else rng.choice(tags)
        before, after = ({"free": round(rng.uniform(-1, 1), 3), "lr": 0.1} for _ in range(2))
        if rows and source == rows[-1][0]:
            before = rows[-1][5]
        rows.append([target, source, rng.randint(0, 99), moment, before, after])
    player = SchedulePlayer(imported(policy(tmp_path, *rows), total, [FREE]), total)
    assert [player.step()["conv1"]["free"] for _ in range(total)] == replayed(rows, total)


def test_a_broken_chain_drops_what_was_overwritten(tmp_path: Path) -> None:
    old = ["5_x", "6_x", 3, 3, {"free": 0.9}, {"free": 0.8}]
    new = ["1_x", "2_x", 10, 10, {"free": 0.1}, {"free": 0.2}]
    changes = read_policy(policy(tmp_path, old, new))
    assert [(c.iteration, c.config) for c in changes] == [(0, {"free": 0.1}), (10, {"free": 0.2})]


def test_of_two_changes_at_one_moment_the_later_counts(tmp_path: Path) -> None:
    first = ["1_x", "2_x", 10, 10, {"free": 0.1}, {"free": 0.2}]
    second = ["0_x", "1_x", 12, 10, {"free": 0.2}, {"free": 0.3}]
    file = imported(policy(tmp_path, first, second), 20, [FREE])
    assert (file.progress, file.values["free"][0]) == ((0.0, 0.5, 1.0), (0.1, 0.3, 0.3))


def test_a_change_before_the_first_iteration_replaces_the_start(tmp_path: Path) -> None:
    file = imported(policy(tmp_path, ["1_x", "2_x", 0, 0, {"free": 0.1}, {"free": 0.2}]), 1, [FREE])
    assert (file.progress, file.values["free"][0]) == ((0.0, 1.0), (0.2, 0.2))


def test_a_control_with_a_dwell_is_at_its_end_in_time(tmp_path: Path) -> None:
    dwelling = Control("free", 0.0, 1.0, "unit", "nonincreasing", end=0.0, dwell=0.3)
    file = imported(policy(tmp_path, ["1_x", "2_x", 9, 8, {"free": 1}, {"free": 0.5}]), 10, [dwelling])
    assert file.values["free"][0] == (1.0, 0.0, 0.0, 0.0)
    assert file.progress == pytest.approx((0.0, 0.7, 0.8, 1.0))


def test_other_keys_are_left_out_and_nested_ones_too(tmp_path: Path) -> None:
    config = {"free": 0.5, "lr": 1e-3, "model": {"width": [1, 2]}, "name": "x", "none": None, "other/conv1": 3}
    file = imported(policy(tmp_path, ["1_x", "2_x", 1, 1, config, config]), 2, [FREE])
    assert list(file.values) == ["free"]


def test_an_unknown_layer_is_named_with_the_nearest(tmp_path: Path) -> None:
    config = {"free": 0.5, "free/conv_2": 0.1}
    path = policy(tmp_path, ["1_x", "2_x", 1, 1, config, config])
    with pytest.raises(MetaschedError, match=r"line 1\[4\]\['free/conv_2'\]: unknown name 'conv_2'; did you mean"):
        imported(path, 2, [FREE])


def test_a_whole_run_needs_an_iteration(tmp_path: Path) -> None:
    with pytest.raises(MetaschedError, match=r"^--total: must be at least 1, got 0"):
        imported(POLICY, 0)


def test_falling_freeze_fractions_are_refused_with_their_line(tmp_path: Path) -> None:
    rows = [["1_x", "2_x", i, i, {"freeze_fraction": f}, {"freeze_fraction": g}] for i, f, g in [(1, 0.2, 0.5)]]
    rows.append(["3_x", "1_x", 5, 5, {"freeze_fraction": 0.5}, {"freeze_fraction": 0.4}])
    with pytest.raises(MetaschedError, match=r"line 2\[5\]: freeze_fraction of conv1 is nondecreasing, but goes"):
        imported(policy(tmp_path, *rows), 10, [FREEZE_FRACTION])


def test_the_command_writes_a_file_that_the_experiment_can_play(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ROOT / "experiments" / "digits_ana_shallow.yaml"
    command = ["import", str(config), str(POLICY), "--total", "40"]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        assert main(command) == main([*command, "-o", str(tmp_path / "s.json")]) == 0
    finally:
        torch.set_default_dtype(before)
    assert capsys.readouterr().out == (tmp_path / "s.json").read_text()
    file = read_schedule(tmp_path / "s.json")
    assert file.provenance.name == "digits_ana_shallow" and file.method.name == "ana"
    assert [layer.name for layer in file.layers] == ["conv1", "conv2", "conv3"]
    values = PlayedSchedule(file)(torch.tensor([0.5]), PlayedSchedule(file).layers)
    assert values["weight_noise"].tolist() == [pytest.approx([0.32, 0.3, 0.32])]
