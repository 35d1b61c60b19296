"""Your own loop, from a float model to integers: a small CNN on the digits of scikit-learn (extra ``train``).

    python examples/own_loop.py --steps 200 --folder deployed

prepare makes the model train quantized under a schedule, convert makes it plain modules, deploy puts it into integers.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import metasched as ms


def data() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Training and test part: images [N, 1, 8, 8] in [0, 1], and classes [N]."""
    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(classes)
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def network() -> nn.Module:
    """A float CNN."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def accuracy(model: nn.Module, part: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Share of correct classes in eval mode."""
    model.eval()
    with torch.no_grad():
        found = float((model(part[0]).argmax(1) == part[1]).float().mean())
    model.train()
    return found


def main() -> None:
    """Trains, converts and deploys."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", help="where the integer network is written")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    (x, y), test = data()
    recipe = ms.Recipe(ms.MethodConfig(name="inq", levels="int4", activation_levels="int4", activation_scale=0.25))
    module, player = ms.prepare(network(), recipe, x[:64], "inq_linear", total_steps=arguments.steps)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(arguments.steps):
        i = torch.randint(len(x), (64,))
        loss = F.cross_entropy(module(x[i]), y[i]) + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        player.step()
    plain = ms.convert(module, calibrate=x.split(200))
    print(f"test accuracy of the hard network: {accuracy(plain, test):.3f}")
    plain.eval()
    if arguments.folder:
        account = ms.deploy(plain, [test], arguments.folder)
        print(f"in integers: {account['score']:.3f}, weights {account['compression']:.1f} times smaller")


if __name__ == "__main__":
    main()
