"""A method that is not in the package: its parameters and names; tests/outside puts it through the commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic.dataclasses
import pytest
import yaml

from metasched.config.fields import fields
from metasched.config.load import load_experiment
from metasched.config.schema import Experiment
from metasched.config.writing import dump_yaml, to_dict
from metasched.core.errors import MetaschedError
from metasched.methods import METHODS, MethodSpec, build_method, register_method
from metasched.methods.config import MethodConfig
from metasched.schedules.table import hand_coded

pytestmark = pytest.mark.usefixtures("blank_plots")

TINY = {
    "task": {"model": "mlp", "steps": 6},
    "method": {"name": "alpha_blending", "stretch": 0.9, "activation_levels": None, "scale": "max"},
    "schedule": {"start": "alpha_linear"},
}


@pytest.fixture
def alpha(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, newly imported, and with it the method in the table."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "outside")
    monkeypatch.delitem(sys.modules, "alpha_blending", raising=False)
    yield import_module("alpha_blending")
    METHODS.pop("alpha_blending")


@pytest.fixture
def config(alpha: ModuleType, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_its_parameters_are_fields_of_an_experiment(config: Path, alpha: ModuleType, tmp_path: Path) -> None:
    experiment = load_experiment(config, ["--method.stretch=0.8"])
    assert type(experiment.method) is alpha.AlphaBlendingConfig
    assert build_method(experiment.method).stretch == 0.8  # pyright: ignore[reportAttributeAccessIssue]
    assert MethodConfig(name="alpha_blending", stretch=0.8, activation_levels=None, scale="max") == experiment.method
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_yaml(to_dict(experiment)))
    assert load_experiment(copy) == experiment
    (field,) = (f for f in fields() if f.path == "method.stretch")
    assert (field.type, field.default) == ("float", 1.0)
    assert field.description == "factor on the level that is mixed in (alpha_blending)"
    (name,) = (f for f in fields() if f.path == "method.name")
    assert name.type.endswith("|alpha_blending")
    assert list(hand_coded("alpha_blending")) == ["alpha_linear", "alpha_cubic"]


def test_what_is_not_its_own_is_refused(config: Path) -> None:
    for override, expected in {
        "--method.stretch=-1": "--method.stretch: must be greater than 0, got -1",
        "--method.noise=normal": "has no effect, because method.name is alpha_blending; leave it out",
        "--method.strech=2": "--method.strech: unknown field; did you mean",
        "--method.name=alpha_blendin": "unknown name 'alpha_blendin'; did you mean 'alpha_blending'?",
    }.items():
        with pytest.raises(MetaschedError) as caught:
            load_experiment(config, [override])
        assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert load_experiment(config, ["--method.noise=triangular"]).method == load_experiment(config).method


def test_a_name_that_is_taken_is_refused(alpha: ModuleType) -> None:
    class Other(alpha.AlphaBlendingConfig):
        pass

    with pytest.raises(
        MetaschedError, match=r"method\.name: 'alpha_blending' is already used by alpha_blending\.Alpha"
    ):
        register_method(replace(alpha.SPEC, config=Other))
    register_method(alpha.SPEC)  # importing a module again is no mistake


def test_a_parameter_with_another_default_than_elsewhere_is_refused(alpha: ModuleType) -> None:
    class Clash(MethodConfig):
        name: str = "clash"
        uphill: float = 0.25

    section: Any = pydantic.dataclasses.dataclass
    with pytest.raises(
        MetaschedError, match=r"method\.uphill: has the default 0\.25 here, but 0\.5 in the method metropolis"
    ):
        register_method(MethodSpec(section(frozen=True, kw_only=True)(Clash), "", alpha.build))
    assert "clash" not in METHODS


def test_a_file_that_lists_the_parameters_of_every_method_is_read(config: Path) -> None:
    """Resolved files of older versions do."""
    everything = {f.path.removeprefix("method."): f.default for f in fields() if f.path.startswith("method.")}
    for name in METHODS:
        config.write_text(yaml.safe_dump({"method": {**everything, "name": name}}))
        assert load_experiment(config).method == MethodConfig(name=name)
        assert set(to_dict(Experiment(method=MethodConfig(name=name)))["method"]) <= set(everything)
