"""Scheduled rates: STE whose layers have learning rates and weight decays of their own.

    w <- w + r (u - w) - d w        u: the optimizer's proposal, r: ``lr_scale``, d: ``weight_decay``

For optimizers whose step is proportional to the learning rate (all of the package), r is a factor on the learning rate
of the layer's weight, as in a parameter group of its own. d is the share by which the weight shrinks in a step,
whatever the learning rate (decoupled weight decay: Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101, where d is the
learning rate times their lambda). Learned scales, biases and batch normalization keep the optimizer's rate. With r = 1
and d = 0 throughout this is ``ste``, bit for bit. Hypergradients in both are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values
from metasched.methods.modifier import Modifier
from metasched.methods.parameters import RatesConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer

LR_SCALE = Control(
    "lr_scale", 1 / 8, 8.0, "the optimizer's learning rate", "free", end=None, scale="log", none_value=1.0
)
WEIGHT_DECAY = Control(
    "weight_decay", 0.0, 0.1, "share of the weight that one step takes off", "free", end=None, none_value=0.0
)


@dataclass(frozen=True)
class Rates(Modifier):
    """Scheduled learning rates and weight decays; see the module's docstring."""

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        return (LR_SCALE, WEIGHT_DECAY)

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        # lerp is exact at 1
        return torch.lerp(w, proposed, controls["lr_scale"].to(w.dtype)) - controls["weight_decay"] * w, state


def build(config: RatesConfig) -> Rates:
    """The method of a configuration."""
    return Rates(layer_quantizer(config))
