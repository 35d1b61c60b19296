"""Held weights: a frozen weight keeps its level, and its value follows the scale, which may be learned.

With the mask m of frozen weights, the level q_i that weight i had when it froze, and STE's quantizer Q:

    w_seen_i = (1 - m_i) s Q(w_i / s) + m_i s q_i,      d w_seen_i / d s = q_i where m_i = 1

The deployed weight is s q_i where m_i = 1 and s Q(w_i / s) elsewhere. Without the stored level, a scale that is learned
would move a frozen weight to another level.
"""

from __future__ import annotations

import torch

from metasched.methods.base import State
from metasched.methods.tensors import LayerQuantizer
from metasched.quantizers.hard import hard
from metasched.quantizers.straight import straight_through

_HALF_QUANTUM = 0.5


def levels_now(w: torch.Tensor, state: State, quantizer: LayerQuantizer) -> torch.Tensor:
    """The level of each weight [C_out, ...]: that which is stored where it is frozen, else the nearest one.

    ``state`` has ``scale``, ``frozen`` (1 where a weight is frozen) and ``level``; the result has no derivative.
    """
    nearest = hard(w / state["scale"], quantizer.levels)
    return torch.where(state["frozen"].detach() == 1, state["level"], nearest)


def seen(w: torch.Tensor, state: State, quantizer: LayerQuantizer) -> torch.Tensor:
    """The weight [C_out, ...] of the forward pass: hard everywhere, with a derivative in w where it is not frozen."""
    live = quantizer.harden(w, state, _HALF_QUANTUM)
    level = levels_now(w, state, quantizer)
    return torch.lerp(live, level * state["scale"], state["frozen"])  # lerp is exact at 0 and at 1


def deployed(
    hardened: torch.Tensor, w: torch.Tensor, state: State, quantizer: LayerQuantizer, surrogate: float
) -> torch.Tensor:
    """The weight [C_out, ...] on its levels: ``hardened``, of the same shape, where it is not frozen.

    Its derivative in w is that of the stair under uniform noise of half-width ``surrogate`` quanta, also where it is
    frozen: a hypergradient passes through the weight that it was before.
    """
    scale = state["scale"].detach()
    through = straight_through(w / scale, quantizer.levels, surrogate) * scale
    kept = state["level"] * state["scale"] + (through - through.detach())
    return torch.where(state["frozen"] == 1, kept, hardened)
