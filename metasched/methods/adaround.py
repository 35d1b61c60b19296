"""AdaRound: the float weights stand still, and whether each one is rounded down or up is trained.

With the weight W, its scale s, and the levels q_- and q_+ next to W / s from below and above,

    w_seen   = s (q_- + h(V) (q_+ - q_-))          for integer levels n .. p this is s clip(floor(W / s) + h(V), n, p)
    h(V)     = clip(1.2 sigmoid(V) - 0.1, 0, 1)
    penalty  = lambda sum_i (1 - |2 h(V_i) - 1|^beta)
    deployed = s q_+ where h(V) >= 1/2, else s q_-

V is trained and starts where h(V) is the position of W / s between both levels, so that training starts at the float
network; weights beyond the outermost level are rounded to it. beta (``rounding_beta``) and lambda
(``rounding_penalty``) are the controls: with a large beta the penalty moves only those h that are nearly 0 or 1, with a
small one all of them. Both have true derivatives. W is not trained; in the derivative in W, w_seen counts as W.

Source: Nagel, Amjad, van Baalen, Louizos, Blankevoort: Up or Down? Adaptive Rounding for Post-Training Quantization.
ICML 2020, arXiv 2004.10568, equations 21 to 25. We differ: levels may be unevenly spaced; |2 h - 1|^beta is computed as
((2 h - 1)^2 + 1e-12)^(beta / 2), because torch gives NaN for the second derivative of |x|^beta at 0 below beta = 2, and
0 in place of 2 at beta = 2. The paper calibrates one layer after the other, as ``metasched.calibrate`` does; as the
method of a whole network this rounds all layers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import AdaRoundConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.constants import row
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.straight import straight_through

SHARPEST, SOFTEST = 20.0, 2.0  # of the published schedules
PENALTY = 0.01  # that of AIMET, BRECQ and MQBench
STRETCH, SHIFT = 1.2, 0.1  # zeta - gamma and -gamma, with zeta = 1.1 and gamma = -0.1
ROUNDING = "rounding"  # the name of V
_TINY = 1e-12
_HALF_QUANTUM = 0.5
_DOWN_OR_UP = LevelSet((0.0, 1.0))

CONTROLS = (
    Control("rounding_beta", SOFTEST, SHARPEST, "exponent beta", "nonincreasing", end=None, none_value=SOFTEST),
    Control("rounding_penalty", 0.0, 1.0, "factor lambda", "free", end=None, none_value=PENALTY),
)


def rectified(v: torch.Tensor) -> torch.Tensor:
    """The rectified sigmoid h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), of V [...].

    >>> rectified(torch.tensor([-9.0, 0.0, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (STRETCH * torch.sigmoid(v) - SHIFT).clamp(0, 1)


def inverse(h: torch.Tensor) -> torch.Tensor:
    """The V at which h(V) is h, [...] in [0, 1]."""
    return torch.logit((h + SHIFT) / STRETCH)


def regularizer(h: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Sum of 1 - |2 h - 1|^beta over h [...] in [0, 1], for beta 0-d; 0-d. It has derivatives of any order.

    >>> h = torch.tensor([0.0, 0.5, 0.75, 1.0], dtype=torch.float64)
    >>> round(float(regularizer(h, torch.tensor(2.0))), 9)
    1.75
    """
    return (1 - ((2 * h - 1).square() + _TINY) ** (beta / 2)).sum()


@dataclass(frozen=True)
class AdaRound(Method):
    """Adaptive rounding; see the module's docstring.

    The state of a layer has the scale, and ``lower`` and ``upper``, q_- and q_+ in the shape of the weight; the
    trainable tensor ``rounding`` is V, in that shape.

    Attributes:
        quantizer: level sets and scales; the scale of the weight is not learned.
    """

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        return CONTROLS

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        w, trainable, state = self.quantizer.initialize(w, draw)
        z, levels = w / state["scale"], row(self.quantizer.levels.levels, w)
        index = torch.bucketize(z.detach(), levels, right=True) - 1  # -1 below the lowest level
        lower, upper = levels[index.clamp_min(0)], levels[(index + 1).clamp_max(len(levels) - 1)]
        gap = upper - lower
        position = torch.where(gap > 0, (z - lower) / gap.clamp_min(torch.finfo(w.dtype).tiny), 1.0)
        return w, {**trainable, ROUNDING: inverse(position)}, state | {"lower": lower, "upper": upper}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return _between(rectified(state[ROUNDING]), state) + (w - w.detach())

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden_activation(x, state, _HALF_QUANTUM)

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor:
        """Lambda sum_i (1 - |2 h_i - 1|^beta), 0-d, for the weight w [C_out, ...]."""
        return controls["rounding_penalty"] * regularizer(rectified(state[ROUNDING]), controls["rounding_beta"])

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        return w.clone(), state  # a tensor of its own: later steps differentiate in it, not in this step's

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The rounded weight, of the shape of w [C_out, ...].

        Its derivative in V is that of h(V) under uniform noise of half-width ``surrogate`` around 1/2, and the same
        noise counts in w.
        """
        up = straight_through(rectified(state[ROUNDING]), _DOWN_OR_UP, surrogate)
        return _between(up, state) + (w - w.detach())


def _between(h: torch.Tensor, state: State) -> torch.Tensor:
    """The weight at h [C_out, ...]; at 0 and 1 a level times the scale, exactly."""
    return (state["lower"] + h * (state["upper"] - state["lower"])) * state["scale"]


def build(config: AdaRoundConfig) -> AdaRound:
    """The method of a configuration."""
    return AdaRound(layer_quantizer(config))
