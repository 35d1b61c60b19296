"""Controllers of QuantLab become schedules that play what it sets; schedules become controllers, with their error."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasched.cli import main
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.exchange.export import export
from metasched.exchange.format import Provenance, ScheduleFile
from metasched.exchange.player import PlayedSchedule, SchedulePlayer
from metasched.exchange.quantlab.controllers import read_quantlab
from metasched.exchange.quantlab.exporting import export_quantlab, fit_decay
from metasched.exchange.quantlab.importing import import_quantlab
from metasched.exchange.schedule_file import read_schedule
from metasched.methods.ana import ACTIVATION_NOISE, NOISE_MEAN, WEIGHT_NOISE
from metasched.methods.base import Control
from metasched.methods.inq import FREEZE_FRACTION
from metasched.schedules.table import hand_coded

ROOT = Path(__file__).parents[2]
LAYERS = tuple(Layer(f"conv{i}", i - 1.0, "conv", "weight", 9, 72, 1.0) for i in (1, 2))
CONTROLS = {"ana": (WEIGHT_NOISE, ACTIVATION_NOISE, NOISE_MEAN), "inq": (FREEZE_FRACTION,)}
DVS128 = {"5": 0.2, "15": 0.4, "30": 0.6, "45": 0.8, "60": 0.9, "75": 0.95, "90": 0.975, "105": 1}


def decay(beta: float, fun: str, **kwargs: float) -> dict[str, Any]:
    return {"beta": beta, "fun": fun, "kwargs": kwargs}


def timer(*modules: str, mi: Any = None, sigma: Any = None) -> dict[str, Any]:
    still = decay(0.0, "bws", tstart=0, tend=1, alpha=1)
    return {"modules": list(modules), "mi": mi or still, "sigma": sigma or still}


def experiment(kwargs: dict[str, Any], epochs: int, noise: str = "uniform") -> dict[str, Any]:
    """An experiment of QuantLab, with sections that do not matter."""
    network = {"class": "VGG", "quantize": {"function": "all_ana_recipe", "kwargs": {"noise_type": noise}}}
    training = {"gd": {"opt": {"class": "Adam"}}, "n_epochs": epochs, "quantize": {"function": "f", "kwargs": kwargs}}
    return {"data": {}, "network": network, "training": training}


def imported(
    tmp_path: Path, tree: Any, method: str = "ana", total: int | None = None, noise: str = "uniform"
) -> ScheduleFile:
    path = tmp_path / "config.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return import_quantlab(
        path,
        total=total,
        name="theirs",
        method_name=method,
        method_parameters={"noise": noise} if method == "ana" else {},
        controls=CONTROLS[method],
        layers=LAYERS,
    )


def set_by_quantlab(spec: dict[str, Any], epoch: int) -> float:
    """Written from the description of its scheduling functions."""
    kwargs = spec["kwargs"]
    if spec["fun"] == "bws":
        if epoch <= kwargs["tstart"] or kwargs["alpha"] == 0:
            return spec["beta"]
        if epoch >= kwargs["tend"]:
            return 0.0
        return spec["beta"] * ((kwargs["tend"] - epoch) / (kwargs["tend"] - kwargs["tstart"])) ** kwargs["alpha"]
    since = max(epoch - kwargs["tstart"], 0)
    multiplier = (1 + since) ** -float(kwargs["alpha"])
    return 0.0 if multiplier < kwargs["eps"] else spec["beta"] * multiplier


def some_decay(rng: random.Random, epochs: int, beta: float) -> dict[str, Any]:
    start = rng.randrange(epochs)
    if rng.random() < 0.5:
        return decay(beta, "bws", tstart=start, tend=rng.randint(start + 1, epochs + 5), alpha=rng.randint(0, 14))
    return decay(beta, "uws", tstart=start, eps=rng.choice([0.0, 0.013, 0.2]), alpha=rng.randint(0, 4))


@pytest.mark.parametrize("seed", range(30))
def test_each_step_of_each_epoch_gets_what_quantlab_sets_for_it(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    epochs, length = rng.randint(2, 60), rng.randint(1, 7)
    specs = [
        timer(
            layer.name,
            f"act{layer.name}",
            mi=some_decay(rng, epochs, rng.uniform(-0.5, 0.5)),
            sigma=some_decay(rng, epochs, rng.uniform(0, 1)),
        )
        for layer in LAYERS
    ]
    rng.shuffle(specs)
    player = SchedulePlayer(imported(tmp_path, experiment({"ctrl_spec": specs}, epochs)), epochs * length)
    by_name = {spec["modules"][0]: spec for spec in specs}
    for step in range(epochs * length - 1):
        for name, values in player.step().items():
            for key, control in (("mi", "noise_mean"), ("sigma", "weight_noise"), ("sigma", "activation_noise")):
                assert values[control] == pytest.approx(set_by_quantlab(by_name[name][key], step // length), rel=1e-12)
    assert all(set(values.values()) == {0.0} for values in player.step().values())  # the end is the methods'


def test_timers_that_do_not_name_the_layers_are_taken_in_order(tmp_path: Path) -> None:
    specs = [
        timer(f"features.{i}", sigma=decay(beta, "bws", tstart=0, tend=2, alpha=1)) for i, beta in ((1, 0.5), (4, 0.25))
    ]
    file = imported(tmp_path, specs, total=2)
    assert file.progress == (0.0, 0.5, 1.0) and file.interpolation == "previous"
    assert file.values["weight_noise"] == ((0.5, 0.25, 0.0), (0.25, 0.125, 0.0))
    assert file.provenance.citation == "QuantLab: ANA controller of 2 timers, 2 epochs"


@pytest.mark.parametrize(("noise", "sigma"), [("normal", 0.25511), ("logistic", 0.136479), ("triangular", 0.5)])
def test_the_authors_start_values_are_half_a_quantum(tmp_path: Path, noise: str, sigma: float) -> None:
    specs = [timer(layer.name, sigma=decay(sigma, "bws", tstart=1, tend=2, alpha=1)) for layer in LAYERS]
    file = imported(tmp_path, experiment({"ctrl_spec": specs}, 4, noise), noise=noise)
    assert file.values["weight_noise"][0][0] == pytest.approx(0.5, rel=2e-5)


def test_the_stored_schedule_of_inq_is_the_hand_coded_one(tmp_path: Path) -> None:
    kwargs = {"config": {"verbose": True, "STE": {}, "INQ": {"schedule": DVS128, "clear_optim_state_on_step": False}}}
    file = imported(tmp_path, experiment(kwargs, 130), "inq")
    progress = torch.linspace(0, 1, 1301)
    wanted = hand_coded("inq")["inq_dvs128"](progress, LAYERS)["freeze_fraction"]
    assert torch.equal(PlayedSchedule(file)(progress, LAYERS)["freeze_fraction"], wanted)
    assert imported(tmp_path, DVS128, "inq", total=130).values == file.values


@given(
    st.dictionaries(st.integers(0, 39), st.floats(0.01, 1.0), min_size=1).map(
        lambda d: dict(zip(sorted(d), sorted(d.values()), strict=True))
    )
)
@settings(max_examples=50)
def test_what_inq_freezes_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, steps: dict[int, float]
) -> None:
    tmp_path = tmp_path_factory.mktemp("inq")
    steps = {t: f for t, f in steps.items() if f > max((g for s, g in steps.items() if s < t), default=0.0)}
    steps[40] = 1.0
    written = export_quantlab(imported(tmp_path, {str(t): f for t, f in steps.items()}, "inq", total=41), 41)
    wanted = steps if steps[max(t for t in steps if t < 40)] < 1 else {t: f for t, f in steps.items() if t < 40}
    schedule = written.config["training"]["quantize"]["kwargs"]["config"]["INQ"]["schedule"]
    assert {int(t): f for t, f in schedule.items()} == wanted
    assert {fit.largest for fit in written.fits} == {0.0}


@pytest.mark.parametrize("seed", range(12))
def test_a_window_of_quantlab_is_found_again(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    start, alpha = rng.randrange(60), rng.randint(1, 14)
    bounded = decay(rng.uniform(0.1, 1), "bws", tstart=start, tend=rng.randint(start + 12, 100), alpha=alpha)
    unbounded = decay(rng.uniform(-0.5, -0.1), "uws", tstart=start, eps=0.01, alpha=1 + alpha % 3)
    specs = [timer(layer.name, mi=unbounded, sigma=bounded) for layer in LAYERS]
    file = imported(tmp_path, specs, total=100)
    written = export_quantlab(file, 100)
    assert max(fit.largest for fit in written.fits) < 1e-12
    (found, _) = written.config["training"]["quantize"]["kwargs"]["ctrl_spec"]
    assert found["modules"] == ["conv1"] and (found["mi"]["fun"], found["sigma"]["fun"]) == ("uws", "bws")
    again = imported(tmp_path, written.config)
    for control in ("weight_noise", "activation_noise", "noise_mean"):
        one, other = (PlayedSchedule(f)(torch.arange(100) / 100, LAYERS)[control] for f in (file, again))
        assert torch.allclose(one, other, atol=1e-12, rtol=0)


def test_noises_that_differ_are_two_timers_and_come_back(tmp_path: Path) -> None:
    """The first layer has one noise for both, the second one each, the third no quantized activation."""
    kinds = ("weight+activation", "weight+activation", "weight")
    layers = [Layer(f"conv{i}", i / 2, "conv", kind, 9, 72, 1.0) for i, kind in enumerate(kinds)]  # pyright: ignore

    def noises(progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        left = (1 - progress)[:, None]
        weight, own = left * torch.tensor([0.5, 0.75, 0.25]), left**2 * torch.tensor([0.0, 1.0, 0.5])
        activation = torch.where(torch.tensor([True, False, False]), weight, own)
        return {"weight_noise": weight, "activation_noise": activation, "noise_mean": torch.zeros_like(weight)}

    def file_of(schedule: Any) -> ScheduleFile:
        return export(
            schedule,
            method_name="ana",
            method_parameters={"noise": "normal"},
            controls=CONTROLS["ana"],
            layers=layers,
            knots=torch.arange(9) / 8,
            interpolation="previous",
            provenance=Provenance(kind="learned", name="apart"),
        )

    written = export_quantlab(file_of(noises), 8)
    timers = written.config["training"]["quantize"]["kwargs"]["ctrl_spec"]
    assert [timer["modules"] for timer in timers] == [["conv0"], ["conv1"], ["conv1.activation"], ["conv2"]]
    assert [timer["sigma"]["beta"] for timer in timers] == pytest.approx(
        [0.5 * 0.51021, 0.75 * 0.51021, 0.51021, 0.25 * 0.51021], rel=1e-4
    )
    reported = [(fit.layer, fit.control) for fit in written.fits]
    assert reported.count(("conv1", "activation_noise")) == 1 and ("conv2", "activation_noise") not in reported
    path = tmp_path / "again.json"
    path.write_text(json.dumps(written.config))
    again = import_quantlab(
        path,
        total=None,
        name="again",
        method_name="ana",
        method_parameters={"noise": "normal"},
        controls=CONTROLS["ana"],
        layers=layers,
    )
    one, other = (PlayedSchedule(f)(torch.arange(8) / 8, layers) for f in (file_of(noises), again))
    for control, read in (("weight_noise", 3), ("activation_noise", 2), ("noise_mean", 3)):
        assert torch.allclose(one[control][:, :read], other[control][:, :read], rtol=0, atol=1e-12)


def test_a_method_without_quantized_activations_takes_the_noise_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    specs = [timer(layer.name, sigma=decay(0.5, "bws", tstart=0, tend=2, alpha=1)) for layer in LAYERS]
    path.write_text(json.dumps(specs))

    def asked(*controls: Control) -> ScheduleFile:
        return import_quantlab(
            path,
            total=2,
            name="theirs",
            method_name="ana",
            method_parameters={},
            controls=controls,
            layers=LAYERS,
        )

    assert asked(WEIGHT_NOISE, NOISE_MEAN).values.keys() == {"weight_noise", "noise_mean"}
    with pytest.raises(
        MetaschedError, match="but the file sets weight_noise, activation_noise, noise_mean; set it to ana"
    ):
        asked()


def squared(curve: Sequence[float], fun: str, start: int, stop: float, alpha: int) -> float:
    key = "tend" if fun == "bws" else "eps"
    shape = [set_by_quantlab(decay(1.0, fun, tstart=start, alpha=alpha, **{key: stop}), t) for t in range(len(curve))]
    (beta,), *_ = np.linalg.lstsq(np.array(shape)[:, None], np.array(curve), rcond=None)
    return float(np.sum((np.array(curve) - beta * np.array(shape)) ** 2))


@pytest.mark.parametrize("shape", ["linear", "cosine", "cubic", "random"])
def test_no_window_of_an_exhaustive_search_fits_better(shape: str) -> None:
    epochs = 9
    u = np.arange(epochs) / epochs
    falling = np.sort(np.random.default_rng(3).random(epochs))[::-1]
    curve = {"linear": 1 - u, "cosine": (1 + np.cos(np.pi * u)) / 2, "cubic": (1 - u) ** 3, "random": falling}[shape]
    windows = [(a, b, n) for a, b, n in product(range(epochs), range(1, epochs + 1), range(9)) if a < b]
    best = min(squared(curve.tolist(), "bws", a, b, n) for a, b, n in windows)
    found = fit_decay(curve)
    error = float(np.sum((curve - [found.at(t) for t in range(epochs)]) ** 2))
    assert error <= best + 1e-12


def test_layers_that_freeze_apart_share_their_mean_and_the_error_says_so() -> None:
    def apart(progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        rows = torch.stack([(progress >= 0.25).double(), (progress >= 0.75).double()], dim=1)
        return {"freeze_fraction": rows}

    file = export(
        apart,
        method_name="inq",
        method_parameters={},
        controls=CONTROLS["inq"],
        layers=LAYERS,
        knots=torch.tensor([0.0, 0.25, 0.75, 1.0]),
        interpolation="previous",
        provenance=Provenance(kind="hand-coded", name="apart"),
    )
    written = export_quantlab(file, 4)
    assert written.config["training"]["quantize"]["kwargs"]["config"]["INQ"]["schedule"] == {"1": 0.5, "3": 1.0}
    assert [(f.layer, f.largest, f.rms) for f in written.fits] == [
        ("conv1", 0.5, 0.125**0.5),
        ("conv2", 0.5, 0.125**0.5),
    ]


def window(key: str = "sigma", fun: str = "bws", beta: float = 0.5, **kwargs: float) -> list[dict[str, Any]]:
    """A controller of one timer."""
    start = {"tstart": 0, "tend": 2, "alpha": 1} if fun != "uws" else {"tstart": 0, "eps": 0.1, "alpha": 1}
    return [timer("conv1", **{key: decay(beta, fun, **{**start, **kwargs})})]


OLD = [timer("conv1", sigma={"base": 0.5, "fun": "bws", "kwargs": {}})]
SHORT = [timer("conv1", sigma=decay(0.5, "bws", tstart=0, tend=2))]

LWS = {"base": 1.0, "fun": "lws", "kwargs": {"tstart": 0, "tend": 8, "alpha": 1}}
TWO_NOISES = [{"modules": ["conv1"], "fnoise": {"mi": LWS, "sigma": LWS}, "bnoise": {"mi": LWS, "sigma": LWS}}]

REFUSED = {
    "two noises": (experiment({"ctrl_spec": TWO_NOISES}, 5), r"ctrl_spec\[0\]: is in the older form of QuantLab's ANA"),
    "two noises alone": (TWO_NOISES, r"\[0\]: is in the older form of QuantLab's ANA"),
    "unknown function": (window(fun="lws"), r"\[0\]\.sigma\.fun: unknown name 'lws'; did you mean"),
    "old key": (OLD, r"\[0\]\.sigma: unknown name 'base'; Known: beta, fun, kwargs"),
    "missing": (SHORT, r"\[0\]\.sigma\.kwargs\.alpha: missing"),
    "empty window": (window(tstart=2), r"kwargs\.tend: must be an integer of at least 3, got 2"),
    "half a power": (window(alpha=0.5), r"alpha: must be an integer of at least 0, got 0\.5"),
    "boolean": (window(beta=True), r"sigma\.beta: must be a number, got True"),
    "negative width": (window(beta=-0.5), r"sigma\.beta: must be at least 0"),
    "negative eps": (window("mi", "uws", eps=-1), r"mi\.kwargs\.eps: must be at least 0"),
    "twice": ([timer("conv1"), timer("conv1")], r"\[1\]\.modules: 'conv1' already has a timer"),
    "no modules": ([timer()], r"\[0\]\.modules: must be an array of names, got \[\]"),
    "no timers": ([], r"must be an array of timers, got \[\]"),
    "text": ("ana", r"line 1 column 1: not JSON"),
    "number": (3, r"config\.json: must be an object or an array"),
    "cut off": ('{"training": {"n_epochs": 3, "quant', r"line 1 column \d+: not JSON"),
    "no controller": (experiment({"schedule": 3}, 5), r"training\.quantize\.kwargs: has neither ctrl_spec"),
    "no quantization": ({"training": {"n_epochs": 5}}, r"training\.quantize: missing"),
    "no epochs": (experiment({"ctrl_spec": [timer("a")]}, 0), r"training\.n_epochs: must be an integer of at least 1"),
    "inside": (experiment({"ctrl_spec": [{}]}, 5), r"training\.quantize\.kwargs\.ctrl_spec\[0\]\.modules: missing"),
    "too few timers": (window(), r"has 1 timers for the 2 layers of the network, and does not name all of them"),
    "too wide": ([*window(beta=1.5), timer("conv2")], r"weight_noise must lie in \[0\.0, 1\.0\], got 1\.5 at epoch 0"),
    "other noise": (
        experiment({"ctrl_spec": [timer("conv1", "conv2")]}, 5, "normal"),
        r"^method\.noise: is 'uniform', but the file has noise_type 'normal'",
    ),
    "inq for ana": ({"0": 0.5}, r"^method\.name: is ana, but the file sets freeze_fraction; set it to inq"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_quantlabs_is_one_line(tmp_path: Path, case: str) -> None:
    tree, line = REFUSED[case]
    with pytest.raises(MetaschedError, match=line) as error:
        imported(tmp_path, tree, total=None if isinstance(tree, dict) and "training" in tree else 5)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"x": 0.5}, r"config\.json: x: must be an epoch, such as '5'"),
        ({"05": 0.5}, r"config\.json: \['05'\]: must be an epoch"),
        ({"5": 1.5}, r"\['5'\]: must be a share in \[0, 1\], got 1\.5"),
        ({"5": None}, r"\['5'\]: must be a number, got None"),
        ({"5": 0.5, "7": 0.4}, r"\['7'\]: must be at least 0\.5, the fraction of the epochs before, got 0\.4"),
        ({"9": 0.5}, r"freezes at epoch 9, counted from 0, but the whole run has 9"),
        ({}, r"has no epochs"),
    ],
)
def test_fractions_are_checked(tmp_path: Path, tree: Any, line: str) -> None:
    with pytest.raises(MetaschedError, match=line):
        imported(tmp_path, tree, "inq", total=9)


def test_the_length_of_a_bare_controller_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(MetaschedError, match=r"^--total: is needed, because .* has no number of epochs"):
        imported(tmp_path, DVS128, "inq")
    with pytest.raises(MetaschedError, match=r"^--total: must be in \[1, 2048\], got 0"):
        imported(tmp_path, DVS128, "inq", total=0)


def test_other_things_than_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MetaschedError, match="Is a directory"):
        read_quantlab(tmp_path)


def test_other_methods_cannot_be_written(tmp_path: Path) -> None:
    joint = read_schedule(ROOT / "experiments" / "baselines" / "joint_linear.json")
    with pytest.raises(MetaschedError, match=r"^method\.name: is 'joint'; QuantLab has ana and inq"):
        export_quantlab(joint, 5)
    with pytest.raises(MetaschedError, match=r"^--epochs: must be in \[1, 2048\], got 0"):
        export_quantlab(joint, 0)


def test_the_commands_go_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "experiments" / "digits_ana_shallow.yaml")
    theirs, ours, again = (str(tmp_path / name) for name in ("theirs.json", "ours.json", "again.json"))
    noise = "triangular"
    specs = [timer(f"conv{i}", sigma=decay(0.5, "bws", tstart=0, tend=4 * i, alpha=2)) for i in (1, 2, 3)]
    Path(theirs).write_text(json.dumps(experiment({"ctrl_spec": specs}, 20, noise)))
    command = ["import", config, theirs, "--from", "quantlab", "--method.noise", noise, "-o", ours]
    torch.set_default_dtype(torch.float32)
    assert main(command) == 0
    assert main(["export", ours, "--to", "quantlab", "--epochs", "20", "-o", again]) == 0
    assert "conv3: noise_mean is exact\n" in capsys.readouterr().err
    (*_, last) = json.loads(Path(again).read_text())["training"]["quantize"]["kwargs"]["ctrl_spec"]
    assert last == {**specs[2], "mi": last["mi"]} and last["mi"]["beta"] == 0.0


def test_mistakes_on_the_command_line_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "experiments" / "digits_ana_shallow.yaml")
    bad, out = tmp_path / "bad.json", tmp_path / "out.json"
    bad.write_text(json.dumps([timer("conv1", sigma=decay(0.5, "lws", tstart=0, tend=2, alpha=1))]))
    baseline = str(ROOT / "experiments" / "baselines" / "inq_linear.json")
    for command, line in [
        (["import", config, str(bad), "--from", "quantlab", "--total", "5", "-o", str(out)], "unknown name 'lws'"),
        (["import", config, str(bad), "-o", str(out)], "the following arguments are required: --total"),
        (["export", baseline, "--to", "quantlab", "-o", str(out)], "--epochs: is required with --to quantlab"),
        (["export", baseline, "--epochs", "5", "-o", str(out)], "--epochs: is required with --to quantlab"),
    ]:
        assert main(command) == 2
        error = capsys.readouterr().err
        assert line in error and len(error.splitlines()) == 1
        assert not out.exists()
