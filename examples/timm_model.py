"""A network of timm with ternary weights in a plain loop, then as an ordinary module.

    pip install "metasched[timm]" && python examples/timm_model.py --name resnet10t

Random pictures stand for your data; give ``--pretrained`` to start at timm's weights, which it downloads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch.nn import functional as F

import metasched
from metasched.core.extras import from_extra


def main(argv: Sequence[str] | None = None) -> float:
    """Trains, converts, and gives the largest difference between the trained and the converted network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", default="resnet10t", help="of a model of timm")
    parser.add_argument("--schedule", default="widths_narrowing", help="a name of `metasched list`, or a file")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--pretrained", action="store_true")
    arguments = parser.parse_args(argv)
    with from_extra("timm"):
        import timm  # pyright: ignore[reportMissingImports]: an extra
    torch.manual_seed(0)
    model = timm.create_model(arguments.name, num_classes=10, pretrained=arguments.pretrained)
    x, y = torch.randn(32, 3, arguments.size, arguments.size), torch.randint(10, (32,))
    schedule = metasched.load(arguments.schedule)
    module, player = metasched.prepare(model, schedule.method, x[:2], schedule, arguments.steps)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for _ in range(arguments.steps):
        loss = F.cross_entropy(module(x), y) + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        player.step()
    module.eval()
    with torch.no_grad():
        difference = float((module(x) - metasched.convert(module)(x)).abs().max())
    print(f"{arguments.name}: loss {float(loss):.4f}, converted differs by {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
