"""Bayesian Bits on digits: accuracy and cost over the strength of the penalty.

    python scripts/reliability/bayesian_bits_cost.py --json experiments/results/bayesian_bits_cost.json

A multilayer perceptron 64-64-48-48-10 on scikit-learn's digits, all weights with gates, activations in float, 1,000
steps of Adam from scratch, gates fixed for the last quarter. Cost is multiply-accumulates times bits of the weights, as
a share of 32 bits.

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
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from metasched import Recipe, hand_coded, prepare
from metasched.core.layer import Layer
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.network.costs import bit_operations

STRENGTHS = (0.0, 0.01, 0.03, 0.1)
STEPS, BATCH, RATE, GATE_RATE = 1000, 64, 2e-3, 2e-2


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


def run(mu: float, seed: int) -> dict[str, Any]:
    """Accuracy on the test part, cost, and the bits of each layer."""
    data: Any = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]
    torch.manual_seed(seed)
    recipe = Recipe("bayesian_bits", activations=None, last=True)
    module, player = prepare(network(), recipe, x[:2], AtStrength(mu), total_steps=STEPS, seed=seed)
    gates = [p for name, p in module.named_parameters() if name.endswith("gates")]
    known = {id(p) for p in gates}
    others = [p for p in module.parameters() if id(p) not in known]
    optimizer = torch.optim.Adam([{"params": others, "lr": RATE}, {"params": gates, "lr": GATE_RATE}])
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        i = torch.randint(1200, (BATCH,), generator=draws)
        loss = F.cross_entropy(module(x[i]), y[i]) + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        player.step()
    module.eval()
    with torch.no_grad():
        accuracy = float((module(x[1200:]).argmax(1) == y[1200:]).double().mean())
    cost = bit_operations(module, x[:1])
    return {"accuracy": accuracy, "cost": cost.relative, "bits": [round(row.bits, 3) for row in cost.layers]}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each strength [2]")
    parser.add_argument("--json", type=Path, help="where the result is written")
    asked = parser.parse_args(arguments)
    found: dict[float, list[dict[str, Any]]] = {mu: [] for mu in STRENGTHS}
    for seed in range(asked.seeds):
        for mu in STRENGTHS:
            found[mu].append(run(mu, seed))
            print(f"seed {seed}, mu = {mu}: {found[mu][-1]}", flush=True)
    means = [{k: sum(r[k] for r in found[mu]) / asked.seeds for k in ("accuracy", "cost")} for mu in STRENGTHS]
    for mu, mean in zip(STRENGTHS, means, strict=True):
        print(f"mu = {mu:5.3f}: accuracy {mean['accuracy']:.4f}, cost {mean['cost']:.3f} of 32 bits")
    costs = [mean["cost"] for mean in means]
    cheap = next((mean for mean in means if mean["cost"] <= 0.1), None)
    loss = float("inf") if cheap is None else 100 * (means[0]["accuracy"] - cheap["accuracy"])
    checks = {
        "cost falls with mu": {"found": costs, "passed": all(b <= a for a, b in pairwise(costs))},
        "points lost at a cost of at most 10 %": {"found": loss, "limit": 1.0, "passed": loss <= 1.0},
    }
    for name, check in checks.items():
        print(f"{name}: {check['found']}: {'passed' if check['passed'] else 'MISSED'}")
    told = {
        "what": "accuracy and cost of Bayesian Bits on digits; see scripts/reliability/bayesian_bits_cost.py",
        "command": f"python scripts/reliability/bayesian_bits_cost.py --seeds {asked.seeds}",
        "n": asked.seeds,
        "seeds": list(range(asked.seeds)),
        "settings": {"steps": STEPS, "batch": BATCH, "lr": RATE, "gate_lr": GATE_RATE},
        "runs": [{"mu": mu, "mean": mean, "runs": found[mu]} for mu, mean in zip(STRENGTHS, means, strict=True)],
        "checks": checks,
        "environment": environment(),
    }
    if asked.json:
        asked.json.write_text(json_text(told, indent=1) + "\n")
    return int(not all(check["passed"] for check in checks.values()))


if __name__ == "__main__":
    sys.exit(main())
