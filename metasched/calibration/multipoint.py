"""Multipoint quantization: each output channel is a sum of few quantized vectors, as many as its output needs.

    w ~ sum_{i <= n} s_i p_i,     p_i with b-bit integers in [-(2^(b-1) - 1), 2^(b-1) - 1]

Greedy: p_i and s_i are the nearest integers and the scale with the smallest error of what the points before them have
left, over a grid of scales from where nothing is cut to where all is 0; then s_i = <r, p_i> / <p_i, p_i>. Another point
cannot raise the error of the weights, which falls exponentially in n. With a budget epsilon, a channel gets points
until

    sum over examples (y - y')^2 <= epsilon sum over examples y^2

for its outputs y without bias on the calibration data, up to ``most``; or all channels get ``points`` of them.

Source: Liu, Ye, Zhou, Liu: Post-training Quantization with Multiple Points: Mixed Precision without Mixed Precision.
AAAI 2021, arXiv 2002.09049. We differ: the grid of scales is logarithmic, and the scale is then the best one for its
integers; the budget is relative to the channel's own output. The weights are sums over several level sets: ``convert``
gives them as they are, and an integer network, which needs one level set a layer, takes a layer as fixed-point numbers
where it takes any such, or refuses it by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from metasched.calibration.moments import layer_of, moments_of, rows_of, weight_of
from metasched.calibration.table import MultipointOptions
from metasched.calibration.unit import Rounded, Unit
from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.oriented import Oriented
from metasched.methods.tensors import LayerQuantizer
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet

_GRID = 200  # scales that are tried
_FINEST = 0.05  # the smallest, as a share of the one that cuts nothing
_SCALE_BITS = 32  # of a stored scale


class Points(NamedTuple):
    """Integers [n, R, d] and their scales [n, R]; a channel with fewer points has zeros."""

    integers: torch.Tensor
    scales: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """The sum [R, d]."""
        return (self.integers * self.scales[..., None]).sum(0)

    @property
    def counts(self) -> torch.Tensor:
        """Points of each channel, [R]."""
        return (self.scales > 0).sum(0)


@dataclass(frozen=True)
class Multipoint(Method):
    """The deployed form of a layer: a sum of points, which stands still.

    Its state has ``points`` [n, C_out, ...] and ``scales`` [n, C_out, 1, ...].

    Attributes:
        quantizer: levels of each point; and those of the activation.
    """

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        """None."""
        return ()

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """The sum of the points, with the shape of w [C_out, ...]."""
        return (state["points"] * state["scales"]).sum(0)

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """As deployed: x [N, ...] on its levels."""
        return self.quantizer.harden_activation(x, state, 0.5)

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The sum of the points, with the shape of w [C_out, ...]."""
        return (state["points"] * state["scales"]).sum(0)


def next_point(r: torch.Tensor, levels: LevelSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers [R, d] and scales [R] of the point with the smallest error of the rest r [R, d]; 0 where r is 0."""
    top = levels.levels[-1]
    largest = r.abs().amax(1, keepdim=True)
    shares = torch.logspace(0, 1, _GRID, base=2 * top / _FINEST, dtype=r.dtype, device=r.device) * _FINEST / top
    best, least = torch.zeros_like(r), r.square().sum(1, keepdim=True)
    for share in shares:
        scale = (share * largest).clamp_min(torch.finfo(r.dtype).tiny)
        q = hard(r / scale, levels)
        along, square = (r * q).sum(1, keepdim=True), q.square().sum(1, keepdim=True)
        error = r.square().sum(1, keepdim=True) - along.square() / square.clamp_min(1)  # at the best scale for q
        better = (error < least) & (along > 0)
        best, least = torch.where(better, q, best), torch.where(better, error, least)
    square = best.square().sum(1)
    return best, torch.where(square > 0, (r * best).sum(1) / square.clamp_min(1), 0.0)


def points_of(
    w: torch.Tensor, levels: LevelSet, most: int, gram: torch.Tensor | None = None, budget: float = 0.0
) -> Points:
    """The points of each channel of w [R, d].

    Args:
        w: rows.
        levels: integers, balanced.
        most: points at most.
        gram: [G, d, d], moments of the inputs of the channels of each group; None: each gets ``most`` points.
        budget: largest relative squared error of the outputs.
    """
    rest, integers, scales = w, [], []
    for _ in range(most):
        open_ = torch.ones(len(w), dtype=torch.bool, device=w.device)
        if gram is not None and integers:
            open_ = _power(rest, gram) > budget * _power(w, gram)
        if not bool(open_.any()):
            break
        q, scale = next_point(rest, levels)
        q, scale = q * open_[:, None], scale * open_
        rest = rest - q * scale[:, None]
        integers.append(q)
        scales.append(scale)
    return Points(torch.stack(integers), torch.stack(scales))


def _power(w: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """W G w^T of each of R rows of G groups, [R]."""
    grouped = w.reshape(len(gram), -1, w.shape[-1])
    return ((grouped @ gram) * grouped).sum(-1).flatten()


@torch.no_grad()
def multipoint(unit: Unit, options: MultipointOptions) -> list[Rounded]:
    """The layer as sums of points."""
    layer_of(unit)
    (method,) = unit.methods
    w = rows_of(unit, unit.weight(0)).double()  # [G, R, d]
    gram = moments_of(unit).gram if options.points is None else None
    most = options.most if options.points is None else options.points
    found = points_of(w.flatten(0, 1), method.quantizer.levels, most, gram, options.budget)
    like = unit.weight(0)
    shape = method.turned(like).shape if isinstance(method, Oriented) else like.shape
    state = {
        "points": found.integers.to(like).reshape(-1, *shape),
        "scales": found.scales.to(like).reshape(-1, shape[0], *[1] * (len(shape) - 1)),
    }
    rows = (state["points"] * state["scales"]).sum(0)
    counts = found.counts.double()
    bits = float(counts.sum()) * (w.shape[-1] * method.quantizer.levels.bits + _SCALE_BITS)
    details = {"points": float(counts.mean()), "most_points": float(counts.max()), "bits_per_weight": bits / w.numel()}
    weight = weight_of(unit, rows.reshape(w.shape))
    own = Multipoint(method.quantizer)
    return [Rounded(Oriented(own, method.groups) if isinstance(method, Oriented) else own, weight, state, details)]
