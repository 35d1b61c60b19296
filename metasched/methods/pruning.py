"""Gradual magnitude pruning: a growing share of each layer's smallest weights is zero.

With the target S (``method.sparsity``), the control s in [0, 1], and the mask m of the round(n S s) smallest |w_i| of
the layer's n weights, at ties the first ones:

    w_seen_i = (1 - m_i) B(w)_i          B: the base, ``ste`` if there is none

A pruned weight stands still while it is pruned: the mask stops its gradient, and the optimizer's proposal (momentum,
decay) is not taken. The mask is made anew in each step, so that it may come back once others are smaller. Deployed are
the base's levels, and 0 where the last step's mask is 1.

With one target for all layers together (``method.budget``: global) the mask m is that of the round(N S s) smallest of
all N weights, so that each layer keeps what is large beside the others; s is one number for the network then, and
without a derivative.

``sparsity`` is a share of the target, so that one schedule serves all targets. At 1 throughout the network is pruned
from its first step on, which is no schedule. The derivative in the control is that of the relaxed mask (masks.py).

Source: Zhu, Gupta: To prune, or not to prune. 2017, arXiv 1710.01878, section 3. We differ: they make the mask anew
every 100 to 1,000 steps, here it is each one; each layer has its own curve; and weights are quantized, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values
from metasched.methods.masks import count, exact_mask, relaxed_mask
from metasched.methods.modifier import Modifier
from metasched.methods.parameters import PruningConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer

Budget = Literal["layer", "global"]
SPARSITY = Control(
    "sparsity",
    0.0,
    1.0,
    "share of the target sparsity",
    "nondecreasing",
    end=1.0,
    gradient="surrogate",
    none_value=1.0,
)


@dataclass(frozen=True)
class Pruning(Modifier):
    """Gradual magnitude pruning; see the module's docstring.

    Attributes:
        quantizer: level sets and scales; the levels of weights have a 0.
        target: S in (0, 1), the share of zeros at the end.
        budget: ``layer``: S of each layer; ``global``: of all layers together.
        relaxation: omega >= 0, the width of the relaxed mask as a share of the weights; 0: the exact mask.
    """

    quantizer: LayerQuantizer
    target: float = 0.9
    budget: Budget = "layer"
    relaxation: float = 0.0

    @property
    def controls(self) -> tuple[Control, ...]:
        if self.budget == "global":
            return (replace(SPARSITY, granularity="network", gradient="none"),)
        return (SPARSITY,)

    def refusal(self, shape: Sequence[int]) -> str:
        """Of a layer that would have no weight left."""
        return "" if self.budget == "global" else nothing_left(shape, self.target)

    def allocated(self, weights: Sequence[torch.Tensor], values: Sequence[Values]) -> Sequence[Values]:
        """The share of the target that each layer gets, above 1 where its weights are small beside the others'."""
        if self.budget == "layer":
            return values
        smallest_first = torch.cat([-w.detach().abs().flatten() for w in weights])
        pruned = exact_mask(smallest_first, values[0]["sparsity"].detach() * self.target)
        parts = pruned.split([w.numel() for w in weights])
        return [
            {**own, "sparsity": part.to(own["sparsity"].dtype).mean() / self.target}
            for own, part in zip(values, parts, strict=True)
        ]

    def own_state(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        return {"pruned": torch.zeros_like(w)}

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """The mask of the pruned weights: ``pruned``, with the shape and dtype of w, 0 or 1 unless relaxed."""
        share, smallest_first = controls["sparsity"], -w.detach().abs()
        if self.relaxation > 0:
            return {**state, "pruned": relaxed_mask(smallest_first, share, self.relaxation, self.target)}
        return {**state, "pruned": exact_mask(smallest_first, share.detach() * self.target)}

    def seen_weight(
        self, seen: torch.Tensor, w: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        return seen * (1 - state["pruned"])

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        return torch.lerp(proposed, w, state["pruned"]), state  # lerp is exact at 0 and at 1

    def hardened(self, hardened: torch.Tensor, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return hardened * (state["pruned"] < 0.5)

    def relaxed(self, width: float) -> Pruning:
        return self if self.budget == "global" else replace(self, relaxation=width)


def nothing_left(shape: Sequence[int], target: float) -> str:
    """Why a weight of this shape, [C_out, ...], cannot have the share ``target`` of zeros; empty if it can.

    >>> nothing_left((2, 2), 0.9)
    'has 4 weights, of which a sparsity of 0.9 leaves none; lower that, or leave the layer in float by a rule'
    """
    n = math.prod(shape)
    if count(n, target, torch.float32) < n:
        return ""
    fix = "lower that, or leave the layer in float by a rule"
    return f"has {n} weights, of which a sparsity of {target:g} leaves none; {fix}"


def build(config: PruningConfig) -> Pruning:
    """The method of a configuration.

    Raises:
        MetaschedError: the levels of weights have no 0.
    """
    quantizer = layer_quantizer(config)
    if 0.0 not in quantizer.levels.levels:
        problem = f"is {config.levels}, which has no 0 for the weights that are pruned"
        raise MetaschedError("method.levels", problem, "take levels with a 0, such as ternary or int4")
    return Pruning(quantizer, config.sparsity, config.budget)
