"""A callback for the Trainer of PyTorch Lightning (extra ``lightning``)."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.core.layer import Layer
from metasched.exchange.format import ScheduleFile
from metasched.exchange.integrations import Apply, missing
from metasched.exchange.integrations.stepping import follow, warn_of_rest
from metasched.exchange.player import SchedulePlayer
from metasched.network.playing import Player
from metasched.schedules.base import Schedule

if TYPE_CHECKING:
    from pytorch_lightning import Callback

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")  # two names of one library with incompatible classes


def callback(
    schedule: str | os.PathLike[str] | ScheduleFile | Schedule,
    apply: Apply,
    *,
    settle: Callable[[], object] | None = None,
    layers: Sequence[Layer] | None = None,
    total_steps: int | None = None,
) -> Callback:
    """A callback that plays a schedule: ``Trainer(..., callbacks=[callback("schedule.json", apply)])``.

    Before each batch it calls ``apply(values, step)`` with the values {layer: {control: value}} at
    ``trainer.global_step``, the number of optimizer steps taken, which Lightning saves in its checkpoints. Batches with
    accumulated gradients are one step. With several optimizers, whose steps ``global_step`` adds up, each batch is one
    step.

    Args:
        schedule: path of a schedule file, result of ``read_schedule``, or any schedule.
        apply: sets the values, for instance ``DrivenModule.apply_controls``.
        settle: called after the optimizer's step, for instance ``DrivenModule.settle``.
        layers: layers of the network; default: those of the file.
        total_steps: length of the run in steps; default: ``trainer.estimated_stepping_batches``. Give it if the run is
            resumed with another number of steps.

    Raises:
        MetaschedError: Lightning is not installed; from ``fit()``: see ``SchedulePlayer``, or the run has no end.
    """

    class PlaySchedule(_package().Callback):
        player: SchedulePlayer
        taken: int  # optimizer steps before this batch
        step = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            length = trainer.estimated_stepping_batches if total_steps is None else total_steps
            if length == float("inf"):
                raise MetaschedError(
                    "total_steps", "the trainer has no end", "give total_steps, max_steps or max_epochs"
                )
            self.player = SchedulePlayer(schedule, int(length), layers)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.taken = trainer.global_step
            step = self.taken if len(trainer.optimizers) < 2 else trainer.fit_loop.epoch_loop.total_batch_idx
            self.step = step
            apply(self.player.at(step), step)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if settle is not None and trainer.global_step != self.taken:  # not while gradients are accumulated
                settle()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if pl_module.automatic_optimization or total_steps is not None:
                return
            left = self.player.total_steps - 1 - self.step
            if left > 0.1 * self.player.total_steps:
                what = f"training ended {left} steps before the schedule of {self.player.total_steps}"
                warnings.warn(
                    f"total_steps: {what}; with manual optimization, give total_steps", MetaschedWarning, stacklevel=2
                )

    return PlaySchedule()


def player_callback(player: Player, module: nn.Module) -> Callback:
    """A callback for what ``prepare`` gave: ``Trainer(..., callbacks=[player_callback(player, module)])``.

    A step of the schedule is a step of the optimizer that trains the module, so that several optimizers, batches that
    are skipped, accumulated gradients and manual optimization count as they should; see stepping.py. The position is in
    Lightning's checkpoints.

    Args:
        player, module: what ``prepare`` gave, for as many ``total_steps`` as its optimizer takes.

    Raises:
        MetaschedError: Lightning is not installed; from ``fit()``: no optimizer trains the module, or several do.
    """

    class StepPlayer(_package().Callback):
        handle: RemovableHandle

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            if module not in set(pl_module.modules()):
                raise MetaschedError("module", "is not in the LightningModule", "put what prepare returned into it")

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.handle = follow(player, module, trainer.optimizers)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.handle.remove()
            if not trainer.should_stop:
                warn_of_rest(player)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            if hasattr(self, "handle"):
                self.handle.remove()

        def state_dict(self) -> dict[str, Any]:
            return player.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            player.load_state_dict(state_dict)

    return StepPlayer()


def _package() -> ModuleType:
    """The package that is already imported, or the first one that is installed."""
    for name in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in ("pytorch_lightning", "lightning"):
                raise
    raise missing("pytorch_lightning", "lightning")
