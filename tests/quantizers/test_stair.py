"""The stair function against an independent implementation on scipy's distributions, and its derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet, binary, integers, level_set, powers_of_two, ternary
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.quantizers.stair import Forward, stair
from metasched.quantizers.straight import straight_through

DISTRIBUTIONS: dict[str, Any] = {
    "uniform": stats.uniform(-1, 2),
    "triangular": stats.triang(0.5, -1, 2),
    "normal": stats.norm(),
    "logistic": stats.logistic(),
}
LEVELS = {
    "ternary": ternary(),
    "binary": binary(),
    "uint2": integers(2, signed=False, balanced=False),
    "int3": integers(3, signed=True, balanced=False),
    "pow2_4": powers_of_two(4),
    "uneven": LevelSet((-1.5, -0.25, 0.0, 2.0)),
}
FORWARDS = ("expectation", "mode", "random")
NOISES = [(0.0, 0.05), (-0.5, 0.5), (0.3, 1.3)]  # mean, scale

families = pytest.mark.parametrize("family", NOISE_FAMILIES)
level_sets = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
noises = pytest.mark.parametrize(("mean", "scale"), NOISES)


def probabilities(x: np.ndarray, levels: LevelSet, mean: float, scale: float, family: str) -> np.ndarray:
    """p_k(x), [N, levels]: the mass of x + noise between neighbouring thresholds."""
    above = DISTRIBUTIONS[family].cdf((x[:, None] - mean - np.array(levels.thresholds)) / scale)
    ones, zeros = np.ones((len(x), 1)), np.zeros((len(x), 1))
    return np.hstack([ones, above]) - np.hstack([above, zeros])


def density(x: np.ndarray, levels: LevelSet, mean: float, scale: float, family: str) -> tuple[np.ndarray, np.ndarray]:
    """sum_k d_k f(u_k) and sum_k d_k (u_k / s) f(u_k), with f the density of the noise itself."""
    u = x[:, None] - mean - np.array(levels.thresholds)
    f = DISTRIBUTIONS[family].pdf(u / scale) / scale
    return (f * levels.jumps).sum(1), (f * u / scale * levels.jumps).sum(1)


def apply(
    x: torch.Tensor,
    levels: LevelSet,
    mean: torch.Tensor | float,
    scale: torch.Tensor | float,
    family: str,
    forward: str = "expectation",
    **options: object,
) -> torch.Tensor:
    mean, scale = torch.as_tensor(mean, dtype=x.dtype), torch.as_tensor(scale, dtype=x.dtype)
    if forward == "random":
        options.setdefault("uniform", torch.full_like(x, 0.37))
    return stair(x, levels, mean=mean, scale=scale, family=family, forward=forward, **options)  # pyright: ignore


def away_from_kinks(levels: LevelSet, mean: float, scale: float, num: int) -> torch.Tensor:
    """Random points at which no |z_k| is within 0.02 of 0 or 1, where the bounded densities have kinks."""
    x = torch.empty(100 * num).uniform_(-3, 4)
    z = (x[:, None] - mean - torch.tensor(levels.thresholds)) / scale
    good = ((z.abs() - 1).abs() > 0.02).all(1) & (z.abs() > 0.02).all(1)
    return x[good][:num]


@pytest.mark.pairwise
@noises
@level_sets
@families
def test_expectation_is_the_mean_of_the_quantized_noisy_input(
    family: str, levels: LevelSet, mean: float, scale: float
) -> None:
    x = torch.empty(300).uniform_(-6, 6)
    p = probabilities(x.numpy(), levels, mean, scale, family)
    np.testing.assert_allclose(apply(x, levels, mean, scale, family), p @ levels.levels, rtol=1e-13, atol=1e-14)


@pytest.mark.pairwise
@noises
@level_sets
@families
def test_mode_is_the_most_probable_level(family: str, levels: LevelSet, mean: float, scale: float) -> None:
    x = torch.empty(300).uniform_(-6, 6)
    p = probabilities(x.numpy(), levels, mean, scale, family)
    first, second = np.sort(p, 1)[:, -1], np.sort(p, 1)[:, -2]
    clear = first - second > 1e-9  # under wide uniform noise several levels share the largest probability
    assert clear.mean() > 0.5
    found = apply(x, levels, mean, scale, family, "mode").numpy()
    np.testing.assert_array_equal(found[clear], np.array(levels.levels)[p.argmax(1)][clear])


@pytest.mark.pairwise
@noises
@level_sets
@families
def test_random_inverts_the_cumulative_probabilities(family: str, levels: LevelSet, mean: float, scale: float) -> None:
    x, uniform = torch.empty(300).uniform_(-6, 6), torch.rand(300)
    from_top = probabilities(x.numpy(), levels, mean, scale, family)[:, ::-1].cumsum(1)
    clear = (np.abs(from_top - uniform.numpy()[:, None]) > 1e-9).all(1)
    assert clear.mean() > 0.9
    index = (uniform.numpy()[:, None] >= from_top[:, :-1]).sum(1)
    found = apply(x, levels, mean, scale, family, "random", uniform=uniform).numpy()
    np.testing.assert_array_equal(found[clear], np.array(levels.levels[::-1])[index][clear])


@families
def test_random_levels_have_their_probabilities(family: str) -> None:
    x, levels, n = 0.3, powers_of_two(3), 40_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1))
    points = torch.full((n,), x)
    found = apply(points, levels, 0.1, 0.6, family, "random", uniform=uniform)
    assert torch.equal(found, apply(points, levels, 0.1, 0.6, family, "random", uniform=uniform.clone()))
    p = probabilities(np.array([x]), levels, 0.1, 0.6, family)[0]
    counts = np.array([(found == level).sum().item() for level in levels.levels])
    assert counts.sum() == n
    possible = p > 1e-12
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], n * p[possible]).pvalue > 0.01


@pytest.mark.pairwise
@pytest.mark.parametrize("forward", FORWARDS)
@noises
@level_sets
@families
def test_all_forwards_have_the_derivatives_of_the_expectation(
    family: str, levels: LevelSet, mean: float, scale: float, forward: str
) -> None:
    x = away_from_kinks(levels, mean, scale, 60).requires_grad_()
    m, s = torch.tensor(mean, requires_grad=True), torch.tensor(scale, requires_grad=True)
    cotangent = torch.randn(len(x))
    y = apply(x, levels, m, s, family, forward)
    of_x, of_mean, of_scale = torch.autograd.grad(y, [x, m, s], cotangent)
    slope, stretch = density(x.detach().numpy(), levels, mean, scale, family)
    c = cotangent.numpy()
    np.testing.assert_allclose(of_x, c * slope, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(of_mean, -(c @ slope), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(of_scale, -(c @ stretch), rtol=1e-11, atol=1e-11)


@pytest.mark.pairwise
@noises
@level_sets
@families
def test_first_and_second_derivatives_of_the_expectation(
    family: str, levels: LevelSet, mean: float, scale: float
) -> None:
    x = away_from_kinks(levels, mean, scale, 4).requires_grad_()
    m, s = torch.tensor(mean, requires_grad=True), torch.tensor(scale, requires_grad=True)

    def function(x: torch.Tensor, m: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return apply(x, levels, m, s, family)

    assert torch.autograd.gradcheck(function, (x, m, s))
    assert torch.autograd.gradgradcheck(function, (x, m, s))


def test_derivatives_with_a_mean_and_a_scale_for_each_channel() -> None:
    x = torch.randn(2, 3, 2, requires_grad=True)
    mean = torch.randn(3, 1, requires_grad=True)
    scale = torch.tensor([[0.3], [0.7], [1.1]], requires_grad=True)

    def function(x: torch.Tensor, m: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return apply(x, ternary(), m, s, "logistic")

    assert torch.autograd.gradcheck(function, (x, mean, scale))
    assert torch.autograd.gradgradcheck(function, (x, mean, scale))


def test_autograd_and_torch_func_agree() -> None:
    x = torch.randn(5)

    def function(s: torch.Tensor) -> torch.Tensor:
        return apply(x, ternary(), 0.1, s, "normal").square().sum()

    s = torch.tensor(0.4, requires_grad=True)
    (first,) = torch.autograd.grad(function(s), s, create_graph=True)
    (second,) = torch.autograd.grad(first, s)
    assert torch.func.grad(function)(s.detach()).item() == pytest.approx(first.item(), rel=1e-14)
    assert torch.func.grad(torch.func.grad(function))(s.detach()).item() == pytest.approx(second.item(), rel=1e-14)


@pytest.mark.pairwise
@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-20, 1e-16])
@families
def test_without_noise_it_is_the_hard_quantizer_without_derivatives(family: str, scale: float, forward: str) -> None:
    """Also at scales whose inverse overflows: the 14th power of a schedule reaches them in float32."""
    x = torch.tensor([-3.0, -0.5, -0.2, 0.0, 0.4, 0.5, 0.8, 3.0], requires_grad=True)
    m, s = torch.tensor(0.0, requires_grad=True), torch.tensor(scale, requires_grad=True)
    y = apply(x, ternary(), m, s, family, forward)
    assert torch.equal(y, hard(x, ternary()))
    first = torch.autograd.grad(y.square().sum() + x.sum() + m + s, [x, m, s], create_graph=True)
    assert [bool((g == 1).all()) for g in first] == [True] * 3
    inner = torch.autograd.grad(y.sum(), [x, m, s], create_graph=True)
    assert all(bool((g == 0).all()) for g in inner)
    second = torch.autograd.grad(sum(g.sum() for g in inner), [x, m, s], allow_unused=True)  # pyright: ignore
    assert all(g is None or bool((g == 0).all()) for g in second)


@families
@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-38, 1e-30])
def test_vanishing_scales_in_float32_give_no_nan(family: str, scale: float) -> None:
    x = torch.tensor([-9.0, -0.5, 0.3, 0.5, 9.0], dtype=torch.float32, requires_grad=True)
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)  # as a schedule gives it
    y = stair(x, ternary(), mean=torch.zeros(()), scale=s, family=family, forward="expectation")
    assert y.tolist() == [-1, 0, 0, 1, 1]
    of_x, of_scale = torch.autograd.grad(y.sum(), [x, s])
    assert of_x.tolist() == [0] * 5 and of_scale.item() == 0


@pytest.mark.parametrize("forward", FORWARDS)
@families
def test_elements_with_and_without_noise_side_by_side(family: str, forward: str) -> None:
    x = torch.cat([torch.randn(36), torch.tensor([-0.5, -0.5, 0.5, 0.5])])  # the thresholds, without noise and with it
    scale = torch.where(torch.arange(40) % 2 == 0, 0.0, 0.4)
    noisy = scale > 0
    uniform = torch.rand(40)
    x.requires_grad_()
    mean, s = torch.zeros(40, requires_grad=True), scale.clone().requires_grad_()
    y = apply(x, ternary(), mean, s, family, forward, uniform=uniform)
    alone = apply(x, ternary(), 0.0, 0.4, family, forward, uniform=uniform)
    assert torch.equal(y, torch.where(noisy, alone, hard(x, ternary())))
    first = torch.autograd.grad(y.sum(), [x, mean, s], create_graph=True)
    second = torch.autograd.grad(first[0].sum() + first[2].sum(), [x, mean, s])
    for g in (*first, *second):
        assert bool(g.isfinite().all())
        assert bool((g[~noisy] == 0).all())
    assert bool(first[0][noisy].any())


def test_ternary_under_uniform_noise_of_half_a_quantum_is_clip() -> None:
    dyadic = torch.arange(-3 * 2**20, 3 * 2**20 + 1, 7) / 2**20
    assert torch.equal(apply(dyadic, ternary(), 0.0, 0.5, "uniform"), dyadic.clamp(-1, 1))
    anywhere = torch.empty(100_000).uniform_(-2, 2)
    error = apply(anywhere, ternary(), 0.0, 0.5, "uniform") - anywhere.clamp(-1, 1)
    assert error.abs().max().item() <= 2.3e-16
    assert abs(error.mean().item()) < 1e-18  # and no drift to one side


def test_its_derivative_is_that_of_clip_with_half_of_it_at_the_corners() -> None:
    x = torch.tensor([-1.5, -1.0, -0.7, -0.5, 0.0, 0.3, 0.5, 1.0, 1.2], requires_grad=True)
    for y in (
        apply(x, ternary(), 0.0, 0.5, "uniform"),
        apply(x, ternary(), 0.0, 0.5, "uniform", "mode"),
        straight_through(x, ternary(), 0.5),
    ):
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert slope.tolist() == [0, 0.5, 1, 1, 1, 1, 1, 0.5, 0]


def test_mode_under_uniform_noise_of_half_a_quantum_is_hard() -> None:
    """On the thresholds too, where two levels are equally probable: the higher one."""
    x = torch.cat([torch.empty(10_000).uniform_(-2, 2), torch.tensor([-0.5, -0.501, 0.5, 0.499, 0.0])])
    assert torch.equal(apply(x, ternary(), 0.0, 0.5, "uniform", "mode"), hard(x, ternary()))


@pytest.mark.parametrize("s", [0.5, 0.1, 0.01])
def test_slopes_grow_like_one_over_the_width(s: float) -> None:
    x = torch.tensor(0.5, requires_grad=True)
    peaks = {"uniform": 1 / 2, "triangular": 1.0, "normal": 1 / np.sqrt(2 * np.pi), "logistic": 1 / 4}
    for family, peak in peaks.items():
        (slope,) = torch.autograd.grad(apply(x, ternary(), 0.0, s, family), x)
        other = DISTRIBUTIONS[family].pdf(1 / s) / s  # of the other threshold, one quantum away
        if (family, s) != ("uniform", 0.5):
            assert slope.item() == pytest.approx(peak / s + other, rel=1e-12)


def test_start_values_of_ana() -> None:
    """Half-widths of 0.5 quanta in each family's own scale: quantlab, systems/CIFAR10/VGG/doe/anacifar10vgg8.py."""
    published = {"uniform": 0.5, "triangular": 0.5, "normal": 0.25511, "logistic": 0.136479}
    for family, start in published.items():
        unit = NOISE_FAMILIES[family].unit
        assert round(0.5 * unit, len(str(start)) - 2) == start
        covered = {"uniform": 1.0, "triangular": 1.0}.get(family, 0.95)
        law = DISTRIBUTIONS[family]
        assert law.cdf(1 / unit) - law.cdf(-1 / unit) == pytest.approx(covered, abs=1e-12)


