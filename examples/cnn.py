"""A task of one's own: a CNN with depthwise convolutions and Hardswish on scikit-learn's digits.

python examples/cnn.py                                        # from Python
cd examples && metasched train cnn.yaml --import cnn          # from YAML
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


def block(inputs, outputs, groups=1):
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.Hardswish()]


def network(width):
    mixed = [nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.Hardswish()]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10)]
    return nn.Sequential(*block(1, width), *block(width, width, groups=width), *mixed, *head)


def shifted(batch, generator):
    x, y = batch
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return x.roll((down, right), (2, 3)), y


def smoothed(outputs, targets):
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean()


def make_task(width=8, train=900):
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))
    train, validation, test = (Subset(data, range(*part)) for part in [(0, train), (900, 1200), (1200, 1797)])
    return metasched.DataTask(
        name="digits_cnn", model=lambda: network(width), train=train, validation=validation, test=test,
        loss=smoothed, score=accuracy, augment=shifted, batch_size=32, worst_score=0.0,
    )  # fmt: skip


if __name__ == "__main__":  # with a folder as argument: goes on where it was stopped
    metasched.learn(make_task, RECIPE, steps=60, optimizer=OPTIMIZER, folder=(sys.argv[1:] or [None])[0], **LEARNING)
