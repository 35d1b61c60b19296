"""Growth, spread and agreement: closed forms and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.engines.base import ControlGradient
from metasched.estimators.diagnosis import adjoint_growth, agreement, agreement_error, cosine, moments


def run(*slopes: torch.Tensor) -> ControlGradient:
    wrt = {f"control{i}": s for i, s in enumerate(slopes)}
    return ControlGradient(0.0, 0.0, wrt, sum(int((~s.isfinite()).sum()) for s in slopes), 0.0, 0.0)


def exponential(rate: float, steps: int = 9) -> torch.Tensor:
    """[T, 2]; of norm 5 at the last step."""
    back = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    return (rate * back).exp()[:, None] * torch.tensor([3.0, -4.0])


@pytest.mark.parametrize("rate", [0.0, 0.7, -0.3, 5.0])
def test_growth_of_an_exponential_is_its_rate(rate):
    found = adjoint_growth([run(exponential(rate), 2 * exponential(rate))])
    assert found.rate == pytest.approx(rate, abs=1e-12)
    assert found.decades == pytest.approx(8 * rate / math.log(10), abs=1e-12)
    assert found.peak == pytest.approx(max(0, 8 * rate) / math.log(10), abs=1e-12)


def test_growth_is_that_of_the_median_run_over_steps_with_a_derivative():
    flat, steep = exponential(0.1), exponential(3.0)
    silent = exponential(0.1)
    silent[[0, 4, 8]] = 0
    broken = steep.clone()
    broken[2, 1] = math.nan
    assert adjoint_growth([run(silent)]).rate == pytest.approx(0.1)
    assert adjoint_growth([run(silent)]).peak == pytest.approx(0.6 / math.log(10))  # from step 7 to step 1
    assert adjoint_growth([run(flat), run(2 * flat), run(steep)]).rate == pytest.approx(0.1, abs=0.1)
    assert adjoint_growth([run(flat), run(broken), run(broken)]).rate == pytest.approx(0.1)
    assert adjoint_growth([run(broken)]).decades == math.inf
    assert adjoint_growth([run(torch.zeros(9, 2))]) == (0, 0, 0)
    assert adjoint_growth([run(torch.tensor([[0.0], [1.0], [0.0]]))]) == (0, 0, 0)


def test_moments_are_those_of_numpy_in_units_of_scales():
    draws = np.random.default_rng(0).normal(size=(5, 6))
    scales = np.array([2.0, 2.0, 2.0, 2.0, 0.5, 0.5])
    split = [[torch.tensor(d[:4]).reshape(2, 2), torch.tensor(d[4:])] for d in draws]
    found = moments(split, [torch.tensor(2.0), torch.tensor(0.5)])
    mean, covariance = (draws * scales).mean(0), np.cov((draws * scales).T)
    np.testing.assert_allclose(torch.cat([m.flatten() for m in found.mean]).numpy(), draws.mean(0))
    assert found.square == pytest.approx(mean @ mean)
    assert found.variance == pytest.approx(covariance.trace() / 5)
    assert found.signal == pytest.approx(mean @ mean / covariance.trace() * 5)


def test_the_signal_of_extremes():
    one, unit = [torch.tensor([1.0])], [torch.tensor(1.0)]
    assert math.isnan(moments([one], unit).variance)
    assert moments([one, one], unit).signal == math.inf
    assert moments([[torch.zeros(1)]] * 2, unit).signal == 0


@given(st.integers(0, 1000), st.floats(0.1, 10), st.integers(2, 6))
def test_agreement_is_one_for_the_gradient_of_a_linear_loss_and_falls_with_the_cosine(seed, size, n):
    draws = torch.Generator().manual_seed(seed)
    truth, across = torch.randn(2, 4, generator=draws)
    deltas = [{"a": d[:3], "b": d[3:]} for d in torch.randn(n, 4, generator=draws)]

    def rises(of: torch.Tensor) -> list[float]:
        return [float(of @ torch.cat([d["a"], d["b"]])) for d in deltas]

    gradient = [size * truth[:3], size * truth[3:]]
    assert agreement(gradient, deltas, rises(truth)) == pytest.approx(1)
    assert agreement([-g for g in gradient], deltas, rises(truth)) == pytest.approx(-1)
    p, r = np.array(rises(truth)), np.array(rises(across))
    expected = p @ r / np.linalg.norm(p) / np.linalg.norm(r)
    assert agreement(gradient, deltas, rises(across)) == pytest.approx(expected)


def test_agreement_with_nothing_is_zero():
    delta = [{"a": torch.ones(1)}]
    assert agreement([torch.zeros(1)], delta, [1.0]) == 0
    assert agreement([torch.ones(1)], delta, [0.0]) == 0
    assert agreement([torch.full((1,), math.inf)], delta, [1.0]) == 0


def test_the_error_of_an_agreement_is_that_of_slopes_without_relation():
    """Over many draws of n unrelated slopes, the agreement over its error is a t of n - 1 degrees of freedom."""
    draws = np.random.default_rng(1)
    p, r = draws.normal(size=(2, 20000, 6))
    c = (p * r).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(r, axis=1)
    t = np.array([value / agreement_error(value, 6) for value in c])
    assert t.var() == pytest.approx(5 / 3, rel=0.1)  # of a t with 5 degrees of freedom
    assert agreement_error(0.3, 1.9) == 1 and agreement_error(1.0, 4) == 0


def test_cosine_is_in_units_of_scales():
    a, b = [torch.tensor([1.0]), torch.tensor([1.0])], [torch.tensor([1.0]), torch.tensor([-1.0])]
    assert cosine(a, b, [torch.tensor(1.0)] * 2) == pytest.approx(0, abs=1e-15)
    assert cosine(a, b, [torch.tensor(3.0), torch.tensor(1.0)]) == pytest.approx(0.8)
    assert cosine(a, [torch.zeros(1)] * 2, [torch.tensor(1.0)] * 2) == 0
