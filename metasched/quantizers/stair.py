"""The stair function under additive noise: ANA's quantizer, differentiable in input, mean and scale.

With levels q_k, jumps d_k = q_{k+1} - q_k, thresholds theta_k and noise of mean mu, scale s and distribution F:

    expectation   E(x) = q_0 + sum_k d_k F((x - mu - theta_k) / s)
    mode          the level of largest probability
    random        a level drawn with the probabilities p_k = F_{k-1} - F_k

All three are differentiated as the expectation: dE/dx = sum_k d_k f((x - mu - theta_k) / s) / s, and likewise in mu and
s (ANA, Spallanzani et al., CVPR 2022, arXiv 2203.11323). At s = 0 the forward pass is the hard quantizer, right
continuous at the thresholds, and every derivative is exactly 0. A scale below the machine epsilon of the dtype is
treated as 0: a schedule that decays with a high power, such as 14, reaches scales for which 1 / s overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from metasched.core.recording import recorded
from metasched.core.twice import closed, wanted
from metasched.quantizers.constants import constants, row
from metasched.quantizers.functions import caller
from metasched.quantizers.hard import hard, positive
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.quantizers.twice import times_slope

Forward = Literal["expectation", "mode", "random"]


def stair(
    x: torch.Tensor,
    levels: LevelSet,
    *,
    mean: torch.Tensor,
    scale: torch.Tensor,
    family: str,
    forward: Forward,
    uniform: torch.Tensor | None = None,
    backward_scale: float | None = None,
) -> torch.Tensor:
    """The stair function under noise.

    Args:
        x: [...], any floating dtype, in units of the quantizer's scale.
        levels: the level set.
        mean: mean of the noise, in units of the quantizer's scale; 0-d or broadcastable to x.
        scale: scale of the noise as the family defines it (noise.py), >= 0; 0-d or broadcastable to x.
        family: a key of NOISE_FAMILIES.
        forward: output of the forward pass; the derivative is that of the expectation in all cases.
        uniform: only for ``random``: uniform numbers in [0, 1), with the shape of x.
        backward_scale: scale of the noise whose density gives the derivative in x (ANA's 2019 form keeps it constant);
            None: ``scale``. The derivatives in mean and scale always use ``scale``.

    Returns:
        shape and dtype of x; with ``mode`` and ``random`` every value is a level.

    >>> from metasched.quantizers.levels import ternary
    >>> x, half = torch.tensor([-2.0, -0.25, 0.75]), torch.tensor(0.5)
    >>> y = stair(x, ternary(), mean=torch.tensor(0.0), scale=half, family="uniform", forward="expectation")
    >>> bool((y == x.clamp(-1, 1)).all())
    True
    """
    assert forward != "random" or uniform is not None, "random forward needs uniform numbers"
    return _apply(x, mean, scale, _Shape(levels, family, forward), uniform, backward_scale)


class _Shape(NamedTuple):
    levels: LevelSet
    family: str
    forward: Forward


class _Stair(torch.autograd.Function):
    """The stair with its derivative in closed form: one product in a backward pass instead of the chain through F.

    ``backward`` consists of differentiable operations, so that derivatives of any order are exact. Under torch.vmap,
    ``vmap`` replaces the call by one call on stacked tensors, because ``forward`` branches on the values of the scales.
    """

    @staticmethod
    def forward(
        x: torch.Tensor,
        mean: torch.Tensor,
        scale: torch.Tensor,
        shape: _Shape,
        uniform: torch.Tensor | None,
        backward_scale: float | None,
    ) -> torch.Tensor:
        levels, centred = shape.levels, _centred(x, mean)
        if _hidden():  # both ways are computed, and each element is chosen by its scale
            inverse = torch.where(_noiseless(scale, x), 1.0, scale).reciprocal()
            soft = _noisy(centred, inverse, shape, uniform)
            return torch.where(_hard_where(scale, shape, x), hard(centred, levels), soft)
        if _is_hard(scale, shape, x):
            return hard(centred, levels)
        noiseless = _noiseless(scale, x)
        if scale.dim() == 0 or not bool(noiseless.any()):
            return _noisy(centred, scale.reciprocal(), shape, uniform)
        return _noisy(centred, torch.where(noiseless, 1.0, scale).reciprocal(), shape, uniform, noiseless)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, mean, scale, ctx.shape, _, ctx.backward_scale = inputs
        ctx.save_for_backward(x, mean, scale)
        ctx.save_for_forward(x, mean, scale)

    @staticmethod
    def vmap(  # pyright: ignore
        info: Any,
        in_dims: tuple[int | None, ...],
        x: torch.Tensor,
        mean: torch.Tensor,
        scale: torch.Tensor,
        shape: _Shape,
        uniform: torch.Tensor | None,
        backward_scale: float | None,
    ) -> tuple[torch.Tensor, int]:
        x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        # a 0-d tensor takes part in no dtype promotion, but a stacked one does
        mean, scale = (_stacked(t.to(x.dtype), dim, x) for t, dim in zip((mean, scale), in_dims[1:3], strict=True))
        uniform = None if uniform is None else _stacked(uniform, in_dims[4], x)
        return _apply(x, mean, scale, shape, uniform, backward_scale), 0

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor:  # pyright: ignore
        x, mean, scale = ctx.saved_tensors
        levels, family = ctx.shape.levels, ctx.shape.family
        slope, stretch = _derivatives(x, mean, scale, levels, family, stretch=tangents[2] is not None)
        of_x = slope
        if ctx.backward_scale is not None:
            fixed = torch.full_like(scale, ctx.backward_scale)
            of_x = _derivatives(x, mean, fixed, levels, family, stretch=False)[0]
        terms = zip((of_x, -slope, -stretch), tangents, strict=False)
        return sum((d * t for d, t in terms if t is not None), torch.zeros_like(x))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        x, mean, scale = ctx.saved_tensors
        needs_x, needs_mean, needs_scale = ctx.needs_input_grad[:3]
        levels, family = ctx.shape.levels, ctx.shape.family
        if closed() and not (needs_mean and wanted(ctx, 1)) and not (needs_scale and wanted(ctx, 2)):
            used = scale if ctx.backward_scale is None else torch.full_like(scale, ctx.backward_scale)
            return times(grad, x, mean, used, levels, family), None, None, None, None, None
        of_x = of_mean = of_scale = None
        if needs_mean or needs_scale or (needs_x and ctx.backward_scale is None):
            slope, stretch = _derivatives(x, mean, scale, levels, family, stretch=needs_scale)
            if needs_x and ctx.backward_scale is None:
                of_x = grad * slope
            if needs_mean:
                of_mean = -(grad * slope).sum_to_size(mean.shape)
            if needs_scale:
                of_scale = -(grad * stretch).sum_to_size(scale.shape)
        if needs_x and ctx.backward_scale is not None:
            fixed = torch.full_like(scale, ctx.backward_scale)
            of_x = grad * _derivatives(x, mean, fixed, levels, family, stretch=False)[0]
        return of_x, of_mean, of_scale, None, None, None


_apply = caller(_Stair)


def _is_hard(scale: torch.Tensor, shape: _Shape, x: torch.Tensor) -> bool:
    """Whether the output is that of the hard quantizer: without noise, and for a mode that noise does not move.

    At a threshold symmetric noise gives both neighbours the same probability, unless it reaches beyond them; between
    thresholds the level there then has the largest one, for densities that decrease to both sides.
    """
    largest = float(scale.detach().amax())
    if largest < torch.finfo(x.dtype).eps:
        return True
    return shape.forward == "mode" and largest * NOISE_FAMILIES[shape.family].reach <= shape.levels.narrowest


def _hard_where(scale: torch.Tensor, shape: _Shape, x: torch.Tensor) -> torch.Tensor:
    """Where ``_is_hard`` is true of a scale by itself: bool, with the shape of ``scale``."""
    reach, noiseless = NOISE_FAMILIES[shape.family].reach, _noiseless(scale, x)
    if shape.forward == "mode" and math.isfinite(reach):
        return noiseless | (scale * reach <= shape.levels.narrowest)
    return noiseless


def _noisy(
    centred: torch.Tensor,
    inverse: torch.Tensor,
    shape: _Shape,
    uniform: torch.Tensor | None,
    noiseless: torch.Tensor | None = None,
) -> torch.Tensor:
    """The forward pass under noise of scale 1 / ``inverse``; without noise where ``noiseless`` says so."""
    thresholds, cdf = constants(shape.levels.thresholds, centred), NOISE_FAMILIES[shape.family].cdf
    above = [cdf((centred - theta).mul_(inverse)) for theta in thresholds]
    if noiseless is not None:
        steps = [(centred >= theta).to(centred.dtype) for theta in thresholds]
        above = [torch.where(noiseless, step, f) for step, f in zip(steps, above, strict=True)]
    return _OF_PROBABILITIES[shape.forward](above, shape.levels, uniform)


def _derivatives(
    x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, levels: LevelSet, family: str, *, stretch: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_k d_k f(z_k) / s and, with ``stretch``, sum_k d_k z_k f(z_k) / s; both exactly 0 where the noise is 0."""
    pdf, inverse, centred = NOISE_FAMILIES[family].pdf, _inverse(scale, x), _centred(x, mean)
    slopes, weighted = [], []
    for theta, jump in zip(constants(levels.thresholds, x), levels.jumps, strict=True):
        z = (centred - theta) * inverse
        density = pdf(z) if jump == 1 else pdf(z) * jump
        slopes.append(density)
        if stretch:
            weighted.append(density * z)
    slope = sum(slopes[1:], slopes[0]) * inverse
    return slope, sum(weighted[1:], weighted[0]) * inverse if stretch else slope.new_zeros(())


def slope(x: torch.Tensor, scale: torch.Tensor, levels: LevelSet, family: str) -> torch.Tensor:
    """The derivative of the stair in x under noise without a mean: sum_k d_k f((x - theta_k) / s) / s.

    Args:
        x: [...], any floating dtype, in units of the quantizer's scale.
        scale: s, 0-d, >= 0, as the family defines it.
        levels: the level set.
        family: a key of NOISE_FAMILIES.

    Returns:
        shape and dtype of x; 0 where s is 0.
    """
    return _derivatives(x, torch.zeros_like(scale), scale, levels, family, stretch=False)[0]


def times(
    grad: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, levels: LevelSet, family: str
) -> torch.Tensor:
    """The gradient [...] times the derivative of the stair in x, whose own derivatives are in closed form.

    Args:
        grad: with the shape and dtype of x.
        x, mean, scale, levels, family: of the stair, see there.
    """

    def differentiable(x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return _derivatives(x, mean, scale, levels, family, stretch=False)[0]

    with torch.no_grad():
        inverse = _inverse(scale, x)
    return times_slope(grad, x, mean, scale, inverse, levels, family, differentiable)


def _stacked(t: torch.Tensor, runs: int | None, x: torch.Tensor) -> torch.Tensor:
    """Moves the mapped dimension ``runs`` to the front and pads the shape so that t broadcasts to x."""
    if runs is None:
        return t
    t = t.movedim(runs, 0)
    return t.reshape(len(t), *[1] * (x.dim() - t.dim()), *t.shape[1:])


def _centred(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """The difference of x and mean, or x itself where no derivative is asked for and the mean is 0."""
    if mean.dim() or torch.is_grad_enabled() or _hidden() or torch._C._are_functorch_transforms_active():
        return x - mean
    return x if float(mean) == 0 else x - mean


def _hidden() -> bool:
    """Whether no value may be read: while a step is recorded, and under torch.compile, which splits its graph there."""
    return recorded() or torch.compiler.is_compiling()


def _inverse(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """1 / s, and 0 where the noise is 0; a single operation in the usual case, one positive scale."""
    try:
        if scale.dim() == 0 and not _hidden() and float(scale.detach()) >= torch.finfo(x.dtype).eps:
            return scale.reciprocal()
    except RuntimeError:  # under torch.vmap a tensor has no value to read
        pass
    noiseless = _noiseless(scale, x)
    # two where: neither the value nor its derivative may contain 1 / 0
    return torch.where(noiseless, 0.0, torch.where(noiseless, 1.0, scale).reciprocal())


def _noiseless(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    (eps,) = constants((torch.finfo(x.dtype).eps,), x)
    return scale < eps


def _expectation(above: list[torch.Tensor], levels: LevelSet, uniform: torch.Tensor | None) -> torch.Tensor:
    jumps = constants(levels.jumps, above[0])
    rises = [f if jump == 1 else f * d for f, jump, d in zip(above, levels.jumps, jumps, strict=True)]
    return sum(rises[1:], rises[0]) + constants(levels.levels[:1], above[0])[0]


def _mode(above: list[torch.Tensor], levels: LevelSet, uniform: torch.Tensor | None) -> torch.Tensor:
    """Level of largest probability; in a tie the higher one, as in the hard quantizer, which is right continuous."""
    (one,) = constants((1.0,), above[0])
    most = one - above[0]
    value, *others = constants(levels.levels, most)
    for k, level in enumerate(others, 1):
        probability = above[k - 1] - above[k] if k < len(above) else above[k - 1]
        value = torch.lerp(level, value, positive(most - probability))
        if k < len(above):
            most = torch.maximum(probability, most)
    return value


def _random(above: list[torch.Tensor], levels: LevelSet, uniform: torch.Tensor | None) -> torch.Tensor:
    """The level whose interval of cumulative probability contains the uniform number."""
    assert uniform is not None
    index = sum((uniform < f).to(torch.int64) for f in above)
    return row(levels.levels, uniform)[index] + 0 * above[0]  # NaN stays NaN


_OF_PROBABILITIES: dict[str, Callable[[list[torch.Tensor], LevelSet, torch.Tensor | None], torch.Tensor]] = {
    "expectation": _expectation,
    "mode": _mode,
    "random": _random,
}
