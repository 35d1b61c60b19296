"""A callback for the Trainer of Hugging Face transformers (extra ``transformers``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from metasched.core.layer import Layer
from metasched.exchange.format import ScheduleFile
from metasched.exchange.integrations import Apply, missing
from metasched.exchange.player import SchedulePlayer
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
