"""Residual sums in integers: exact, or with proven thresholds, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import metasched
from metasched import MetaschedError, MethodConfig, Recipe, convert, prepare
from metasched.contrib.deployed_reading import read_network
from metasched.deploy import simulator
from metasched.deploy.agreement import Agreement, agreement
from metasched.deploy.converted import twin_of
from metasched.deploy.integer import input_step, integer_of
from metasched.deploy.stages import Add, Branch, IntegerNetwork, PadChannels, SumPool, Thresholds
from metasched.deploy.sums import averaged, fold_joined, joined, reach_of
from metasched.deploy.thresholds import SLACK, Channel, Norm
from metasched.models import build_model
from metasched.models.resnet import Block

X = torch.linspace(-2, 2, 12 * 64).sin().reshape(12, 1, 8, 8)
INT4: dict[str, Any] = {"name": "ste", "levels": "int4", "activation_levels": "int4"}


def block() -> nn.Module:
    """A shortcut without parameters, with fewer pixels and more channels."""
    stem = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
    return nn.Sequential(*stem, Block(4, 6, stride=2), nn.Flatten(), nn.Linear(96, 3))


class Downsampling(nn.Module):
    """A block whose shortcut is a convolution with batch normalization, as in torchvision, then a flat head."""

    def __init__(self, norms: bool = True, after: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4) if norms else nn.Identity())
        self.down = nn.Sequential(nn.Conv2d(4, 4, 1, 2), nn.BatchNorm2d(4) if norms else nn.Identity())
        self.after, self.act = after or nn.Identity(), nn.ReLU()
        self.head = nn.LazyLinear(3)
        self(X)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        out = self.a(x)
        out += self.down(x)
        return self.head(torch.flatten(self.act(self.after(out)), 1))


class Shared(nn.Module):
    """Two blocks with one activation module that is called three times, and an activation that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 4))
        self.norms, self.relu, self.head = nn.ModuleList(nn.BatchNorm2d(4) for _ in "abc"), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norms[0](self.a(x)))
        x = self.relu(x + self.norms[1](self.b(x)))
        x = nn.functional.relu(x + self.norms[2](self.c(x)))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class OfLevels(nn.Module):
    """Sums of codes and levels, without an activation after them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.f, self.b = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.f(x + self.r(self.a(x))))


class PreActivated(nn.Module):
    """Blocks whose sums go on without an activation between (He et al., 2016, full pre-activation)."""

    def __init__(self, head: nn.Module | None = None, normalized: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
                *(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
                nn.BatchNorm2d(4) if normalized else nn.Identity(),
            )
            for _ in range(3)
        )
        self.head = head or nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(torch.flatten(self.head(x), 1))


class Dense(nn.Module):
    """Each layer reads the sum of all before it, as in networks of dense connections that add."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, 4, 3, padding=1), nn.Hardtanh(-8, 8)) for i in (1, 4, 4, 4)
        )
        self.last = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.layers[0](x)
        for layer in list(self.layers)[1:]:
            total = total + layer(total)
        return self.last(torch.flatten(nn.functional.avg_pool2d(nn.functional.max_pool2d(total, 2, 1, 1), 2), 1))


def trained(model: nn.Module, **method: Any) -> nn.Module:
    """Converted, with statistics and gammas of both signs, as training may leave them."""
    torch.manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            with torch.no_grad():
                m.weight.normal_()
                m.bias.normal_()
    module, _ = prepare(model, Recipe(MethodConfig(**INT4 | method), last=True), X)
    return convert(module, [X])


def compared(plain: nn.Module, integer: IntegerNetwork | None = None) -> tuple[IntegerNetwork, Agreement]:
    integer = integer or integer_of(plain, X[:1], input_step(X))
    codes = np.random.default_rng(0).integers(-128, 128, (40, *integer.image))
    return integer, agreement(twin_of(plain, integer), integer, [codes])


