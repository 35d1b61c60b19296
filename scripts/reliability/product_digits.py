"""Product quantization of a network of digits: what codes cost, and what fine-tuning of centroids recovers.

    python scripts/reliability/product_digits.py --json experiments/results/product_digits.json

A multilayer perceptron 64-128-128-10 on scikit-learn's digits is trained in float; each layer becomes codes of blocks
of 8 numbers (16 centroids, half a bit a weight), and centroids are tuned for 1,500 steps on training inputs without
labels. Arms: codes alone; layers in order; all at once.

Passes if no step of EM raises its error, sizes are those of the stored bytes, and layers in order end within 4 points
of the float network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from checked import ended
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from metasched.calibration.product import ProductOptions, ProductQuantized, quantize_product

OPTIONS = ProductOptions(codes=16, linear_block=8, steps=1500, lr=0.05, first=True)
ARMS = {
    "codes alone": replace(OPTIONS, steps=0),
    "in order": OPTIONS,
    "at once": replace(OPTIONS, onsets="at_once"),
}


def trained(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    """The float network."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(800):
        i = torch.randint(len(x), (64,), generator=draws)
        loss = F.cross_entropy(model(x[i]), y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of examples that are right."""
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).double().mean())


def monotone(found: ProductQuantized) -> bool:
    """Whether no step of EM has raised the error of a layer, up to rounding."""
    return all(b <= a * (1 + 1e-9) for book in found.codebooks.values() for a, b in pairwise(book.errors))


def stored(found: ProductQuantized) -> bool:
    """Whether the size of each layer is that of its bytes."""
    return all(book.bytes == len(book.stored()) for book in found.codebooks.values())


def run(seed: int) -> dict[str, Any]:
    """Accuracies of the float network and of all arms."""
    data: Any = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]
    model = trained(x[:1200], y[:1200], seed)
    found = {name: quantize_product(model, x[:1200].split(64), replace(o, seed=seed)) for name, o in ARMS.items()}
    return {
        "float": accuracy(model, x[1200:], y[1200:]),
        **{name: accuracy(own.module, x[1200:], y[1200:]) for name, own in found.items()},
        "bytes": found["in order"].bytes,
        "float_bytes": found["in order"].float_bytes,
        "monotone": all(monotone(own) for own in found.values()),
        "stored": all(stored(own) for own in found.values()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="networks [5]")
    parser.add_argument("--json", type=Path, help="where the result is written")
    asked = parser.parse_args(arguments)
    runs = [run(seed) for seed in range(asked.seeds)]
    means = {name: sum(r[name] for r in runs) / asked.seeds for name in ("float", *ARMS)}
    for name, mean in means.items():
        print(f"{name}: {mean:.4f}")
    lost = 100 * (means["float"] - means["in order"])
    checks = {
        "EM is monotone": {"passed": all(r["monotone"] for r in runs)},
        "sizes are those of the bytes": {"passed": all(r["stored"] for r in runs)},
        "points lost": {"found": lost, "limit": 4.0, "passed": lost <= 4.0},
    }
    told = {
        "what": "accuracy of product quantization on digits; see scripts/reliability/product_digits.py",
        "command": f"python scripts/reliability/product_digits.py --seeds {asked.seeds}",
        "n": asked.seeds,
        "seeds": list(range(asked.seeds)),
        "settings": {"codes": OPTIONS.codes, "block": OPTIONS.linear_block, "steps": OPTIONS.steps, "lr": OPTIONS.lr},
        "means": means,
        "runs": runs,
    }
    return ended(checks, told, asked.json)


if __name__ == "__main__":
    sys.exit(main())
