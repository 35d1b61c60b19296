"""The schedules that come with the package: their index is true, and their names resolve wherever a file is taken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

import metasched
from metasched import HandCoded, MetaschedError, PlayedSchedule, SchedulePlayer, hand_coded, progress_of_steps
from metasched.commands import compare as command
from metasched.commands.export import schedule_of
from metasched.config.load import experiment_of
from metasched.core.layer import Layer
from metasched.evaluation.comparison import FLOORS, REFERENCES
from metasched.evaluation.contenders import described_arm, named_schedule
from metasched.exchange.shipped import file_of, list_schedules
from metasched.io.run_folder import RunFolder
from metasched.meta.start import given_start
from metasched.schedules.table import NO_SCHEDULE, method_of_hand_coded

ROOT = Path(__file__).parents[2]
DATA = ROOT / "metasched" / "data"
LEARNED = [shipped for shipped in list_schedules() if shipped.kind == "learned"]
LAYERS = [Layer(f"conv{i}", i / 2, "conv", "weight+activation", 9, 144, 1.585) for i in range(3)]
EXPERIMENT = experiment_of({"task": {"steps": 4}, "method": {"name": "inq", "activation_levels": None}})


def test_a_row_of_the_list_is_no_name() -> None:
    with pytest.raises(MetaschedError, match=r"^schedule: is a ShippedSchedule; give the name of a schedule"):
        metasched.load(metasched.list_schedules()[0])  # pyright: ignore[reportArgumentType]


def test_the_index_and_the_folder_have_the_same_files() -> None:
    files = [row["file"] for row in json.loads((DATA / "index.json").read_text("utf-8")).values()]
    assert sorted(files) == sorted(path.name for path in (DATA / "learned").iterdir())
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 2**20
    assert not {shipped.name for shipped in LEARNED} & {path.stem for path in (ROOT / "experiments/learned").iterdir()}


def test_a_name_is_of_one_schedule_and_of_no_word_with_a_meaning() -> None:
    names = [shipped.name for shipped in list_schedules()]
    assert len(names) == len({*names})
    assert not {shipped.name for shipped in LEARNED} & {NO_SCHEDULE, "best", *REFERENCES}


@pytest.mark.parametrize("shipped", LEARNED, ids=lambda shipped: shipped.name)
def test_the_index_says_what_the_files_say(shipped: Any) -> None:
    schedule = metasched.load(shipped.name)
    assert isinstance(schedule, PlayedSchedule)
    assert schedule.file.provenance.kind == "learned" and schedule.file.method.name == shipped.method
    assert schedule.method.name == shipped.method
    headline = shipped.headline
    result = json.loads((ROOT / "experiments" / "results" / f"{headline.result}.json").read_text("utf-8"))
    scores = {arm["name"]: arm["scores"] for arm in result["arms"] if arm["horizon"] == headline.steps}
    measured = {name: round(mean(of), 4) for name, of in scores.items()}
    assert (len(result["seeds"]), measured[headline.arm]) == (headline.n, headline.score)
    floor = max((measured[name] for name in FLOORS if name in measured), default=None)
    assert (floor, measured.get("float")) == (headline.floor, headline.ceiling)
    assert shipped.task.endswith(f"{headline.steps} steps") and "\n" not in shipped.summary


def test_hand_coded_schedules_are_loaded_as_functions_of_any_layers() -> None:
    for shipped in list_schedules():
        schedule = metasched.load(shipped.name)
        if shipped.kind == "hand-coded":
            assert schedule is hand_coded(shipped.method)[shipped.name] and isinstance(schedule, HandCoded)
            assert schedule.method.name == shipped.method and shipped.summary == schedule.citation
    progress = progress_of_steps(5)
    values = metasched.load("inq_input_first")(progress, LAYERS)["freeze_fraction"]  # 1 - clip(1 + d - 2 u, 0, 1)
    depths = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(values, 1 - (1 + depths - 2 * progress[:, None]).clamp(0, 1))


def test_the_list_of_a_method() -> None:
    of_inq = list_schedules("inq")
    assert {shipped.method for shipped in of_inq} == {"inq"}
    assert [s for s in list_schedules() if s.method == "inq"] == list(of_inq)
    with pytest.raises(MetaschedError, match="method: unknown name 'inqq'; did you mean 'inq'"):
        list_schedules("inqq")


@pytest.mark.parametrize(
    ("named", "near"),
    [("digits_in", "digits_inq"), ("ana_liner", "ana_linear")],
)
def test_a_name_that_is_nearly_right(named: str, near: str) -> None:
    for attempt in (metasched.load, metasched.read_schedule, schedule_of, lambda n: SchedulePlayer(n, 5, LAYERS)):
        with pytest.raises(MetaschedError, match=f"'{named}' is not the name of a schedule; did you mean '{near}'"):
            attempt(named)


def test_a_word_is_a_path_with_a_separator_or_json_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(file_of("fashion_inq") or "", "digits_inq")
    shutil.copy("digits_inq", "digits_inq.json")
    shutil.copy("digits_inq", "mine")
    tasks = {n: metasched.read_schedule(n).provenance.tasks for n in ("digits_inq", "./digits_inq", "digits_inq.json")}
    assert tasks == {
        "digits_inq": ("digits",),
        "./digits_inq": ("fashion_mnist",),
        "digits_inq.json": ("fashion_mnist",),
    }
    assert metasched.read_schedule(Path("digits_inq")).provenance.tasks == ("fashion_mnist",)
    with pytest.raises(MetaschedError, match=r"'mine' is not the name of a schedule; the file is \./mine; "):
        metasched.load("mine")
    with pytest.raises(MetaschedError, match=r"start: 'mine' is neither .*; the file is \./mine; "):
        named_schedule(EXPERIMENT.problem, "mine", "start")


def test_a_hand_coded_schedule_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(MetaschedError, match=r"inq_linear: is hand-coded: .*; use metasched\.load"):
        metasched.read_schedule("inq_linear")
    assert schedule_of("inq_linear") == metasched.read_schedule(ROOT / "experiments" / "baselines" / "inq_linear.json")
    with pytest.raises(MetaschedError, match="ste: has no values: ste has no controls"):
        schedule_of("ste")


def test_a_player_by_name_has_the_values_of_the_file() -> None:
    by_name, by_path = SchedulePlayer("digits_inq", 7), SchedulePlayer(DATA / "learned" / "digits_inq.json", 7)
    assert [by_name.step() for _ in range(7)] == [by_path.step() for _ in range(7)]
    by_hand = SchedulePlayer("inq_linear", 5, LAYERS)
    assert [by_hand.step()["conv0"]["freeze_fraction"] for _ in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    with pytest.raises(MetaschedError, match="layers: none given"):
        SchedulePlayer("inq_linear", 5)


def test_a_name_is_an_arm_and_a_start() -> None:
    _, arm = described_arm(EXPERIMENT, ["mine", "digits_inq"])
    assert arm.schedule(progress_of_steps(5), LAYERS).keys() == {"freeze_fraction"}
    _, other = described_arm(EXPERIMENT, ["other", "fashion_gxnor"])
    assert (arm.problem.method.name, other.problem.method.name) == ("inq", "gxnor")
    name, start = given_start(EXPERIMENT.problem, "digits_inq") or ("", None)
    assert name == "digits_inq" and isinstance(start, PlayedSchedule)
    with pytest.raises(MetaschedError, match=r"did you mean 'digits_inq'\? use a file, or one of inq_"):
        given_start(EXPERIMENT.problem, "digits_in")


def test_compare_plays_names_beside_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[list[Any], list[str]]] = []
    monkeypatch.setattr(command, "compare_arms", lambda _, arms, learned, *more: played.append((arms, learned)) or {})
    monkeypatch.setattr(command, "keep_fingerprint", lambda *given: None)
    shutil.copy(file_of("digits_inq") or "", tmp_path / "mine.json")
    folder = RunFolder.claim(tmp_path / "run", "compare")
    few = replace(EXPERIMENT, compare=replace(EXPERIMENT.compare, baselines=()))
    words = ["inq_linear", "fashion_inq", str(tmp_path / "mine.json")]
    command.run(few, words, folder, None)  # type: ignore[arg-type]: the console is not used
    ((arms, learned),) = played
    assert [name for name, _ in arms] == ["fashion_inq", "mine", "inq_linear"] and learned == ["fashion_inq", "mine"]
    assert arms[2][1].schedule is hand_coded("inq")["inq_linear"]
    kept = sorted(path.relative_to(folder.schedules).as_posix() for path in folder.schedules.rglob("*.json"))
    assert kept == ["000/fashion_inq.json", "001/mine.json", "arms.json"]
    with pytest.raises(MetaschedError, match="--schedule: 'inq_liner' is not the name of a schedule; did you mean"):
        command.run(few, ["inq_liner"], folder, None)  # type: ignore[arg-type]
    folder.release()


def test_every_hand_coded_name_is_listed() -> None:
    assert {s.name: s.method for s in list_schedules() if s.kind == "hand-coded"} == method_of_hand_coded()
