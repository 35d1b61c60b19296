"""The papers' schedules: golden values in the papers' own time, and properties of every schedule of every family."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.recipe import Recipe
from metasched.schedules.base import progress_of_steps
from metasched.schedules.interpolation import interpolate
from metasched.schedules.published import ana_2019_windows, ana_windows
from metasched.schedules.table import HandCoded, hand_coded, published

FAMILIES = (
    "float",
    "ste",
    "ana",
    "blend",
    "temperature",
    "parq",
    "inq",
    "oscillation",
    "pruning",
    "quant_noise",
    "rounding",
    "admm",
    "joint",
    "gxnor",
    "metropolis",
    "dpq",
    "bayesian_bits",
    "adaround",
)
SCHEDULES = [schedule for family in FAMILIES for schedule in hand_coded(family).values()]
CONSTANTS = {"ana_constant_075": 0.75, "ana_constant_085": 0.85, "ana_constant_100": 1.0}  # half-widths
RAMPS = ("linear", "cosine", "cubic", "input_first", "output_first")
CONTROLS = {  # family -> the controls of its method
    "float": set(),
    "ste": set(),
    "ana": {"weight_noise", "activation_noise", "noise_mean"},
    "blend": {"weight_blend", "activation_blend"},
    "inq": {"freeze_fraction"},
    "temperature": {"weight_temperature", "weight_blend", "activation_temperature"},
    "parq": {"inverse_slope"},
    "oscillation": {"freeze_threshold"},
    "pruning": {"sparsity"},
    "quant_noise": {"weight_share", "activation_share"},
    "rounding": {"weight_randomness", "activation_randomness"},
    "admm": {"rho", "sparsity", "weight_blend"},
    "joint": {"weight_noise", "activation_noise", "noise_mean", "freeze_fraction"},
    "gxnor": {"temperature"},
    "metropolis": {"temperature"},
    "dpq": {"temperature"},
    "bayesian_bits": {"mu", "gate_temperature", "gates_fixed"},
    "adaround": {"rounding_beta", "rounding_penalty"},
}
BLENDS = ("weight_blend", "activation_blend")
SHARES = ("weight_share", "activation_share")
RANDOM = ("weight_randomness", "activation_randomness")
NOISES = ("weight_noise", "activation_noise")
RANGES = {
    **dict.fromkeys(NOISES, (0.0, 1.0)),
    "noise_mean": (-0.5, 0.0),
    "freeze_fraction": (0.0, 1.0),
    "sparsity": (0.0, 1.0),
    "temperature": (0, 1),
    "mu": (0.0, 0.1),
    "gate_temperature": (0.1, 2 / 3),
    "gates_fixed": (0.0, 1.0),
}
RANGES["freeze_threshold"] = (0.01, 1.0)
RANGES["rho"] = (1e-8, 0.1)
COOLED = {"weight_temperature": 0.351, "activation_temperature": 0.351, "inverse_slope": 1.0}  # from there to 0
RANGES |= {control: (0.0, start) for control, start in COOLED.items()}
RANGES |= dict.fromkeys((*BLENDS, *SHARES, *RANDOM), (0.0, 1.0))
ENDS = {
    **dict.fromkeys(NOISES, 0.0),
    "noise_mean": 0.0,
    "freeze_fraction": 1.0,
    "sparsity": 1.0,
    **dict.fromkeys((*BLENDS, *SHARES), 1.0),
    **dict.fromkeys(RANDOM, 0.0),
    "gates_fixed": 1.0,
}
STARTS = {
    **dict.fromkeys(NOISES, (0.5, *CONSTANTS.values())),
    "noise_mean": (-0.5, 0.0),
    "freeze_fraction": (0.0,),
    "sparsity": (0.0, 1.0),
    "gates_fixed": (0.0,),
}
STARTS |= dict.fromkeys(BLENDS, (0.0, 0.5, 1.0))
STARTS |= dict.fromkeys(SHARES, (0.0, 0.1, 0.5, 1.0))
STARTS |= dict.fromkeys(RANDOM, (0.0, 1.0))
SIGNS = {
    "noise_mean": 1,
    "freeze_fraction": 1,
    "sparsity": 1,
    "gates_fixed": 1,
    "freeze_threshold": -1,
    "rho": 1,
}  # of every change
SIGNS |= dict.fromkeys((*NOISES, *RANDOM), -1) | dict.fromkeys((*BLENDS, *SHARES), 1)
RANGES |= {"rounding_beta": (2.0, 20.0), "rounding_penalty": (0.0, 0.1)}


def network(num_layers: int) -> list[Layer]:
    return [
        Layer(f"layer{i}", i / max(num_layers - 1, 1), "conv", "weight+activation", 9, 81, 1.585)
        for i in range(num_layers)
    ]


def epochs(*at: float, of: float) -> torch.Tensor:
    return torch.tensor(at) / of


# In epochs, for N = 7 and periods of P = 50 epochs, from the definitions in quantlab's anacifar10vgg8.py.
INTERVALS = {
    "overlapped": [(0, 350)] * 7,
    "same_start": [(0, 50), (0, 100), (0, 150), (0, 200), (0, 250), (0, 300), (0, 350)],
    "same_end": [(300, 350), (250, 350), (200, 350), (150, 350), (100, 350), (50, 350), (0, 350)],
    "partition": [(0, 50), (50, 100), (100, 150), (150, 200), (200, 250), (250, 300), (300, 350)],
}
POWERS = {  # (of the mean, of the scale)
    "homogeneous": [(1, 2)] * 7,
    "progressive": [(7, 14), (6, 12), (5, 10), (4, 8), (3, 6), (2, 4), (1, 2)],
}


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("interval", INTERVALS)
def test_windows_of_the_paper(interval: str, power: str) -> None:
    for column, factor in ((0, 1), (1, 2)):
        windows = ana_windows(7, interval=interval, power=power, factor=factor)
        assert [(round(w.start * 500, 9), round(w.end * 500, 9)) for w in windows] == INTERVALS[interval]
        assert [w.power for w in windows] == [powers[column] for powers in POWERS[power]]


@pytest.mark.pairwise
@pytest.mark.parametrize("mean", ["static", "dynamic"])
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("interval", INTERVALS)
def test_ana_2022_by_the_papers_formula(interval: str, power: str, mean: str) -> None:
    t = np.arange(501.0)
    values = hand_coded("ana")[f"ana_{interval}_{power}_{mean}"](torch.tensor(t) / 500, network(7))
    for layer, ((start, end), (alpha_mean, alpha_scale)) in enumerate(
        zip(INTERVALS[interval], POWERS[power], strict=True)
    ):
        left = (end - t.clip(start, end)) / (end - start)
        scale = values["weight_noise"][:, layer].numpy()
        np.testing.assert_allclose(scale, 0.5 * left**alpha_scale, rtol=0, atol=1e-12)
        beta = {"static": 0.0, "dynamic": -0.5}[mean]
        np.testing.assert_allclose(values["noise_mean"][:, layer].numpy(), beta * left**alpha_mean, rtol=0, atol=1e-12)


def test_ana_2022_golden_values() -> None:
    u = epochs(0, 10, 25, 50, 100, 200, 300, of=500)
    scale = hand_coded("ana")["ana_overlapped_progressive_static"](u, network(7))["weight_noise"]
    slowest, fastest = scale[:, 6], scale[:, 0]  # alpha 2 and 14
    torch.testing.assert_close(
        slowest, torch.tensor([0.5, 0.4718, 0.4311, 0.3673, 0.2551, 0.0918, 0.0102]), rtol=0, atol=5e-5
    )
    torch.testing.assert_close(fastest[:5], torch.tensor([0.5, 0.3332, 0.1772, 0.0578, 0.0045]), rtol=0, atol=5e-5)
    assert (fastest[5:] < 1e-5).all()


def test_ana_2019_starts_one_layer_every_50_epochs_after_a_gap() -> None:
    windows = ana_2019_windows(9)
    assert [round(w.start * 1000, 9) for w in windows] == [0, 100, 150, 200, 250, 300, 350, 400, 450]
    t = np.arange(1001.0)
    values = hand_coded("ana")["ana_2019"](torch.tensor(t) / 1000, network(9))
    assert (values["noise_mean"] == 0).all()
    for layer, start in enumerate([0, 100, 150, 200, 250, 300, 350, 400, 450]):
        expected = 0.5 * np.interp(t, [start, start + 50], [1.0, 0.0])
        np.testing.assert_allclose(values["weight_noise"][:, layer].numpy(), expected, rtol=0, atol=1e-12)
    assert "method.backward: fixed" in hand_coded("ana")["ana_2019"].citation


@pytest.mark.parametrize(("name", "half_width"), [("ana_static", 0.5), *CONSTANTS.items()])
def test_a_constant_holds_until_the_last_step(name: str, half_width: float) -> None:
    values = hand_coded("ana")[name](progress_of_steps(100), network(2))
    assert values["weight_noise"][:, 0].tolist() == [half_width] * 99 + [0.0]
    assert not values["noise_mean"].any()
    assert torch.equal(
        hand_coded("joint")[f"joint_{name}"](progress_of_steps(100), network(2))["weight_noise"], values["weight_noise"]
    )


def test_ana_static_holds_until_the_last_step() -> None:
    values = hand_coded("ana")["ana_static"](progress_of_steps(100), network(2))
    assert (values["weight_noise"][:-1] == 0.5).all() and (values["weight_noise"][-1] == 0).all()
    assert (values["noise_mean"] == 0).all()


PORTIONS = {
    "inq_alexnet_5bit": [0.3, 0.6, 0.8, 1],
    "inq_resnet18_4bit": [0.3, 0.5, 0.8, 0.9, 0.95, 1],
    "inq_resnet18_2bit": [0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1],
}


@pytest.mark.parametrize("name", PORTIONS)
def test_inq_portions_come_in_equal_shares(name: str) -> None:
    portions = PORTIONS[name]
    share = 11  # steps between two portions
    frozen = hand_coded("inq")[name](progress_of_steps(len(portions) * share + 1), network(3))["freeze_fraction"]
    expected = [0.0] * share + [p for p in portions[:-1] for _ in range(share)] + [1.0]
    assert frozen.T.tolist() == [expected] * 3


def test_inq_dvs128_by_epoch() -> None:
    portions = {5: 0.2, 15: 0.4, 30: 0.6, 45: 0.8, 60: 0.9, 75: 0.95, 90: 0.975, 105: 1.0}
    frozen = hand_coded("inq")["inq_dvs128"](progress_of_steps(131), network(1))["freeze_fraction"].flatten().tolist()
    assert frozen == [max([0.0, *(f for start, f in portions.items() if start <= epoch)]) for epoch in range(131)]


def test_names() -> None:
    ana = {f"ana_{i}_{p}_{m}" for i in INTERVALS for p in POWERS for m in ("static", "dynamic")}
    ana |= {"ana_2019", "ana_static", *CONSTANTS, *(f"ana_{ramp}" for ramp in RAMPS)}
    inq = {*PORTIONS, "inq_dvs128", *(f"inq_{ramp}" for ramp in RAMPS)}
    assert hand_coded("ste").keys() == {"ste"}
    assert hand_coded("ana").keys() == ana
    assert hand_coded("inq").keys() == {*inq, "inq_none"}
    temperatures = {"hestia", "linear", "cosine", "input_first", "constant", "none"}
    assert hand_coded("temperature").keys() == {f"temperature_{name}" for name in temperatures}
    parq = {"sigmoid_1", "sigmoid_10", "sigmoid_20", "linear", "none"}
    assert hand_coded("parq").keys() == {f"parq_{name}" for name in parq}
    blends = {
        "bitnet",
        "binary_relax",
        "half",
        "sigmoid_15",
        "sigmoid_100",
        "late",
        "onset",
        "alpha_blending",
        "constant",
        *RAMPS,
    }
    assert hand_coded("blend").keys() == {f"blend_{name}" for name in blends}
    assert hand_coded("joint").keys() == {f"joint_{name}" for name in {*RAMPS, *ana, *inq}}
    gxnor = {"cifar10", "mnist", "constant", *RAMPS}
    pruned = {"cubic", "linear", "convex", "at_once", "at_end"}
    assert hand_coded("pruning").keys() == {f"pruning_{name}" for name in pruned}
    pulled = {"lenet5", "constant", "growing", "progressive", "at_end", "one_shot"}
    assert hand_coded("admm").keys() == {f"admm_{name}" for name in pulled}
    rounded = {"stochastic", "weights", "nearest", *RAMPS}
    assert hand_coded("rounding").keys() == {f"rounding_{name}" for name in rounded}
    noisy = {"int8", "pq", "constant", *RAMPS}
    assert hand_coded("quant_noise").keys() == {f"quant_noise_{name}" for name in noisy}
    metropolis = {"constant", "cold", "geometric", "logarithmic", "restarts", *RAMPS}
    gated = ("001", "010", "rising", "cooling")
    assert hand_coded("bayesian_bits").keys() == {f"bayesian_bits_{name}" for name in gated}
    assert hand_coded("dpq").keys() == {f"dpq_{name}" for name in ("constant", "linear", "exponential")}
    adaptive = {"cosine", "linear", "linear_2bit", "constant", "unregularized"}
    assert hand_coded("adaround").keys() == {f"adaround_{name}" for name in adaptive}
    assert hand_coded("gxnor").keys() == {f"gxnor_{name}" for name in gxnor}
    assert hand_coded("metropolis").keys() == {f"metropolis_{name}" for name in metropolis}
    assert len({s.name for s in SCHEDULES}) == len(SCHEDULES)
    for schedule in SCHEDULES:
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,63}", schedule.name)
        assert schedule.citation.isascii() and "\n" not in schedule.citation and schedule.citation.strip()
        assert schedule.family in FAMILIES and hand_coded(schedule.family)[schedule.name] is schedule


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@given(num_layers=st.integers(1, 12), num_steps=st.sampled_from([1, 2, 3, 7, 1000]))
@settings(deadline=None, max_examples=8)
def test_range_direction_and_end(schedule: HandCoded, num_layers: int, num_steps: int) -> None:
    values = schedule(progress_of_steps(num_steps), network(num_layers))
    assert values.keys() == CONTROLS[schedule.family]
    for control, value in values.items():
        low, high = RANGES[control]
        assert value.shape == (num_steps, num_layers) and value.dtype == torch.float64
        assert low <= value.min() and value.max() <= high
        if control not in ENDS:  # which may rise again, and end anywhere
            sign = SIGNS.get(control, -1)
            rises = schedule.name in ("metropolis_restarts", "bayesian_bits_rising") or control == "rounding_penalty"
            assert rises or (value.diff(dim=0) * sign >= 0).all()
            continue
        assert (value.diff(dim=0) * SIGNS[control] >= 0).all()
        assert (value[-1] == ENDS[control]).all() and not torch.signbit(value[-1]).any()
        if num_steps > 1:
            assert any((value[0] == start).all() for start in STARTS[control])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_a_step_has_the_same_bits_alone_and_among_others(schedule: HandCoded) -> None:
    progress, layers = progress_of_steps(37), network(7)
    together = schedule(progress, layers)
    for t in range(37):
        for control, value in schedule(progress[t : t + 1], layers).items():
            assert torch.equal(value[0], together[control][t])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_interpolated_samples_rebuild_the_schedule(schedule: HandCoded) -> None:
    progress, layers = progress_of_steps(3000), network(5)
    knots = schedule.knots(1001)
    sampled, exact = schedule(knots, layers), schedule(progress, layers)
    tolerance = 0.0 if schedule.interpolation == "previous" else 2e-3  # coarse against the steepest of the curves
    for control, expected in exact.items():
        played = interpolate(progress, knots, sampled[control], schedule.interpolation)
        assert (played - expected).abs().max() <= tolerance
        assert torch.equal(played[-1], expected[-1])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_jumps_are_where_the_values_jump(schedule: HandCoded) -> None:
    grid = progress_of_steps(2**12 + 1)
    layers = network(4)
    around = torch.tensor([[u - 2**-24, u] for u in schedule.jumps]).flatten()
    at_jumps = schedule(around, layers).values()
    for k in range(len(schedule.jumps)):
        pairs = [v[2 * k : 2 * k + 2] for v in at_jumps]
        assert any((v.diff(dim=0).abs() > 0.002 * v.abs().amax(0)).all() for v in pairs)
    for value in schedule(grid, layers).values():  # elsewhere a change shrinks with the step
        for t in (value.diff(dim=0).abs() > 0.02).any(dim=1).nonzero().flatten().tolist():
            assert any(grid[t] < u <= grid[t + 1] for u in schedule.jumps)


def test_which_schedules_are_step_functions() -> None:
    alone = {"ana_static", "inq_dvs128", *CONSTANTS, *PORTIONS}
    previous = {s.name for s in SCHEDULES if s.interpolation == "previous"}
    assert previous == alone | {f"joint_{name}" for name in alone} | {
        "bayesian_bits_001",
        "bayesian_bits_010",
        "blend_late",
        "inq_none",
        "pruning_at_end",
        "quant_noise_int8",
        "quant_noise_pq",
        "rounding_stochastic",
        "rounding_weights",
        "temperature_constant",
    }
    assert hand_coded("inq")["inq_dvs128"].jumps == tuple(epoch / 130 for epoch in (5, 15, 30, 45, 60, 75, 90, 105))


@pytest.mark.parametrize("name", RAMPS)
def test_joint_ramps_are_the_ramps_of_both_methods(name: str) -> None:
    progress, layers = progress_of_steps(50), network(4)
    joint = hand_coded("joint")[f"joint_{name}"](progress, layers)
    alone = hand_coded("ana")[f"ana_{name}"](progress, layers) | hand_coded("inq")[f"inq_{name}"](progress, layers)
    assert all(torch.equal(joint[control], alone[control]) for control in CONTROLS["joint"])


@pytest.mark.parametrize("family", ["ana", "inq"])
def test_joint_with_one_method_alone(family: str) -> None:
    progress, layers = progress_of_steps(50), network(4)
    held = {**dict.fromkeys(NOISES, 0.5), "noise_mean": 0.0, "freeze_fraction": 0.0}
    own = {name: schedule for name, schedule in hand_coded(family).items() if name != "inq_none"}
    for name, schedule in own.items():
        joint, alone = hand_coded("joint")[f"joint_{name}"](progress, layers), schedule(progress, layers)
        for control in CONTROLS["joint"]:
            if control in alone:
                assert torch.equal(joint[control], alone[control])
            else:
                assert (joint[control][:-1] == held[control]).all() and (joint[control][-1] == ENDS[control]).all()


def test_float32_keeps_the_ends_exact() -> None:
    for schedule in SCHEDULES:
        for control, value in schedule(progress_of_steps(333, torch.float32), network(6)).items():
            assert value.dtype == torch.float32
            assert control not in ENDS or (value[-1] == ENDS[control]).all()


def test_schedules_cross_a_process_pool() -> None:
    progress, layers = progress_of_steps(20), network(3)
    for schedule in SCHEDULES:
        copy = pickle.loads(pickle.dumps(schedule))
        for control, value in copy(progress, layers).items():
            assert torch.equal(value, schedule(progress, layers)[control])


def test_unknown_names() -> None:
    with pytest.raises(MetaschedError, match=r"method.name: unknown name 'anna'; did you mean 'ana'"):
        hand_coded("anna")


def test_the_table_cannot_be_changed_through_what_it_returns() -> None:
    hand_coded("ana").clear()
    assert len(hand_coded("ana")) == 26


def test_published_gives_what_a_method_can_play_as_it_is_configured() -> None:
    assert published("inq") == published(Recipe("inq", weights="int4")) == tuple(hand_coded("inq").values())
    both = published(MethodConfig(name="joint", of="widths+rates"))
    assert [s.name for s in both] == [*hand_coded("widths"), *hand_coded("rates")]
    assert {*both[0].curves} == {*hand_coded("widths")[both[0].name].curves, *hand_coded("rates")["rates_late"].curves}
    with pytest.raises(MetaschedError, match=r"^published: has a STE for a method; give the name of a method, a Meth"):
        published(Recipe(build_method(MethodConfig(name="ste"))))
