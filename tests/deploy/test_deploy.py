from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched.cli import main
from metasched.commands.deploy import check, deploy
from metasched.config.schema import Experiment
from metasched.contrib.deployed_reading import read_network
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.deploy import converted as deploying
from metasched.deploy import simulator
from metasched.deploy.files import write_folder
from metasched.deploy.integer import integer_of
from metasched.deploy.packing import unpack_bits, unpack_trits
from metasched.evaluation.contenders import named_schedule
from metasched.methods.config import MethodConfig
from metasched.network.config import QuantizeConfig, Rule
from metasched.runs.cells import played
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console
from metasched.training.loop import hardened_score, train
from metasched.training.problem import build_problem

ROOT = Path(__file__).parents[2]
TINY = Experiment(
    task=TaskConfig(train=200, test=150, width=4, steps=4, batch=32),
    method=MethodConfig(name="ana"),
    quantize=QuantizeConfig(last=True),
)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("deploy") / "deployed"
    result = deploy(TINY.problem, TINY.seed, "ana_linear", folder, open_console(StringIO()))
    for one in result["agreement"].values():
        assert one["images"] == 150 and one["integers"] > 0 and one["other_integers"] == one["other_classes"] == 0
    return folder


def test_the_account_is_the_size_of_the_files(deployed: Path) -> None:
    account = json.loads((deployed / "account.json").read_text())
    layers = account["layers"]
    assert (deployed / "weights.bin").stat().st_size == sum(layer["packed"] for layer in layers)
    assert (deployed / "weights.trits").stat().st_size == sum(layer["trits"] for layer in layers)
    assert (
        15.9
        <= account["compression"]
        == sum(layer["float32"] for layer in layers) / sum(layer["packed"] for layer in layers)
    )


