"""A task of one's own: a small transformer that reads scikit-learn's digits row by row, some of them hidden.

python examples/transformer.py                                                # from Python
cd examples && metasched train transformer.yaml --import transformer          # from YAML
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

import metasched

NO_DECAY = [{"match": kind, "weight_decay": 0} for kind in ("norm", "bias")]
OPTIMIZER = {"name": "adamw", "lr": 1e-2, "warmup": 0.1, "weight_decay": 0.01, "groups": NO_DECAY}
RECIPE = metasched.Recipe("joint", of="widths+inq+rates", scale="least_squares", granularity="channel")
BASELINES = ["widths_narrowing", "temperature_hestia", "inq_input_first"]
LEARNING = {  # what is learned and how: that of experiments/digits.yaml, with the learning rate tuned first
    "schedule": {
        "start": "floor", "knots": 13, "directions": 26,
        "learn": ["weight_width", "activation_width", "freeze_fraction", "lr_scale"],
    },
    "meta": {
        "estimator": "guided", "steps": 10, "runs": 4, "lr": 0.2, "sigma": 0.5, "tune_lr": 40, "confirm_runs": 16,
    },
    "compare": {"tune_floors": "as_learned", "baselines": BASELINES},
}  # fmt: skip


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, mask):
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask[:, None, None], -1e4).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class Classifier(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.position = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks, self.head = nn.ModuleList(Block(width) for _ in range(2)), nn.Linear(width, 10)

    def forward(self, rows, *, mask):
        x = self.embed(rows) + self.position
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x.mean(1))


def hidden(batch, generator):
    rows, mask, labels = batch
    return rows, mask & (torch.rand(mask.shape, generator=generator) < 0.9), labels


def loss(model, batch):
    rows, mask, labels = batch
    return F.cross_entropy(model(rows, mask=mask), labels, label_smoothing=0.1)


def make_task(width=16):
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(y)
    data = TensorDataset(x, torch.ones(x.shape[:2], dtype=torch.bool), y)
    train, validation, test = (Subset(data, range(*part)) for part in [(0, 900), (900, 1200), (1200, 1797)])
    return metasched.DataTask(
        name="digits_rows", model=lambda: Classifier(width), train=train, validation=validation, test=test,
        loss=loss, augment=hidden, batch_size=32,
    )  # fmt: skip


if __name__ == "__main__":  # with a folder as argument: goes on where it was stopped
    metasched.learn(make_task, RECIPE, steps=60, optimizer=OPTIMIZER, folder=(sys.argv[1:] or [None])[0], **LEARNING)
