"""What a player needs for a closed-loop schedule: its controller, the loss of a step, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from metasched.core.errors import MetaschedError
from metasched.methods.base import Control
from metasched.network.flat import ControlRow, Tensors

LAST = "last/"  # before the name of a control, whose values in the step before are measured too


class Controlling(Protocol):
    """How the controls of a run follow what it measures of itself; see training/feedback.py."""

    def row(self, row: ControlRow, measured: Tensors) -> Tensors:
        """The controls of a step, {control: [L]}, from open-loop values and gains [L] and what is measured so far."""
        ...

    def after(
        self, measured: Tensors, row: ControlRow, loss: torch.Tensor, before: Tensors, params: Tensors, state: Tensors
    ) -> Tensors:
        """What is measured after a step, {name: 0-d or [L]}, from its controls [L], its loss (0-d) and weights."""
        ...


def loss_of(loss: torch.Tensor | float | None) -> torch.Tensor:
    """The loss of a step, 0-d, from what ``player.step`` was given.

    Raises:
        MetaschedError: nothing was, or several elements.
    """
    if loss is None:
        problem = "is not given to player.step(), and the schedule is closed-loop"
        raise MetaschedError("loss", problem, "call player.step(loss) with the loss of the step")
    found = loss if isinstance(loss, torch.Tensor) else torch.tensor(float(loss), dtype=torch.float64)
    if found.numel() != 1:
        problem = f"has {found.numel()} elements"
        raise MetaschedError("loss", problem, "give player.step the number that backward was called on")
    return found.detach().reshape(())


def measured_of(state: Any, step: int, controls: Sequence[Control], layers: int) -> dict[str, Any]:
    """What a player's state says was measured before a step: numbers, and lists of one for each layer.

    Raises:
        MetaschedError: it is not what is measured of so many layers under these controls.
    """
    if state == {} and step == 0:
        return {}
    of_layers = ["distance", "flips", *(LAST + control.name for control in controls)]
    wanted = {"loss_fast": 0, "loss_slow": 0} | dict.fromkeys(of_layers, layers)
    named = isinstance(state, dict) and set(state) == set(wanted)
    if not named or not all(_are(state[name], count) for name, count in wanted.items()):
        problem = "is not what a closed-loop schedule measures of these layers"
        raise MetaschedError("state_dict: measured", problem, "pass the result of state_dict()")
    return state


def _are(value: object, count: int) -> bool:
    """Whether a value is a list of so many floats, or for 0 one float."""
    several = value if isinstance(value, list) and count else [value]
    return len(several) == (count or 1) and all(type(number) is float for number in several)
