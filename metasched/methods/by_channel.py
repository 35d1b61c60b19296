"""A method whose output channels have levels of different numbers of bits: one method for the channels of each number.

Each of them works on its own channels as on a weight of a layer: fits, masks and shares are of these channels, and its
random numbers are its own. The weight that is seen, and tensors of the state with one row for each channel, are put
together again in the order of the channels. Other tensors of the state have the number of bits in their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch

from metasched.core.errors import MetaschedError
from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import Coding, Control, Evaluating, Method, State, Values
from metasched.methods.tensors import LayerQuantizer

_FACTOR = "scale_factor"  # on the gradient of learned scales, which differs with the levels
_STREAMS = 10**6  # more than a network has layers: draws of a part are those of another layer


@dataclass(frozen=True)
class ByChannel(Method):
    """See the module's docstring.

    Attributes:
        parts: number of bits -> the method with levels of that many, and with one scale for each channel; increasing.
        channel_bits: number of bits of each output channel.
    """

    parts: tuple[tuple[int, Method], ...]
    channel_bits: tuple[int, ...]

    @property
    def quantizer(self) -> LayerQuantizer:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the most bits: its levels hold those of fewer."""
        return self.parts[-1][1].quantizer

    @cached_property
    def _rows(self) -> dict[int, list[int]]:
        return {b: [i for i, bits in enumerate(self.channel_bits) if bits == b] for b, _ in self.parts}

    @cached_property
    def _back(self) -> list[int]:
        order = [i for rows in self._rows.values() for i in rows]
        return sorted(range(len(order)), key=order.__getitem__)

    @property
    def controls(self) -> tuple[Control, ...]:
        return self.quantizing.controls

    @property
    def quantizing(self) -> Method:
        """The part that activations are quantized by, which all parts do alike."""
        return self.parts[-1][1]

    @property
    def quantizes(self) -> Quantizes:
        return self.quantizing.quantizes

    @property
    def bits(self) -> float:
        return sum(len(self._rows[b]) * part.bits for b, part in self.parts) / len(self.channel_bits)

    @property
    def coding(self) -> Coding:
        return "by channel"

    @property
    def fits_activations(self) -> bool:
        return self.quantizing.fits_activations

    @property
    def updates(self) -> bool:
        return self.quantizing.updates

    @property
    def hardens_by_levels(self) -> bool:
        return self.quantizing.hardens_by_levels

    def keeping(self) -> Self:
        return replace(self, parts=tuple((b, part.keeping()) for b, part in self.parts))

    def relaxed(self, width: float) -> Self:
        return replace(self, parts=tuple((b, part.relaxed(width)) for b, part in self.parts))

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        weights, trainables, states = [], {}, {}
        for b, part, rows, drawn in self._each(draw):
            first, trainable, state = part.initialize(w[rows], controls, drawn)
            weights.append(first)
            if (factor := state.get(_FACTOR)) is not None:
                state = {**state, _FACTOR: factor.expand(len(rows), *[1] * (w.dim() - 1))}
            trainables[b], states[b] = trainable, state
        return self._joined(weights), self._merged(trainables), self._merged(states)

    def fit_activation(self, x: torch.Tensor, state: State) -> tuple[State, State]:
        return self.quantizing.fit_activation(x, self._own(state, self.parts[-1][0]))

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        return self._states(state, lambda part, rows, own, drawn: part.prepare(w[rows], own, controls, drawn), draw)

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self._joined(
            [part.weight(w[rows], self._own(state, b), controls, drawn) for b, part, rows, drawn in self._each(draw)]
        )

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizing.activation(x, self._own(state, self.parts[-1][0]), controls, draw)

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        found = (part.penalty(w[self._rows[b]], self._own(state, b), controls) for b, part in self.parts)
        terms = [term for term in found if term is not None]
        return torch.stack(terms).sum() if terms else None

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        weights = []

        def one(part: Method, rows: list[int], own: State, drawn: Draw) -> State:
            found, then = part.update(w[rows], proposed[rows], own, controls, drawn)
            weights.append(found)
            return then

        state = self._states(state, one, draw)
        return self._joined(weights), state

    def gradient_factors(self, state: State) -> State:
        return self.quantizing.gradient_factors(state)  # whose factor of the scale has a row for each channel

    def update_trainable(self, state: State, proposed: State, controls: Values) -> State:
        found = {
            b: part.update_trainable(self._own(state, b), self._own(proposed, b), controls) for b, part in self.parts
        }
        return self._merged(found, proposed)

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return self._joined([part.harden(w[self._rows[b]], self._own(state, b), surrogate) for b, part in self.parts])

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return self.quantizing.harden_activation(x, self._own(state, self.parts[-1][0]), surrogate)

    def storage(self, w: torch.Tensor, state: State) -> dict[str, tuple[int, int]]:
        """``levels of 2 bits`` and so on: what each part stores; and the number of bits of each channel, in 4 bits."""
        found: dict[str, tuple[int, int]] = {"bits of channels": (len(self.channel_bits), 4)}
        for b, part in self.parts:
            own = part.storage(w[self._rows[b]], self._own(state, b))
            found |= {f"{what} of {b} bits": size for what, size in own.items()}
        return found

    def _each(self, draw: Draw) -> Iterator[tuple[int, Method, list[int], Draw]]:
        for b, part in self.parts:
            yield b, part, self._rows[b], replace(draw, layer=draw.layer + _STREAMS * b)

    def _states(self, state: State, hook: Callable[[Method, list[int], State, Draw], State], draw: Draw) -> State:
        return self._merged(
            {b: hook(part, rows, self._own(state, b), d) for b, part, rows, d in self._each(draw)}, state
        )

    def _joined(self, rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(rows)[self._back]

    def _own(self, state: State, bits: int) -> State:
        """The state of the channels of some bits: rows of tensors of all channels, and tensors of their own."""
        own, end = {}, _suffix(bits)
        others = tuple(_suffix(b) for b, _ in self.parts if b != bits)
        for name, t in state.items():
            if name.endswith(end):
                own[name.removesuffix(end)] = t
            elif not name.endswith(others):
                own[name] = t[self._rows[bits]] if self._by_row(t) else t
        return own

    def _merged(self, states: dict[int, State], known: State | None = None) -> State:
        """The states of all parts as one; tensors in ``known`` under the same name that have no rows are all parts'."""
        merged: State = {}
        last = self.parts[-1][0]
        for name, t in states[last].items():
            if t.dim() > 1 and t.shape[0] == len(self._rows[last]):
                merged[name] = self._joined([states[b][name] for b, _ in self.parts])
            elif known is not None and name in known:
                merged[name] = t
            else:
                merged |= {name + _suffix(b): states[b][name] for b, _ in self.parts}
        return merged

    def _by_row(self, t: torch.Tensor) -> bool:
        return t.dim() > 1 and t.shape[0] == len(self.channel_bits)


def by_channel(channel_bits: tuple[int, ...], part: Callable[[int], Method], channels: int, where: str) -> Method:
    """The method for a layer whose channels have levels of their own numbers of bits.

    Args:
        channel_bits: number of bits of each output channel.
        part: makes the method with levels of so many bits, and with scales by channel.
        channels: C_out of the layer.
        where: what error messages begin with.

    Raises:
        MetaschedError: another number of channels, or a method that works on a layer as a whole.
    """
    if len(channel_bits) != channels:
        problem = f"gives bits to {len(channel_bits)} output channels, and the layer has {channels}"
        raise MetaschedError(where, problem, "give one digit for each")
    parts = tuple((b, part(b)) for b in sorted({*channel_bits}))
    if isinstance(parts[0][1], Evaluating):
        problem = f"gives bits by channel, and {type(parts[0][1]).__name__} evaluates the layer as a whole"
        raise MetaschedError(where, problem, "use another method, or bits by layer")
    return parts[0][1] if len(parts) == 1 else ByChannel(parts, channel_bits)


def _suffix(bits: int) -> str:
    return f"_of_{bits}_bits"
