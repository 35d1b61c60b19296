r"""Whether the procedures after training keep what they promise, on problems whose answers are known.

    python scripts/reliability/calibration.py --json experiments/results/reliability_calibration.json

A1   200 vectors of 10 weights at 3 bits (-3 to 3) with correlated inputs, outputs of variance 1: how often AdaRound
     finds the rounding that an enumeration of all 1,024 finds to be best, for each schedule. Passed: adaround_cosine at
     least 0.10 above adaround_constant, that above adaround_unregularized; and what ``calibrate`` keeps has for no
     vector an error more than 5 % above that of rounding to nearest.
A2   An MLP on digits, 4 seeds, all weights at 2 and 3 bits with one scale a tensor: test accuracy of nearest and of
     AdaRound, at 2 bits under BRECQ's schedule for 2 bits. Passed: at least 2 points more at 2 bits, and the outputs of
     no layer differ between the soft network of the end and the hard one by more than 1e-3 (relative, squared).
A3   Bit-Split, 30 vectors of 5 weights at 3 bits. Passed: no sweep raises an error; the median of error / optimum, by
     an enumeration of all integers, is at most 0.6 times that of alternating; and the optimum is found at least once.
A10  Multipoint, 64 vectors of 64 weights at 2, 3 and 4 bits: ratio of the error (root of the squared one) with one
     point more, geometric mean from 1 to 5. Passed: at most 0.6.

The exit code is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import metasched
from metasched.calibration.adaround import adaround, hard_weights, played, undecided
from metasched.calibration.bit_split import Split, alternating, digits_of, swept
from metasched.calibration.moments import Moments
from metasched.calibration.multipoint import points_of
from metasched.calibration.nearest import nearest
from metasched.calibration.reconstruction import reconstruction
from metasched.calibration.table import AdaRoundOptions
from metasched.calibration.walking import units
from metasched.core.randomness import generator
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.methods.adaround import ROUNDING
from metasched.network.flat import rows
from metasched.quantizers.levels import integers
from metasched.schedules.table import hand_coded
from metasched.tasks.build import build_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import SupervisedTask
from metasched.training.loop import take_steps

VECTORS, WEIGHTS, EXAMPLES = 200, 10, 64


def rounding_problem(seed: int) -> tuple[nn.Module, torch.Tensor]:
    """All vectors as the groups of one convolution, [200, 10, 1], and inputs [64, 2000, 1]."""
    draws = generator(seed, "calibration check")
    layer = nn.Conv1d(VECTORS * WEIGHTS, VECTORS, 1, groups=VECTORS, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(VECTORS, WEIGHTS, 1, generator=draws, dtype=torch.float64))
    mixing = torch.randn(VECTORS, WEIGHTS, WEIGHTS, generator=draws, dtype=torch.float64) / WEIGHTS
    x = torch.randn(VECTORS, EXAMPLES, WEIGHTS, generator=draws, dtype=torch.float64) @ mixing
    return nn.Sequential(layer).eval(), x.movedim(0, 1).reshape(EXAMPLES, -1, 1)


def squared_errors(difference: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the outputs of each vector, [..., 200], for a difference of weights [..., 200, 10]."""
    inputs = x.reshape(EXAMPLES, VECTORS, WEIGHTS)
    gram = torch.einsum("nvi,nvj->vij", inputs, inputs) / EXAMPLES
    return torch.einsum("...vi,vij,...vj->...v", difference, gram, difference)


