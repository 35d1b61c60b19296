"""Two checks of annealed methods on MLPs of digits: training with ternary weights, and a learned ramp of pruning.

    python scripts/reliability/blend_and_ramp.py --json experiments/results/reliability_blend_and_ramp.json

    blend    ternary weights, activations in float, from a float network: rounded to the nearest level (``rtn``), and
             trained under blends that stay at 1 for at least a fifth of the run. Asked: 8 points above ``rtn`` (mean),
             and that the controls end at 1 and the last pass sees the deployed weights, bit for bit
    ramp     95 % of the weights pruned: a ramp of the sparsity learned from the cubic one by evolution strategies on
             meta-validation scores, four pairs of runs a step. Asked: at most 2 points below the cubic ramp on the test
             set, on seeds that learning has not seen

Means with 95 % intervals over paired seeds. The exit code is 1 where a check is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from checked import ended
from training_methods import Start, float_network, problem_of, trained

from metasched import MethodConfig, hardened_score, progress_of_steps
from metasched.cli import main as metasched
from metasched.core.randomness import Draw
from metasched.evaluation.statistics import paired_difference
from metasched.network.flat import rows
from metasched.schedules.table import hand_coded
from metasched.training.loop import take_steps
from metasched.training.state import InnerProblem

BLENDS = ("blend_half", "blend_binary_relax")
DWELL, ABOVE, BELOW = 0.2, 0.08, 0.02
RAMP: dict[str, Any] = {
    "name": "ramp",
    "seed": 12,
    "task": {"name": "digits", "model": "mlp", "width": 64, "batch": 64},
    "optimizer": {"name": "adam", "lr": 0.002, "decay": "cosine"},
    "method": {
        "name": "pruning",
        "sparsity": 0.95,
        "levels": "int8",
        "scale": "max",
        "granularity": "channel",
        "activation_levels": None,
    },
    "schedule": {"kind": "family", "start": "pruning_cubic"},
    "meta": {"estimator": "es", "runs": 4, "confirm_runs": 2},
    "compare": {"horizons": [1], "baselines": ["pruning_cubic"]},
    "run": {"workers": 1},
}


def ternary_arms(start: Start, seed: int, num_steps: int) -> tuple[dict[str, float], bool]:
    """Test scores with ternary weights, and whether each blend has ended at what is deployed."""
    given = {"levels": "ternary", "scale": "least_squares", "activation_levels": None}
    found, exact = {"float": start[1].score(start[0], "test")}, True
    problem = problem_of(start, MethodConfig(name="ste", **given), num_steps, seed)
    found["rtn"] = hardened_score(problem, problem.initial({}), "test")
    found["ste"] = trained(problem, {})[0]
    problem = problem_of(start, MethodConfig(name="blend", **given), num_steps, seed)
    for name in BLENDS:
        found[name], hard = blended(problem, name)
        exact &= hard
    return found, exact


def blended(problem: InnerProblem, name: str) -> tuple[float, bool]:
    """Test score under a blend, and whether it is 1 in the last fifth and its weights then are the deployed ones."""
    network, progress = problem.network, progress_of_steps(problem.steps)
    curves = hand_coded("blend")[name].curves
    controls = {c: curve(progress, network.layers).to(torch.get_default_dtype()) for c, curve in curves.items()}
    state = problem.initial(rows(controls, 0))
    for done in take_steps(problem, state, controls, range(problem.steps)):
        state = done.state
    exact = all(bool((v[progress >= 1 - DWELL] == 1).all()) for v in controls.values())
    values, owns = network.values(rows(controls, -1)), network.owns(state.params, state.method)
    hard = network.harden(state.params, state.method)
    for i, layer in enumerate(network.layers):
        draw = Draw(problem.seed, problem.steps, i)
        seen = network.method_of(i).weight(state.params[layer.weight_key], owns[i], values[i], draw)
        exact &= torch.equal(seen, hard[layer.weight_key])
    return hardened_score(problem, state, "test"), exact


def learned_ramp(seeds: int, num_steps: int, outer: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Test scores of the learned ramp and of the cubic one on paired seeds, and what was done."""
    with tempfile.TemporaryDirectory() as folder:
        config, run = Path(folder) / "ramp.yaml", Path(folder) / "run"
        task = {**RAMP["task"], "steps": num_steps}
        meta, compare = {**RAMP["meta"], "steps": outer}, {**RAMP["compare"], "seeds": seeds}
        document = {**RAMP, "task": task, "meta": meta, "compare": compare}
        config.write_text(yaml.safe_dump(document))
        assert metasched(["train", str(config), "--folder", str(run)]) == 0
        comparison = json.loads((run / "comparison.json").read_text())
    arms = {arm["name"]: arm["scores"] for arm in comparison["arms"]}
    kept = {name: arms[name] for name in ("learned", "pruning_cubic", "ste", "float")}
    return kept, {"experiment": document, "confirmed": comparison["confirmed"]}


def main(given: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="of both checks [8]")
    parser.add_argument("--steps", type=int, default=400, help="of training [400]")
    parser.add_argument("--outer", type=int, default=4, help="outer steps of learning [4]")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    ternary = [ternary_arms(float_network(seed), seed, arguments.steps) for seed in range(arguments.seeds)]
    scores = {name: [run[name] for run, _ in ternary] for name in ternary[0][0]}
    checks: dict[str, dict[str, Any]] = {}
    for name in BLENDS:
        d = paired_difference(scores[name], scores["rtn"])
        checks[f"{name} minus rtn, at least {ABOVE}"] = {"found": d._asdict(), "passed": d.mean >= ABOVE}
    checks["blends end at what is deployed"] = {"passed": all(exact for _, exact in ternary)}
    ramp, about = learned_ramp(arguments.seeds, arguments.steps, arguments.outer)
    d = paired_difference(ramp["learned"], ramp["pruning_cubic"])
    checks[f"learned ramp minus cubic, at least -{BELOW}"] = {"found": d._asdict(), "passed": d.mean >= -BELOW}
    settings = {"seeds": arguments.seeds, "steps": arguments.steps, "outer": arguments.outer}
    command = " ".join(["python", *sys.argv])
    told = {"command": command, **settings, "n": arguments.seeds, "blend": scores, "ramp": ramp, **about}
    return ended(checks, told, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
