"""A plain training loop, from a float model to ONNX: prepare, play a schedule, convert, export.

    python examples/plain_loop.py --steps 150 --out digits.onnx

The network is an MLP with ternary weights and activations on scikit-learn's digits.
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

_PIXELS, _LABELS = load_digits(return_X_y=True)
X, Y = torch.tensor(_PIXELS, dtype=torch.float32) / 16, torch.tensor(_LABELS)
TRAIN, TEST = slice(0, 1200), slice(1200, None)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schedule", default="widths_narrowing", help="a name of `metasched list`, or a file")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, help="ONNX file to write")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    schedule = metasched.load(arguments.schedule)
    module, player = metasched.prepare(model, schedule.method, X[:2], schedule, arguments.steps)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(arguments.steps):
        batch = torch.randint(len(X[TRAIN]), (64,))
        loss = F.cross_entropy(module(X[TRAIN][batch]), Y[TRAIN][batch]) + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        player.step()
    plain = metasched.convert(module)
    with torch.no_grad():
        outputs = {"prepared": module.eval()(X[TEST]), "converted": plain(X[TEST])}
    found = {name: float((out.argmax(1) == Y[TEST]).double().mean()) for name, out in outputs.items()}
    print(f"levels of the middle layer: {plain.get_parameter('2.weight').unique().tolist()}")
    print("accuracy: " + ", ".join(f"{name} {score:.4f}" for name, score in found.items()))
    if arguments.out is not None:
        axes = {name: {0: "batch"} for name in ("input", "output")}
        names = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": axes}
        torch.onnx.export(plain, (X[:1],), arguments.out, dynamo=False, **names)
    return found


if __name__ == "__main__":
    main()
