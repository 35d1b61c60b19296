"""What a training function gets: a quantized module that is called like the model, and a player of its schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metasched.exchange.integrations.driven import DrivenModule
from metasched.exchange.player import SchedulePlayer
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.module import QuantizedModule
from metasched.network.quantize import QuantizedNetwork, quantize
from metasched.schedules.base import Schedule


class Player:
    """Moves a module along its schedule: ``step()`` after each ``optimizer.step()``.

    Attributes:
        total_steps: length of the run in steps; after it the values do not change.
    """

    def __init__(self, module: DrivenModule, values: SchedulePlayer) -> None:
        self._module, self._values = module, values
        self.layers, self.total_steps = module.layers, values.total_steps
        self._set(0)

    @property
    def position(self) -> int:
        """Number of steps taken."""
        return self._position

    def step(self) -> None:
        """Ends a step: applies the method's update, and sets the controls of the next one."""
        self._module.settle()
        self._set(self._position + 1)

    def penalty(self) -> torch.Tensor:
        """The method's penalty at the last forward pass, 0-d; 0 if it has none. Add it to the loss."""
        return self._module.module.penalty()

    def value(self, control: str, layer: str) -> float:
        """Value of one control of one layer at this step."""
        return self._values.value(control, layer)

    def state_dict(self) -> dict[str, int]:
        """``{"step": n}``: n steps taken."""
        return self._values.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position of a ``state_dict``."""
        self._values.load_state_dict(state)
        self._set(self._values.state_dict()["step"])

    def _set(self, position: int) -> None:
        self._position = position
        self._values.load_state_dict({"step": position})
        self._module.apply_controls(self._values.at(position), position)


def network_of(model: nn.Module, recipe: Any, method: MethodConfig, example: Any) -> QuantizedNetwork:
    """The network that a recipe makes of a model, with this method."""
    return quantize(model, build_method(method), example, first=recipe.first, last=recipe.last)


def prepared(
    model: nn.Module,
    recipe: Any,
    method: MethodConfig,
    example: Any,
    schedule: Schedule,
    total_steps: int,
    seed: int,
) -> tuple[DrivenModule, Player]:
    """A module that is called like the model, and what plays a schedule on it.

    Args:
        model: float; it is copied.
        recipe: which of its layers are quantized.
        method: what quantizes them.
        example: a batch, as for ``quantize``.
        schedule: of the method.
        total_steps: length of the run.
        seed: of the method's random numbers.
    """
    network = network_of(model, recipe, method, example)
    values = SchedulePlayer(schedule, total_steps, network.layers)
    first = values.at(0)
    module = DrivenModule(QuantizedModule(network, first, seed=seed, example=example), first)
    return module, Player(module, values)
