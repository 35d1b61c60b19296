"""Bayesian Bits on digits: accuracy and cost over the strength of the penalty.

    python scripts/reliability/bayesian_bits_cost.py --json experiments/results/bayesian_bits_cost.json

A multilayer perceptron 64-64-48-48-10 on scikit-learn's digits, all weights with gates, activations in float, 1,500
steps of Adam from scratch, gates fixed for the last quarter. Cost is multiply-accumulates times bits of the weights, as
a share of 32 bits. Beside it, from the same seeds: the float network, and learned scales with 4 bits and ternary
weights in all layers (LSQ), which have no gates and no schedule.

Passes if the cost falls with mu, and at the first mu whose cost is at most 10 % the accuracy is at most one point below
that at mu = 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from checked import ended
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from metasched import Recipe, hand_coded, prepare
from metasched.core.layer import Layer
from metasched.network.costs import bit_operations
from metasched.network.playing import Player

STRENGTHS = (0.0, 0.01, 0.03, 0.1)
FLOORS = ("balanced4", "ternary")  # level sets of learned scales without gates
FLOAT = "float"
STEPS, BATCH, RATE, GATE_RATE = 1500, 64, 2e-3, 2e-2


def network() -> nn.Module:
    """The float network."""
    sizes = (64, 64, 48, 48, 10)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class AtStrength:
    """The authors' schedule at another mu."""

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """The values [T, L] of each control at progress [T]."""
        values = hand_coded("bayesian_bits")["bayesian_bits_001"](progress, layers)
        return {**values, "mu": torch.full_like(values["mu"], self.mu)}


def prepared(arm: float | str, x: torch.Tensor, seed: int) -> tuple[nn.Module, Player | None]:
    """The module of an arm, a mu, a level set or ``float``, and its player; the float network has none."""
    if arm == FLOAT:
        return network(), None
    if isinstance(arm, str):
        recipe, schedule = Recipe("ste", weights=arm, activations=None, scale="learned", last=True), None
    else:
        recipe, schedule = Recipe("bayesian_bits", activations=None, last=True), AtStrength(arm)
    return prepare(network(), recipe, x[:2], schedule, total_steps=STEPS, seed=seed)


def run(arm: float | str, seed: int) -> dict[str, Any]:
    """Accuracy on the test part, cost, and the bits of each layer."""
    data: Any = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]
    torch.manual_seed(seed)
    module, player = prepared(arm, x, seed)
    gates = [p for name, p in module.named_parameters() if name.endswith("gates")]
    known = {id(p) for p in gates}
    others = [p for p in module.parameters() if id(p) not in known]
    optimizer = torch.optim.Adam([{"params": others, "lr": RATE}, {"params": gates, "lr": GATE_RATE}])
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        i = torch.randint(1200, (BATCH,), generator=draws)
        loss = F.cross_entropy(module(x[i]), y[i])
        loss = loss if player is None else loss + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if player is not None:
            player.step()
    module.eval()
    with torch.no_grad():
        accuracy = float((module(x[1200:]).argmax(1) == y[1200:]).double().mean())
    if player is None:
        return {"accuracy": accuracy, "cost": 1.0, "bits": [32] * 4}
    cost = bit_operations(module, x[:1])
    return {"accuracy": accuracy, "cost": cost.relative, "bits": [round(row.bits, 3) for row in cost.layers]}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="runs of each arm [4]")
    parser.add_argument("--json", type=Path, help="where the result is written")
    asked = parser.parse_args(arguments)
    arms: tuple[float | str, ...] = (*STRENGTHS, *FLOORS, FLOAT)
    found: dict[float | str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in range(asked.seeds):
        for arm in arms:
            found[arm].append(run(arm, seed))
            print(f"seed {seed}, {arm}: {found[arm][-1]}", flush=True)
    mean_of = {
        arm: {k: sum(r[k] for r in own) / asked.seeds for k in ("accuracy", "cost")} for arm, own in found.items()
    }
    for arm, mean in mean_of.items():
        print(f"{arm}: accuracy {mean['accuracy']:.4f}, cost {mean['cost']:.3f} of 32 bits")
    means = [mean_of[mu] for mu in STRENGTHS]
    costs = [mean["cost"] for mean in means]
    cheap = next((mean for mean in means if mean["cost"] <= 0.1), None)
    loss = float("inf") if cheap is None else 100 * (means[0]["accuracy"] - cheap["accuracy"])
    checks = {
        "cost falls with mu": {"found": costs, "passed": all(b <= a for a, b in pairwise(costs))},
        "points lost at a cost of at most 10 %": {"found": loss, "limit": 1.0, "passed": loss <= 1.0},
    }
    told = {
        "what": "accuracy and cost of Bayesian Bits on digits; see scripts/reliability/bayesian_bits_cost.py",
        "command": f"python scripts/reliability/bayesian_bits_cost.py --seeds {asked.seeds}",
        "n": asked.seeds,
        "seeds": list(range(asked.seeds)),
        "settings": {"steps": STEPS, "batch": BATCH, "lr": RATE, "gate_lr": GATE_RATE},
        "runs": [{"arm": arm, "mean": mean_of[arm], "runs": own} for arm, own in found.items()],
    }
    return ended(checks, told, asked.json)


if __name__ == "__main__":
    sys.exit(main())
