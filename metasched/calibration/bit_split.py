"""Bit-Split and Stitching: integer weights as sums of ternary digits, each of which is chosen for the smallest error.

For each output channel, with b bits,

    w ~ alpha q,     q = sum_{i < b - 1} 2^i B_i,     B_i in {-1, 0, 1}^d

first by alternating q = clip(round(w / alpha)) and alpha = <w, q> / <q, q> until alpha stands still. Then q is split
into the binary digits of |q| with its sign, and in sweeps over digits, highest first, and places n, all channels at
once, each B_in becomes the one of -1, 0, 1 with the smallest error of the outputs, all else held still:

    B_in = 0 if 2 |g| < alpha 2^i G_nn, else sign(g),     g = (cross - alpha (q - 2^i B_in e_n) G)_n,

and alpha after each digit the one with the smallest error, <cross, q> / (q G q). G and cross are the moments of the
inputs (moments.py); with G = 1 and cross = w, the error of the weights, this is the weight form. No step can raise the
error. Outputs are those before normalization and activation, without the bias.

Source: Wang, Chen, He, Cheng: Towards Accurate Post-training Network Quantization via Bit-Split and Stitching. ICML
2020; wps712/BitSplit, quant.py. We differ: alpha starts at the scale of the smallest squared error of a grid; the
inputs of a layer are those of the network whose earlier layers are quantized, where their script calibrates all layers
side by side; all places of a convolution count, they draw 400 an image batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from metasched.calibration.moments import Moments, groups_of, layer_of, moments_of, rows_of, weight_of
from metasched.calibration.table import BitSplitOptions
from metasched.calibration.unit import Rounded, Unit
from metasched.methods.oriented import Oriented
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.scales import scale_of

_STILL = 1e-9
_MOST = 1000  # alternations


class Split(NamedTuple):
    """Scales alpha [G, R], and digits B [b - 1, G, R, d], each -1, 0 or 1, lowest first."""

    alpha: torch.Tensor
    digits: torch.Tensor

    @property
    def q(self) -> torch.Tensor:
        """The integers [G, R, d]."""
        return recomposed(self.digits)

    @property
    def weight(self) -> torch.Tensor:
        """Alpha q, [G, R, d]."""
        return self.alpha[..., None] * self.q


def digits_of(q: torch.Tensor, count: int) -> torch.Tensor:
    """The binary digits of |q| with the sign of q, lowest first: [count, ...] for integers q [...], |q| < 2^count.

    >>> digits_of(torch.tensor([-3.0, 2.0]), 2).tolist()
    [[-1.0, 0.0], [-1.0, 1.0]]
    """
    powers = [2.0**i for i in range(count)]
    return torch.stack([q.sign() * ((q.abs() / p).floor() % 2) for p in powers])


def recomposed(digits: torch.Tensor) -> torch.Tensor:
    """sum_i 2^i B_i [...] of digits [b - 1, ...]."""
    return sum((2.0**i * digit for i, digit in enumerate(digits)), torch.zeros_like(digits[0]))


def alternating(w: torch.Tensor, levels: LevelSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Alternates the nearest levels and the best scale of each channel until the scales stand still.

    Args:
        w: [G, R, d].
        levels: integers.

    Returns:
        alpha [G, R], positive, and q [G, R, d].
    """
    flat = w.reshape(-1, w.shape[-1])
    alpha = scale_of(flat, levels, "least_squares", "channel")
    for _ in range(_MOST):
        q = hard(flat / alpha, levels)
        square = q.square().sum(1, keepdim=True)
        better = torch.where(square > 0, (flat * q).sum(1, keepdim=True) / square.clamp_min(1), alpha)
        if bool(((better - alpha).abs() < _STILL).all()):
            break
        alpha = better
    return alpha.reshape(w.shape[:2]), hard(flat / alpha, levels).reshape(w.shape)


def swept(start: Split, gram: torch.Tensor, cross: torch.Tensor, sweeps: int) -> Split:
    """Sweeps over digits and places, until nothing changes or ``sweeps`` are done; see the module's docstring.

    Args:
        start: where they begin.
        gram: G [G, d, d].
        cross: [G, R, d].
        sweeps: at most.
    """
    alpha, digits = start.alpha.clone(), start.digits.clone()
    q = recomposed(digits)
    seen = q @ gram  # q G, [G, R, d]
    diagonal = gram.diagonal(dim1=1, dim2=2)  # [G, d]
    for _ in range(sweeps):
        before, scales = digits.clone(), alpha.clone()
        for i in reversed(range(len(digits))):
            unit = 2.0**i * alpha  # [G, R]
            for n in range(q.shape[-1]):
                own = digits[i, ..., n]
                g = cross[..., n] - alpha * (seen[..., n] - 2.0**i * own * diagonal[:, None, n])
                new = torch.where(2 * g.abs() < unit * diagonal[:, None, n], 0.0, g.sign())
                change = 2.0**i * (new - own)
                seen += change[..., None] * gram[:, None, n]
                q[..., n] += change
                digits[i, ..., n] = new
            alpha = _best_scale(alpha, q, seen, cross)
            unit = 2.0**i * alpha
        if torch.equal(before, digits) and bool((alpha - scales).abs().max() <= _STILL):
            break
    return Split(alpha, digits)


def _best_scale(alpha: torch.Tensor, q: torch.Tensor, seen: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """<cross, q> / (q G q) [G, R] where that is positive, else the scale as it is."""
    along, square = (cross * q).sum(-1), (seen * q).sum(-1)
    positive = (along > 0) & (square > 0)
    return torch.where(positive, along / torch.where(positive, square, 1.0), alpha)


def weight_form(unit: Unit, options: BitSplitOptions) -> list[Rounded]:
    """The layer with the smallest error of the weights that the sweeps find."""
    layer_of(unit)
    w = rows_of(unit, unit.weight(0)).double()
    eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device).expand(len(w), -1, -1)
    return _rounded(unit, w, Moments(eye, w, w.square().sum(-1)), options)


def output_form(unit: Unit, options: BitSplitOptions) -> list[Rounded]:
    """The layer with the smallest error of the outputs that the sweeps find."""
    return _rounded(unit, rows_of(unit, unit.weight(0)).double(), moments_of(unit), options)


@torch.no_grad()
def _rounded(unit: Unit, w: torch.Tensor, moments: Moments, options: BitSplitOptions) -> list[Rounded]:
    (method,) = unit.methods
    levels = method.quantizer.levels
    alpha, q = alternating(w, levels)
    start = Split(alpha, digits_of(q, int(levels.levels[-1]).bit_length()))
    found = swept(start, moments.gram, moments.cross, options.sweeps)
    before, after = (float(moments.error(s.weight).sum()) for s in (start, found))
    like = unit.weight(0)
    rows = method.turned(like) if isinstance(method, Oriented) else like
    scale = found.alpha.to(like).reshape(-1, *[1] * (rows.dim() - 1))
    levels_of_rows = found.q.to(like).reshape(rows.shape)
    weight = weight_of(unit, (levels_of_rows * scale).reshape(groups_of(layer_of(unit)), -1, rows[0].numel()))
    return [Rounded(method, weight, {"scale": scale}, {"of_alternating": after / before if before > 0 else 1.0})]
