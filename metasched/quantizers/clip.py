"""A learned clip of activations (PACT): the value of the highest level is trained, with a gradient of its own.

With the clip alpha, the lowest and highest level l and h, and the scale a = alpha / h:

    y = a Q(x / a),      d y / d alpha := 1 where x >= alpha,  l / h where x <= alpha l / h,  0 between

For unsigned levels this is the paper's: 1 at or above alpha, 0 below. It is the derivative of clip(x, alpha l / h,
alpha) in alpha. LSQ has Q(x / a) / h - (x / alpha) Q'(x / a) there (scales.py): the same outside of the clip, and the
rounding error of x instead of 0 within it. The two agree for a quantizer whose output is that clip, such as the
expectation under uniform noise of half a quantum.

The paper adds lambda alpha^2 to the loss, with the lambda of the weights: that is ``optimizer.weight_decay``, or a
group of the optimizer with ``match: scale``. The gradient has no factor, unlike LSQ's.

Source: PACT, Choi et al., 2018, arXiv 1805.06085, section 3. We differ: any level set, of both signs too; and alpha
starts at the smallest squared error on the first batch, where the paper starts at a large constant.
"""

from __future__ import annotations

import torch

from metasched.quantizers.levels import LevelSet


def with_clip_gradient(y: torch.Tensor, x: torch.Tensor, clip: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    """The values y, with the derivative of PACT in the clip added to what derivatives they have.

    The derivative is constant where x does not cross an edge. A derivative of y in x that depends on the clip, such as
    that of a triangular window, is taken at a fixed clip.

    Args:
        y: [...], quantized values, which must not depend on the clip by a derivative of their own.
        x: [...], what was quantized.
        clip: alpha, 0-d, > 0.
        levels: the level set; its highest level is above 0.

    Returns:
        the values of y.

    >>> from metasched.quantizers.levels import ternary
    >>> clip = torch.tensor(2.0, requires_grad=True)
    >>> x = torch.tensor([-3.0, 1.0, 2.0, 5.0])
    >>> with_clip_gradient(x.clamp(-2, 2), x, clip, ternary()).backward(torch.tensor([10.0, 100.0, 1.0, 1.0]))
    >>> clip.grad
    tensor(-8.)
    """
    lowest = levels.levels[0] / levels.levels[-1]
    at, x = clip.detach(), x.detach()
    slope = (x >= at).to(y.dtype) + lowest * (x <= lowest * at).to(y.dtype)
    return y + slope * (clip - at)
