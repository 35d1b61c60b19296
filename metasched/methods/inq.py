"""INQ: incremental network quantization. A growing share of each layer's weights is frozen on the levels.

    w_seen_i = (1 - m_i) w_i + m_i Q(w_i),      w_i <- w_i + (1 - m_i) (proposed_i - w_i)

m_i = 1 if weight i is frozen, else 0. At ``freeze_fraction`` f, the first round(f n) weights in the layer's order are
frozen. The partition is cumulative: frozen weights stay frozen. Their values are restored after each optimizer step,
because zero gradients do not keep them constant (momentum and weight decay move them).

Orders: ``magnitude`` (largest first, the paper's pruning-inspired rule), ``random``, and ``relaxation`` (random
partition relaxation: at each change of f a new random subset is frozen and the rest is released, arXiv 2001.01091).

**Relaxed**, to learn f by its gradient: with the ranks r_i in (0, 1) of the weights in that order and a width omega,

    m_i = S((f (1 + omega) - r_i) / omega),     S(z) = z^2 (3 - 2 z) on [0, 1]

so that m is all 0 at f = 0, all 1 at f = 1, and tends to the exact partition as omega -> 0.

**Live weights** are in float, as published, or ``hard``: Q(w_i) with STE's derivative in place of w_i. Then f = 0 is
``ste`` bit for bit, the forward pass is hard at any f, and f acts on what training does alone. A hard live weight may
have a learned scale: a frozen one keeps its level, and its value follows the scale (held.py).

Source: Zhou et al., ICLR 2017, arXiv 1702.03044. We differ: weights beyond the top level are clamped to it (the
released code quantizes them to 0), and a frozen weight is never released because its level is smaller (in INQ-pytorch
it can be).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from metasched.core.randomness import Draw
from metasched.methods import held
from metasched.methods.base import Control, State, Values
from metasched.methods.masks import counting, exact_mask, relaxed_mask, unchanged
from metasched.methods.modifier import Modifier
from metasched.methods.parameters import INQConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.hard import hard

FREEZE_FRACTION = Control(
    "freeze_fraction",
    0.0,
    1.0,
    "share of the layer's weights",
    "nondecreasing",
    end=1.0,
    gradient="surrogate",
    none_value=0.0,
)

_HALF_QUANTUM = 0.5

Partition = Literal["magnitude", "random", "relaxation"]
Live = Literal["float", "hard"]


@dataclass(frozen=True)
class INQ(Modifier):
    """Incremental network quantization; see the module's docstring.

    Attributes:
        quantizer: level sets and scales. Quantized activations have a straight-through derivative (as in quantlab's INQ
            networks).
        partition: the order in which weights freeze.
        relaxation: omega >= 0, the width of the relaxed mask as a share of the weights; 0: the exact partition.
        live: ``float``: free weights are seen as they are; ``hard``: on their levels, with STE's derivative.
    """

    freezes: ClassVar = True

    quantizer: LayerQuantizer
    partition: Partition = "magnitude"
    relaxation: float = 0.0
    live: Live = "float"

    @property
    def controls(self) -> tuple[Control, ...]:
        return (FREEZE_FRACTION,)

    def own_state(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        own = {"frozen": torch.zeros_like(w)}
        if self.partition != "magnitude":
            own["key"] = draw.uniform("partition", w)
            own["fraction"] = torch.zeros((), dtype=counting(w.dtype), device=w.device)
        if self.live == "hard":
            own["level"] = hard(w / state["scale"], self.quantizer.levels)
        return own

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """Chooses the frozen weights of this step.

        The mask ``frozen`` of the new state has the shape and dtype of w and values in [0, 1]: 0 or 1 unless relaxed,
        and differentiable in the fraction if relaxed.
        """
        fraction = controls["freeze_fraction"]
        state, frozen = dict(state), state["frozen"].detach()
        if not self.relaxation and self.partition != "relaxation" and unchanged(frozen, fraction.detach()):
            return state
        if self.live == "hard":
            state["level"] = held.levels_now(w, state, self.quantizer)
        if self.partition == "relaxation":
            # drawn in every step, needed or not: under torch.vmap the condition has no truth value
            changed = fraction.detach().to(state["fraction"].dtype) != state["fraction"]
            state["key"] = key = torch.where(changed, draw.uniform("partition", w), state["key"])
            state["fraction"] = fraction.detach()
        else:
            free = w.detach().abs() if self.partition == "magnitude" else state["key"]
            # frozen weights come first, those with the largest mask before the others
            key = torch.where(frozen > 0, frozen + free.amax(), free)
        if self.relaxation > 0:
            state["frozen"] = relaxed_mask(key, fraction, self.relaxation)
        else:
            state["frozen"] = exact_mask(key, fraction.detach())
        return state

    def seen_weight(
        self, seen: torch.Tensor, w: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        """(1 - m) seen + m q s, with the mask m of the state; ``seen`` and w are [C_out, ...]."""
        if self.live == "float":
            level = hard(w / state["scale"], self.quantizer.levels)
        elif self.relaxation > 0:
            level = held.levels_now(w, state, self.quantizer)
        else:  # it counts where a weight is frozen only
            level = state["level"]
        return torch.lerp(seen, level * state["scale"], state["frozen"])  # lerp is exact at 0 and at 1

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        if self.live == "hard":
            return self.seen_weight(self.quantizer.harden(w, state, _HALF_QUANTUM), w, state, controls, draw)
        return self.seen_weight(w, w, state, controls, draw)

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        return torch.lerp(proposed, w, state["frozen"]), state  # lerp is exact at 0 and at 1

    def hardened(self, hardened: torch.Tensor, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return held.deployed(hardened, w, state, self.quantizer, surrogate) if self.live == "hard" else hardened

    def relaxed(self, width: float) -> INQ:
        return replace(self, relaxation=width)


def build(config: INQConfig) -> INQ:
    """The method of a configuration."""
    return INQ(layer_quantizer(config), config.partition, live=config.live)
