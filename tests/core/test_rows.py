"""The tables of all families: a row joins under a free name, is chosen by it, and is shown in the help."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from metasched.config.fields import fields
from metasched.config.load import load_experiment
from metasched.core.errors import MetaschedError
from metasched.core.lazy import Lazy
from metasched.estimators import ESTIMATORS, register_estimator
from metasched.models import MODELS, register_model
from metasched.search import SEARCHES, register_search
from metasched.tasks import TASKS, register_task
from metasched.training.optimizers import OPTIMIZERS, register_optimizer
from metasched.training.optimizers.decays import DECAYS


class Family(NamedTuple):
    table: dict[str, Any]
    register: Callable[[Any], Any]
    member: str
    builder: str = "builder"


FAMILIES = {  # methods have configurations of their own: tests/methods/test_outside.py
    "task.name": Family(TASKS, register_task, "digits"),
    "task.model": Family(MODELS, register_model, "mlp"),
    "optimizer.name": Family(OPTIMIZERS, register_optimizer, "adam", "rule"),
    "meta.estimator": Family(ESTIMATORS, register_estimator, "sweep"),
    "tune.search": Family(SEARCHES, register_search, "random"),
}
each = pytest.mark.parametrize("setting", FAMILIES)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = {setting: dict(family.table) for setting, family in FAMILIES.items()}
    yield
    for setting, family in FAMILIES.items():
        family.table.clear()
        family.table.update(before[setting])


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str, str], Any]:
    def load(setting: str, name: str) -> Any:
        section, _, field = setting.partition(".")
        path = tmp_path / "a.yaml"
        path.write_text(yaml.safe_dump({section: {field: name}}))
        return load_experiment(path)

    return load


@each
def test_a_new_row_is_a_choice_like_the_others(setting: str, load: Callable[[str, str], Any]) -> None:
    family = FAMILIES[setting]
    row = replace(family.table[family.member], name="my_own", summary="made here")
    assert family.register(row) is family.table["my_own"]
    section, _, field = setting.partition(".")
    assert getattr(getattr(load(setting, "my_own"), section), field) == "my_own"
    (shown,) = (f for f in fields() if f.path == setting)
    assert shown.type == "|".join(family.table) and shown.description.endswith("; my_own: made here")


@each
def test_a_name_that_is_taken_is_refused(setting: str) -> None:
    family = FAMILIES[setting]
    row = family.table[family.member]
    assert family.register(replace(row)) == row  # a module that is imported again is no mistake
    with pytest.raises(MetaschedError, match=rf"^{setting}: '{row.name}' is already used by metasched\..*; choose"):
        family.register(replace(row, **{family.builder: Lazy("mine:build")}))
    assert family.table[row.name] == row


@each
@pytest.mark.parametrize("name", ["", "Mine", "1st", "a-b", "a" * 65])
def test_a_name_that_is_no_word_is_refused(setting: str, name: str) -> None:
    family = FAMILIES[setting]
    with pytest.raises(MetaschedError, match=rf"^{setting}: .* is not a valid name; use a to z"):
        family.register(replace(family.table[family.member], name=name))
    assert name not in family.table


@pytest.mark.parametrize("setting", [*FAMILIES, "optimizer.decay"])
def test_an_unknown_name_is_one_line_with_what_there_is(setting: str, load: Callable[[str, str], Any]) -> None:
    table = FAMILIES[setting].table if setting in FAMILIES else DECAYS
    close = next(iter(table))
    with pytest.raises(MetaschedError) as caught:
        load(setting, f"{close}x")
    said = str(caught.value)
    known = ", ".join(sorted(table))
    assert said.endswith(f"{setting}: unknown name '{close}x'; did you mean {close!r}? Known: {known}")
    with pytest.raises(MetaschedError, match=rf"{setting}: must be text, got 3; give {close}\|"):
        load(setting, 3)  # type: ignore[arg-type]


@each
def test_every_builder_is_there(setting: str) -> None:
    family = FAMILIES[setting]
    for row in family.table.values():
        lazy = getattr(row, family.builder)
        if lazy is not None:
            module, _, name = lazy.place.partition(":")
            assert callable(getattr(__import__(module, fromlist=[name]), name))
        assert row.summary and row.name in family.table and "\n" not in row.summary


def test_a_lazy_function_imports_its_module_when_it_is_called() -> None:
    program = """
import sys
from metasched.core.lazy import Lazy
turned = Lazy("colorsys:rgb_to_hsv")
before = "colorsys" in sys.modules
print(before, turned(0.0, g=0.0, b=1.0)[2])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1.0"]