@families
@pytest.mark.parametrize("scale", [0.0, 0.2, 0.5])
def test_a_fixed_backward_scale_replaces_the_derivative_in_the_input_alone(family: str, scale: float) -> None:
    x = away_from_kinks(ternary(), 0.1, 0.4, 20).requires_grad_()
    m, s = torch.tensor(0.1, requires_grad=True), torch.tensor(scale, requires_grad=True)
    own = apply(x, ternary(), m, s, family)
    fixed = apply(x, ternary(), m, s, family, backward_scale=0.4)
    assert torch.equal(own, fixed)
    g_own, g_fixed = (torch.autograd.grad(y.sum(), [x, m, s]) for y in (own, fixed))
    slope, _ = density(x.detach().numpy(), ternary(), 0.1, 0.4, family)
    np.testing.assert_allclose(g_fixed[0], slope, rtol=1e-11, atol=1e-13)
    assert torch.equal(g_own[1], g_fixed[1]) and torch.equal(g_own[2], g_fixed[2])


@level_sets
@pytest.mark.parametrize("half_width", [0.1, 0.5, 2.0])
def test_straight_through_is_hard_with_the_density_of_uniform_noise(levels: LevelSet, half_width: float) -> None:
    x = away_from_kinks(levels, 0.0, half_width, 50).requires_grad_()
    y = straight_through(x, levels, half_width)
    assert torch.equal(y, hard(x, levels))
    (slope,) = torch.autograd.grad(y.sum(), x)
    np.testing.assert_allclose(slope, density(x.detach().numpy(), levels, 0.0, half_width, "uniform")[0], atol=1e-13)