def best_rounding(w: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The smallest error over all roundings down or up, [200], for weights [200, 10] and scales [200, 1]."""
    ups = torch.tensor(list(product((0.0, 1.0), repeat=WEIGHTS)), dtype=w.dtype)
    low = (w / scale).floor()
    best = torch.full((len(w),), math.inf, dtype=w.dtype)
    for part in ups.split(64):
        q = (low + part[:, None]).clamp(-3, 3)
        best = torch.minimum(best, squared_errors(q * scale - w, x).amin(0))
    return best


def a1(seed: int, steps: int, lr: float) -> dict[str, Any]:
    """How often each schedule finds the best rounding."""
    model, x = rounding_problem(seed)
    recipe = metasched.Recipe("ste", weights="balanced3", activations=None, granularity="channel", last=True)
    (unit,) = units(model, recipe, [x])
    w = unit.weight(0).squeeze(-1)
    (plain,) = nearest(unit)
    scale = plain.state["scale"].reshape(-1, 1)
    best, base = best_rounding(w, scale, x), squared_errors(plain.weight.squeeze(-1) - w, x)
    found: dict[str, Any] = {
        "n": VECTORS,
        "seed": seed,
        "steps": steps,
        "lr": lr,
        "nearest": {"found": share(base, best), "median_ratio": float((base / best).median())},
    }
    for name in ("adaround_cosine", "adaround_constant", "adaround_unregularized"):
        schedule = hand_coded("adaround")[name]
        problem = reconstruction(unit, steps=steps, lr=lr, batch=EXAMPLES)
        controls = played(problem, schedule, name)
        state = problem.initial(rows(controls, 0))
        for done in take_steps(problem, state, controls, range(steps)):
            state = done.state
        (hard,) = hard_weights(problem, state)
        error = squared_errors(hard.squeeze(-1) - w, x)
        found[name] = {
            "found": share(error, best),
            "median_ratio": float((error / best).median()),
            "worst_to_nearest": float((error / base).max()),
            "undecided": undecided(state.params[f"{unit.layers[0].name}/{ROUNDING}"]),
        }
    rates = [found[f"adaround_{name}"]["found"] for name in ("cosine", "constant", "unregularized")]
    (made,) = adaround(unit, AdaRoundOptions(steps=steps, lr=lr, batch=EXAMPLES))
    error = squared_errors(made.weight.squeeze(-1) - w, x)
    worst = float((error / base).max())
    found["calibrate"] = {"found": share(error, best), "worst_to_nearest": worst}
    found["passed"] = rates[0] >= rates[1] + 0.10 and rates[1] >= rates[2] and worst <= 1.05
    return found


def share(error: torch.Tensor, best: torch.Tensor) -> float:
    """Share of the vectors whose error is the smallest there is."""
    return float((error <= best * (1 + 1e-9) + 1e-15).double().mean())


def a2(seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """Test accuracy of an MLP on digits after rounding to nearest and after AdaRound."""
    lines: list[dict[str, Any]] = []
    for seed in seeds:
        config = TaskConfig(name="digits", model="mlp", width=64, pretrained=600, data_seed=seed)
        task = build_task(config)
        assert isinstance(task, SupervisedTask)
        model = task.build()
        model.load_state_dict(task.initial() or {})
        batches = [task.train.x[:512]]
        line: dict[str, Any] = {"seed": seed, "float": score(task, model.eval())}
        for levels, schedule in (("int2", "adaround_linear_2bit"), ("int3", "adaround_cosine")):
            recipe = metasched.Recipe("ste", weights=levels, activations=None, last=True)
            trained: dict[str, Any] = {"steps": steps, "schedule": schedule}
            choices: dict[str, dict[str, Any]] = {"nearest": {}, "adaround": trained}
            for method, options in choices.items():
                reports: list[Any] = []
                progress: Callable[[Any], None] = lambda p, reports=reports: reports.append(p.report)  # noqa: E731
                made = metasched.calibrate(model, recipe, batches, method, progress=progress, **options)
                line[f"{levels}_{method}"] = score(task, metasched.convert(made))
                if method == "adaround":
                    done = [r for r in reports if r is not None]
                    line[f"{levels}_soft_to_hard"] = max(r.details.get("soft_to_hard", 0.0) for r in done)
                    line[f"{levels}_undecided"] = max(r.details.get("undecided", 0.0) for r in done)
                    line[f"{levels}_error"] = [r.error for r in done]
                    line[f"{levels}_error_nearest"] = [r.nearest for r in done]
        lines.append(line)
    gain = sum(line["int2_adaround"] - line["int2_nearest"] for line in lines) / len(lines)
    equal = max(line["int2_soft_to_hard"] for line in lines)
    passed = gain >= 0.02 and equal <= 1e-3
    return {"n": len(lines), "steps": steps, "gain_int2": gain, "soft_to_hard": equal, "seeds": lines, "passed": passed}


@torch.no_grad()
def score(task: SupervisedTask, model: nn.Module) -> float:
    """Accuracy on the test part."""
    return float(task.score(model, "test"))


def a3(vectors: int) -> dict[str, Any]:
    """Bit-Split on the outputs against alternating on the weights, and against an enumeration."""
    levels = integers(3, signed=True, balanced=True)
    q_all = torch.tensor(list(product(levels.levels, repeat=5)), dtype=torch.float64)
    ratios, optimal, monotone, to_best, from_best = [], 0, True, [], []
    for seed in range(vectors):
        draws = generator(seed, "bit split check")
        w = torch.randn(1, 1, 5, generator=draws, dtype=torch.float64)
        mixing = torch.randn(5, 5, generator=draws, dtype=torch.float64)
        x = torch.randn(64, 5, generator=draws, dtype=torch.float64) @ mixing
        y = x @ w[0].mT
        moments = Moments((x.mT @ x)[None], (y.mT @ x)[None], y.square().sum(0)[None])
        alpha, q = alternating(w, levels)
        split = Split(alpha, digits_of(q, 2))
        first = last = float(moments.error(split.weight))
        for _ in range(100):
            split = swept(split, moments.gram, moments.cross, 1)
            error = float(moments.error(split.weight))
            monotone &= error <= last * (1 + 1e-9) + 1e-12
            if error == last:
                break
            last = error
        along, square = q_all @ moments.cross[0, 0], ((q_all @ moments.gram[0]) * q_all).sum(1)
        gains = torch.where((along > 0) & (square > 0), along.square() / square.clamp_min(1e-30), 0.0)
        best = float(moments.power[0, 0] - gains.max())
        ratios.append(last / first)
        to_best.append(last / best)
        from_best.append(first / best)
        optimal += last <= best * (1 + 1e-6)
    medians = statistics.median(to_best), statistics.median(from_best)
    passed = monotone and medians[0] <= 0.6 * medians[1] and optimal >= 1
    return {
        "n": vectors,
        "monotone": monotone,
        "median_to_optimum": medians[0],
        "median_of_alternating_to_optimum": medians[1],
        "median_to_alternating": statistics.median(ratios),
        "optimal": optimal,
        "passed": passed,
    }


def a10(seed: int) -> dict[str, Any]:
    """The error of Multipoint with each point more."""
    w = torch.randn(64, 64, generator=generator(seed, "multipoint check"), dtype=torch.float64)
    ratios = {}
    for bits in (2, 3, 4):
        levels = integers(bits, signed=True, balanced=True)
        norms = [float((w - points_of(w, levels, n).weight).norm(dim=1).mean()) for n in range(1, 6)]
        ratios[f"bits_{bits}"] = (norms[4] / norms[0]) ** 0.25
    return {"n": 64, "seed": seed, "ratios": ratios, "passed": all(r <= 0.6 for r in ratios.values())}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("A1", "A2", "A3", "A10"), action="append", help="a check (repeatable)")
    parser.add_argument("--steps", type=int, default=1000, help="of AdaRound [1000]")
    parser.add_argument("--json", type=Path, help="where the result is written, beside those of other checks")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "A1": lambda: a1(0, asked.steps, 0.01),
        "A2": lambda: a2(range(4), asked.steps),
        "A3": lambda: a3(30),
        "A10": lambda: a10(0),
    }
    results = {}
    for name, check in checks.items():
        if asked.only is None or name in asked.only:
            results[name] = check()
            print(
                f"{name}: {'passed' if results[name]['passed'] else 'MISSED'}  {json_text(results[name])}", flush=True
            )
    before = json.loads(asked.json.read_text())["results"] if asked.json and asked.json.exists() else {}
    told = {
        "what": "checks of the procedures after training; see scripts/reliability/calibration.py",
        "command": "python scripts/reliability/calibration.py",
        "results": {**before, **results},
        "environment": environment(),
    }
    if asked.json:
        asked.json.write_text(json_text(told, indent=1) + "\n")
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
