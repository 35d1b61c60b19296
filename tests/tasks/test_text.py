"""The text task: what its parts hold, what is quantized, that it can be learned, and the user's mistakes."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.methods.config import MethodConfig
from metasched.network.config import QuantizeConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.tasks.build import build_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import SupervisedTask
from metasched.tasks.text import encoded, python_text
from metasched.training.loop import hardened_score, train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem
from metasched.training.stacked import of_run, train_mapped
from metasched.training.state import InnerProblem

CONFIG = TaskConfig(name="text", width=16, batch=16, steps=60)
LSQ = MethodConfig(name="ste", scale="learned", granularity="channel", activation_scale="learned")
N = 7  # windows of the text below, in which each character comes once, so that its number is its place
LETTERS = "".join(chr(200 + i) for i in range(33 * N + 5))


@pytest.fixture(scope="module")
def task() -> SupervisedTask:
    return supervised(CONFIG)


@pytest.fixture
def own(tmp_path: Path) -> TaskConfig:
    (tmp_path / "own.txt").write_text(LETTERS, "utf-8")
    return replace(CONFIG, root=str(tmp_path / "own.txt"), batch=2)


def supervised(config: TaskConfig) -> SupervisedTask:
    task = build_task(config)
    assert isinstance(task, SupervisedTask)
    return task


def problem(method: MethodConfig, config: TaskConfig = CONFIG, dtype: str = "float32") -> InnerProblem:
    optimizer = OptimizerConfig(lr=0.01, decay="cosine")
    return build_problem(ProblemConfig(config, optimizer, method, QuantizeConfig(), dtype=dtype))


def test_the_text_is_long_english_without_a_paragraph_twice() -> None:
    text = python_text()
    lines = text.split("\n")
    assert 200_000 < len(text) < 2_000_000 and len(set(lines)) == len(lines) > 1000
    assert text.count(" the ") > 1000 and not any(line != " ".join(line.split()) for line in lines)


def test_targets_are_the_inputs_one_character_later(task: SupervisedTask) -> None:
    for part in (task.train, task.validation, task.test):
        assert part.x.dtype == part.y.dtype == torch.int64 and part.x.shape == part.y.shape == (len(part.x), 32)
        assert torch.equal(part.x[:, 1:], part.y[:, :-1])
    total = len(encoded(python_text())[0]) // 33
    sizes = [len(part.x) for part in (task.test, task.validation, task.train)]
    assert sizes == [total // 10, total // 20, total - total // 10 - total // 20]


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_stretches_of_the_text_that_share_no_character(own: TaskConfig, seed: int) -> None:
    task = supervised(replace(own, data_seed=seed, test=2, validation=1))
    parts = (task.test, task.validation, task.train)
    assert [len(part.x) for part in parts] == [2, 1, N - 3]
    places = torch.cat([torch.cat([part.x, part.y[:, -1:]], 1).flatten() for part in parts]).tolist()
    assert sorted(places) == [*range(33 * N)]
    assert all((b - a) % (33 * N) == 1 for a, b in pairwise(places))


def test_the_data_seed_moves_the_parts_and_fewer_training_windows_are_a_prefix(own: TaskConfig) -> None:
    first = {int(supervised(replace(own, data_seed=seed)).test.x[0, 0]) for seed in range(8)}
    assert len(first) > 2 and all(place % 33 == 0 for place in first)
    whole, part = supervised(own), supervised(replace(own, train=3))
    assert torch.equal(part.train.x, whole.train.x[:3]) and torch.equal(part.test.x, whole.test.x)


def test_the_rarest_of_many_characters_are_one() -> None:
    ids, vocabulary = encoded("a" + "".join(chr(1000 + i) for i in range(300)) + "a")
    assert vocabulary == 256 and ids.max() == 255
    assert ids[0] == ids[-1] == 0 and (ids == 255).sum() == 301 - 255


def test_a_batch_is_a_function_of_seed_and_step_and_integers_stay(task: SupervisedTask) -> None:
    again = supervised(CONFIG)
    _ = again.batch(3, 0), torch.rand(3)
    assert torch.equal(task.batch(3, 7).x, again.batch(3, 7).x)
    assert not torch.equal(task.batch(3, 7).x, task.batch(4, 7).x)
    assert task.to("cpu", torch.float64).batch(3, 7).x.dtype == torch.int64


def test_all_linear_layers_but_the_head_are_quantized_and_the_embedding_stays_float() -> None:
    network = problem(LSQ).network
    names = ["q", "k", "v", "out", "linear1", "linear2"]
    assert [layer.name for layer in network.layers] == [f"blocks.{i}.{name}" for i in (0, 1) for name in names]
    on_activations = [layer.name for layer in network.layers if layer.quantizes == "weight+activation"]
    assert on_activations == ["blocks.0.linear1", "blocks.1.linear1"]
    assert "embedding" not in network.describe() and "head" not in network.describe()


@pytest.mark.parametrize("method", [MethodConfig(name="float"), LSQ], ids=["float", "lsq"])
def test_it_is_learned_in_few_steps(method: MethodConfig) -> None:
    p = problem(method)
    run = train(p, hand_coded(method.name)[method.name](progress_of_steps(p.steps), p.network.layers))
    uniform = math.log(p.task.build().head.out_features)  # type: ignore[union-attr]
    assert float(run.losses[0]) > 0.8 * uniform
    assert float(run.losses[-10:].mean()) < 0.65 * uniform
    commonest = float((p.task.test.y == 0).double().mean())  # type: ignore[attr-defined]
    assert hardened_score(p, run.state, "test") > commonest + 0.05


def test_mapped_runs_are_those_of_the_loop() -> None:
    p = problem(LSQ, replace(CONFIG, steps=3), "float64")
    mapped = train_mapped(p, {}, [1, 2])
    for i, seed in enumerate((1, 2)):
        alone = train(p.with_seed(seed), {}).state.params
        for name, value in of_run(mapped, i).params.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": 6}, "task.test: asks for 6 windows of 33 characters, and the text has only 5 for this; ask for at"),
        ({"validation": 7}, "task.validation: asks for 7 windows of 33 characters, and the text has only 5"),
        ({"train": 6}, "task.train: asks for 6 windows of 33 characters, and the text has only 5"),
        ({"batch": 6}, "task.batch: must be at most the 5 training windows, got 6; set it to 5"),
        ({"width": 24}, "task.width: is 24, which has no whole heads of 16 channels; set it to a multiple of 16"),
    ],
)
def test_mistakes_are_one_line_with_the_path(own: TaskConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaschedError) as caught:
        build_task(replace(own, **changes))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(MetaschedError, match=r"a\.txt: cannot be read: No such file.*; set task\.root to a text file"):
        build_task(replace(CONFIG, root=str(file)))
    file.write_bytes(b"abc\xff")
    with pytest.raises(MetaschedError, match=r"^task\.root: .*a\.txt is not UTF-8 \(byte 3\); set task\.root"):
        build_task(replace(CONFIG, root=str(file)))
    file.write_text("short")
    with pytest.raises(MetaschedError, match=r"^task\.root: holds 0 windows of 33 characters.*; give a longer text"):
        build_task(replace(CONFIG, root=str(file)))


def test_a_python_without_its_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(
        MetaschedError, match=r"^task\.name: this Python comes without the text .*; set task\.root to a"
    ):
        build_task(CONFIG)
