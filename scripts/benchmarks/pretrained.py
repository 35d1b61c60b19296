r"""A pretrained float ResNet-20, prepared with its weights kept: accuracy at the start and after a few steps at 4 bits.

    python scripts/benchmarks/pretrained.py --json experiments/results/prepared_pretrained.json

The float network is trained on the digits of scikit-learn (1,400 images; accuracy on the other 397). For each level
set it is prepared without a schedule, with learned scales (LSQ): the accuracy of the hard network before any step, and
after 200 steps. Batch normalization is estimated anew for the hard network both times. Several seeds, in float32.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import metasched as ms
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.models.resnet import ResNet20

TRAIN, BATCH, WIDTH = 1400, 64, 8
LEVELS = {"8 bits": ("int8", "uint8"), "4 bits": ("int4", "uint4"), "ternary": ("ternary", "uint2")}


class Digits:
    """The images, [N, 1, 8, 8] in [-1, 1], and their classes."""

    def __init__(self) -> None:
        images, classes = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(images / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(classes)

    def train(self, model: nn.Module, steps: int, rate: float, player: Any = None) -> None:
        """AdamW under a cosine."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            i = torch.randint(TRAIN, (BATCH,))
            loss = F.cross_entropy(model(self.x[i]), self.y[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
            if player is not None:
                player.step()

    def accuracy(self, model: nn.Module) -> float:
        """On the images that training does not see."""
        with torch.no_grad():
            return float((model.eval()(self.x[TRAIN:]).argmax(1) == self.y[TRAIN:]).float().mean())

    def hard_accuracy(self, module: nn.Module) -> float:
        """Of the converted network."""
        return self.accuracy(ms.convert(module, calibrate=self.x[:TRAIN].split(200)))


def one(seed: int, steps: int) -> dict[str, Any]:
    """Accuracies of one float network and of what is made of it."""
    torch.manual_seed(seed)
    digits, model = Digits(), ResNet20(1, 10, WIDTH)
    digits.train(model, 400, 1e-2)
    found: dict[str, Any] = {"float": digits.accuracy(model)}
    model.train()
    for name, (levels, activations) in LEVELS.items():
        method = ms.MethodConfig(
            name="ste", levels=levels, activation_levels=activations, scale="learned", activation_scale="learned"
        )
        module, player = ms.prepare(model, ms.Recipe(method), digits.x[:200], None, steps)
        start = digits.hard_accuracy(module)
        digits.train(module, steps, 1e-3, player)
        found[name] = {"start": start, "trained": digits.hard_accuracy(module)}
    return found


def main() -> None:
    """Runs all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [one(seed, arguments.steps) for seed in range(arguments.seeds)]
    print("float", round(statistics.mean(run["float"] for run in runs), 4))
    for name in LEVELS:
        means = {key: statistics.mean(run[name][key] / run["float"] for run in runs) for key in ("start", "trained")}
        print(name, {key: f"{100 * mean:.1f} % of float" for key, mean in means.items()}, flush=True)
    if arguments.json:
        result = {"environment": environment(), "steps": arguments.steps, "runs": runs}
        write_atomic(arguments.json, (json_text(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
