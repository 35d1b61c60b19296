"""The schedule network: what holds for any weights, and that it starts at the hand-coded schedule."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metasched.core.layer import Layer
from metasched.methods import METHODS, build_method
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.network import EVEN_SHARE, ScheduleNetwork
from metasched.schedules.table import HandCoded, hand_coded

CONTROLS = {name: build_method(MethodConfig(name=name)).controls for name in METHODS}  # pyright: ignore
BASES = [schedule for name in METHODS for schedule in hand_coded(name).values() if CONTROLS[name]]
# random weights of any size: up to 30, all exponentials overflow or vanish
SPREADS = st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0])


def layers(num: int) -> list[Layer]:
    return [
        Layer(
            f"layer{i}", i / max(num - 1, 1), "linear" if i % 3 else "conv", "weight+activation", 9 + i, 81 * (i + 1), 2
        )
        for i in range(num)
    ]


def learner(base: HandCoded, knots: int = 13, seed: int = 0) -> ScheduleNetwork:
    controls = CONTROLS[base.family]
    return ScheduleNetwork(controls, base, [c.name for c in controls], knots=knots, hidden=6, seed=seed)


def randomize(network: nn.Module, seed: int, spread: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(spread * torch.randn(p.shape, generator=draws, dtype=p.dtype))


def check_contract(control: Control, progress: torch.Tensor, values: torch.Tensor) -> None:
    assert bool(values.isfinite().all())
    assert bool((values >= control.low).all()) and bool((values <= control.high).all())
    if control.direction == "nonincreasing":
        assert bool((values.diff(dim=0) <= 0).all())
    if control.direction == "nondecreasing":
        assert bool((values.diff(dim=0) >= 0).all())
    if control.end is not None:
        dwelling = (progress >= 1 - control.dwell + 1e-12) | (progress == 1)
        assert bool((values[dwelling] == control.end).all())


@given(st.sampled_from(BASES), st.integers(0, 2**31), SPREADS, st.integers(2, 30), st.integers(1, 5))
@settings(max_examples=150)
def test_range_direction_and_end_hold_for_any_weights(
    base: HandCoded, seed: int, spread: float, knots: int, num_layers: int
) -> None:
    network = learner(base, knots)
    randomize(network, seed, spread)
    inside = torch.rand(20, generator=torch.Generator().manual_seed(seed))
    edges = torch.tensor([0.0, 1.0])
    near = torch.cat([edges.nextafter(torch.tensor(0.5)), torch.tensor([1e-300, 0.5])])
    progress = torch.cat([inside, edges, near, network.knots]).sort().values
    with torch.no_grad():
        values = network(progress, layers(num_layers))
        at_knots = network.at_knots(layers(num_layers))
    assert set(values) == {c.name for c in CONTROLS[base.family]}
    for control in CONTROLS[base.family]:
        check_contract(control, progress, values[control.name])
        check_contract(control, network.knots, at_knots[control.name])
        assert values[control.name].shape == (len(progress), num_layers)


def test_sums_of_shares_that_round_above_one_stay_in_the_range() -> None:
    """A cumulative sum of 1 + 2e-16 would make the noise negative just before its end."""
    base = hand_coded("ana")["ana_linear"]
    network = learner(base, knots=25)
    for seed in range(150):
        randomize(network, seed, 1 + seed / 20)
        with torch.no_grad():
            values = network.at_knots(layers(3))["weight_noise"]
        check_contract(CONTROLS["ana"][0], network.knots, values)


def test_the_documented_formula() -> None:
    """The whole network once more, in numpy."""
    base = hand_coded("joint")["joint_ana_same_start_homogeneous_dynamic"]
    network = learner(base, knots=9)
    randomize(network, 6, 1.5)
    network_layers = [layers(3)[0], replace(layers(3)[1], quantizes="weight"), replace(layers(3)[2], bits=4.0)]
    w = {key: t.numpy() for key, t in network.state_dict().items()}

    def correction(u: np.ndarray) -> np.ndarray:
        rows = []
        for moment in u:
            for layer in network_layers:
                time = [moment, *(np.cos(k * np.pi * moment) for k in (1, 2, 3, 4))]
                kind = 1 if layer.kind == "linear" else -1
                size = [np.log10(layer.fan_in) - 2, np.log10(layer.num_weights) - 4, layer.bits - 2]
                both = 1 if layer.quantizes == "weight+activation" else -1
                rows.append([*time, 2 * layer.depth - 1, kind, both, *size])
        hidden = np.tanh(np.array(rows) @ w["body.0.weight"].T + w["body.0.bias"])
        hidden = np.tanh(hidden @ w["body.2.weight"].T + w["body.2.bias"])
        return (hidden @ w["heads.weight"].T + w["heads.bias"]).reshape(len(u), 3, -1) / 6  # a mean over hidden units

    def moved(value: np.ndarray, by: np.ndarray, low: float, high: float) -> np.ndarray:
        share = (value - low) / (high - low)
        with np.errstate(divide="ignore"):
            inside = low + (high - low) / (1 + np.exp(-by) * (1 - share) / share)
        at_bound = low + (high - low) * np.clip(share + by / 4, 0, 1)
        return np.where((share > 0) & (share < 1), inside, at_bound)

    u = np.linspace(0, 1, 9)
    at_middles, at_knots = correction((u[1:] + u[:-1]) / 2), correction(u)
    found = network.at_knots(network_layers)
    for i, control in enumerate(CONTROLS["joint"]):
        b = base(network.knots, network_layers)[control.name].numpy()
        if control.direction == "free":
            expected = moved(b, at_knots[..., 2 * i], control.low, control.high)
            expected[-1] = control.end
        else:
            start = moved(b[0], at_knots[0, :, 2 * i + 1], control.low, control.high)
            d = np.abs(np.diff(b, axis=0))
            rates = (0.98 * d / d.sum(0) + 0.02 / 8) * np.exp(at_middles[..., 2 * i])
            covered = np.cumsum(rates / rates.sum(0), 0)
            expected = np.vstack([start, start + (control.end - start) * covered])  # pyright: ignore
        np.testing.assert_allclose(found[control.name].detach(), expected, rtol=0, atol=1e-12)


class Line(nn.Module):
    """A straight base from one value to another, for a control named ``c``."""

    def __init__(self, first: float, last: float) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        line = self.first + progress * (self.last - self.first)
        return {"c": line[:, None].expand(-1, len(layers)).clone()}


DECLARED = [
    Control("c", 0.0, 1.0, "one", "nonincreasing", end=0.0),
    Control("c", 0.0, 1.0, "one", "nondecreasing", end=1.0),
    Control("c", -2.0, 2.0, "one", "free", end=0.5),
    Control("c", 0.0, 4.0, "one", "free", end=None),
    Control("c", 0.0, 1.0, "one", "nonincreasing", end=None),
    Control("c", 0.0, 4.0, "one", "nondecreasing", end=None),
    Control("c", 1e-3, 10.0, "one", "nonincreasing", end=None, scale="log"),
    Control("c", 1e-3, 10.0, "one", "nondecreasing", end=7.0, scale="log"),
    Control("c", 1e-3, 10.0, "one", "nonincreasing", end=0.01, scale="log"),
    Control("c", 1e-3, 10.0, "one", "free", end=3.0, scale="log", granularity="network"),
    Control("c", 0.0, 1.0, "one", "nondecreasing", end=1.0, granularity="network"),
]


@given(
    st.sampled_from(DECLARED),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.99, 1.0]),
    st.floats(0, 1),
    st.integers(2, 20),
    st.integers(0, 2**31),
    SPREADS,
)
@settings(max_examples=150)
def test_the_dwell_holds_for_any_weights_and_between_knots(
    control: Control, dwell: float, first: float, knots: int, seed: int, spread: float
) -> None:
    control = replace(control, dwell=dwell)
    last = 1.0 if control.end is None else control.end
    network = ScheduleNetwork([control], Line(first, last), ["c"], knots=knots, hidden=4, seed=0)  # pyright: ignore
    randomize(network, seed, spread)
    progress = torch.linspace(0, 1, 101)
    with torch.no_grad():
        values = network(progress, layers(2))["c"]
    # the first interval moves in any case: no control can be at its end before it has started
    reachable = replace(control, dwell=min(dwell, 1 - network.knots[1].item()))
    check_contract(reachable, progress, values)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
@pytest.mark.parametrize("num_layers", [1, 4])
def test_it_starts_within_the_even_share_of_the_hand_coded_schedule(base: HandCoded, num_layers: int) -> None:
    """At the knots, |v - b| <= eps |end - b_0| for monotone controls, and v = b for free ones."""
    network = learner(base, knots=25)
    found = network.at_knots(layers(num_layers))
    expected = base(network.knots, layers(num_layers))
    for control in CONTROLS[base.family]:
        v, b = found[control.name].detach(), expected[control.name]
        assert torch.allclose(v[0], b[0], rtol=1e-15, atol=1e-15)
        if control.direction == "free":
            assert torch.allclose(v, b, rtol=1e-15, atol=1e-15)
            continue
        if control.end is not None and control.scale == "linear":
            bound = EVEN_SHARE * (control.end - b[0]).abs()
            assert bool(((v - b).abs() <= bound + 1e-12).all())
            # and exactly: the even share is a straight line
            line = b[0] + (control.end - b[0]) * network.knots[:, None]
            assert torch.allclose(v, (1 - EVEN_SHARE) * b + EVEN_SHARE * line, rtol=0, atol=1e-12)
            continue
        v, b = (t.log() if control.scale == "log" else t for t in (v, b))
        limit = control.low if control.direction == "nonincreasing" else control.high
        limit = math.log(limit) if control.scale == "log" else limit
        share = ((b[-1] - b[0]) / (limit - b[0])).nan_to_num()  # 0 / 0 where it starts at the limit
        reached = share.clamp(EVEN_SHARE, 1 - EVEN_SHARE)
        assert control.end is None  # it ends short of the limit, and leaves its place
        way = b.diff(dim=0).abs()
        shares = (1 - EVEN_SHARE) * way / way.sum(0).clamp_min(1e-300) + EVEN_SHARE / len(way)
        passed = (shares / shares.sum(0)).cumsum(0)
        assert torch.allclose(v[1:], b[0] + (limit - b[0]) * reached * passed, rtol=0, atol=1e-12)


def test_other_horizons_and_networks() -> None:
    """One network serves them all: a step or a layer has its value whoever else is asked for."""
    network = learner(hand_coded("joint")["joint_cosine"])
    randomize(network, 1, 0.5)
    many = network(progress_of_steps(101), layers(6))
    few = network(progress_of_steps(11), layers(6))
    alone = network(progress_of_steps(11), layers(6)[2:3])
    for name in many:
        assert torch.equal(many[name][::10], few[name])
        assert torch.allclose(alone[name][:, 0], few[name][:, 2], rtol=0, atol=1e-14)
        assert not torch.allclose(few[name][:, 2], few[name][:, 3])
    assert network(progress_of_steps(1), layers(2))["weight_noise"].tolist() == [[0.0, 0.0]]


def test_it_is_linear_between_its_knots() -> None:
    network = learner(hand_coded("ana")["ana_cubic"], knots=6)
    randomize(network, 2, 0.7)
    knots = network.knots
    at_knots = network.at_knots(layers(3))
    assert torch.equal(network(knots, layers(3))["weight_noise"], at_knots["weight_noise"])
    for share in (0.25, 0.5, 0.9):
        between = knots[:-1] + share * knots.diff()
        values = network(between, layers(3))
        for name, v in at_knots.items():
            assert torch.allclose(values[name], v[:-1] + share * v.diff(dim=0), rtol=0, atol=1e-14)


def test_controls_that_are_not_learned_keep_the_values_of_the_base_at_the_knots() -> None:
    base = hand_coded("joint")["joint_inq_dvs128"]
    network = ScheduleNetwork(CONTROLS["joint"], base, ["weight_noise"], knots=5, hidden=4, seed=0)
    randomize(network, 3, 1.0)
    values, expected = network(network.knots, layers(3)), base(network.knots, layers(3))
    assert torch.equal(values["freeze_fraction"], expected["freeze_fraction"])
    assert torch.equal(values["noise_mean"], expected["noise_mean"])
    assert not torch.allclose(values["weight_noise"], expected["weight_noise"])
    halfway = network((network.knots[1:] + network.knots[:-1]) / 2, layers(3))["freeze_fraction"]
    means = (expected["freeze_fraction"][1:] + expected["freeze_fraction"][:-1]) / 2
    assert torch.allclose(halfway, means, rtol=0, atol=1e-15)
    assert not any(values[name].requires_grad for name in ("freeze_fraction", "noise_mean"))


@pytest.mark.parametrize("family", ["ana", "inq", "joint"])
def test_gradient_against_finite_differences(family: str) -> None:
    network = learner(hand_coded(family)[f"{family}_linear"], knots=7)
    randomize(network, 4, 0.4)
    progress = progress_of_steps(9)
    cotangents = {c.name: torch.randn(9, 3) for c in CONTROLS[family]}

    def function() -> torch.Tensor:
        values = network(progress, layers(3))
        return sum(((values[name] * c).sum() for name, c in cotangents.items()), torch.zeros(()))

    gradient = torch.autograd.grad(function(), list(network.parameters()))
    for p, g in zip(network.parameters(), gradient, strict=True):
        direction = torch.randn_like(p)
        h = 1e-6
        with torch.no_grad():
            p += h * direction
            up = function()
            p -= 2 * h * direction
            down = function()
            p += h * direction
        assert (g * direction).sum().item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-6, abs=1e-9)
        assert bool(g.any())


def test_at_its_start_every_output_has_a_gradient() -> None:
    """Zero heads must not be a stationary point, also where the base stands still."""
    for base in BASES:
        network = learner(base)
        values = network(progress_of_steps(20), layers(3))
        for name, v in values.items():
            weights = torch.rand(v.shape, generator=torch.Generator().manual_seed(1), dtype=v.dtype)
            (g,) = torch.autograd.grad((v * weights).sum(), network.heads.weight, retain_graph=True)
            assert bool(g.any()), (base.name, name)


@pytest.mark.parametrize("name", ["blend_constant", "inq_linear", "rates_constant"])
def test_a_value_at_a_bound_of_its_range_leaves_it_inwards(name: str) -> None:
    """A quarter of the range per unit of the correction, and not outwards; exactly the bound without a correction."""
    base = next(b for b in BASES if b.name == name)
    network = learner(base)
    for control in network.controls:
        value = base(network.knots, layers(2))[control.name][0, 0]
        if value not in (control.low, control.high):
            continue
        i = [c.name for c in network.learned].index(control.name)
        output = 2 * i + (control.direction != "free")
        inwards = 1 if value == control.low else -1
        for correction in (0.0, 0.8, -0.8):
            with torch.no_grad():
                network.heads.bias.zero_()
                network.heads.bias[output] = 6 * correction  # the mean over six hidden units
                found = network.at_knots(layers(2))[control.name][0]
            moved = 0.2 * (control.high - control.low) if correction * inwards > 0 else 0.0
            assert torch.allclose(found, value + inwards * moved, rtol=0, atol=1e-15), (control.name, correction)


def test_the_seed_and_nothing_else_makes_the_initial_weights() -> None:
    base = hand_coded("ana")["ana_linear"]
    torch.manual_seed(1)
    first = learner(base).state_dict()
    torch.manual_seed(2)
    second = learner(base).state_dict()
    other = learner(base, seed=1).state_dict()
    assert all(torch.equal(t, second[key]) for key, t in first.items())
    assert not torch.equal(first["body.0.weight"], other["body.0.weight"])
    assert {t.dtype for t in first.values()} == {torch.float64}


def test_initial_weights_and_scales_are_of_the_order_of_their_inputs() -> None:
    """11 inputs: progress, its four cosines, and six features of a layer."""
    base = hand_coded("ana")["ana_linear"]
    network = ScheduleNetwork(CONTROLS["ana"], base, ["weight_noise"], knots=3, hidden=256, seed=0)
    own = network.state_dict()
    for name, inputs in (("body.0.weight", 11), ("body.2.weight", 256)):
        assert own[name].shape == (256, inputs)
        assert float(own[name].std()) == pytest.approx(inputs**-0.5, rel=0.05)
        assert abs(float(own[name].mean())) < 0.1 * inputs**-0.5
    assert not any(own[name].any() for name in ("body.0.bias", "body.2.bias", "heads.bias", "heads.weight"))
    assert network.scales() == pytest.approx(
        {
            "body.0.weight": 1 / np.sqrt(11),
            "body.0.bias": 1.0,
            "body.2.weight": 1 / 16,
            "body.2.bias": 1.0,
            "heads.weight": 16.0,
            "heads.bias": 256.0,
        }
    )
    assert network.scales().keys() == own.keys()


def test_it_goes_through_pickle_and_state_dict() -> None:
    base = hand_coded("joint")["joint_ana_partition_progressive_dynamic"]
    network = learner(base)
    randomize(network, 5, 0.5)
    expected = network(progress_of_steps(8), layers(2))
    copied = pickle.loads(pickle.dumps(network))
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream)
    stream.seek(0)
    restored = learner(base, seed=9)
    restored.load_state_dict(torch.load(stream, weights_only=True))
    for other in (copied, restored):
        values = other(progress_of_steps(8), layers(2))
        assert all(torch.equal(v, values[name]) for name, v in expected.items())


def test_a_free_end_of_a_monotone_control_starts_near_that_of_the_base() -> None:
    """v_K = v_0 + (bound - v_0) share of the way, and the share moves by the head at the last knot alone."""
    for direction, first, last in (("nonincreasing", 0.9, 0.3), ("nondecreasing", 0.2, 0.6)):
        control = Control("c", 0.0, 1.0, "one", direction, end=None)  # pyright: ignore
        network = ScheduleNetwork([control], Line(first, last), ["c"], knots=5, hidden=4, seed=0)  # pyright: ignore
        values = network.at_knots(layers(2))["c"]
        torch.testing.assert_close(values, Line(first, last)(network.knots, layers(2))["c"], rtol=0, atol=1e-12)
        with torch.no_grad():
            network.heads.bias[1] = 4 * math.log(2)  # of the mean over 4 units: odds of the start and of the end double
        moved = network.at_knots(layers(2))["c"].detach()
        start, bound = odds(first, 2.0), 0.0 if direction == "nonincreasing" else 1.0
        share = odds((last - first) / (bound - first), 2.0)
        assert moved[0, 0].item() == pytest.approx(start)
        assert moved[-1, 0].item() == pytest.approx(start + (bound - start) * share)


def test_a_constant_base_of_a_free_end_can_be_left() -> None:
    control = Control("c", 0.0, 1.0, "one", "nonincreasing", end=None)
    network = ScheduleNetwork([control], Line(0.8, 0.8), ["c"], knots=5, hidden=4, seed=0)  # pyright: ignore
    values = network.at_knots(layers(2))["c"]
    assert values[-1, 0].item() == pytest.approx(0.8 * (1 - EVEN_SHARE))
    (slope,) = torch.autograd.grad(values[-1].sum(), network.heads.bias)
    assert slope[1] != 0


def test_a_log_scale_moves_in_factors() -> None:
    """range(z) acts on log v: the odds of its share of the way from log low to log high double."""
    control = Control("c", 0.01, 100.0, "one", "free", end=None, scale="log")
    network = ScheduleNetwork([control], Line(1.0, 10.0), ["c"], knots=5, hidden=4, seed=0)  # pyright: ignore
    base = Line(1.0, 10.0)(network.knots, layers(2))["c"]
    torch.testing.assert_close(network.at_knots(layers(2))["c"], base, rtol=1e-12, atol=0)
    with torch.no_grad():
        network.heads.bias[0] = 4 * math.log(2)
    moved = network.at_knots(layers(2))["c"].detach()
    for v, b in zip(moved[:, 0].tolist(), base[:, 0].tolist(), strict=True):
        share = odds(math.log(b / 0.01) / math.log(1e4), 2.0)
        assert v == pytest.approx(0.01 * 1e4**share)


def test_a_network_wide_control_has_one_value_for_all_layers() -> None:
    control = Control("c", 0.0, 1.0, "one", "nonincreasing", end=0.0, granularity="network")
    own = replace(control, name="own", granularity="layer")

    def base(progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        values = (1 - progress)[:, None] * torch.linspace(0.4, 0.8, len(layers))
        return {"c": values, "own": values}

    network = ScheduleNetwork([control, own], base, ["c", "own"], knots=5, hidden=4, seed=0)
    at_start = network.at_knots(layers(3))["c"]
    torch.testing.assert_close(at_start[:, 1], 0.6 * (1 - network.knots), rtol=0, atol=1e-12)  # the mean of the base
    randomize(network, 1, 3.0)
    values = network.at_knots(layers(3))
    assert torch.equal(values["c"], values["c"][:, :1].expand(-1, 3))
    assert not torch.equal(values["own"], values["own"][:, :1].expand(-1, 3))


def odds(share: float, factor: float) -> float:
    """The share whose odds are so many times those of another."""
    return factor * share / (1 + (factor - 1) * share)
