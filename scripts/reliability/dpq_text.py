"""Differentiable product quantization of a word table on a small language task: perplexity of each temperature.

    python scripts/reliability/dpq_text.py --json experiments/results/dpq_text.json

The text is 60,000 words from a Markov chain with 600 words, whose next word depends on the present one through eight
hidden numbers; the last tenth is for testing. A network predicts it: a table [600, 64], a linear layer, ReLU, and a
linear layer to the words. Arms, all from the same seeds: the full table; codes with hard selection (sx, vq); codes with
soft selection under a constant, a linear and an exponential temperature. Tested is the hard network.

Passes if codes with hard selection are within 3 % of the perplexity of the full table at 15 times fewer bytes or more,
and the constant temperature of soft selection ends at least 1.5 times as high as the best annealed one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from checked import ended
from torch import nn
from torch.nn import functional as F

from metasched import Recipe, build_method, prepare
from metasched.methods.config import MethodConfig
from metasched.methods.dpq import DPQ

WORDS, LENGTH, HIDDEN, WIDTH = 600, 60_000, 8, 64
BATCH, STEPS, RATE = 256, 1200, 5e-3
PARAMETERS = {"groups": 16, "codes": 16}
ARMS: dict[str, tuple[dict[str, Any] | None, str | None]] = {  # name -> parameters of dpq (None: float), schedule
    "full": (None, None),
    "sx hard, constant": ({}, "dpq_constant"),
    "sx hard, exponential": ({}, "dpq_exponential"),
    "vq hard": ({"lookup": "vq"}, None),
    "sx soft, constant": ({"selection": "soft"}, "dpq_constant"),
    "sx soft, linear": ({"selection": "soft"}, "dpq_linear"),
    "sx soft, exponential": ({"selection": "soft"}, "dpq_exponential"),
}


def text(seed: int) -> torch.Tensor:
    """Words of the chain, int64 [60000]."""
    draws = torch.Generator().manual_seed(seed)
    here, there = (torch.randn(WORDS, HIDDEN, generator=draws) for _ in range(2))
    chances = (0.75 * here @ there.T).softmax(1).cumsum(1)
    words = [0]
    for u in torch.rand(LENGTH - 1, generator=draws).tolist():
        words.append(int(torch.searchsorted(chances[words[-1]], u).clamp_max(WORDS - 1)))
    return torch.tensor(words)


def network() -> nn.Module:
    """Scores of the next word; the table starts in [-0.1, 0.1], as is usual for language models."""
    made = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, WORDS))
    nn.init.uniform_(made.get_parameter("0.weight"), -0.1, 0.1)
    return made


def perplexity(words: torch.Tensor, parameters: dict[str, Any] | None, schedule: str | None, seed: int) -> float:
    """Perplexity of the trained, hard network on the last tenth of the words."""
    torch.manual_seed(seed)
    model, cut = network(), 9 * len(words) // 10
    player = None
    if parameters is not None:
        recipe = Recipe("dpq", **{**PARAMETERS, **parameters})
        model, player = prepare(model, recipe, words[:2], schedule, total_steps=STEPS, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        i = torch.randint(cut - 1, (BATCH,), generator=draws)
        loss = F.cross_entropy(model(words[i]), words[i + 1])
        loss = loss if player is None else loss + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if player is not None:
            player.step()
    with torch.no_grad():
        return math.exp(float(F.cross_entropy(model.eval()(words[cut:-1]), words[cut + 1 :])))


def compression() -> float:
    """Bytes of the full table over those of its codes and codebooks."""
    method = build_method(MethodConfig(name="dpq", **PARAMETERS))
    assert isinstance(method, DPQ)
    return 4 * WORDS * WIDTH / method.stored_bytes((WORDS, WIDTH))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="runs of each arm, each on a text of its own [4]")
    parser.add_argument("--json", type=Path, help="where the result is written")
    asked = parser.parse_args(arguments)
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for seed in range(asked.seeds):
        words = text(seed)
        for name, (parameters, schedule) in ARMS.items():
            found[name].append(perplexity(words, parameters, schedule, seed))
            print(f"seed {seed}, {name}: {found[name][-1]:.1f}", flush=True)
    means = {name: sum(own) / len(own) for name, own in found.items()}
    worst = max(means[name] for name in ("sx hard, constant", "sx hard, exponential", "vq hard")) / means["full"]
    annealed = min(means["sx soft, linear"], means["sx soft, exponential"])
    checks = {
        "hard within 3 % of the full table": {"found": worst, "limit": 1.03, "passed": worst <= 1.03},
        "compression": {"found": compression(), "limit": 15, "passed": compression() >= 15},
        "soft constant over annealed": {
            "found": means["sx soft, constant"] / annealed,
            "limit": 1.5,
            "passed": means["sx soft, constant"] >= 1.5 * annealed,
        },
    }
    told = {
        "what": "perplexity of the hard network on held-out words; see scripts/reliability/dpq_text.py",
        "command": f"python scripts/reliability/dpq_text.py --seeds {asked.seeds}",
        "n": asked.seeds,
        "seeds": list(range(asked.seeds)),
        "settings": {"words": WORDS, "length": LENGTH, "width": WIDTH, "steps": STEPS, "batch": BATCH, "lr": RATE}
        | PARAMETERS,
        "perplexity": found,
        "means": means,
    }
    return ended(checks, told, asked.json)


if __name__ == "__main__":
    sys.exit(main())
