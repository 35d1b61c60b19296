r"""A ternary network in Lightning's Trainer, under a learned schedule; a run that was stopped goes on with it.

    python examples/lightning_trainer.py --folder run --stop 15
    python examples/lightning_trainer.py --folder run --resume

Method, levels and noise are those of the schedule file; the network is a small CNN on scikit-learn's digits. It prints
the first control of each layer at every tenth step, and at the end the accuracy of the hardened network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metasched import MethodConfig, QuantizedModule, SchedulePlayer, build_method, quantize, read_schedule
from metasched.exchange.integrations import LayerValues
from metasched.exchange.integrations.driven import DrivenModule
from metasched.exchange.integrations.lightning import callback
from metasched.tasks.config import TaskConfig
from metasched.tasks.digits import digits_task

STOPPED = "stopped.ckpt"


class Done(NamedTuple):
    """The values of each step, and the accuracy of the hardened network."""

    played: list[tuple[int, LayerValues]]
    accuracy: float


class Classifier(lightning.LightningModule):
    """An ordinary module; the schedule is the callback's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss of a batch."""
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.model.parameters(), lr=0.02)


class StopAt(lightning.Callback):
    """Ends training after a step, which leaves a checkpoint."""

    def __init__(self, step: int | None, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Called after each batch, once the schedule's callback has settled the weights."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def main(argv: Sequence[str] | None = None) -> Done:
    """Trains, or goes on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schedule", default="digits_ana", metavar="NAME_OR_FILE")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--folder", required=True, type=Path, help="of the checkpoint")
    parser.add_argument("--stop", type=int, metavar="STEP", help="stop after this step")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder")
    arguments = parser.parse_args(argv)

    file = read_schedule(arguments.schedule)
    method = build_method(MethodConfig(name=file.method.name, **file.method.parameters))  # pyright: ignore
    task = digits_task(TaskConfig(model="convnet", width=8, depth=9))
    torch.manual_seed(0)
    network = quantize(task.build(), method, task.train.x[:2])
    first = SchedulePlayer(file, arguments.steps, network.layers).at(0)
    model = DrivenModule(QuantizedModule(network, first), first)
    played: list[tuple[int, LayerValues]] = []

    def apply(values: LayerValues, step: int) -> None:
        model.apply_controls(values, step)
        played.append((step, values))
        if step % 10 == 0:
            control = file.controls[0].name
            print(f"step {step:3} {control}:", *(f"{layer} {v[control]:.3f}" for layer, v in values.items()))

    stopped = arguments.folder / STOPPED
    trainer = lightning.Trainer(
        max_steps=arguments.steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            callback(file, apply, settle=model.settle, layers=model.layers),
            StopAt(arguments.stop, stopped),
        ],
    )
    loader = DataLoader(TensorDataset(task.train.x[:], task.train.y), batch_size=64)
    trainer.fit(Classifier(model), loader, ckpt_path=stopped if arguments.resume else None)
    model.eval()
    accuracy = float(task.metric(model(task.test.x[:]), task.test.y))
    print(f"accuracy of the hardened network: {accuracy:.4f}")
    return Done(played, accuracy)


if __name__ == "__main__":
    main()
