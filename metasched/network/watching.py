"""Says where a prepared module and its player are used at odds: a schedule that is not played, or runs too fast.

Nothing else would show it: the loss falls, and the network is hardened from the first values of its schedule, or from
values that it has reached too early. Each remark is a warning of one line, once. What says nothing: several passes and
changes of the weights in one step (accumulated gradients, closures of LBFGS, SAM), passes in eval mode, steps whose
optimizer was skipped, steps that only list the values, networks without a schedule, copies and loaded states, which
others have trained.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import nn

from metasched.core.errors import MetaschedWarning
from metasched.quantizers.constants import traced

_CHANGES = 100  # of the weights before the first step: more than a step takes, outside of a closure
_IDLE = 5  # steps without a pass: more than are left out by chance


class Watch:
    """What the quantizers of a module and its player have seen of a run; a copy or a pickle has seen nothing yet.

    Attributes:
        total: length of the run in steps.
        moves: whether the values of the schedule change over the run.
        needed: whether a step does anything.
        position: number of steps taken, in this run and in those that it goes on from.
        ran: whether a pass in training mode has run since the last step.
    """

    def __init__(self, total: int, *, moves: bool, needed: bool, position: int = 0) -> None:
        self.total, self.moves, self.needed, self.position = total, moves, needed, position
        self.ran = False
        self._witness: nn.Module | None = None  # the quantizer whose weight is looked at
        self._version: int | None = None
        self._changes = self._steps = self._idle = 0
        self._trained = False
        self._said = set[str]()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        made = memo[id(self)] = Watch(self.total, moves=self.moves, needed=self.needed, position=self.position)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return vars(Watch(self.total, moves=self.moves, needed=self.needed, position=self.position))

    def pass_of(self, quantizer: nn.Module, w: torch.Tensor) -> None:
        """A pass in training mode reads a weight, [...]."""
        self.ran = True
        if traced() or self._steps or not self.needed or not (w.requires_grad and torch.is_grad_enabled()):
            return
        self._witness = self._witness or quantizer
        if quantizer is not self._witness:
            return
        version, self._version = self._version, w._version
        self._changes += version is not None and version != self._version
        if self._changes >= _CHANGES and self._changes % _CHANGES == 0 and not _in_an_optimizer():
            fix = "call it after each optimizer.step()"
            self._say("never", f"has not been called, and the weights have changed {self._changes} times: {fix}", 2)

    def step(self, *, trained: bool) -> None:
        """The player takes a step; ``trained``: weights have gradients, so this does not only list the values."""
        self._steps += 1
        self._idle += not self.ran
        self._trained |= self.ran or trained
        self.ran = False
        self.position += 1
        if not self.moves:
            return
        if self._trained and self._idle >= _IDLE and 2 * self._idle >= self._steps:
            what = (
                f"was called {self._steps} times, {self._idle} of them without a pass in training mode since the last"
            )
            self._say("idle", f"{what}; the schedule runs ahead: call it once after each optimizer.step()", 5)
        if self.position == 2 * self.total + 1:
            what = (
                f"was called {self.position} times, more than twice total_steps={self.total}, where the schedule ends"
            )
            fix = "give prepare the number of steps of the optimizer, and call it once after each"
            self._say("beyond", f"{what}: {fix}", 5)

    def loaded(self, position: int | None = None) -> None:
        """A state of the player was loaded, at a position, or one of the module's weights."""
        self.position = self.position if position is None else position
        self.ran, self._trained, self._version = False, False, None
        self._changes = self._steps = self._idle = 0

    def converting(self) -> None:
        """The module is converted."""
        fix = "call it after each optimizer.step()"
        if self.needed and not self.position and self._changes:
            self._say("never", f"was not called before convert, though the weights were trained: {fix}", 4)
        elif self.moves and self._steps and 2 * self.position < self.total:
            what = f"was called {self.position} times of total_steps={self.total} before convert"
            self._say("early", f"{what}, which hardens at once what the schedule would harden later", 4)

    def _say(self, about: str, what: str, level: int) -> None:
        if about not in self._said:
            self._said.add(about)
            warnings.warn(f"player.step() {what}", MetaschedWarning, stacklevel=level)


def _in_an_optimizer() -> bool:
    """Whether an optimizer's step runs: LBFGS calls the closure, and with it the network, many times in one."""
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), torch.optim.Optimizer):
            return True
        frame = frame.f_back
    return False
