"""PARQ: a piecewise-affine map of the weights that steepens from the identity to the hard quantizer.

With neighbouring levels l <= z <= u, their centre c = (l + u) / 2, and the inverse slope rho in [0, 1] (the control
``inverse_slope``),

    prox_rho(z) = clip(c + (z - c) / rho, l, u),      w_seen = s prox_rho(w / s)

Beyond the outermost levels it is the outermost level. At rho = 1 it is clip(z), at rho = 0 the hard quantizer.

    d w_seen / d rho = -s (z - c) / rho^2 inside of the slopes,     d w_seen / d w := Q'(w / s), that of STE

At rho = 0 the method is STE, bit for bit; at rho = 1, for evenly spaced levels, the derivative is the true one.
Activations are those of STE.

Source: PARQ, Jin et al., ICML 2025, arXiv 2503.15748; torchao, ``prototype/parq``. We differ:

- There the gradient at w_seen moves w unchanged. Here it is 0 beyond the outermost levels, as in STE.
- Each layer has its own inverse slope; theirs is one number.
- A value halfway between two levels goes to the upper one at rho = 0, as everywhere here; theirs to the lower one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import PARQConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.constants import row
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.straight import straight_through

INVERSE_SLOPE = Control(
    "inverse_slope",
    0.0,
    1.0,
    "inverse slope of the map between two levels",
    "nonincreasing",
    end=0.0,
    gradient="surrogate",
    none_value=0.0,
)
_HALF_QUANTUM = 0.5


@dataclass(frozen=True)
class PARQ(Method):
    """Piecewise-affine map of the weights; see the module's docstring."""

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        return (INVERSE_SLOPE,)

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        z = w / state["scale"]
        through = straight_through(z, self.quantizer.levels, _HALF_QUANTUM)
        # the difference is exactly 0: it has the derivative in z alone
        return (prox(z, self.quantizer.levels, controls["inverse_slope"]) + (through - through.detach())) * state[
            "scale"
        ]

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden_activation(x, state, _HALF_QUANTUM)


def prox(z: torch.Tensor, levels: LevelSet, inverse_slope: torch.Tensor) -> torch.Tensor:
    """The map prox_rho, with its derivative in rho and none in z.

    Args:
        z: [...], any floating dtype, in units of the scale.
        levels: the level set.
        inverse_slope: rho, 0-d, in [0, 1]; below the machine epsilon it is 0.

    Returns:
        shape and dtype of z.

    >>> from metasched.quantizers.levels import ternary
    >>> z = torch.tensor([-1.5, -0.375, 0.25, 0.75])
    >>> [prox(z, ternary(), torch.tensor(rho)).tolist() for rho in (1.0, 0.5, 0.0)]
    [[-1.0, -0.375, 0.25, 0.75], [-1.0, -0.25, 0.0, 1.0], [-1.0, 0.0, 0.0, 1.0]]
    """
    z = z.detach()
    q = row(levels.levels, z)
    above = torch.bucketize(z, q)  # of the first level that is not below z
    lower, upper = q[(above - 1).clamp_min(0)], q[above.clamp_max(len(q) - 1)]
    centre = (lower + upper) / 2
    cold = inverse_slope < torch.finfo(z.dtype).eps
    steep = centre + (z - centre) / torch.where(cold, 1.0, inverse_slope)
    return torch.where(cold, hard(z, levels), torch.maximum(torch.minimum(steep, upper), lower))


def build(config: PARQConfig) -> PARQ:
    """The method of a configuration."""
    return PARQ(layer_quantizer(config))
