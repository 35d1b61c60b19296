"""Coolings in their authors' own time: epochs of GXNOR-Net's code, sweeps and temperatures of simulated annealing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metasched.core.layer import Layer
from metasched.schedules.cooling import geometric
from metasched.schedules.table import hand_coded

LAYERS = [Layer("a", 0.0, "conv", "weight", 9, 81, 1.585), Layer("b", 1.0, "linear", "weight", 9, 81, 1.585)]


def played(family: str, name: str, progress: list[float] | np.ndarray) -> np.ndarray:
    values = hand_coded(family)[name](torch.tensor(progress), LAYERS)["temperature"].numpy()
    assert (values[:, 0] == values[:, 1]).all()
    return values[:, 0]


def test_cifar10_by_the_loop_over_epochs() -> None:
    """The code multiplies the rate once an epoch; here from the rate of epoch 0."""
    rate, rates = 0.01, []
    for epoch in range(2001):
        if epoch in (1000, 1600):
            rate *= 0.1
        rates.append(rate)
        rate *= (3e-5 / 0.01) ** (1 / 2000)
    found = 0.01 * played("gxnor", "gxnor_cifar10", np.arange(2001) / 2000)
    np.testing.assert_allclose(found, rates, rtol=1e-9)


def test_mnist_by_the_loop_over_epochs() -> None:
    rates = 0.1 * np.cumprod(np.r_[1.0, np.full(4000, (1e-7 / 0.1) ** (1 / 4000))])
    np.testing.assert_allclose(0.1 * played("gxnor", "gxnor_mnist", np.arange(4001) / 4000), rates, rtol=1e-9)


def test_geometric_cooling_takes_equal_shares_in_equal_times() -> None:
    values = played("metropolis", "metropolis_geometric", [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(values, [1, 10**-0.5, 0.1, 10**-1.5, 0.01])


def test_geometric_cooling_starts_and_ends_where_it_is_told() -> None:
    values = geometric(torch.tensor([0.0, 0.5, 1.0]), LAYERS, start=4.0, end=0.25)
    np.testing.assert_allclose(values[:, 1].numpy(), [4.0, 1.0, 0.25])


def test_logarithmic_cooling_is_geman_and_geman_over_100_sweeps() -> None:
    sweeps = np.arange(1, 102)
    law = math.log(2) / np.log(1 + sweeps)
    np.testing.assert_allclose(played("metropolis", "metropolis_logarithmic", (sweeps - 1) / 100), law)


def test_restarts_are_four_geometric_coolings() -> None:
    once = played("metropolis", "metropolis_geometric", np.arange(10) / 10)
    found = played("metropolis", "metropolis_restarts", np.arange(40) / 40 + 1e-12)
    np.testing.assert_allclose(found, np.tile(once, 4), rtol=1e-9)
    assert played("metropolis", "metropolis_restarts", [1.0]) == pytest.approx(0.01)
