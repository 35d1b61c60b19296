from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import to_jsonable_python

from metasched.arena.config import ArenaConfig
from metasched.config.fields import fields, names_in
from metasched.config.load import ConfigErrors, load_experiment, require_learnable
from metasched.config.schema import Experiment
from metasched.config.writing import config_hash, dump_yaml, to_dict
from metasched.core.errors import MetaschedError
from metasched.families.config import TasksConfig
from metasched.meta.config import MetaConfig
from metasched.methods import METHODS
from metasched.methods.config import MethodConfig
from metasched.network.config import QuantizeConfig, Rule
from metasched.schedules.config import ScheduleConfig
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig

VALID = """\
name: first
seed: 3
task: {name: digits, steps: 60, batch: 32, root: null}
optimizer:
  name: sgd
  lr: 1e-3        # a string for PyYAML
  momentum: 0.5
method:
  name: inq
  levels: pow2_3
  partition: random
schedule: {start: inq_linear, learn: [freeze_fraction]}
meta:
  steps: 10
  lr: 0.02
compare: {seeds: 4, horizons: [1, 3]}
tracking: {wandb: disabled}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_file_is_read(write) -> None:
    got = load_experiment(write(VALID))
    assert (got.name, got.seed, got.meta.steps, got.meta.lr) == ("first", 3, 10, 0.02)
    assert got.optimizer.lr == 0.001 and isinstance(got.optimizer.lr, float)
    assert got.compare.horizons == (1, 3) and got.schedule.learn == ("freeze_fraction",)
    assert got.task == TaskConfig(steps=60, batch=32)
    assert got.run == Experiment().run


@pytest.mark.parametrize(
    "overrides",
    [
        ["--meta.steps", "7", "--optimizer.lr", "2e-3", "--compare.horizons", "[2]", "--schedule.knots", "9"],
        ["--meta.steps=7", "--optimizer.lr=0.002", "--compare.horizons=[2]", "--schedule.knots=9"],
        ["--meta.steps=99", "--optimizer.lr=0.002", "--compare.horizons=[2]", "--schedule.knots=9", "--meta.steps=7"],
    ],
)
def test_overrides(write, overrides: list[str]) -> None:
    got = load_experiment(write(VALID), overrides)
    base = load_experiment(write(VALID))
    assert got == replace(
        base,
        meta=replace(base.meta, steps=7),
        optimizer=replace(base.optimizer, lr=0.002),
        compare=replace(base.compare, horizons=(2,)),
        schedule=replace(base.schedule, knots=9),
    )


def test_override_of_a_section_that_the_file_lacks_and_of_the_top(write) -> None:
    got = load_experiment(write("name: a"), ["--run.dtype=float64", "--name", "b", "--task.root=", "--seed=5"])
    assert (got.run.dtype, got.name, got.task.root, got.seed) == ("float64", "b", None, 5)


# Every line: text of the file, overrides, what the one-line message must hold.
MISTAKES = [
    ("meta: {steps: -1}", [], ["experiment.yaml: meta.steps: must be at least 0, got -1", "default 40"]),
    ("meta: {stps: 3}", [], ["experiment.yaml: meta.stps: unknown field", "did you mean steps?", "noise_floor"]),
    ("methd: {}", [], ["experiment.yaml: methd: unknown field", "did you mean method?"]),
    ("batch: 3", [], ["batch: unknown field", "did you mean task.batch?"]),
    ("meta: {lr: true}", [], ["meta.lr: must be a number, not true or false, got true"]),
    ("optimizer: {betas: [true, 0.9]}", [], ["optimizer.betas[0]: must be a number"]),
    ("optimizer: {betas: [0.1]}", [], ["optimizer.betas[1]: an item is missing", "[0.9, 0.999]"]),
    ("optimizer: {betas: [0.1, 0.2, 0.3]}", [], ["optimizer.betas: must have at most 2 items"]),
    ("optimizer: {lr: .nan}", [], ["optimizer.lr: must be a finite number"]),
    ("optimizer: {lr: 1e999}", [], ["optimizer.lr: must be a finite number"]),
    ("method: {name: anna}", [], ["method.name: unknown name 'anna'", "did you mean 'ana'?"]),
    ("method: 3", [], ["method: must be a section, got 3", "it has the fields name, levels"]),
    ("meta:", [], ["meta: must be a section, got null"]),
    ("name: A b", [], ["name: must match pattern"]),
    ("task: {steps: 1.5}", [], ["task.steps: must be a valid integer, got 1.5"]),
    ("task: {root: 3}", [], ["task.root: must be text, got 3"]),
    ("tracking: {wandb: off}", [], ["tracking.wandb: must be 'disabled'", "got false"]),
    ('run: {folder: "a\\0"}', [], ["run.folder: must be text that can be shown on one line"]),
    ('schedule: {start: "\\e[2J"}', [], ["schedule.start: must be text that can be shown", 'got "\\u001b[2J"']),
    ('task: {root: "\\ud800"}', [], ["task.root: must be text"]),
    ("method:\n  levels: |\n    two\n    lines", [], ["method.levels: must be text that can be shown on one line"]),
    ("task: {download: 1}", [], ["task.download: must be a valid boolean, got 1"]),
    ("task: {width: 65537}", [], ["task.width: must be at most 65536"]),
    ("tracking: {project: a/b}", [], ["tracking.project: must match pattern"]),
    ("compare: {horizons: 3}", [], ["compare.horizons: must be a list, got 3"]),
    ("compare: {horizons: []}", [], ["compare.horizons: is empty"]),
    ("seed: 9223372036854775808", [], ["seed: must be at most 9223372036854775807"]),
    ("method: {levels: ternry}", [], ["experiment.yaml: method.levels: unknown level set 'ternry'"]),
    ("method: {name: inq, backward: fixed}", [], ["method.backward: has no effect, because method.name is inq"]),
    ("method: {name: ana, partition: random}", [], ["method.partition: has no effect, because method.name is ana"]),
    ("method: {name: joint, live: hard}", [], ["method.live: has no effect, because method.name is joint"]),
    ("method: {name: inq, scale: learned}", [], ["method.scale: cannot be learned by inq while live weights are in "]),
    ("optimizer: {momentum: 0.5}", [], ["optimizer.momentum: has no effect, because optimizer.name is adam"]),
    ("name: a", ["--meta.steps=-1"], ["--meta.steps: must be at least 0, got -1"]),
    ("name: a", ["--optimizer.betas=[2, 0.1]"], ["--optimizer.betas[0]: must be less than 1, got 2"]),
    ("name: a", ["--method.levels=x"], ["--method.levels: unknown level set 'x'"]),
    ("name: a", ["--meta.stps", "3"], ["--meta.stps: unknown field", "did you mean steps?"]),
    ("name: a", ["--meta={steps: 3}"], ["--meta: takes no mapping", "one by one"]),
    ("name: a", ["--name.x=3"], ["--name.x: name is not a section"]),
    ("name: a", ["--meta.steps"], ["--meta.steps: has no value"]),
    ("name: a", ["meta.steps=3"], ["meta.steps=3: is not an override of a field"]),
    ("name: a", ["--meta.steps=["], ["--meta.steps: line 1"]),
]


@pytest.mark.parametrize(("text", "overrides", "expected"), MISTAKES, ids=[m[0] + " ".join(m[1]) for m in MISTAKES])
def test_a_mistake_is_one_line_with_the_path(write, text: str, overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(MetaschedError) as caught:
        load_experiment(write(text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_all_mistakes_are_reported_together(write) -> None:
    text = "meta: {steps: -1, stps: 3}\ntask: {batch: no}\nmethod: {name: x}\nschedule: 4\n"
    with pytest.raises(ConfigErrors) as caught:
        load_experiment(write(text), ["--optimizer.lr=0"])
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems) == 6
    for path in ("meta.steps", "meta.stps", "task.batch", "method.name", "schedule", "--optimizer.lr"):
        assert sum(f"{path}: " in line for line in lines) == 1, path


def test_endless_mistakes_are_cut_off(write) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_experiment(write(f"schedule: {{learn: {list(range(50))}}}"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "and 30 more problems"


def test_errors_cross_a_process_pool() -> None:
    error = ConfigErrors([MetaschedError("a", "b", "c"), MetaschedError("d", "e", "f")])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ConfigErrors and str(again) == str(error) == "a: b; c\nd: e; f"


@pytest.mark.parametrize("field", [f for f in fields() if "true|false" not in f.type], ids=lambda f: f.path)
def test_no_field_but_a_boolean_takes_a_boolean(write, field) -> None:
    with pytest.raises(MetaschedError, match=field.path):
        load_experiment(write("name: a"), [f"--{field.path}=true"])


def test_every_field_is_described_and_its_default_is_the_default() -> None:
    assert [f.path for f in fields() if not f.description] == []
    default = to_dict(Experiment())
    for spec in METHODS.values():
        default["method"] = to_dict(Experiment(method=MethodConfig(name=spec.name)))["method"] | default["method"]
    default["task"] |= {"factory": None, "args": {}}  # which are written for tasks of one's own alone
    default["task"] |= {"target": None, "drop": [], "missing": "refuse"}  # which are written where they differ
    default["run"] |= {"where": None, "store": None}  # which are written where they differ
    default["tasks"] = to_jsonable_python(TasksConfig())  # which is written where there are several tasks
    default["arena"] = to_jsonable_python(ArenaConfig())  # likewise
    for field in fields():
        value = default
        for part in field.path.split("."):
            value = value[part]
        assert json.loads(json.dumps(field.default)) == value, field.path


def test_names_in_sections() -> None:
    assert names_in(("quantize",)) == ["first", "last", "rules", "redraw"]
    assert names_in(("nothing",)) == [] == names_in(("seed",))


@pytest.mark.parametrize(
    "experiment",
    [
        Experiment(),
        Experiment(
            name="x",
            task=TaskConfig(root="2024-01-01", train=5),
            optimizer=OptimizerConfig(lr=1e-3, eps=1e-12, weight_decay=1 / 3),
            method=MethodConfig(activation_levels=None),
            schedule=ScheduleConfig(start="null", learn=("a", "1e-3")),
        ),
    ],
)
def test_yaml_round_trip(write, experiment: Experiment) -> None:
    assert load_experiment(write(dump_yaml(to_dict(experiment)))) == experiment


def test_what_older_versions_do_not_have_is_written_where_it_is_given() -> None:
    rules = (Rule("a", levels="int4"), Rule("b", channel_bits="24"))
    written = to_dict(Experiment(quantize=QuantizeConfig(rules=rules), task=TaskConfig(name="tabular", target="y")))
    assert ["channel_bits" in rule for rule in written["quantize"]["rules"]] == [False, True]
    assert not any("sparsity" in rule for rule in written["quantize"]["rules"])
    assert written["task"]["target"] == "y" and "drop" not in written["task"]


def test_hash_is_that_of_the_canonical_json() -> None:
    experiment = Experiment(meta=MetaConfig(lr=0.2))
    text = json.dumps(json.loads(json.dumps(to_dict(experiment))), sort_keys=True, separators=(",", ":"))
    assert config_hash(experiment) == hashlib.sha256(text.encode("ascii")).hexdigest()
    assert '"lr":0.2' in text and '"betas":[0.9,0.999]' in text
    assert config_hash(experiment) != config_hash(Experiment())
    assert config_hash(experiment) == config_hash(Experiment(meta=MetaConfig(lr=2e-1)))


def test_what_can_be_learned() -> None:
    require_learnable(MethodConfig(), None)
    with pytest.raises(MetaschedError, match=r"method\.name: there is nothing to learn for ste"):
        require_learnable(MethodConfig(name="ste"), None)
    with pytest.raises(MetaschedError, match=r"schedule\.learn: is empty"):
        require_learnable(MethodConfig(), ())


TOKENS = [*"{}[]:,#&*!|>'\"%@`- \n\t~0\xe9\x07", "true", "null", "-1", "1e-3", ".inf", "!!int ", "<<: ", "[1, 2]"]


@st.composite
def edited(draw: st.DrawFn) -> str:
    """The valid file with one to three edits: a piece cut out, a token put in, a line twice, a word for another."""
    text = VALID
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        kind = draw(st.sampled_from(["cut", "insert", "repeat", "swap"]))
        if kind == "cut":
            text = text[:start] + text[start + draw(st.integers(1, 12)) :]
        elif kind == "insert":
            text = text[:start] + draw(st.sampled_from(TOKENS)) + text[start:]
        elif kind == "repeat":
            line = draw(st.sampled_from(text.splitlines() or [""]))
            text = f"{text}{line}\n"
        else:
            words = text.split() or ["x"]
            text = text.replace(draw(st.sampled_from(words)), draw(st.sampled_from([*words, *TOKENS])), 1)
    return text


@settings(
    max_examples=400, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=edited())
def test_an_edited_file_loads_or_is_refused_in_clear_lines(write, text: str) -> None:
    path = write(text)
    try:
        experiment = load_experiment(path)
    except MetaschedError as error:
        lines = str(error).splitlines()
        assert lines and all(line.startswith(f"{path}: ") and line.isprintable() for line in lines)
    else:
        assert load_experiment(write(dump_yaml(to_dict(experiment)))) == experiment


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.binary(max_size=80))
def test_any_bytes_end_in_a_clear_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(MetaschedError):
        load_experiment(path, ["--meta.steps=-1"])
