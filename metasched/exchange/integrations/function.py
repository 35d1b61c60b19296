"""A schedule as a plain function of the global step, for optax or torch's LambdaLR."""

from __future__ import annotations

from collections.abc import Callable

from metasched.core.errors import unknown_name
from metasched.exchange.player import SchedulePlayer


def step_function(player: SchedulePlayer, control: str, layer: str | None = None) -> Callable[[int], float]:
    """A function ``step -> value`` of one control, for one layer or as the mean over the layers.

    The function is pure: it does not change the position of the player. After the last step it returns the last value.

    Raises:
        MetaschedError: the schedule has no such control or layer; from the function: a negative step.

    >>> import torch
    >>> from metasched import Layer, hand_coded
    >>> layers = [Layer(f"fc{i}", float(i), "linear", "weight", 8, 64, 1.0) for i in (0, 1)]
    >>> fraction = step_function(SchedulePlayer(hand_coded("inq")["inq_linear"], 5, layers), "freeze_fraction", "fc0")
    >>> [fraction(step) for step in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    first = player.at(0)
    if layer is not None and layer not in first:
        raise unknown_name("layer", layer, first)
    names = [layer] if layer is not None else list(first)
    if control not in first[names[0]]:
        raise unknown_name("control", control, first[names[0]])

    def value(step: int) -> float:
        values = player.at(step)
        return sum(values[name][control] for name in names) / len(names)

    return value
