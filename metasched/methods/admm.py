"""ADMM: float weights that a quadratic penalty pulls towards the nearest sparse or quantized ones.

Minimized is the loss f over weights that lie in a set C, by the augmented Lagrangian of f(W) with Z in C and W = Z:

    the optimizer, each step      f(W) + (1 - b) rho / 2 |W - Z + Y / rho|^2
    each k-th step                Z <- P(W + Y / rho),    Y <- Y + rho (W - Z)

``method.constraint`` says what C is, and so the projection P(V):

    prune       V without its round(n S s) smallest |V_i| of n weights (at ties the first ones)
    quantize    Q(V), the nearest levels
    both        the levels of the others, and zero for the smallest ones

with the target S (``method.sparsity``). For levels that are symmetric around zero, and one scale, this is the nearest
point of C, also for ``both``. ``rho``, ``sparsity`` s and ``weight_blend`` b are controls, and k is
``method.projection_every``. With each new Z the scale is fitted anew, to the weights that Z keeps.

    w_seen_i = (1 - b) w_i + b (1 - m_i) B(w)_i       m: the smallest weights; B: the base, ``ste`` if there is none

b = 0 is the training of the paper; b = 1 is what comes after its hard projection: retraining under the mask and on the
levels, without penalty, Z and Y. A pruned weight then stands still. With b = 1 throughout nothing of ADMM is left,
which is no schedule: ``ste`` or one-shot pruning.

Derivatives are true ones but for the quantizer's straight-through one and the mask, which is relaxed as in ``pruning``:
Z and Y carry theirs from step to step, and a projection has that of the weights that it keeps.

Source: Boyd et al.: Distributed Optimization and Statistical Learning via ADMM. 2011, section 3; Ye et al.: A Unified
Framework of DNN Weight Pruning and Weight Clustering/Quantization Using ADMM. AAAI 2019, arXiv 1811.01907;
kaiqzhan/admm-pruning. We differ: Y is not divided by rho, so that a rho that changes leaves it as it is (Boyd, 3.4.1);
``both`` is one constraint, where Ye et al. prune first and then quantize; scales are those of ``method.scale``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values
from metasched.methods.blend import WEIGHT_BLEND
from metasched.methods.masks import counting, exact_mask, relaxed_mask
from metasched.methods.modifier import Modifier
from metasched.methods.parameters import ADMMConfig
from metasched.methods.pruning import SPARSITY, nothing_left
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.hard import hard
from metasched.quantizers.scales import scale_of

LOWEST, HIGHEST = 1e-8, 10.0
PUBLISHED = 1e-4
RHO = Control(
    "rho", LOWEST, HIGHEST, "weight of the penalty", "nondecreasing", end=None, scale="log", none_value=PUBLISHED
)

Constraint = Literal["prune", "quantize", "both"]


@dataclass(frozen=True)
class ADMM(Modifier):
    """Training by the alternating direction method of multipliers; see the module's docstring.

    Attributes:
        quantizer: level sets and scales; where weights are pruned, the levels have a 0.
        constraint: what the deployed weights are.
        target: S in (0, 1), the share of zeros at the end.
        every: k >= 1, the number of steps from one projection to the next.
        relaxation: omega >= 0, the width of relaxed masks as a share of the weights; 0: exact masks.
    """

    quantizer: LayerQuantizer
    constraint: Constraint = "both"
    target: float = 0.9
    every: int = 10
    relaxation: float = 0.0

    @property
    def _prunes(self) -> bool:
        return self.constraint != "quantize"

    @property
    def controls(self) -> tuple[Control, ...]:
        return (RHO, SPARSITY, WEIGHT_BLEND) if self._prunes else (RHO, WEIGHT_BLEND)

    def refusal(self, shape: Sequence[int]) -> str:
        """Of a layer that would have no weight left."""
        return nothing_left(shape, self.target) if self._prunes else ""

    def own_state(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        # Z_0 is computed in the first step: here it would be a function of the weights whose gradient that step takes
        names = ("dual", "projection", "pruned") if self._prunes else ("dual", "projection")
        none = {name: torch.zeros_like(w) for name in names}
        return none | {"since": torch.full((), -1.0, dtype=counting(w.dtype), device=w.device)}

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """Projects in each k-th step: ``projection`` is Z, ``dual`` is Y, ``pruned`` is m, all with the shape of w.

        ``since`` counts the steps since then, and is -1 before training, whose first step projects with Y = 0 and the
        initial scale. While weights are seen on their levels alone (b = 1) Z and Y stay.
        """
        state = dict(state)
        if self._prunes:
            state["pruned"] = self._smallest(w, controls)
        first = state["since"] < 0
        due = first | (state["since"] == self.every)
        state["since"] = torch.where(due, 1.0, state["since"] + 1)
        due = due & (controls["weight_blend"].detach() < 1)
        if _is_false(due):
            return state
        rho = controls["rho"].to(w.dtype)
        target = w + state["dual"] / rho
        scale = torch.where(first, state["scale"], self._fitted(target, controls))
        found = self._projected(target, scale, controls)
        state["projection"] = torch.where(due, found, state["projection"])
        state["dual"] = torch.where(due & ~first, rho * (target - found), state["dual"])
        state["scale"] = torch.where(due, scale, state["scale"])
        return state

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor:
        rho, live = controls["rho"].to(w.dtype), 1 - controls["weight_blend"].to(w.dtype)
        return live * rho / 2 * (w - state["projection"] + state["dual"] / rho).square().sum()

    def seen_weight(
        self, seen: torch.Tensor, w: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        kept = seen * (1 - state["pruned"]) if self._prunes else seen
        return torch.lerp(w, kept, controls["weight_blend"].to(w.dtype))  # lerp is exact at 0 and at 1

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        if not self._prunes:
            return proposed, state
        return torch.lerp(proposed, w, state["pruned"] * controls["weight_blend"].to(w.dtype)), state

    def hardened(self, hardened: torch.Tensor, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return hardened * (state["pruned"] < 0.5) if self._prunes else hardened

    def relaxed(self, width: float) -> ADMM:
        return replace(self, relaxation=width) if self._prunes else self

    def _smallest(self, v: torch.Tensor, controls: Values) -> torch.Tensor:
        """1 for the S s n smallest |v_i|, else 0, [C_out, ...]; relaxed, it has a derivative in s."""
        share, smallest_first = controls["sparsity"], -v.detach().abs()
        if self.relaxation > 0:
            return relaxed_mask(smallest_first, share, self.relaxation, self.target)
        return exact_mask(smallest_first, share.detach() * self.target)

    def _fitted(self, v: torch.Tensor, controls: Values) -> torch.Tensor:
        """The scale [C_out or 1, 1, ...] for those of the values v [C_out, ...] that are kept."""
        kept = v * (1 - self._smallest(v, controls)) if self._prunes else v
        return scale_of(kept, self.quantizer.levels, self.quantizer.scale, self.quantizer.granularity)

    def _projected(self, v: torch.Tensor, scale: torch.Tensor, controls: Values) -> torch.Tensor:
        """P(v), [C_out, ...], on levels of the scale [C_out or 1, 1, ...]."""
        found = v if self.constraint == "prune" else hard(v / scale, self.quantizer.levels) * scale
        return found * (1 - self._smallest(v, controls)) if self._prunes else found


def residual(w: torch.Tensor, state: State) -> torch.Tensor:
    """|W - Z| / |W| of a layer, 0-d: how far the weight w [C_out, ...] is from what it is pulled to."""
    return (w - state["projection"]).norm() / w.norm()


def build(config: ADMMConfig) -> ADMM:
    """The method of a configuration.

    Raises:
        MetaschedError: weights are pruned, and their levels have no 0.
    """
    quantizer = layer_quantizer(config)
    if config.constraint != "quantize" and 0.0 not in quantizer.levels.levels:
        problem = f"is {config.levels}, which has no 0 for the weights that are pruned"
        fix = "take levels with a 0, such as ternary or int4, or set method.constraint to quantize"
        raise MetaschedError("method.levels", problem, fix)
    return ADMM(quantizer, config.constraint, config.sparsity, config.projection_every)


def _is_false(condition: torch.Tensor) -> bool:
    try:
        return not bool(condition)
    except RuntimeError:  # under torch.vmap a tensor has no value to read
        return False
