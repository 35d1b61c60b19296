"""Smooth directions: what they are in closed form, and that the network's numbers move its schedule along them."""

from __future__ import annotations

import math

import pytest
import torch

from metasched.core.layer import Layer
from metasched.methods import build_method
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.directions import directions, fields
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import schedules_of

LAYERS = [Layer(f"c{i}", i / 8, "conv", "weight+activation", 72, 576, 1.6) for i in range(9)]
FREE = Control("c", 0.5, 2.0, "one", "free", end=None, scale="log")
FALLING = Control("f", 0.0, 1.0, "one", "nonincreasing", end=0.0)
FALLING_FREELY = Control("g", 0.0, 1.0, "one", "nonincreasing", end=None)
WIDE = Control("n", 0.5, 2.0, "one", "free", end=None, scale="log", granularity="network")


def learner(hidden: int = 64, most: int = 60, knots: int = 13, seed: int = 0) -> ScheduleNetwork:
    config = MethodConfig(name="joint", of="widths+rates")
    controls = build_method(config).controls
    base, learn = schedules_of(config)["widths_constant_100"], ["weight_width", "activation_width", "lr_scale"]
    return ScheduleNetwork(controls, base, learn, knots=knots, hidden=hidden, seed=seed, layers=LAYERS, most=most)


def test_the_fields_are_hats_in_time_and_polynomials_in_depth() -> None:
    u = torch.tensor([0.0, 0.125, 0.25, 1.0])
    found = directions([FREE], 9, 100)
    assert len(found) == 15
    values = dict(zip([(d.moment, d.depth) for d in found], fields(found, u, LAYERS), strict=True))
    m = torch.linspace(-1, 1, 9)
    for (moment, depth), field in values.items():
        hat = torch.tensor([max(0.0, 1 - 4 * abs(float(x) - moment)) for x in u])
        assert torch.allclose(field, hat[:, None] * (1.0 + 0 * m, m, 1.5 * m**2 - 0.5)[depth])


@pytest.mark.parametrize(
    ("controls", "most", "number"),
    [
        ([FREE], 60, 15),
        ([FREE] * 4, 60, 60),
        ([FREE] * 5, 60, 60),  # four moments
        ([FALLING], 60, 18),  # and three of the start
        ([FALLING_FREELY], 60, 21),  # and three of the end
        ([WIDE], 60, 5),
        ([FREE, WIDE], 12, 12),  # four moments, two depths
        ([FREE] * 3, 1, 3),  # fewer than one for each is not possible
    ],
)
def test_there_are_at_most_as_many_as_asked(controls: list[Control], most: int, number: int) -> None:
    assert len(directions(controls, 9, most)) == number


def test_two_layers_have_no_bend_in_depth() -> None:
    assert {d.depth for d in directions([FREE], 2, 60)} == {0, 1}
    assert {d.depth for d in directions([FREE], 1, 60)} == {0}


def test_without_numbers_it_is_its_base() -> None:
    network = learner()
    assert [name for name, _ in network.named_parameters()] == ["numbers"]
    assert len(network.numbers) == len(network.directions) == 45
    base = network.base(network.knots, LAYERS)
    assert all(torch.allclose(v, base[name], rtol=1e-14, atol=0) for name, v in network.at_knots(LAYERS).items())


def test_each_number_moves_the_schedule_along_its_direction() -> None:
    """The log-correction of a value in the middle of its range, against the field in closed form."""
    network = learner()
    for n, d in enumerate(network.directions):
        with torch.no_grad():
            network.numbers.zero_()
            network.numbers[n] = 0.5
            values = network.at_knots(LAYERS)
        low, high = (0.1, 4.0) if "width" in d.control else (1 / 8, 8.0)
        span = math.log(high / low)
        share = (values[d.control].log() - math.log(low)) / span
        before = torch.logit(torch.tensor((0.0 - math.log(low)) / span))
        own = [x for x in network.directions if x.control == d.control]
        wanted = 0.5 * fields(own, network.knots, LAYERS)[own.index(d)]
        error = (torch.logit(share) - before - wanted).square().mean() / wanted.square().mean()
        assert error.sqrt() < 0.15, (d, float(error.sqrt()))
        assert all(bool((v == network.base(network.knots, LAYERS)[c]).all()) for c, v in values.items() if "decay" in c)


def test_it_can_be_played_on_other_layers_and_steps() -> None:
    network = learner()
    with torch.no_grad():
        network.numbers.normal_(generator=torch.Generator().manual_seed(2))
    other = [Layer(f"l{i}", i / 2, "linear", "weight", 300, 9000, 1.0) for i in range(3)]
    values = network(progress_of_steps(7), other)
    assert values["lr_scale"].shape == (7, 3) and bool(values["lr_scale"].isfinite().all())


def test_a_seed_makes_the_same_network() -> None:
    first, second, other = (learner(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.pulled_back, second.pulled_back)  # pyright: ignore
    assert not torch.equal(first.pulled_back, other.pulled_back)  # pyright: ignore
