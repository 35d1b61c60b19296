r"""A ternary network in the Trainer of Hugging Face, under a learned schedule; a run that was stopped goes on with it.

    python examples/huggingface_trainer.py --folder run --stop 15
    python examples/huggingface_trainer.py --folder run --resume

Method, levels and noise are those of the schedule file; the network is a small CNN on scikit-learn's digits. It prints
the first control of each layer at every tenth step, and at the end the accuracy of the hardened network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from metasched import MethodConfig, QuantizedModule, SchedulePlayer, build_method, quantize, read_schedule
from metasched.exchange.integrations import LayerValues
from metasched.exchange.integrations.driven import DrivenModule
from metasched.exchange.integrations.huggingface import callback
from metasched.tasks.config import TaskConfig
from metasched.tasks.digits import digits_task


class Done(NamedTuple):
    """The values of each step, and the accuracy of the hardened network."""

    played: list[tuple[int, LayerValues]]
    accuracy: float


class WithLoss(nn.Module):
    """What Trainer calls: a model that gives its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and logits."""
        logits = self.model(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class StopAt(transformers.TrainerCallback):
    """Ends training after a step, which leaves a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after each optimizer step."""
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True


def main(argv: Sequence[str] | None = None) -> Done:
    """Trains, or goes on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schedule", default="digits_ana", metavar="NAME_OR_FILE")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--folder", required=True, help="of the checkpoints")
    parser.add_argument("--stop", type=int, metavar="STEP", help="stop after this step")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
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

    trainer = transformers.Trainer(
        WithLoss(model),
        transformers.TrainingArguments(
            output_dir=arguments.folder,
            max_steps=arguments.steps,
            per_device_train_batch_size=64,
            learning_rate=0.02,
            lr_scheduler_type="cosine",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=[{"x": x, "labels": y} for x, y in zip(*task.train, strict=True)],  # pyright: ignore
        callbacks=[
            callback(file, apply, settle=model.settle, layers=model.layers),
            *([StopAt(arguments.stop)] if arguments.stop else []),
        ],
    )
    trainer.train(resume_from_checkpoint=arguments.resume)
    model.eval()
    accuracy = float(task.metric(model(task.test.x[:]), task.test.y))
    print(f"accuracy of the hardened network: {accuracy:.4f}")
    return Done(played, accuracy)


if __name__ == "__main__":
    main()
