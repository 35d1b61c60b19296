"""The published JSON Schema: generated from the code, true of every schedule file, and of little else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from metasched.exchange import format
from metasched.exchange.format import json_schema

CHECKED_IN = Path(format.__file__).with_name("schedule.schema.json")
BASELINES = sorted((Path(__file__).parents[2] / "experiments" / "baselines").glob("*.json"))
REGENERATE = (
    'python -c "import json; from metasched.exchange.format import json_schema; print(json.dumps(json_schema(), '
    'indent=2))" > metasched/exchange/schedule.schema.json'
)

VALIDATOR = jsonschema.Draft202012Validator(json.loads(CHECKED_IN.read_text("utf-8")))


def test_checked_in_schema_is_the_generated_one() -> None:
    generated = json.dumps(json_schema(), indent=2) + "\n"
    assert CHECKED_IN.read_text("utf-8") == generated, f"the format has changed; regenerate its schema: {REGENERATE}"


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(VALIDATOR.schema)


def test_the_golden_file_and_all_baselines_are_valid(golden: str) -> None:
    VALIDATOR.validate(json.loads(golden))
    assert len(BASELINES) == 136
    for path in BASELINES:
        VALIDATOR.validate(json.loads(path.read_bytes()))


def parametric(kind: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "formats" / f"schedule_v2_{kind}.json").read_bytes())


@pytest.mark.parametrize("kind", ["family", "network", "shared"])
def test_files_of_version_2_are_valid(kind: str) -> None:
    VALIDATOR.validate(parametric(kind))
    assert not VALIDATOR.is_valid(parametric(kind) | {"version": 1})


@pytest.mark.parametrize("field", ["kind", "base", "knots", "learned", "numbers"])
def test_a_form_needs(field: str) -> None:
    tree = parametric("shared")
    del tree["form"][field]
    assert not VALIDATOR.is_valid(tree)


def test_other_kinds_of_layers_are_for_version_2(golden: str) -> None:
    tree = json.loads(golden)
    tree["layers"][0]["kind"] = "attention"
    assert not VALIDATOR.is_valid(tree)
    VALIDATOR.validate(tree | {"version": 2})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 4},
        {"version": True},
        {"format": "other"},
        {"extra": 1},
        {"method": {"name": "Ana", "parameters": {}}},
        {"method": {"name": "ana", "parameters": {"a": [1]}}},
        {"method": {"name": "ana", "parameters": {"A": 1}}},
        {"progress": [0.0]},
        {"progress": [0.0, 1.5]},
        {"layers": []},
        {"values": {"Noise": [[0, 0]]}},
        {"values": {"weight_noise": [[0, "0"]]}},
        {"interpolation": "cubic"},
        {"provenance": {"kind": "learned"}},
    ],
    ids=str,
)
def test_it_refuses(change: dict[str, Any], golden: str) -> None:
    assert not VALIDATOR.is_valid(json.loads(golden) | change)


@pytest.mark.parametrize("key", ["format", "version", "method", "controls", "progress", "layers", "values"])
def test_it_requires(key: str, golden: str) -> None:
    tree = json.loads(golden)
    del tree[key]
    assert not VALIDATOR.is_valid(tree)
