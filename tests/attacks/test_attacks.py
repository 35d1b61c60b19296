"""Files from strangers who mean harm: each is refused with one printable line that says where, and leaves no trace.

The files lie beside this one; what is too large or too special to lie there is made here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metasched.cli import main
from metasched.config.load import load_experiment
from metasched.contrib.deployed_reading import read_network
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.deploy.onnx_export import session
from metasched.exchange.pbt import import_policy
from metasched.exchange.quantlab.controllers import read_quantlab
from metasched.exchange.schedule_file import read_schedule
from metasched.meta.checkpoint import read_checkpoint
from metasched.methods.ana import ACTIVATION_NOISE, NOISE_MEAN, WEIGHT_NOISE

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
NOT_JSON = "line 1 column 1: not JSON"
FINITE = "must be a finite number"
KEY = "line 1: a key must be the name of a field"
TAG = "line 1: tags are not read"
ANCHOR = "line 1: anchors are not read"
TEXT = "must be text that can be shown on one line"
TWO_WAYS = "line 1: is an ambiguous number in YAML"
RANGE = "is not YAML: a number in it is out of range"

# The file, the place that the line gives first (after the file's own name), and words of the line.
ATTACKS = {
    "schedules/boolean_count.json": ("layers[0].fan_in", "got True"),
    "schedules/boolean_value.json": ("values.noise_scale[0][0]", "got True"),
    "schedules/boolean_version.json": ("version", "unknown version True; known: 1, 2"),
    "schedules/byte_order_mark.json": ("starts with a byte-order mark", ""),
    "schedules/cut_off.json": ("line ", "not JSON"),
    "schedules/deep.json": ("provenance.seeds[0]", "nested more than 8 levels deep"),
    "schedules/duplicate_key.json": ("version", "occurs twice"),
    "schedules/duplicate_key_escaped.json": ("version", "occurs twice"),
    "schedules/empty.json": ("empty", ""),
    "schedules/endless_range.json": ("controls[0].high", "is beyond float64 from low"),
    "schedules/escape_in_a_key.json": ("['\\x1b]0;owned\\x07\\x1b[2J']", "unknown key"),
    "schedules/escape_in_a_name.json": ("layers[0].name", "got 'conv1\\x1b[2J'"),
    "schedules/escape_raw.json": ("line 15 column 17", "not JSON: Invalid control character"),
    "schedules/form_contradicts.json": ("form", "and the table has"),
    "schedules/form_wide.json": ("form.body[0]", "at most 128 items"),
    "schedules/half_surrogate.json": ("controls[0].unit", "half of a surrogate pair"),
    "schedules/huge_integer.json": ("provenance.seeds[0]", "must fit in 64 bits"),
    "schedules/infinity.json": ("values.noise_scale[0][1]", FINITE),
    "schedules/knots_outside.json": ("progress[1]", "less than or equal to 1, got 1e+300"),
    "schedules/knots_that_fall.json": ("progress[2]", "must be greater than the previous knot, 0.75, got 0.5"),
    "schedules/nan.json": ("values.noise_scale[0][1]", FINITE),
    "schedules/newline_in_a_name.json": ("method.name", "got 'ana\\nmetasched: all is well'"),
    "schedules/no_object.json": ("format", "this is not a schedule file"),
    "schedules/overflow.json": ("values.noise_scale[0][1]", FINITE),
    "schedules/path_as_control.json": ("controls[0].name", "got '../planted'"),
    "schedules/path_as_layer.json": ("layers[0].name", "got '../../planted'"),
    "schedules/path_as_method.json": ("method.name", "got '/planted'"),
    "schedules/path_as_name.json": ("provenance.name", "got '../planted'"),
    "schedules/path_as_parameter.json": ("method.parameters['../planted']", "must match pattern"),
    "schedules/path_as_values.json": ("values['../planted']", "must match pattern"),
    "schedules/pickle.json": (NOT_JSON, ""),
    "schedules/right_to_left_name.json": ("method.name", "got '\\u202eana'"),
    "schedules/two_documents.json": ("line ", "not JSON: Extra data"),
    "schedules/unknown_key.json": ("__class__", "unknown key"),
    "schedules/unknown_version.json": ("version", "unknown version 4; known: 1, 2, 3"),
    "schedules/utf_16.json": ("not UTF-8 at byte 0", ""),
    "schedules/value_outside.json": ("values.noise_scale[0][0]", "must lie in [0.0, 1.0]"),
    "schedules/yaml_tag.json": (NOT_JSON, ""),
    "configs/absolute_path_as_name.yaml": ("name", 'got "/planted"'),
    "configs/aliases.yaml": (ANCHOR, ""),
    "configs/base_60.yaml": (TWO_WAYS, ""),
    "configs/base_60_bomb.yaml": (TWO_WAYS, ""),
    "configs/binary.yaml": (TAG, ""),
    "configs/boolean_count.yaml": ("meta.steps", "must be a number, not true or false"),
    "configs/boolean_key.yaml": (KEY, ""),
    "configs/constructor_argument.yaml": ("__dataclass_self__", "unknown field"),
    "configs/count_as_boolean.yaml": ("task.download", "must be a valid boolean, got 1"),
    "configs/date.yaml": ("seed", 'must be a valid integer, got "2024-01-01"'),
    "configs/deep.yaml": ("line 1", "is nested more than 10 levels deep"),
    "configs/dots_as_name.yaml": ("name", 'got ".."'),
    "configs/duplicate_key.yaml": ("line 3", "the key 'seed' occurs twice"),
    "configs/duplicate_key_quoted.yaml": ("line 1", "the key 'steps' occurs twice"),
    "configs/empty.yaml": ("is empty", ""),
    "configs/endless_alias.yaml": (ANCHOR, ""),
    "configs/escape.yaml": ("run.folder", TEXT),
    "configs/escape_in_a_key.yaml": (KEY, ""),
    "configs/escape_raw.yaml": ("is not YAML", "it holds control characters"),
    "configs/half_surrogate.yaml": ("run.folder", "must be text"),
    "configs/huge_hexadecimal.yaml": ("line 1", "is an integer of more than 64 bits"),
    "configs/huge_integer.yaml": ("line 1", "is not a number"),
    "configs/infinity.yaml": ("optimizer.lr", FINITE),
    "configs/large_seed.yaml": ("seed", "must be at most 9223372036854775807"),
    "configs/list.yaml": ("holds a list", ""),
    "configs/list_key.yaml": (KEY, ""),
    "configs/local_tag.yaml": (TAG, ""),
    "configs/long_key.yaml": (KEY, ""),
    "configs/many_layers.yaml": ("task.depth", "must be at most 1024"),
    "configs/many_processes.yaml": ("run.workers", "must be at most 1024"),
    "configs/many_seeds.yaml": ("compare.seeds", "must be at most 10000"),
    "configs/many_steps.yaml": ("task.steps", "must be at most 10000000"),
    "configs/merge_key.yaml": (KEY, ""),
    "configs/nan.yaml": ("optimizer.lr", FINITE),
    "configs/no_such_character.yaml": (RANGE, ""),
    "configs/norway.yaml": ("name", "must be text, got false"),
    "configs/not_utf_8.yaml": ("is not UTF-8 text (byte 9)", ""),
    "configs/null_byte.yaml": ("run.folder", TEXT),
    "configs/null_key.yaml": (KEY, ""),
    "configs/number_key.yaml": (KEY, ""),
    "configs/octal.yaml": (TWO_WAYS, ""),
    "configs/overflow.yaml": ("optimizer.lr", FINITE),
    "configs/path_as_levels.yaml": ("method.levels", "unknown level set '../planted'"),
    "configs/path_as_name.yaml": ("name", 'got "../../planted"'),
    "configs/path_as_project.yaml": ("tracking.project", 'got "../planted"'),
    "configs/pickle.yaml": ("holds no fields", ""),
    "configs/python_module.yaml": (TAG, ""),
    "configs/python_object.yaml": (TAG, ""),
    "configs/python_object_at_the_root.yaml": (TAG, ""),
    "configs/right_to_left.yaml": ("schedule.start", TEXT),
    "configs/tagged_integer.yaml": (TAG, ""),
    "configs/two_documents.yaml": ("line 2", "found another document"),
    "configs/unknown_section.yaml": ("__class__", "unknown field"),
    "configs/unknown_yaml.yaml": (RANGE, ""),
    "configs/utf_16.yaml": ("is not UTF-8 text (byte 0)", ""),
    "configs/wide_layers.yaml": ("task.width", "must be at most 65536"),
    "policies/blank_line.txt": ("line 2", "empty"),
    "policies/boolean_iteration.txt": ("line 1[3]", "must be a count, got True"),
    "policies/boolean_value.txt": ("line 1[5].noise_scale", "must be a number in [0.0, 1.0], got True"),
    "policies/byte_order_mark.txt": ("line 1", "starts with a byte-order mark"),
    "policies/cut_off.txt": ("line 2 column 45", "not JSON"),
    "policies/deep.txt": ("line 1[5].lr[0]", "nested more than 8 levels deep"),
    "policies/duplicate_key.txt": ("line 1[5].lr", "occurs twice"),
    "policies/empty.txt": ("line 1", "empty"),
    "policies/escape_in_a_key.txt": ("line 1[5]['noise_scale/\\x1b[2J']", "unknown name"),
    "policies/falling_iterations.txt": ("line 2[3]", "is 5, before that of the line above, 10"),
    "policies/half_surrogate.txt": ("line 1[0]", "half of a surrogate pair"),
    "policies/huge_integer.txt": ("line 1[5].lr", "must fit in 64 bits"),
    "policies/late_iteration.txt": ("line 1[5]", "changes at iteration 40, but the whole run has 40"),
    "policies/list_for_a_configuration.txt": ("line 1[5]", "must be an object, got [1]"),
    "policies/missing_control.txt": ("line 1[5]", "has neither noise_mean nor noise_mean/conv1"),
    "policies/nan.txt": ("line 1[5].noise_scale", FINITE),
    "policies/negative_iteration.txt": ("line 1[3]", "must be a count, got -1"),
    "policies/no_array.txt": ("line 1", "must be an array of 6"),
    "policies/overflow.txt": ("line 1[5].noise_scale", FINITE),
    "policies/pickle.txt": (NOT_JSON, ""),
    "policies/rising.txt": ("line 1[5]", "weight_noise of conv1 is nonincreasing, but goes from 0.5 to 0.75"),
    "policies/short_row.txt": ("line 1", "must be an array of 6"),
    "policies/text_value.txt": ("line 1[5].noise_scale", "must be a number in [0.0, 1.0], got '0.25'"),
    "policies/unknown_layer.txt": ("line 1[5]['noise_scale/../planted']", "unknown name"),
    "policies/value_outside.txt": ("line 1[5].noise_scale", "must be a number in [0.0, 1.0], got -1"),
}


NO_CHECKPOINT = "is not a checkpoint, or holds more than plain types and tensors"
ATTACKS |= {
    "checkpoints/empty.pt": (NO_CHECKPOINT, ""),
    "checkpoints/list.pt": ("format", "this is not a checkpoint"),
    "checkpoints/pickle.pt": (NO_CHECKPOINT, ""),
    "checkpoints/planted.pt": (NO_CHECKPOINT, ""),
    "checkpoints/schedule.pt": (NO_CHECKPOINT, ""),
}


TIMERS = "training.quantize.kwargs.ctrl_spec"
NO_MODEL = "is not an ONNX model that onnxruntime can run"
ATTACKS |= {
    "quantlab/boolean_width.json": (f"{TIMERS}[0].sigma.beta", "must be a number, got True"),
    "quantlab/byte_order_mark.json": ("starts with a byte-order mark", ""),
    "quantlab/constructor_argument.json": (f"{TIMERS}[0].sigma.kwargs", "unknown name 'path'"),
    "quantlab/cut_off.json": ("line 16 column 17", "not JSON"),
    "quantlab/deep.json": (f"{TIMERS}[0]", "must be an object"),
    "quantlab/duplicate_key.json": ("['5']", "occurs twice"),
    "quantlab/empty.json": ("empty", ""),
    "quantlab/empty_window.json": (f"{TIMERS}[0].sigma.kwargs.tend", "at least 1, got 0"),
    "quantlab/endless_epoch.json": ("['9999", "must be an epoch"),
    "quantlab/escape_in_a_function.json": (f"{TIMERS}[0].sigma.fun", "unknown name '\\x1b[2Jbws'"),
    "quantlab/function_as_object.json": (f"{TIMERS}[0].sigma.fun", "unknown name \"{'class': 'os.system'}\""),
    "quantlab/function_that_runs.json": (f"{TIMERS}[0].sigma.fun", "Known: bws, uws"),
    "quantlab/half_a_power.json": (f"{TIMERS}[0].sigma.kwargs.alpha", "must be an integer of at least 0, got 0.5"),
    "quantlab/huge_integer.json": (f"{TIMERS}[0].sigma.kwargs.tend", "must fit in 64 bits"),
    "quantlab/nan.json": (f"{TIMERS}[0].sigma.beta", FINITE),
    "quantlab/negative_width.json": (f"{TIMERS}[0].sigma.beta", "must be at least 0, got -0.5"),
    "quantlab/no_controller.json": (
        "training.quantize.kwargs",
        "has neither ctrl_spec (of ANA) nor config.INQ (of INQ)",
    ),
    "quantlab/no_epochs.json": ("training.n_epochs", "at least 1, got 0"),
    "quantlab/overflow.json": (f"{TIMERS}[0].sigma.beta", FINITE),
    "quantlab/pickle.json": ("not UTF-8 at byte 0", ""),
    "quantlab/share_beyond.json": ("['5']", "must be a share in [0, 1], got 1.5"),
    "quantlab/thawing.json": ("['7']", "must be at least 0.5"),
    "quantlab/two_timers_for_a_module.json": (f"{TIMERS}[1].modules", "'conv1' already has a timer"),
    "quantlab/unknown_function.json": (f"{TIMERS}[0].sigma.fun", "unknown name 'lws'"),
    "networks/another_format.json": ("format", "must be 1, got 2"),
    "networks/boolean_format.json": ("format", "must be 1, got True"),
    "networks/boolean_image.json": ("image[0]", "must be an integer, got True"),
    "networks/cut_off.json": ("line 9 column 2", "not JSON"),
    "networks/deep.json": ("stages[0]", "nested more than 8 levels deep"),
    "networks/duplicate_key.json": ("format", "occurs twice"),
    "networks/empty.json": ("empty", ""),
    "networks/endless_step.json": ("step", "must be a positive fraction"),
    "networks/escape_in_a_key.json": ("unknown name '\\x1b[2J'", ""),
    "networks/flat_image.json": ("image", "must be an array of 3 integers, got [8, 8]"),
    "networks/huge_integer.json": ("image[1]", "must fit in 64 bits"),
    "networks/nan.json": ("step", FINITE),
    "networks/no_image.json": ("image", "missing"),
    "networks/no_object.json": ("must be an object, got []", ""),
    "networks/path_as_step.json": ("step", "got '../planted'"),
    "networks/path_as_weights.json": ("unknown name 'weights'", ""),
    "networks/pickle.json": ("not UTF-8 at byte 0", ""),
    "networks/stages_by_name.json": ("stages", "must be an array"),
    "networks/step_by_zero.json": ("step", "got '1/0'"),
    "onnx/cut_off.onnx": (NO_MODEL, "protobuf parsing failed"),
    "onnx/cycle.onnx": (NO_MODEL, "the graph is not acyclic"),
    "onnx/empty.onnx": (NO_MODEL, "No graph was found"),
    "onnx/escape_in_a_name.onnx": (NO_MODEL, "No Op registered for \\x1b[2JAdd"),
    "onnx/external_above.onnx": (NO_MODEL, "xternal data path"),
    "onnx/external_absolute.onnx": (NO_MODEL, "Absolute path not allowed"),
    "onnx/external_data.onnx": (NO_MODEL, "xternal data path"),
    "onnx/future.onnx": (NO_MODEL, "Unsupported model IR version: 99"),
    "onnx/pickle.onnx": (NO_MODEL, "protobuf parsing failed"),
    "onnx/text.onnx": (NO_MODEL, "protobuf parsing failed"),
    "onnx/unknown_operator.onnx": (NO_MODEL, "not a registered function/op"),
}


def read_policy(path: Path) -> object:
    return import_policy(
        path,
        total=40,
        name="x",
        method_name="ana",
        method_parameters={},
        controls=[WEIGHT_NOISE, ACTIVATION_NOISE, NOISE_MEAN],
        layers=[Layer("conv1", 0.0, "conv", "weight", 9, 72, 1.5)],
    )


READERS: dict[str, Callable[[Any], object]] = {
    "schedules": read_schedule,
    "configs": load_experiment,
    "policies": read_policy,
    "checkpoints": read_checkpoint,
    "quantlab": read_quantlab,
    "networks": read_network,
    "onnx": session,
}
COMMANDS = {
    "schedules": ["show", "FILE"],
    "configs": ["check", "FILE"],
    "policies": ["import", "CONFIG", "FILE", "--total", "40", "-o", "schedule.json"],
    "quantlab": ["import", "CONFIG", "FILE", "--from", "quantlab", "-o", "schedule.json"],
}  # none takes a checkpoint by its path (test_planted.py has some in a run folder), a network or an ONNX model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, two levels down, in which relative paths begin; nothing may appear in it or above it."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    yield inside
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", inside]
    assert not Path("/planted").exists()


@pytest.fixture
def alarm() -> Iterator[None]:
    """Whatever waits for ever ends as an error."""

    def ring(*_: object) -> None:
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(read: Callable[[Any], object], path: Path) -> str:
    """What the line says after the name of the file; it has to be one printable line of a reasonable length."""
    if read is session:
        pytest.importorskip("onnxruntime", reason="optional: deploy")
    with pytest.raises(MetaschedError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < len(str(path)) + 500, message
    return message.removeprefix(f"{path}: ")


def test_the_table_names_every_file() -> None:
    files = {p.relative_to(FOLDER).as_posix() for folder in READERS for p in (FOLDER / folder).iterdir()}
    assert files == set(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_by_its_reader(name: str, place: Path, alarm: None) -> None:
    where, words = ATTACKS[name]
    message = refusal(READERS[name.partition("/")[0]], FOLDER / name)
    assert message.startswith(where) and words in message, message


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.partition("/")[0] in COMMANDS])
def test_an_attack_is_refused_by_the_command(
    name: str, place: Path, alarm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ROOT / "experiments" / "digits_ana_shallow.yaml"
    given = {"FILE": str(FOLDER / name), "CONFIG": str(config)}
    assert main([given.get(a, a) for a in COMMANDS[name.partition("/")[0]]]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"metasched: error: {FOLDER / name}: ") and line.isprintable() and captured.out == ""


@pytest.mark.parametrize(
    "name", ["schedules/escape_in_a_key.json", "configs/python_object.yaml", "configs/path_as_name.yaml"]
)
def test_a_process_of_its_own_says_the_same(name: str, place: Path) -> None:
    command = ["show"] if name.startswith("schedules") else ["train"]
    run = [sys.executable, "-m", "metasched", *command, str(FOLDER / name)]
    done = subprocess.run(run, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120)
    (line,) = done.stderr.decode("ascii").splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith("metasched: error: ") and ATTACKS[name][0] in line and line.isprintable()


BOMBS: dict[str, tuple[str, bytes, str]] = {  # what is too large to lie in the folder
    "lists": ("schedules", b"[" * 1_000_000, "nested more than 8 levels"),
    "objects": ("schedules", b'{"a":' * 150_000, "nested more than 8 levels"),
    "a large schedule": ("schedules", b" " * (2**20 + 1), "larger than 1048576 bytes"),
    "flow lists": ("configs", b"a: " + b"[" * 60_000, "is nested more than 10 levels deep"),
    "flow keys": ("configs", b"? " * 30_000, "is nested more than 10 levels deep"),
    "block lists": ("configs", b"- " * 30_000, "is nested more than 10 levels deep"),
    "values": ("configs", b"a: [" + b"1," * 30_000 + b"]", "holds more than 10000 values"),
    "unknown fields": ("configs", b"\n".join(b"a%d: 1" % i for i in range(4900)), "and 4880 more problems"),
    "wrong items": ("configs", b"compare: {baselines: [" + b"1," * 9000 + b"]}", "and 8980 more problems"),
    "a long name": ("configs", b"name: " + b"a" * 60_000, "name: must match pattern"),
    "a long start": ("configs", b"schedule: {start: " + b"a" * 60_000 + b"}", "must have at most 1024 characters"),
    "a large config": ("configs", b"#" * (2**16 + 1), "larger than 65536 bytes"),
    "a large policy": ("policies", b"\n" * (2**20 + 1), "larger than 1048576 bytes"),
    "many lines": ("policies", b"[]\n" * 3000, "has 3000 lines, more than 2048"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_what_grows_is_cut_short(case: str, tmp_path: Path, alarm: None) -> None:
    kind, data, words = BOMBS[case]
    path = tmp_path / "bomb"
    path.write_bytes(data)
    with pytest.raises(MetaschedError) as caught:
        READERS[kind](path)
    assert words in str(caught.value) and len(str(caught.value)) < 10_000
    assert all(line.isprintable() for line in str(caught.value).splitlines())


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_regular_file_is_not_opened(kind: str, tmp_path: Path, alarm: None) -> None:
    read = READERS[kind]
    pipe, loop, gone, zero = (tmp_path / name for name in ("pipe", "loop", "gone", "zero"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    gone.symlink_to(tmp_path / "nothing")
    zero.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))  # leaves its name behind
    for path, words in [
        (pipe, "Is a pipe"),
        (tmp_path, "Is a directory"),
        (tmp_path / "socket", "Is a socket"),
        (zero, "Is a device"),
        (Path("/dev/tty"), "Is a device"),
        (loop, "symbolic links"),
        (gone, "No such file"),
        (tmp_path / ("a" * 300), "File name too long"),
        (pipe / "below", "Not a directory"),
    ]:
        assert words in refusal(read, path), path


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(ROOT / "tests" / "formats" / "schedule_v1.json")
    assert read_schedule(link) == read_schedule(link.resolve())