LEARNED = {"scale": "learned", "activation_scale": "learned"}
BY_CHANNEL = {**LEARNED, "granularity": "channel"}
CASES: dict[str, tuple[Any, dict[str, Any], set[type]]] = {
    "resnet20": (lambda: build_model("resnet20", (1, 8, 8), 3, 4), {}, {Add, Branch, PadChannels}),
    "resnet20, learned scales": (lambda: build_model("resnet20", (1, 8, 8), 3, 4), LEARNED, {Add, PadChannels}),
    "resnet20, ternary": (
        lambda: build_model("resnet20", (1, 8, 8), 3, 4),
        {"levels": "ternary", "activation_levels": "ternary"},
        {Add, PadChannels},
    ),
    "block": (block, {}, {Add, Branch, PadChannels}),
    "downsampling": (Downsampling, {}, {Add, Branch}),
    "downsampling by channel": (Downsampling, BY_CHANNEL, {Add, Branch}),
    "pooling after the sum": (lambda: Downsampling(after=nn.MaxPool2d(2)), {}, {Add, Branch}),
    "without normalization": (lambda: Downsampling(norms=False), {"scale": "pow2"}, {Add, Branch}),
    "average of an exact sum": (lambda: Downsampling(False, nn.AvgPool2d(2)), {"scale": "pow2"}, {Add, Branch}),
    "average of a sum": (lambda: Downsampling(after=nn.AvgPool2d(2)), {}, {Add, SumPool}),
    "average of a sum, learned scales": (lambda: Downsampling(True, nn.AdaptiveAvgPool2d(3)), BY_CHANNEL, {SumPool}),
    "sums of sums": (PreActivated, {"scale": "pow2", "activation_scale": 0.25}, {Add}),
    "sums of levels": (Dense, {"scale": "pow2", "activation_scale": 0.5}, {Add}),
    "shared and functional": (Shared, {}, {Add}),
    "codes and levels": (OfLevels, {}, {Add}),
}


@pytest.mark.parametrize("case", CASES)
def test_sums_agree_with_the_converted_network(case: str) -> None:
    build, method, stages = CASES[case]
    plain = trained(build(), **method)
    integer, found = compared(plain)
    assert found.complete and found.integers > 0, found
    assert stages <= {type(stage) for stage in integer.stages}
    codes = torch.from_numpy(integer.encode(X.numpy()))
    outputs, _ = twin_of(plain, integer)(codes)
    torch.testing.assert_close(outputs, plain(codes * float(integer.step)).detach())


