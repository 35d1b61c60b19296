"""The joint method: several methods at once, ``ana+inq`` unless ``method.of`` says otherwise.

    w_seen = M_n(... M_1(B(w), w) ..., w)        B: the base; M_i: the modifiers (modifier.py), in their order

The base is the one part that is no modifier, ``ste`` if there is none. Controls, states and penalties are those of all
parts; each may change the optimizer's proposal, those that freeze weights last. The default, with ANA's noisy stair A
and the mask m of INQ's frozen weights, is

    w_seen_i = (1 - m_i) A(w)_i + m_i Q(w_i)

the live weights are annealed, the frozen ones are equal to their levels. With freeze fraction 0 this is ANA. INQ, whose
live weights are in float, is the case in which A is the identity; for ternary levels, the expectation under uniform
noise of half-width 0.5 is the identity on [-1, 1]. If the forward is the mode and the noise is narrower than half a
quantum, the live weights already are on their levels; freezing then affects only the gradient and the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.config import of_part
from metasched.methods.modifier import Modifier
from metasched.methods.parameters import JointConfig
from metasched.methods.spec import METHODS, find_method
from metasched.methods.tensors import LayerQuantizer


@dataclass(frozen=True)
class Joint(Method):
    """A base and what changes it; see the module's docstring."""

    base: Method
    modifiers: tuple[Modifier, ...]

    @property
    def quantizer(self) -> LayerQuantizer:
        return self.base.quantizer

    @property
    def _parts(self) -> tuple[Method, ...]:
        return (self.base, *self.modifiers)

    @property
    def controls(self) -> tuple[Control, ...]:
        return tuple(control for part in self._parts for control in part.controls)

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        w, trainable, state = self.base.initialize(w, controls, draw)
        for part in self.modifiers:
            state = {**part.own_state(w, state | trainable, controls, draw), **state}
        return w, trainable, state

    def keeping(self) -> Joint:
        return replace(self, base=self.base.keeping(), modifiers=tuple(part.keeping() for part in self.modifiers))

    def refusal(self, shape: Sequence[int]) -> str:
        return next(filter(None, (part.refusal(shape) for part in self._parts)), "")

    @property
    def updates(self) -> bool:
        return any(part.updates for part in self._parts)

    def allocated(self, weights: Sequence[torch.Tensor], values: Sequence[Values]) -> Sequence[Values]:
        for part in self._parts:
            values = part.allocated(weights, values)
        return values

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        for part in self._parts:
            state = part.prepare(w, state, controls, draw)
        return state

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        seen = self.base.weight(w, state, controls, draw)
        for part in self.modifiers:
            seen = part.seen_weight(seen, w, state, controls, draw)
        return seen

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        seen = self.base.activation(x, state, controls, draw)
        for part in self.modifiers:
            seen = part.seen_activation(seen, x, state, controls, draw)
        return seen

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        terms = [term for part in self._parts if (term := part.penalty(w, state, controls)) is not None]
        return torch.stack(terms).sum() if terms else None

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        for part in sorted(self._parts, key=lambda part: part.freezes):
            proposed, state = part.update(w, proposed, state, controls, draw)
        return proposed, state

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        found = self.base.harden(w, state, surrogate)
        for part in self.modifiers:
            found = part.hardened(found, w, state, surrogate)
        return found

    @property
    def hardens_by_levels(self) -> bool:
        return self.base.hardens_by_levels

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return self.base.harden_activation(x, state, surrogate)

    def relaxed(self, width: float) -> Joint:
        return replace(
            self, base=self.base.relaxed(width), modifiers=tuple(part.relaxed(width) for part in self.modifiers)
        )


def build(config: JointConfig) -> Joint:
    """The method of a configuration.

    Raises:
        MetaschedError: two parts that both are no modifiers, or two that read controls of the same name.
    """
    parts = {name: find_method(name).builder(of_part(config, name)) for name in config.parts}
    bases = [name for name, part in parts.items() if not isinstance(part, Modifier)]
    if len(bases) > 1:
        problem = f"has {' and '.join(bases)}, which both say what the forward pass sees"
        raise MetaschedError("method.of", problem, "keep one of them")
    base = parts[bases[0]] if bases else METHODS["ste"].builder(of_part(config, "ste"))
    joint = Joint(base, tuple(part for part in parts.values() if isinstance(part, Modifier)))
    names = [control.name for control in joint.controls]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MetaschedError("method.of", f"has two controls named {twice[0]}", "leave one of the parts out")
    if sum(part.freezes for part in parts.values()) > 1:
        raise MetaschedError("method.of", f"is {config.of}, of which two freeze weights", "leave one of the parts out")
    return joint