@pytest.mark.pairwise
@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("scale", [0.0, 0.4])
@families
def test_what_is_not_a_number_stays_so(family: str, scale: float, forward: str) -> None:
    """A run that diverged must not look like one that sits on its levels."""
    y = apply(torch.tensor([torch.nan, 0.7]), ternary(), 0.0, scale, family, forward)
    assert y.isnan().tolist() == [True, False]


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_on_the_levels_in_the_dtype_of_the_input(dtype: torch.dtype, forward: str) -> None:
    x = torch.randn(50, dtype=dtype)
    y = stair(
        x,
        powers_of_two(4),
        mean=torch.zeros(()),
        scale=torch.tensor(0.3),
        family="normal",
        forward=forward,  # pyright: ignore
        uniform=torch.rand(50, dtype=dtype),
    )
    assert y.dtype == dtype and y.shape == x.shape
    if forward != "expectation":
        assert set(y.tolist()) <= set(powers_of_two(4).levels)


@level_sets
def test_hard_is_a_search_among_the_thresholds(levels: LevelSet) -> None:
    x = torch.cat([torch.empty(500).uniform_(-5, 5), torch.tensor(levels.thresholds), torch.tensor([-np.inf, np.inf])])
    expected = np.array(levels.levels)[np.searchsorted(levels.thresholds, x.numpy(), side="right")]
    np.testing.assert_array_equal(hard(x, levels), expected)
    assert hard(torch.tensor([torch.nan]), levels).isnan().all()


