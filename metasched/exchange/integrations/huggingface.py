"""A callback for the Trainer of Hugging Face transformers (extra ``transformers``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from metasched.core.layer import Layer
from metasched.exchange.format import ScheduleFile
from metasched.exchange.integrations import Apply, missing
from metasched.exchange.integrations.stepping import follow, warn_of_rest
from metasched.exchange.player import SchedulePlayer
from metasched.network.playing import Player
from metasched.schedules.base import Schedule

if TYPE_CHECKING:
    from transformers import TrainerCallback


def callback(
    schedule: str | os.PathLike[str] | ScheduleFile | Schedule,
    apply: Apply,
    *,
    settle: Callable[[], object] | None = None,
    layers: Sequence[Layer] | None = None,
    total_steps: int | None = None,
) -> TrainerCallback:
    """A callback that plays a schedule: ``Trainer(..., callbacks=[callback("schedule.json", apply)])``.

    At the start of each optimizer step it calls ``apply(values, step)`` with the values {layer: {control: value}} at
    ``state.global_step``, which Trainer saves in its checkpoints. Batches with accumulated gradients are one step.

    Args:
        schedule: path of a schedule file, result of ``read_schedule``, or any schedule.
        apply: sets the values, for instance ``DrivenModule.apply_controls``.
        settle: called after ``optimizer.step()``, for instance ``DrivenModule.settle``.
        layers: layers of the network; default: those of the file.
        total_steps: length of the run in steps; default: ``state.max_steps``. Give it if the run is resumed with
            another number of steps.

    Raises:
        MetaschedError: transformers is not installed; from ``train()``: see ``SchedulePlayer``.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise missing("transformers", "transformers") from None

    class PlaySchedule(TrainerCallback):
        player: SchedulePlayer

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.player = SchedulePlayer(schedule, state.max_steps if total_steps is None else total_steps, layers)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            apply(self.player.at(state.global_step), state.global_step)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if settle is not None:
                settle()

    return PlaySchedule()


def player_callback(player: Player, module: nn.Module) -> TrainerCallback:
    """A callback for what ``prepare`` gave: ``Trainer(..., callbacks=[player_callback(player, module)])``.

    A step of the schedule is a step of the optimizer that trains the module: batches of accumulated gradients are one,
    and one that a gradient scaler leaves out is none; see stepping.py. The position is in Trainer's checkpoints.

    Args:
        player, module: what ``prepare`` gave, for as many ``total_steps`` as ``max_steps``.

    Raises:
        MetaschedError: transformers is not installed; from ``train()``: no optimizer trains the module.
    """
    try:
        from transformers.trainer_callback import ExportableState, TrainerCallback
    except ImportError:
        raise missing("transformers", "transformers") from None

    class StepPlayer(TrainerCallback, ExportableState):
        handle: RemovableHandle

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"position": player.state_dict()}}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved = state.stateful_callbacks.get(type(self).__name__)
            if state.global_step > 0 and saved is not None:  # a checkpoint is resumed
                player.load_state_dict(saved["attributes"]["position"])
            self.handle = follow(player, module, [kwargs["optimizer"]])

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.handle.remove()
            if state.global_step >= state.max_steps:
                warn_of_rest(player)

    return StepPlayer()