@pytest.mark.parametrize("field", ["ours", "theirs", "source", "values"])
def test_a_changed_network_is_found(field: str) -> None:
    plain = trained(build_model("resnet20", (1, 8, 8), 3, 4))
    integer, _ = compared(plain)

    def changed(i: int, stage: Any) -> Any:
        if isinstance(stage, Add) and field != "values":
            value = getattr(stage, field)
            return replace(stage, **{field: i - 1 if field == "source" else value + value // 4})
        if field == "values" and isinstance(stage, Thresholds) and isinstance(integer.stages[i - 1], Add):
            return replace(stage, values=stage.values + abs(stage.values) // 8)
        return stage

    stages = tuple(changed(i, stage) for i, stage in enumerate(integer.stages))
    assert compared(plain, replace(integer, stages=stages))[1].other_integers > 0


QUICK = ["block", "downsampling", "average of a sum", "sums of sums", "shared and functional", "codes and levels"]


@pytest.mark.parametrize("case", [*QUICK, pytest.param("resnet20", marks=pytest.mark.slow)])
def test_all_forms_agree_and_are_read_back(case: str, tmp_path: Path) -> None:
    build, method, _ = CASES[case]
    plain = trained(build(), **method)
    found = metasched.deploy(plain, X, tmp_path / "new")
    for one in found["agreement"].values():
        assert one["integers"] > 0 and one["other_integers"] == one["other_classes"] == 0
    network = read_network(tmp_path / "new" / "network.json")
    golden = np.load(tmp_path / "new" / "golden.npz")
    for i, y in enumerate(simulator.outputs(network, golden["codes"])):
        assert np.array_equal(y, golden[f"stage{i}"])


def _normed(draw: st.DrawFn) -> Channel:
    whole = st.integers(-40, 40)
    gamma, beta, mean, bias = (Fraction(draw(whole), 8) for _ in range(4))
    step, variance = Fraction(draw(st.integers(1, 30)), 64), Fraction(draw(st.integers(1, 50)), 7)
    channel = Channel(step, bias, Norm(gamma, beta, mean, variance))
    return channel.flipped() if gamma < 0 else channel


def _exactly(channel: Channel, y: Fraction) -> Decimal:
    step, bias, norm = channel
    assert norm is not None
    value, gamma, beta, mean, variance = (_decimal(v) for v in (step * y + bias, *norm))
    return gamma * (value - mean) / variance.sqrt() + beta


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


@given(st.data())
@settings(max_examples=60)
def test_every_decision_on_every_pair_is_that_of_the_real_sum(data: st.DataObject) -> None:
    ours, theirs = (data.draw(st.composite(_normed)()) for _ in "ab")
    count = data.draw(st.sampled_from([1, 1, 2, 4]))
    r1, r2 = data.draw(st.integers(1, 9 if count < 4 else 3)), data.draw(st.integers(1, 9 if count < 4 else 3))
    total = joined("sum", [ours], [theirs], (r1, r2))
    if count > 1:  # y1 and y2 are sums over as many pixels, of which the average is taken
        total, r1, r2 = averaged(total, count), count * r1, count * r2
    (m1,), (m2,) = (m.tolist() for m in total.multipliers)
    assert reach_of(total.multipliers, (r1, r2)) < 2**52
    thresholds = sorted(Fraction(data.draw(st.integers(-60, 60)), 4) for _ in range(3))
    values = fold_joined(total, thresholds, reach_of(total.multipliers, (r1, r2)))
    with localcontext() as context:
        context.prec = 80
        for y1, y2 in product(range(-r1, r1 + 1), range(-r2, r2 + 1)):
            real = _exactly(ours, Fraction(y1, count)) + _exactly(theirs, Fraction(y2, count))
            for theta, t in zip(thresholds, values[0].tolist(), strict=True):
                assert (m1 * y1 + m2 * y2 >= t) == (real >= _decimal(theta - SLACK)), (y1, y2, theta)


def _one(step: Fraction) -> Channel:
    return Channel(step, Fraction(0), Norm(Fraction(1), Fraction(0), Fraction(0), Fraction(1)))


@pytest.mark.parametrize("off", [-80, 80])
def test_a_threshold_that_doubles_do_not_resolve_is_on_the_right_side(off: int) -> None:
    total = joined("sum", [_one(Fraction(1))], [_one(Fraction(1))], (3, 3))
    theta = 1 + SLACK + Fraction(off // 80, 2**80)
    (m,), reach = total.multipliers[0].tolist(), int(6 * total.multipliers[0][0])
    assert (fold_joined(total, [theta], reach)[0, 0] <= m) == (off < 0)


def test_a_threshold_between_sums_that_the_scale_makes_equal_is_refused() -> None:
    total = joined("block.add", [_one(Fraction(1))], [_one(1 + Fraction(1, 2**60))], (3, 3))
    with pytest.raises(MetaschedError, match=r"^model\.block\.add: has in channel 0 sums too near to a threshold"):
        fold_joined(total, [1 + Fraction(1, 2**61) + SLACK], 2**50)


def test_what_has_no_exact_scale_is_refused_by_name() -> None:
    def refused(model: nn.Module, match: str) -> None:
        with pytest.raises(MetaschedError, match=match):
            integer_of(trained(model), X[:1], Fraction(1, 32))

    norm = r"^model\.\w*add\w*: adds a branch that ends with batch normalization, so that it is rounded, and %s needs"
    refused(PreActivated(normalized=True), norm % r"\w*blocks\.1\.0")
    refused(Downsampling(after=nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2))), norm % r"after\.1")
    scales = r"^model\.add: adds branches whose scales have a common unit only for integers beyond 2\^24, so that .* "
    refused(PreActivated(), scales + r"needs an exact sum; put an activation right after the sum, or set method\.scale")


def test_a_sum_that_is_pooled_and_read_again_is_refused() -> None:
    class Twice(Downsampling):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            out = self.a(x) + self.down(x)
            return self.head(torch.flatten(self.act(self.after(out)) + self.act(out)[:, :, ::2, ::2], 1))

    with pytest.raises(MetaschedError, match=r"^model\.add: adds a branch that ends with batch normalization"):
        integer_of(trained(Twice(after=nn.AvgPool2d(2))), X[:1], Fraction(1, 32))
