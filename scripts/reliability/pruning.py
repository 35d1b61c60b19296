r"""What gradual pruning is known for, tried on an MLP of digits with 95 % of its hidden layers' weights pruned.

    python scripts/reliability/pruning.py --json experiments/results/reliability_pruning.json \
        --table docs/tables/reliability_pruning.md

    ramps     Zhu and Gupta's cubic ramp beside a linear and a convex one, pruning at once and at the end; 8-bit weights
    budget    the cubic ramp with one budget for all layers together
    dense     networks without pruning: the large one with 8 bits (STE) and in float, and a small one that has as many
              weights as the large one keeps
    order     ternary weights, 80 % pruned: pruned in the first 40 % of the run and quantized in the next 40 %, the
              other way round, and pruned after training without any retraining

Scores are those of the hard network on the test set, paired by seed. The exit code is 1 if the cubic ramp is not 10
points above the linear one, that one not above the convex one, the cubic one not 20 points above pruning at the end,
or the small dense network not below the large sparse one (means over the seeds).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.layer import Layer
from metasched.evaluation.contenders import fresh_seeds
from metasched.evaluation.statistics import counted, paired_difference
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_score, played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.curves import Curve
from metasched.schedules.pruning import convex, cubic
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig

SPARSITY, WIDTH, SMALL = 0.95, 64, 9  # a hidden width of 9 has 738 weights; 5 % of the 12,288 of 64 are 614
EIGHT_BITS = {"levels": "int8", "scale": "max", "granularity": "channel", "activation_levels": None}
TERNARY = {"levels": "ternary", "scale": "least_squares", "granularity": "channel", "activation_levels": None}


class Arm(NamedTuple):
    """A method under a schedule, in a network of a width."""

    method: MethodConfig
    controls: str | Mapping[str, Curve]
    width: int = WIDTH


def ramp(progress: torch.Tensor, layers: Sequence[Layer], *, start: float, form: Any = cubic) -> torch.Tensor:
    """A form of the progress from ``start`` on for 0.4 of the run, [T, L] for L layers."""
    return form(((progress - start) / 0.4).clamp(0, 1))[:, None].expand(len(progress), len(layers)).clone()


def arms() -> dict[str, Arm]:
    """All arms by name."""
    layerwise = MethodConfig(name="pruning", sparsity=SPARSITY, **EIGHT_BITS)
    both = MethodConfig(name="joint", of="blend+pruning", sparsity=0.8, **TERNARY)
    early, late = partial(ramp, start=0.0), partial(ramp, start=0.4)
    hard = partial(ramp, start=-1.0, form=convex)  # 1 throughout
    ended = hand_coded("pruning")["pruning_at_end"].curves["sparsity"]
    names = ("cubic", "linear", "convex", "at_once", "at_end")
    return {
        **{name: Arm(layerwise, f"pruning_{name}") for name in names},
        "cubic, global budget": Arm(replace(layerwise, budget="global"), "pruning_cubic"),
        "float, dense": Arm(MethodConfig(name="float"), "float"),
        "8 bits, dense": Arm(MethodConfig(name="ste", **EIGHT_BITS), "ste"),
        "small and dense": Arm(MethodConfig(name="ste", **EIGHT_BITS), "ste", SMALL),
        "prune, then quantize": Arm(both, {"sparsity": early, "weight_blend": late, "activation_blend": hard}),
        "quantize, then prune": Arm(both, {"sparsity": late, "weight_blend": early, "activation_blend": hard}),
        "prune trained ternary": Arm(both, {"sparsity": ended, "weight_blend": hard, "activation_blend": hard}),
    }


def experiment(arm: Arm, steps: int) -> Experiment:
    """Training of one arm."""
    return Experiment(
        name="pruning",
        seed=98,
        task=TaskConfig(model="mlp", width=arm.width, steps=steps, batch=64),
        optimizer=OptimizerConfig(name="adam", lr=0.002, decay="cosine"),
        method=arm.method,
    )


def scores_of(arm: Arm, steps: int, seeds: Sequence[int], pool: Pool) -> list[float]:
    """Test scores, one a seed."""
    problem = experiment(arm, steps).problem
    if isinstance(arm.controls, str):
        schedule = hand_coded(arm.method.name)[arm.controls]
    else:
        curves = arm.controls

        def schedule(progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
            return {name: curve(progress, layers) for name, curve in curves.items()}

    controls = played(problem, schedule, steps)
    return list(counted(list(pool.map(cell_score, [(problem, controls, seed, steps, "test") for seed in seeds]))))


def judged(scores: Mapping[str, Sequence[float]]) -> dict[str, bool]:
    """What is known, and whether it is seen here."""
    mean = {name: statistics.mean(own) for name, own in scores.items()}
    return {
        "cubic at least 10 points above linear": mean["cubic"] - mean["linear"] >= 0.10,
        "linear above convex": mean["linear"] >= mean["convex"],
        "cubic at least 20 points above pruning at the end": mean["cubic"] - mean["at_end"] >= 0.20,
        "large and sparse above small and dense": mean["cubic"] > mean["small and dense"],
    }


def table(told: Mapping[str, Any]) -> str:
    """The result in Markdown."""
    about, scores = told["environment"], told["scores"]
    n = len(scores["cubic"])
    lines = [
        f"n = {n} seeds, {told['steps']} steps, torch {about['torch']}, {about['cpu']}; 95 % intervals over seeds, not "
        "corrected:",
        "",
        "| arm | test score | minus cubic |",
        "| --- | --- | --- |",
    ]
    for name, own in scores.items():
        d = paired_difference(own, scores["cubic"])
        minus = "" if name == "cubic" else f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
        lines.append(f"| {name} | {statistics.mean(own):.4f} | {minus} |")
    seen = [f"- {claim}: **{'yes' if true else 'no'}**" for claim, true in told["claims"].items()]
    return "\n".join([*lines, "", *seen]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="[16]")
    parser.add_argument("--steps", type=int, default=1200, help="of training [1200]")
    parser.add_argument("--workers", type=int, default=RunConfig().workers, help="processes [one a core]")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--table", type=Path, help="where it is written as a table")
    asked = parser.parse_args(arguments)
    seeds, scores = fresh_seeds(98, asked.seeds), {}
    with Pool(asked.workers) as pool:
        for name, arm in arms().items():
            scores[name] = scores_of(arm, asked.steps, seeds, pool)
            print(f"{name:24s} {statistics.mean(scores[name]):.4f}", flush=True)
    claims = judged(scores)
    told = {
        "what": "test scores of pruned networks; see scripts/reliability/pruning.py",
        "steps": asked.steps,
        "seeds": seeds,
        "scores": scores,
        "claims": claims,
        "config": to_dict(experiment(arms()["cubic"], asked.steps)),
        "environment": environment(),
    }
    for claim, true in claims.items():
        print(f"{'yes' if true else 'NO '} {claim}")
    if asked.json:
        write_atomic(asked.json, (json_text(told, indent=1) + "\n").encode())
    if asked.table:
        write_atomic(asked.table, table(told).encode())
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
