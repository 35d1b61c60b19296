"""ANA: additive noise annealing.

Each weight tensor and the activation after it are quantized by a stair function under noise of mean mu and scale s. As
both go to 0, the network converges to the hard one. Each layer has its own schedule.

    w_seen = eps * E_{mu,s}(w / eps)        s from ``weight_noise``
    x_seen = a * E_{mu,s}(x / a)            s from ``activation_noise``

(or the mode, or a sample, of the same distribution).

Source: Spallanzani et al., CVPR 2022, pp. 470-479, arXiv 2203.11323; 2019 form: arXiv 1905.10452.
We differ: a control of the noise is the half-width of its central 95 % (of all of it, if it is bounded) in quanta, so
that one schedule serves all families; the authors' initial values are 0.5 in this unit for each of the four families.
They have one noise for the weight and the activation of a layer: here, the same curve for both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import ANAConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.quantizers.stair import Forward, stair

WEIGHT_NOISE = Control(
    "weight_noise",
    0.0,
    1.0,
    "quantum, half-width of the noise",
    "nonincreasing",
    end=0.0,
    learning_floor=0.35,  # hypergradients through noise narrower than about a tenth of a quantum explode
)
ACTIVATION_NOISE = replace(WEIGHT_NOISE, name="activation_noise")
NOISE_MEAN = Control("noise_mean", -0.5, 0.5, "quantum", "free", end=0.0, none_value=0.0)


@dataclass(frozen=True)
class ANA(Method):
    """Additive noise annealing; see the module's docstring.

    Attributes:
        quantizer: level sets and scales.
        noise: noise family, a key of NOISE_FAMILIES.
        forward: output of the noisy stair in the forward pass.
        backward: ``noise``: the derivative in the input has the width of the noise; ``fixed``: it has half-width 0.5
            throughout (the 2019 form).
    """

    quantizer: LayerQuantizer
    noise: str = "uniform"
    forward: Forward = "expectation"
    backward: Literal["noise", "fixed"] = "noise"

    @property
    def controls(self) -> tuple[Control, ...]:
        noises = (WEIGHT_NOISE, ACTIVATION_NOISE) if self.quantizer.activation_levels else (WEIGHT_NOISE,)
        return (*noises, NOISE_MEAN)

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        w, trainable, state = self.quantizer.initialize(w, draw)
        # as in quantlib: shifted by the first mean, the weights start around the shifted thresholds
        return w + controls["noise_mean"] * (trainable | state)["scale"], trainable, state

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self._noisy("weight", w / state["scale"], self.quantizer.levels, controls, draw) * state["scale"]

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.scaled(x, state, lambda z, levels: self._noisy("activation", z, levels, controls, draw))

    def _noisy(
        self, purpose: Literal["weight", "activation"], x: torch.Tensor, levels: LevelSet, controls: Values, draw: Draw
    ) -> torch.Tensor:
        unit = NOISE_FAMILIES[self.noise].unit
        return stair(
            x,
            levels,
            mean=controls["noise_mean"],
            scale=controls[f"{purpose}_noise"] * unit,
            family=self.noise,
            forward=self.forward,
            uniform=draw.uniform(purpose, x) if self.forward == "random" else None,
            backward_scale=0.5 * unit if self.backward == "fixed" else None,
        )


def build(config: ANAConfig) -> ANA:
    """The method of a configuration."""
    return ANA(layer_quantizer(config), config.noise, config.forward, config.backward)
