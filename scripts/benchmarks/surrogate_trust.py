r"""How far to trust a hypergradient through hard quantizers: its direction against a smoothed gradient of the truth.

    python scripts/benchmarks/surrogate_trust.py --json experiments/results/surrogate_trust.json \
        --table docs/tables/surrogate_trust.md

What is compared is given by four knots theta, linear in between over the run: ``noise = width * exp(theta)``, for
weights and activations at once, and ``freeze_fraction = sigmoid(logit(u) + theta)``, the same in all layers. (Results
from before each had its own noise call it ``noise_scale``.) At theta = 0 we compare, for each of them,

    surrogate   d L / d theta of single inner runs by unrolling (the relaxed method, if it freezes)
    truth       the smoothed gradient of the hardened loss under the method itself (sigma 0.3, antithetic pairs)

Inner seeds of runs and pairs are all different. Intervals: 95 %, bootstrap over runs and pairs together.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed, generator
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import outer_loss
from metasched.engines.unroll import unroll
from metasched.estimators.smoothed import smoothed_gradient
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.schedules.base import progress_of_steps
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem

KNOTS = 4
SIGMA = 0.3
WIDTHS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
RELAXATIONS = (0.05, 0.1, 0.3)
RESAMPLES = 2000
SET_BY = {"noise": ("weight_noise", "activation_noise"), "freeze_fraction": ("freeze_fraction",)}
TASK = TaskConfig(name="digits", model="mlp", width=16, train=600, validation=200, batch=32, steps=60)


class Case(NamedTuple):
    """One method at one width; ``width`` in quanta, ``relaxation`` as a share of the weights, None where not read."""

    method: Literal["ana", "inq", "joint"]
    forward: Literal["expectation", "mode"] | None
    backward: Literal["noise", "fixed"] | None
    width: float | None
    relaxation: float | None


CASES = (
    *(Case("ana", "mode", "noise", w, None) for w in WIDTHS),
    *(Case("ana", "expectation", "noise", w, None) for w in WIDTHS),
    *(Case("ana", "expectation", "fixed", w, None) for w in WIDTHS),
    *(Case("inq", None, None, None, r) for r in RELAXATIONS),
    *(Case("joint", "mode", "noise", w, 0.1) for w in WIDTHS),
)


def controls_of(theta: torch.Tensor, case: Case, steps: int, num_layers: int) -> Tensors:
    """Values {control: [T, L]} from the knots theta [controls, 4], in the order of ``learned``."""
    u = progress_of_steps(steps)
    place = u * (KNOTS - 1)
    left = place.floor().clamp_max(KNOTS - 2).long()
    share = place - left
    at_steps = theta[:, left] * (1 - share) + theta[:, left + 1] * share
    own = dict(zip(learned(case), at_steps, strict=True))
    values = {}
    if "noise" in own:
        assert case.width is not None
        values = dict.fromkeys(SET_BY["noise"], case.width * own["noise"].exp())
        values["noise_mean"] = torch.zeros(steps, dtype=u.dtype)
    if "freeze_fraction" in own:
        values["freeze_fraction"] = torch.sigmoid(torch.logit(u.clamp(0.01, 0.99)) + own["freeze_fraction"])
    return {name: v[:, None].expand(-1, num_layers) for name, v in values.items()}


def learned(case: Case) -> list[str]:
    """What is compared: keys of SET_BY."""
    return {"ana": ["noise"], "inq": ["freeze_fraction"], "joint": ["noise", "freeze_fraction"]}[case.method]


def measure(case: Case, task: TaskConfig, runs: int, pairs: int) -> list[dict[str, Any]]:
    """A row for each of what a case compares."""
    method = MethodConfig(name=case.method, forward=case.forward or "mode", backward=case.backward or "noise")
    experiment = Experiment(task=task, method=method)
    config = experiment.problem
    exact, relaxed = build_problem(config), build_problem(config, relaxation=case.relaxation or 0.0)
    num_layers = len(exact.network.layers)
    start = torch.zeros(len(learned(case)), KNOTS, dtype=torch.float64)

    def surrogate(run: int) -> torch.Tensor:
        theta = start.clone().requires_grad_()
        values = controls_of(theta, case, task.steps, num_layers)
        problem = relaxed.with_seed(derive_seed(0, "surrogate", run))
        wrt = control_gradient(unroll, problem, values, OuterLoss()).wrt
        names = [name for own in learned(case) for name in SET_BY[own]]
        (slope,) = torch.autograd.grad([values[n] for n in names], theta, [wrt[n].double() for n in names])
        return slope

    def truth(pair: int) -> torch.Tensor:
        problem = exact.with_seed(derive_seed(0, "truth", pair))

        def hardened(theta: torch.Tensor) -> float:
            return outer_loss(problem, controls_of(theta, case, task.steps, num_layers), OuterLoss())

        return smoothed_gradient(hardened, start, SIGMA, pairs=1, seed=pair)

    slopes = torch.stack([surrogate(run) for run in range(runs)])  # [runs, controls, knots]
    truths = torch.stack([truth(pair) for pair in range(pairs)])
    each = zip(learned(case), slopes.unbind(1), truths.unbind(1), strict=True)
    return [{**case._asdict(), "control": name, **compare(of_runs, of_pairs)} for name, of_runs, of_pairs in each]


def compare(slopes: torch.Tensor, truths: torch.Tensor) -> dict[str, Any]:
    """Statistics of hypergradients [runs, knots] and single-pair estimates of the truth [pairs, knots].

    Runs that are not finite, or zero, have no direction; they are counted and left out, as the outer loop does. Where
    that leaves fewer than half of the runs there is no cosine: an interval from a handful would look too sure.
    """
    usable = torch.isfinite(slopes).all(1) & (slopes != 0).any(1)
    directions = torch.nn.functional.normalize(slopes[usable], dim=1)
    sizes = [float(s.norm() / truths.mean(0).norm()) for s in slopes[usable]]
    enough = 2 * len(directions) >= len(slopes)
    return {
        "runs": len(slopes),
        "pairs": len(truths),
        "unusable": int((~usable).sum()),
        "size": statistics.median(sizes) if sizes else None,
        "one_run": _with_interval(_mean_cosine, directions, truths) if enough else None,
        "mean_of_runs": _with_interval(_cosine_of_mean, directions, truths) if enough else None,
        "ceiling": _split_half(truths),
    }


def _mean_cosine(directions: torch.Tensor, truths: torch.Tensor) -> float:
    return float(torch.cosine_similarity(directions, truths.mean(0)[None]).mean())


def _cosine_of_mean(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.mean(0), b.mean(0), dim=0))


def _with_interval(
    statistic: Callable[[torch.Tensor, torch.Tensor], float], directions: torch.Tensor, truths: torch.Tensor
) -> list[float]:
    """Estimate, low and high end of its bootstrap interval."""
    draws = generator(0, "bootstrap")

    def again(x: torch.Tensor) -> torch.Tensor:
        return x[torch.randint(len(x), (len(x),), generator=draws)]

    values = torch.tensor([statistic(again(directions), again(truths)) for _ in range(RESAMPLES)])
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975])).tolist()
    return [statistic(directions, truths), low, high]


def _split_half(truths: torch.Tensor) -> float:
    """Mean cosine of the truth from one half of the pairs to that from the other, over random halves."""
    draws = generator(0, "halves")
    halves = [torch.randperm(len(truths), generator=draws).chunk(2) for _ in range(200)]
    return statistics.fmean(_cosine_of_mean(truths[a], truths[b]) for a, b in halves)


def markdown(result: dict[str, Any]) -> str:
    """The table for the documentation, generated from the JSON alone."""
    head = ["method", "forward / backward", "control", "width", "one run", "mean of runs", "ceiling", "size", "lost"]
    lines = [_line(head), _line(["---"] * len(head)), *(_line(_cells(row)) for row in result["rows"])]
    setting, task = result["setting"], result["setting"]["task"]
    about = [
        "One run: mean cosine of single hypergradients to the smoothed gradient of the hardened loss. Mean of runs: "
        "cosine of their mean, each scaled to length 1 first. Ceiling: cosine of the smoothed gradients of two halves "
        "of the pairs. Size: median length over that of the smoothed gradient. Lost: not finite, or zero.",
        f"n = {setting['runs']} inner runs and {setting['pairs']} antithetic pairs a row, all of different seeds; "
        f"{task['name']}, {task['model']} of width {task['width']}, T = {task['steps']}. "
        f"torch {result['environment']['torch']}, {result['cpu']}, one thread, {result['seconds'] / 60:.0f} min: "
        f"`{result['command']}`.",
    ]
    return "\n".join([*lines, "", *about, ""])


def _cells(row: dict[str, Any]) -> list[str]:
    def with_interval(values: list[float] | None) -> str:
        return "-" if values is None else f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"

    widths = [] if row["width"] is None else [f"{row['width']}"]
    omega = [f"omega {row['relaxation']}"] if row["control"] == "freeze_fraction" else []
    return [
        row["method"],
        f"{row['forward']} / {row['backward']}" if row["forward"] else "hard / straight-through",
        row["control"],
        ", ".join(widths + omega),
        with_interval(row["one_run"]),
        with_interval(row["mean_of_runs"]),
        f"{row['ceiling']:.2f}",
        "-" if row["size"] is None else f"{row['size']:.2g}",
        f"{row['unusable']}/{row['runs']}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every case, write the JSON and, if asked, the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--table", type=Path, metavar="MD", help="also write the table, in markdown")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=40)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = []
    for case in CASES:
        found = measure(case, TASK, arguments.runs, arguments.pairs)
        print("\n".join(_line(_cells(row)) for row in found), file=sys.stderr, flush=True)
        rows += found
    task = {name: getattr(TASK, name) for name in ("name", "model", "width", "train", "validation", "batch", "steps")}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "cpu": cpu_model(),
        "seconds": time.perf_counter() - start,
        "setting": {"task": task, "runs": arguments.runs, "pairs": arguments.pairs, "knots": KNOTS, "sigma": SIGMA},
        "rows": rows,
    }
    write_atomic(arguments.json, json_text(result, indent=1).encode() + b"\n")
    if arguments.table:
        write_atomic(arguments.table, markdown(result).encode())


if __name__ == "__main__":
    main()
