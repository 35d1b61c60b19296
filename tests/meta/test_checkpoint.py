"""Checkpoints keep every bit, and whatever else is in a file is refused by one line that names the field."""

from __future__ import annotations

import io
import math
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import learn, runs_of

import metasched.meta.checkpoint
from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.errors import MetaschedError
from metasched.estimators import build_estimator
from metasched.estimators.base import MEND
from metasched.meta.checkpoint import Checkpoint, check_fit, read_checkpoint, write_checkpoint
from metasched.meta.config import MetaConfig
from metasched.meta.outer import OuterState, OuterStep
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import LearnableSchedule, build_learnable
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem

ROOT = Path(__file__).parents[2]
NAN = math.nan
NEWER = "update metasched, or start a new run"


def record(step: int, **changed: Any) -> OuterStep:
    values = {"loss": 0.1 + 0.2, "score": NAN, "gradient_norm": 5e-324, "dead_layers": -0.0, "seconds": 0.25}
    counts = {"clipped": 1, "skipped": 0, "nonfinite": 3, "inner_steps": 12}
    return OuterStep(step=step, **values, **counts, notes={"spread": 1 / 3}, **changed)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _single_precision() -> None:
    torch.set_default_dtype(torch.float32)  # as the command line has it


@pytest.fixture
def checkpoint() -> Checkpoint:
    w = torch.tensor([[1 / 3, -0.0], [5e-324, 1e308]], dtype=torch.float64)
    adam = {"step.w": torch.tensor(2.0, dtype=torch.float32), "exp_avg.w": w / 7, "exp_avg_sq.w": w.abs() / 9}
    carried = {"particle0/ends": torch.tensor([NAN, math.inf]), "particle0/seed": torch.tensor(2**63 - 1)}
    carried["mask"] = torch.tensor([True, False])
    history = (record(0, line="outer step 1: estimator es"), record(1))
    state = OuterState(2, {"w": w}, adam, {"w": w + 1}, 1, carried, 0, history)
    config = {"seed": 0, "meta": {"steps": 4}}
    return Checkpoint(config, {"torch": "2.15.0"}, "inq_linear", "ab12", 36, 1234, state)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return bits(value._asdict())  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, list | tuple) else repr(value)


