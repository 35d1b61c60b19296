"""Quant-Noise: in each step a random share of the weights and activations is quantized, the rest is float.

With fresh random masks m and n in {0, 1} in each step, P(m_i = 1) = p (``weight_share``), P(n_j = 1) = a
(``activation_share``):

    w_seen_i = (1 - m_i) w_i + m_i B(w)_i,      x_seen_j = (1 - n_j) clip(x_j) + n_j B(x)_j

B is the base, ``ste`` if there is none; clip bounds x by the outermost levels times the scale of activations, since the
quantizer stands in place of the activation function (as in ``blend``). ``noise_block`` b consecutive weights of an
output channel share a draw. At 1 the method is its base, bit for bit: that is no schedule. Deployed is the base.

The mask is not differentiable in p. The derivative is straight-through, dm_i / dp := 1, so that

    d w_seen_i / d p = B(w)_i - w_i,      d w_seen / d w = (1 - m) + m B'(w)

which is that of the mean (1 - p) w + p B(w), the forward pass of ``blend``.

Source: Fan, Stock et al.: Training with Quantization Noise for Extreme Model Compression. ICLR 2021, arXiv 2004.07320;
facebookresearch/fairseq, ``modules/quantization/scalar``. We differ: there the gradient passes both parts unchanged,
here B' is 0 beyond the outermost levels; their share is a constant until the end of training; and scales are those of
``method.scale``, where they fit them anew every 1,000 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values
from metasched.methods.modifier import Modifier
from metasched.methods.parameters import QuantNoiseConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer


def _share(name: str, of: str) -> Control:
    unit = f"share of the layer's {of} that a step quantizes"
    return Control(name, 0.0, 1.0, unit, "nondecreasing", end=1.0, gradient="surrogate", none_value=1.0)


WEIGHT_SHARE = _share("weight_share", "weights")
ACTIVATION_SHARE = _share("activation_share", "activations")


@dataclass(frozen=True)
class QuantNoise(Modifier):
    """Quantization noise; see the module's docstring.

    Attributes:
        quantizer: level sets and scales.
        block: b >= 1, how many consecutive weights of an output channel share a draw; the last block may be shorter.
    """

    quantizer: LayerQuantizer
    block: int = 1

    @property
    def controls(self) -> tuple[Control, ...]:
        return (WEIGHT_SHARE, ACTIVATION_SHARE) if self.quantizer.activation_levels else (WEIGHT_SHARE,)

    def seen_weight(
        self, seen: torch.Tensor, w: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        uniform = draw.uniform("quant_noise_weight", self._blocks(w))
        if self.block > 1:
            uniform = uniform.repeat_interleave(self.block, 1)[:, : w[0].numel()]
        return torch.lerp(w, seen, _mask(uniform.reshape(w.shape), controls["weight_share"]))  # exact at 0 and at 1

    def seen_activation(
        self, seen: torch.Tensor, x: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        mask = _mask(draw.uniform("quant_noise_activation", x), controls["activation_share"])
        return torch.lerp(self.quantizer.clipped(x, state), seen, mask)

    def _blocks(self, w: torch.Tensor) -> torch.Tensor:
        """A tensor [C_out, number of blocks of a channel], like the weight w [C_out, ...] in dtype and device."""
        return w.detach().reshape(len(w), -1)[:, : math.ceil(w[0].numel() / self.block)]


def _mask(uniform: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """1 where a uniform number of [0, 1) is below the share (0-d), else 0; its derivative in the share is 1."""
    share = share.to(uniform.dtype)
    return (uniform < share).to(uniform.dtype) + (share - share.detach())


def build(config: QuantNoiseConfig) -> QuantNoise:
    """The method of a configuration."""
    return QuantNoise(layer_quantizer(config), config.noise_block)