@pytest.mark.parametrize("name", ["int4", "uint4", "int8"])
def test_hard_is_exact_for_every_half_precision_number(name: str) -> None:
    """Just below a half, where adding 1/2 rounds, on the halves of both signs, and for zeros, which have no sign."""
    levels, x = level_set(name), torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    x = x[~x.isnan()].float()
    for dtype in (torch.float16, torch.float32):
        found = hard(x.to(dtype), levels).double()
        expected = np.array(levels.levels)[np.searchsorted(levels.thresholds, x.double().numpy(), side="right")]
        np.testing.assert_array_equal(found, expected)
        assert not found[found == 0].signbit().any()
    near = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float32)
    np.testing.assert_array_equal(hard(torch.nextafter(near, torch.zeros(3)), levels), [0, 1, 2])
    np.testing.assert_array_equal(hard(near, levels), [1, 2, 3])


@pytest.mark.pairwise
@pytest.mark.parametrize("shared", ["nothing", "x", "mean", "scale", "uniform"])
@pytest.mark.parametrize("forward", FORWARDS)
@families
def test_mapped_over_runs_it_is_the_stair_of_each(family: str, forward: str, shared: str) -> None:
    """Values and first derivatives, with and without noise side by side, for runs in the last dimension."""
    runs, shape = 4, (3, 5)
    scale = torch.tensor([0.4, 0.0, 1.1, 1e-20])
    inputs = {"x": torch.randn(*shape, runs), "mean": torch.randn(runs), "scale": scale}
    uniform = torch.rand(*shape, runs)
    dims = dict.fromkeys([*inputs, "uniform"], -1)
    if shared in inputs:
        inputs[shared] = inputs[shared][..., 0]
    elif shared == "uniform":
        uniform = uniform[..., 0]
    dims |= {shared: None} if shared != "nothing" else {}  # type: ignore[dict-item]
    leaves = [t.requires_grad_() for t in inputs.values()]

    def function(x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return apply(x, ternary(), mean, scale, family, forward, uniform=uniform)

    mapped = torch.vmap(function, in_dims=tuple(dims.values()))(leaves[0], leaves[1], leaves[2], uniform)
    args = [
        [t if dim is None else t[..., i] for t, dim in zip((*leaves, uniform), dims.values(), strict=True)]
        for i in range(runs)
    ]
    each = [function(x, mean, scale, uniform) for x, mean, scale, uniform in args]
    torch.testing.assert_close(mapped, torch.stack(each), rtol=0, atol=1e-14)  # vectorized sigmoids differ by a bit
    cotangent = torch.randn_like(mapped)
    found = torch.autograd.grad(mapped, leaves, cotangent)
    expected = torch.autograd.grad(torch.stack(each), leaves, cotangent, retain_graph=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)

    def slope(x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda s: function(x, mean, s, uniform).sum())(scale)

    if shared != "scale":
        x, mean, scale = (t.detach() for t in leaves)
        inside = torch.vmap(slope, in_dims=tuple(dims.values()))(x, mean, scale, uniform)
        (outside,) = torch.autograd.grad(torch.stack(each).sum(), leaves[2])
        torch.testing.assert_close(inside, outside, rtol=1e-13, atol=1e-13)


@level_sets
@pytest.mark.parametrize("family", ["uniform", "triangular"])
def test_the_mode_is_hard_as_long_as_noise_reaches_no_further_than_the_neighbours(
    family: str, levels: LevelSet
) -> None:
    reach = 1.0 if levels.narrowest == float("inf") else levels.narrowest
    x = torch.cat([torch.linspace(-4, 18, 4001), torch.tensor(levels.thresholds)])
    assert torch.equal(apply(x, levels, 0.0, reach, family, "mode"), hard(x, levels))
    p = probabilities(x.numpy(), levels, 0.0, reach, family)
    own = np.searchsorted(levels.thresholds, x.numpy(), side="right")
    assert (p[np.arange(len(x)), own] >= p.max(1) - 1e-12).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("forward", ["expectation", "mode"])
def test_compiled_it_is_one_graph_with_the_same_numbers(forward: Forward) -> None:
    def noisy(x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return stair(x, LEVELS["ternary"], mean=mean, scale=scale, family="triangular", forward=forward)

    torch._dynamo.reset()
    compiled: Any = torch.compile(noisy, backend="eager", fullgraph=True)
    values = torch.cat([torch.linspace(-1.5, 1.5, 121), torch.tensor([torch.nan, torch.inf])])
    for scale in (0.0, 0.4, 1.7):
        found = []
        for function in (noisy, compiled):
            inputs = [t.requires_grad_() for t in (values.clone(), torch.tensor(0.0), torch.tensor(scale))]
            y = function(*inputs)
            found.append((y, *torch.autograd.grad(y[:-2].square().sum(), inputs)))
        for eager, other in zip(*found, strict=True):
            torch.testing.assert_close(other, eager, rtol=1e-12, atol=1e-12, equal_nan=True)
