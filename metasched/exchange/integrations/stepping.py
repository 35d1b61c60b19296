"""Counts the steps of a prepared module: those that its own optimizer takes, whatever trainer calls it.

A trainer's global step is not this count: Lightning adds up the steps of all optimizers, a batch may be skipped, a
scaler may leave a step out, gradients may be accumulated over batches. So the player follows the optimizer that has the
module's weights, by a hook of torch's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.network.playing import Player


def follow(player: Player, module: nn.Module, optimizers: Optimizer | Iterable[Any]) -> RemovableHandle:
    """Has ``player.step()`` called after each step of the optimizer that trains the module.

    Args:
        player, module: what ``prepare`` gave.
        optimizers: one or several, perhaps in the wrappers of Lightning or accelerate.

    Returns:
        a handle, whose ``remove()`` ends it.

    Raises:
        MetaschedError: no optimizer trains the module, or several do; or the schedule is closed-loop and needs
            the loss, which no optimizer knows.

    >>> import torch, metasched
    >>> model, inq = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), metasched.MethodConfig(name="inq")
    >>> module, player = metasched.prepare(model, inq, torch.zeros(1, 4), "inq_linear", total_steps=3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> handle = follow(player, module, optimizer)
    >>> module(torch.ones(2, 4)).sum().backward()
    >>> optimizer.step()
    >>> player.position
    1
    """
    if player.closed_loop:
        problem = "is closed-loop, and trainers do not hand on the loss of a step"
        raise MetaschedError("schedule", problem, "call player.step(loss) in a loop of your own")
    given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    inner = [_unwrapped(optimizer) for optimizer in given]
    parameters = dict(module.named_parameters())
    own = {id(p) for layer in player.layers if (p := parameters[layer.weight_key]).requires_grad}
    training = [o for o in inner if any(id(p) in own for group in o.param_groups for p in group["params"])]
    if len(training) != 1:
        problem = f"{len(training) or 'none'} of {len(inner)} train the quantized layers"
        raise MetaschedError("optimizers", problem, "let one optimizer have the weights of all quantized layers")

    def step(optimizer: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        player.step()

    return training[0].register_step_post_hook(step)


def warn_of_rest(player: Player) -> None:
    """Warns where training has ended more than a tenth of the schedule before its end."""
    left = player.total_steps - player.position
    if left > 0.1 * player.total_steps:
        what = f"training ended {left} steps before the schedule of {player.total_steps}"
        warnings.warn(
            f"total_steps: {what}: give prepare the steps that the optimizer takes", MetaschedWarning, stacklevel=3
        )


def _unwrapped(optimizer: Any) -> Optimizer:
    while not isinstance(optimizer, Optimizer) or hasattr(optimizer, "optimizer"):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            raise MetaschedError("optimizers", f"has a {type(optimizer).__name__}", "give optimizers of torch")
        optimizer = inner
    return optimizer