def refused(path: Path) -> str:
    """What the one line says."""
    with pytest.raises(MetaschedError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert caught.value.fix == (NEWER if "unknown version" in str(caught.value) else MEND)
    return str(caught.value).removeprefix(f"{path}: ")


def test_every_bit_comes_back(path: Path, checkpoint: Checkpoint) -> None:
    write_checkpoint(path, checkpoint)
    assert bits(read_checkpoint(path)) == bits(checkpoint)
    first = path.read_bytes()
    write_checkpoint(path, read_checkpoint(path))
    assert path.read_bytes() == first and os.listdir(path.parent) == [path.name]


def test_the_file_holds_plain_types_only(path: Path, checkpoint: Checkpoint) -> None:
    write_checkpoint(path, checkpoint)

    def check(value: Any) -> None:
        assert type(value) in (dict, list, tuple, str, int, float, type(None), torch.Tensor)
        for item in value.values() if type(value) is dict else value if type(value) in (list, tuple) else ():
            check(item)

    tree = torch.load(path, weights_only=True)
    check(tree)
    assert (tree["format"], tree["version"]) == ("metasched.checkpoint", 1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_last_one(
    path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_checkpoint(path, checkpoint)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((MetaschedError, KeyboardInterrupt)):
        write_checkpoint(path, checkpoint._replace(position=1))
    monkeypatch.undo()
    assert bits(read_checkpoint(path)) == bits(checkpoint) and os.listdir(path.parent) == [path.name]


# --- hostile files ---


class Planted:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", ["tree", "field", "estimator", "plain pickle", "legacy"])
def test_a_planted_pickle_has_no_effect(
    path: Path, tmp_path: Path, checkpoint: Checkpoint, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's way to have all files unpickled
    target, planted = tmp_path / "planted", Planted(tmp_path / "planted")
    write_checkpoint(path, checkpoint)
    tree = torch.load(path, weights_only=True)
    if place == "plain pickle":
        path.write_bytes(pickle.dumps(planted))
    elif place == "legacy":
        torch.save({**tree, "start": planted}, path, _use_new_zipfile_serialization=False)
    else:
        bad = {"tree": planted, "field": {**tree, "start": planted}}
        bad["estimator"] = {**tree, "state": {**tree["state"], "estimator": {"x": planted}}}
        torch.save(bad[place], path)
    assert refused(path).startswith("is not a checkpoint, or holds more than plain types and tensors;")
    assert not target.exists()
    pickle.loads(pickle.dumps(planted))
    assert target.exists()  # it would have had one


def _set(*keys: Any, to: Any) -> Callable[[Any], Any]:
    """An edit of the tree of a checkpoint."""

    def edit(tree: Any) -> Any:
        inner = tree
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        return tree

    return edit


def _drop(*keys: Any) -> Callable[[Any], Any]:
    def edit(tree: Any) -> Any:
        inner = tree
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return tree

    return edit


def _sparse() -> torch.Tensor:
    return torch.eye(2, dtype=torch.float64).to_sparse()


def _quantized() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch is giving them up
        return torch.quantize_per_tensor(torch.zeros(2, dtype=torch.float32), 1.0, 0, torch.qint8)


EDITS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda tree: [tree], "format: this is not a checkpoint of metasched"),
    (_set("format", to="metasched.schedule"), "format: this is not a checkpoint of metasched"),
    (_set("version", to=2), "version: unknown version 2; known: 1"),
    (_set("version", to=10**30), "version: unknown version 10000000000000000000; known: 1"),
    (_set("version", to=True), "version: unknown version True; known: 1"),
    (_set("version", to=1.0), "version: unknown version 1.0; known: 1"),
    (_drop("start"), "start: Field required"),
    (_set("more", to=1), "more: Unexpected"),
    (_set(1, to=1), "must be an object;"),
    (_set("start", to=b"x"), "start: must be a valid string"),
    (_set("start", to="a\nb"), "start: String should match"),
    (_set("start", to="a" * 301), "start: String should match"),
    (_set("position", to=-1), "position: must be greater than or equal to 0"),
    (_set("position", to=True), "position: must be a valid integer"),
    (_set("position", to=2**62), "position: must be less than"),
    (_set("selecting", to=1.5), "selecting: must be a valid integer"),
    (_set("versions", to={"torch": 2}), "versions.torch: must be a valid string"),
    (_set("config", to="{"), "config: is not JSON"),
    (_set("config", to="[" * 100_000), "config: is not JSON"),
    (_set("config", to="[]"), "config: must be an object"),
    (_set("state", to=[]), "state: must be a valid dictionary"),
    (_set("state", "step", to="2"), "state.step: must be a valid integer"),
    (_set("state", "step", to=3), "state.history: is not that of 3 steps"),
    (_set("state", "averaged", to=3), "state.averaged: is more than the 2 steps done"),
    (_set("state", "bad_steps", to=3), "state.bad_steps: is more than the 2 steps done"),
    (_set("state", "parameters", to=None), "state.parameters: must be a valid dictionary"),
    (_set("state", "parameters", "w", to=[1.0]), "state.parameters.w: must be an instance of Tensor"),
    (_set("state", "parameters", "w", to=torch.tensor(NAN)), "state.parameters.w: must be a tensor of finite numbers"),
    (_set("state", "totals", "w", to=torch.tensor(math.inf)), "state.totals.w: must be a tensor of finite numbers"),
    (_set("state", "optimizer", "step.w", to=torch.tensor(NAN)), "state.optimizer.step.w: must be a tensor of finite"),
    (_set("state", "parameters", "w", to=torch.zeros(1).expand(10**9)), "state.parameters.w: must be a plain tensor"),
    (_set("state", "parameters", "w", to=torch.zeros(1).expand(2)), "state.parameters.w: must be a plain tensor"),
    (_set("state", "estimator", "x", to=_quantized()), "state.estimator.x: must be a plain tensor"),
    (_set("state", "parameters", "w", to=torch.nn.Parameter(torch.zeros(1))), "state.parameters.w: must be a plain"),
    (
        _set("state", "estimator", "x", to=torch.zeros(1, requires_grad=True)),
        "state.estimator.x: must be a plain tensor",
    ),
    (_set("state", "parameters", "w", to=torch.empty(9, device="meta")), "state.parameters.w: must be a plain tensor"),
    (_set("state", "estimator", "x", to=_sparse()), "state.estimator.x: must be a plain tensor"),
    (_set("state", "estimator", "\x1b[31m", to=torch.zeros(1)), "state.estimator."),
    (
        _set("state", "estimator", "a" * 301, to=torch.zeros(1)),
        f"state.estimator.{'a' * 59}.[key]: String should match",
    ),
    (_set("state", "history", to=[{}, {}]), "state.history[0].step: Field required"),
    (_set("state", "history", 1, "step", to=0), "state.history: is not that of 2 steps"),
    (_set("state", "history", 1, "loss", to="0.5"), "state.history[1].loss: must be a valid number"),
    (_set("state", "history", 1, "clipped", to=True), "state.history[1].clipped: must be a valid integer"),
    (_set("state", "history", 0, "notes", to={"a": None}), "state.history[0].notes.a: must be a valid number"),
    (_set("state", "history", 0, "more", to=1), "state.history[0].more: Extra inputs are not permitted"),
    (_drop("state", "history", 1), "state.history: is not that of 2 steps"),
    (_drop("state", "totals"), "state.totals: Field required"),
]


@pytest.mark.parametrize(("edit", "expected"), EDITS, ids=[e[1][:40] for e in EDITS])
def test_each_field_is_checked(path: Path, checkpoint: Checkpoint, edit: Callable[[Any], Any], expected: str) -> None:
    write_checkpoint(path, checkpoint)
    torch.save(edit(torch.load(path, weights_only=True)), path)
    assert refused(path).startswith(expected)


def test_every_step_may_have_been_bad_or_averaged(path: Path, checkpoint: Checkpoint) -> None:
    most = checkpoint._replace(state=checkpoint.state._replace(averaged=2, bad_steps=2))
    write_checkpoint(path, most)
    assert bits(read_checkpoint(path)) == bits(most)


def test_what_is_no_zip_of_torch(path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(path, checkpoint)
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as parts, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in parts.infolist():
            packed.writestr(part.filename, parts.read(part))
    assert refused(path).startswith("is compressed, which torch does not do;")
    for bad in (b"", b"PK", b"\x80\x02.", data[: len(data) // 2], data[100:]):
        path.write_bytes(bad)
        assert refused(path).startswith("is not a checkpoint, or holds more than plain types and tensors;")
    path.write_bytes(data)
    monkeypatch.setattr(metasched.meta.checkpoint, "MAX_BYTES", len(data) - 1)
    assert refused(path).startswith(f"larger than {len(data) - 1} bytes;")
    path.unlink()
    path.mkdir()
    assert refused(path).startswith("cannot be read: Is a directory;")


def test_mutated_files_are_read_or_refused(path: Path, checkpoint: Checkpoint) -> None:
    write_checkpoint(path, checkpoint)
    data, draws, outcomes = path.read_bytes(), random.Random(0), {"read": 0, "refused": 0}
    for _ in range(600):
        changed = bytearray(data)
        for _ in range(draws.randint(1, 4)):
            changed[draws.randrange(len(data))] = draws.randrange(256)
        path.write_bytes(changed)
        try:
            read_checkpoint(path)
            outcomes["read"] += 1
        except MetaschedError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100


# --- does it fit? ---


def experiment_of(estimator: Any) -> Experiment:
    return Experiment(
        task=TaskConfig(model="mlp", width=2, steps=4, batch=4, train=16, validation=8, test=8),
        method=MethodConfig(name="inq"),
        schedule=ScheduleConfig(knots=3, hidden=2, directions=None),
        meta=MetaConfig(steps=1, runs=2, estimator=estimator, window=2),
        run=RunConfig(workers=1),
    )


def schedule_of(experiment: Experiment, hidden: int = 2) -> LearnableSchedule:
    network = build_problem(experiment.problem).network
    config = ScheduleConfig(knots=3, hidden=hidden, directions=None)
    base = hand_coded("inq")["inq_linear"]
    return build_learnable(config, network.method.controls, base, ["freeze_fraction"], network.layers, 0)


def learned(estimator: str) -> tuple[Experiment, LearnableSchedule, OuterState]:
    experiment, states = experiment_of(estimator), []
    schedule = schedule_of(experiment)
    learn(
        experiment,
        schedule,
        Pool(1),
        lambda record: None,
        None,
        states.append,
    )
    return experiment, schedule, states[-1]


def damaged(tensors: dict[str, torch.Tensor]) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """(the name that is wrong, tensors): one is gone, is new, or has another shape or type, for each."""
    found = [("nothing_like_it", {**tensors, "nothing_like_it": torch.zeros(1)})]
    for name, t in tensors.items():
        found.append((name, {k: v for k, v in tensors.items() if k != name}))
        found.append((name, {**tensors, name: t[None]}))
        found.append((name, {**tensors, name: t.to(torch.int16)}))
    return found


def test_the_parts_of_another_schedule_do_not_fit(checkpoint: Checkpoint) -> None:
    _, schedule, state = learned("es")
    check_fit(checkpoint._replace(state=state), schedule, 1)
    check_fit(checkpoint._replace(state=state._replace(optimizer={})), schedule, 1)  # before the first update
    for part in ("parameters", "totals", "optimizer"):
        for name, tensors in damaged(getattr(state, part)):
            with pytest.raises(MetaschedError) as caught:
                check_fit(checkpoint._replace(state=state._replace(**{part: tensors})), schedule, 1)
            assert caught.value.path.startswith(f"state.{part}.") and name in caught.value.path
    with pytest.raises(MetaschedError, match=r"state\.parameters\..*, not "):
        check_fit(checkpoint._replace(state=state), schedule_of(experiment_of("es"), hidden=3), 1)
    with pytest.raises(MetaschedError) as caught:
        check_fit(checkpoint._replace(state=state), schedule, 0)
    assert str(caught.value) == f"state.step: is 1, and the run has 0 outer steps; {MEND}"


@pytest.mark.parametrize("here", [torch.float32, torch.float64])
@pytest.mark.parametrize("there", [torch.float32, torch.float64])
def test_adam_counts_in_the_default_dtype_of_the_process_that_wrote(
    checkpoint: Checkpoint, here: torch.dtype, there: torch.dtype
) -> None:
    _, schedule, state = learned("es")
    torch.set_default_dtype(here)
    counts = {name: t.to(there) for name, t in state.optimizer.items() if name.startswith("step.")}
    check_fit(checkpoint._replace(state=state._replace(optimizer=state.optimizer | counts)), schedule, 1)
    other = torch.float64 if there == torch.float32 else torch.float32
    mixed = state.optimizer | counts | {min(counts): counts[min(counts)].to(other)}
    with pytest.raises(MetaschedError, match=r"^state\.optimizer\.step\."):
        check_fit(checkpoint._replace(state=state._replace(optimizer=mixed)), schedule, 1)


@pytest.mark.parametrize("estimator", ["sweep", "weighted", "es", "guided", "mixed", "auto", "pes", "nres"])
def test_the_state_of_another_estimator_does_not_fit(estimator: str) -> None:
    experiment, schedule, state = learned(estimator)
    check = build_estimator(experiment.meta).check
    runs = runs_of(experiment, Pool(1))
    check(schedule, runs, 2, state.estimator)
    for name, tensors in damaged(state.estimator):
        with pytest.raises(MetaschedError) as caught:
            check(schedule, runs, 2, tensors)
        assert caught.value.path == f"state.estimator.{name}"
    if estimator in ("pes", "nres"):
        with pytest.raises(MetaschedError, match=r"state\.estimator\.particle2/seed: "):
            check(schedule, runs, 3, state.estimator)


@pytest.mark.parametrize(
    ("estimator", "name", "value", "expected"),
    [
        ("auto", "mode", 3, "must be in 0..2, is 3"),
        ("auto", "asked", -1, "must be in 0..2, is -1"),
        ("auto", "step", -1, "must be in 0.."),
        ("pes", "particle0/step", 4, "must be in 0..3, is 4"),
        ("nres", "particle1/seed", -1, "must be in 0.."),
    ],
)
def test_the_numbers_of_a_state_are_in_their_ranges(estimator: str, name: str, value: int, expected: str) -> None:
    experiment, schedule, state = learned(estimator)
    check = build_estimator(experiment.meta).check
    with pytest.raises(MetaschedError) as caught:
        check(
            schedule,
            runs_of(experiment, Pool(1)),
            2,
            {**state.estimator, name: torch.tensor(value)},
        )
    assert str(caught.value).startswith(f"state.estimator.{name}: {expected}")


def test_the_configuration_is_in_it(path: Path, checkpoint: Checkpoint) -> None:
    config = to_dict(Experiment())
    write_checkpoint(path, checkpoint._replace(config=config))
    assert read_checkpoint(path).config == config
