"""A plain training loop as the training function of a study: portfolio first, then evolution strategies.

    python examples/study.py --folder study

Stop it and start it again: it goes on. The network is an MLP with ternary weights on scikit-learn's digits; a run has
30 steps. It prints the verdict against no schedule and float, and writes the best schedule and a report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import metasched
from metasched.network.playing import Player

_PIXELS, _LABELS = load_digits(return_X_y=True)
X, Y = torch.tensor(_PIXELS, dtype=torch.float32) / 16, torch.tensor(_LABELS)
PARTS = {"train": slice(0, 900), "validation": slice(900, 1200), "test": slice(1200, None)}
RECIPE = metasched.Recipe("widths")
RATE = 1e-2  # of the optimizer


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def fit(model: nn.Module, player: Player, seed: int, steps: int) -> None:
    """Any loop: all that is new is ``player.step()`` after that of the optimizer."""
    x, y = X[PARTS["train"]], Y[PARTS["train"]]
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=draws)
        loss = F.cross_entropy(model(x[batch]), y[batch]) + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        player.step()


def accuracy(model: nn.Module, split: str) -> float:
    part = PARTS[split]
    return float((model(X[part]).argmax(1) == Y[part]).double().mean())


def study(folder: Path, seed: int = 0, steps: int = 30, quiet: bool = False) -> metasched.Study:
    given = {"evaluate": accuracy, "example": X[:64], "steps": steps, "seed": seed, "storage": folder, "quiet": quiet}
    return metasched.Study(model, RECIPE, fit, **given)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("study"))
    parser.add_argument("--runs", type=int, default=80, help="runs of fit for each learner")
    parser.add_argument("--seeds", type=int, default=16, help="of the comparison")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args(argv)
    found = study(arguments.folder, steps=arguments.steps)
    found.optimize("portfolio", runs=arguments.runs, workers=arguments.workers)
    found.optimize("es", runs=arguments.runs, workers=arguments.workers)
    comparison = found.compare(seeds=arguments.seeds, workers=arguments.workers)
    metasched.write_schedule(arguments.folder / "best.json", found.best.file)
    report = comparison.report(arguments.folder / "report.html", "A study of the digits")
    print(f"schedule: {arguments.folder / 'best.json'}, report: {report}")


if __name__ == "__main__":
    main()