def test_the_files_are_enough_to_run_the_network(deployed: Path) -> None:
    """An implementation of its own, of the first convolution and its thresholds, from the files alone."""
    network = json.loads((deployed / "network.json").read_text())
    weights, golden = (deployed / "weights.bin").read_bytes(), np.load(deployed / "golden.npz")
    convolution = network["stages"][0]
    place = convolution["weight"]
    data = weights[place["offset"] : place["offset"] + place["bytes"]]
    w = unpack_bits(data, place["bits"], int(np.prod(place["shape"]))).reshape(place["shape"])
    x = np.pad(golden["codes"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    assert convolution["padding"] == [1, 1] and convolution["stride"] == [1, 1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    assert np.array_equal(np.einsum("nchwij,ocij->nohw", windows, w), golden["stage0"])
    i = next(i for i, stage in enumerate(network["stages"]) if stage["stage"] == "thresholds")
    low, high = np.array(network["stages"][i]["values"]).T[:, :, None, None]
    before = golden[f"stage{i - 1}"]
    assert np.array_equal((before >= low).astype(int) + (before >= high) - 1, golden[f"stage{i}"])


def test_the_network_that_is_read_back_puts_out_the_golden_outputs(deployed: Path) -> None:
    golden = np.load(deployed / "golden.npz")
    for i, y in enumerate(simulator.outputs(read_network(deployed / "network.json"), golden["codes"])):
        assert np.array_equal(y, golden[f"stage{i}"])


def test_every_runtime_that_is_there_was_compared(deployed: Path) -> None:
    agreement = json.loads((deployed / "account.json").read_text())["agreement"]
    names = {"onnxruntime": "onnxruntime", "qonnx": "qonnx"}
    assert set(agreement) == {"PyTorch", *(name for name, package in names.items() if find_spec(package))}


def test_both_packings_hold_the_same_weights(deployed: Path) -> None:
    layers = json.loads((deployed / "account.json").read_text())["layers"]
    bits, trits = (deployed / "weights.bin").read_bytes(), (deployed / "weights.trits").read_bytes()
    for layer in layers:
        two, bits = bits[: layer["packed"]], bits[layer["packed"] :]
        five, trits = trits[: layer["trits"]], trits[layer["trits"] :]
        assert np.array_equal(unpack_bits(two, 2, layer["weights"]), unpack_trits(five, layer["weights"]))


@pytest.mark.parametrize(
    "method, rules",
    [
        ({"scale": "learned", "activation_scale": "learned", "granularity": "channel"}, ()),
        ({"activation_scale": "clip", "activation_levels": "uint2"}, (Rule("linear2", levels="int4"),)),
    ],
    ids=["learned scales", "a learned clip and a rule"],
)
def test_an_experiment_is_deployed_as_its_converted_network(
    method: dict[str, Any], rules: tuple[Rule, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY.problem._replace(
        task=replace(TINY.task, model="mlp", width=16, steps=3),
        method=MethodConfig(name="ste", **method),
        quantize=QuantizeConfig(last=True, rules=rules),
    )
    built: list[Any] = []
    monkeypatch.setattr(deploying, "integer_of", lambda *args: built.append(args) or integer_of(*args))
    check(config, tmp_path / "out")
    result = deploy(config, 0, "floor", tmp_path / "out", open_console(StringIO()))
    for one in result["agreement"].values():
        assert one["images"] == 150 and one["integers"] > 0 and one["other_integers"] == one["other_classes"] == 0
    assert len(built) == 1  # of the trained network
    problem = build_problem(config, steps=3).with_seed(derive_seed(0, "deploy"))
    controls = played(config, named_schedule(config, "floor", ""), 3)
    assert result["score_float_input"] == hardened_score(problem, train(problem, controls).state, "test")
    layers = json.loads((tmp_path / "out" / "account.json").read_text())["layers"]
    assert [layer["bits"] for layer in layers] == [2, 4 if rules else 2, 2, 2]


def test_a_network_without_levels_is_refused(tmp_path: Path) -> None:
    config = TINY.problem._replace(method=MethodConfig(name="float"), quantize=QuantizeConfig())
    with pytest.raises(MetaschedError, match=r"^method: has no level sets to deploy"):
        check(config, tmp_path / "out")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(MetaschedError, match="already exists"):
        deploy(TINY.problem, TINY.seed, "ana_linear", tmp_path, open_console(StringIO()))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(MetaschedError, match="cannot be written"):
        write_folder(tmp_path / "out", {"a": b"1", "x" * 300: b"2"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "--schedule: is missing"),
        (["--schedule", "nothing"], "--schedule: 'nothing' is neither a hand-coded schedule of ana nor a file"),
        (["--schedule", str(ROOT / "experiments" / "baselines" / "inq_linear.json")], "is for method 'inq', not 'ana'"),
        (["--schedule", "ana_linear", "--method.activation_levels", "null"], "is an activation that is not quantized"),
        (["--schedule", "ana_linear", "--task.name", "text"], "task.name: text has no images, which are what is coded"),
        (["--learn", "--schedule", "ana_linear"], "--schedule: cannot be combined with --learn"),
        (["--learn", "--method.activation_levels", "null"], "is an activation that is not quantized"),
        (["--schedule", "ana_linear", "--folder", "run"], "--folder: has no effect without --learn"),
        (["--schedule", "ana_linear", "--horizon", "0"], "--horizon: must be an integer in [1, 10000], got '0'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text("name: tiny\ntask: {train: 200, test: 50, steps: 2, batch: 32}\nmethod: {name: ana}\n")
    assert main(["deploy", str(config), "-o", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


LEARNING = """
name: tiny
task: {train: 100, validation: 50, test: 50, width: 2, steps: 2, batch: 32}
method: {name: ana}
quantize: {last: true}
schedule: {start: ana_linear, knots: 4, hidden: 4}
meta: {steps: 1, runs: 1}
compare: {seeds: 2, baselines: [ana_linear]}
tracking: {wandb: disabled}
run: {workers: 1}
"""


def test_one_command_learns_trains_and_deploys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float32)
    config, run, first, again = (tmp_path / name for name in ("tiny.yaml", "run", "first", "again"))
    config.write_text(LEARNING)
    learn = ["deploy", str(config), "--learn", "--horizon", "2", "--folder", str(run), "-o", str(first)]

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("metasched.commands.train.compare", stop)
        assert main(learn) == 130
    assert capsys.readouterr().err == f"metasched: interrupted; go on with `metasched train --resume {run}`\n"
    assert not first.exists() and not (run / "DONE").exists()

    go_on = ["deploy", str(run), "--learn", "--horizon", "2", "--json", "-o"]
    assert main([*go_on, str(first)]) == 0
    out, said = capsys.readouterr()
    for what in ("training steps 4/4  in ", "images by PyTorch 50/50  in ", "runs to confirm "):
        assert what in said
    result = json.loads(out)
    assert result["run"] == str(run) and (run / "DONE").exists()
    assert {one["images"] for one in result["agreement"].values()} == {50}

    learned = (run / "metrics.jsonl").read_bytes()
    assert main([*go_on, str(again)]) == 0  # what is learned is not learned again
    assert (run / "metrics.jsonl").read_bytes() == learned
    for name in ("network.json", "weights.bin"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
