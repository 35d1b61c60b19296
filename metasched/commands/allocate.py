"""``metasched allocate``: bits of the weights by layer under a budget."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from metasched.config.schema import Experiment, ProblemConfig
from metasched.config.writing import dump_yaml, section_dict, to_dict
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.contenders import by_method, named_schedule
from metasched.evaluation.references import fixed_scales
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.meta.resume import keep_fingerprint
from metasched.methods.spec import CEILING
from metasched.network.config import Rule
from metasched.runs.cells import CachedPool, digest
from metasched.runs.pool import Mapper
from metasched.runs.where import open_pool
from metasched.schedules.table import NO_SCHEDULE
from metasched.search.bits.allocate import Allocation, found_bits
from metasched.search.bits.channels import with_channels
from metasched.search.bits.known import KnownScores
from metasched.search.bits.problem import BitProblem, Choice, Tried
from metasched.search.bits.resources import bit_problem, rules_of
from metasched.search.bits.rounding import Rounded, check_loss
from metasched.search.bits.table import BIT_SEARCHES
from metasched.search.tuning import mean_score
from metasched.tasks.base import start
from metasched.tracking.console import Console
from metasched.tracking.tracker import Scalar
from metasched.training.loop import harden, score_of, train
from metasched.training.problem import build_problem, ingredients

RESULT, EXPERIMENT = "allocation.json", "allocated.yaml"
_EVERY = 25  # allocations between two lines on the console


def allocate(experiment: Experiment, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Searches bits by layer, and writes ``allocation.json`` and ``allocated.yaml``, the experiment with their rules.

    In the folder of a run that was stopped, scores that it has found are read back.

    Args:
        experiment: ``allocate`` says what is searched, under which budget, and how an allocation is scored.
        folder: where everything is written.
        console: where progress and the result are shown.

    Returns:
        what a program would want to read: paths, bits, cost, scores.

    Raises:
        MetaschedError: settings that do not fit, a budget that nothing fits, a layer that the latency table lacks, or
            another task than in the run that is resumed.
    """
    config, settings = experiment.problem, experiment.allocate
    if experiment.method.name == CEILING:
        raise MetaschedError("method.name", "is float, which has no bits", "name a method that quantizes, such as ste")
    keep_fingerprint(folder, build_problem(config).fingerprint)
    model, recipe, example = ingredients(config)
    problem = bit_problem(model, recipe, example, settings)
    rounds, by_channel = settings.score == "rounded", BIT_SEARCHES[settings.search].by_channel
    found: list[Tried] = []

    counted = "evaluations" in BIT_SEARCHES[settings.search].reads  # the others end where they end
    what, most = f"allocations scored by {settings.search}", settings.evaluations + 1  # with equal bits

    def seen(tried: Tried) -> None:
        found.append(tried)
        if counted:
            console.progress(what, len(found), most)
        elif len(found) % _EVERY == 0:
            console.note(f"{what}: {len(found)}")

    console.note(f"{experiment.name}: {settings.search}, {problem.budget:,.6g} {problem.unit}")
    seed = derive_seed(experiment.seed, "allocate")
    if rounds or by_channel:
        model = float_network(config, derive_seed(experiment.seed, "allocate float"))
    if by_channel:
        problem = with_channels(problem, model, recipe, example, settings)
    scores: dict[str, float] = {}
    if counted:
        console.progress(what, 0, most)
    if rounds:
        score = rounded_score(config, model, problem)
        with KnownScores(score, folder.scores, _about(experiment, problem)) as known:
            result = found_bits(problem, recipe, known, settings, seed, seen)
        scores = accuracies(config, model, score, result)
    else:
        with open_pool(experiment.run) as pool, closing(CachedPool(pool, folder.cells)) as cells:
            result = found_bits(problem, recipe, trained_score(experiment, problem, cells), settings, seed, seen)
    if counted and len(found) < most:  # some were proposed twice, or there are no more
        console.progress(what, len(found), len(found))
    kept = {
        **asdict(settings),
        "measure": "minus the loss of rounded weights" if rounds else "score of trained networks",
        **result.to_dict(),
        "accuracies": scores,
    }
    write_atomic(folder.path / RESULT, (json_text(kept, indent=1) + "\n").encode())
    rules = (*experiment.quantize.rules, *rules_of(recipe, result.bits))
    mixed = replace(experiment, quantize=replace(experiment.quantize, rules=rules))
    write_atomic(folder.path / EXPERIMENT, dump_yaml(to_dict(mixed)).encode())
    _show(result, scores, console)
    paths = {"allocation": str(folder.path / RESULT), "experiment": str(folder.path / EXPERIMENT)}
    cost = {"cost": result.best.cost, "budget": problem.budget, "mean_bits": result.mean_bits}
    return {**paths, "bits": result.bits, **cost, "score": result.best.score, "accuracies": scores}


def _about(experiment: Experiment, problem: BitProblem) -> str:
    """A hash of all that the scores of rounded networks depend on, and of the costs."""
    config = experiment.problem
    sections = [section_dict(getattr(config, name)) for name in ("task", "optimizer", "method", "quantize")]
    where = [str(config.device), config.dtype, config.autocast]
    costs = [problem.bits, problem.cost, problem.fixed]
    return digest([build_problem(config).fingerprint, sections, where, experiment.seed, costs], {})


def float_network(config: ProblemConfig, seed: int) -> nn.Module:
    """The float network that is rounded: with the weights of a pretrained start, or else trained for ``task.steps``."""
    plain = fixed_scales(config)
    problem = build_problem(by_method(plain, CEILING)).with_seed(seed)
    model = ingredients(config).model
    if problem.task.initial() is not None:
        return start(problem.task).to(next(model.parameters())).eval()
    params, buffers = harden(problem, train(problem, {}).state)
    module = copy.deepcopy(model)
    module.load_state_dict({**params, **buffers}, strict=False)
    return module.eval()


def rounded_score(config: ProblemConfig, model: nn.Module, problem: BitProblem) -> Rounded:
    """Scores allocations by the outer loss, on meta-validation, of a float network with rounded weights."""
    _, recipe, example = ingredients(config)
    task = build_problem(config).task
    batch = task.placed(task.outer_batch())

    def loss(module: nn.Module) -> torch.Tensor:
        return task.judge(module, batch)[0]

    check_loss(loss, model)
    return Rounded(model, recipe, example, problem, loss)


def trained_score(experiment: Experiment, problem: BitProblem, pool: Mapper) -> Callable[[Choice], float]:
    """Scores allocations by the hardened score on meta-validation after an inner run, the mean of ``allocate.runs``."""
    config, settings = experiment.problem, experiment.allocate
    recipe = ingredients(config).recipe
    given = experiment.schedule.start
    schedule = named_schedule(config, NO_SCHEDULE if given == "best" else given, "schedule.start")
    seeds = [derive_seed(experiment.seed, "allocate run", run) for run in range(settings.runs)]
    seen: list[float] = []

    def score(choice: Choice) -> float:
        rules: tuple[Rule, ...] = rules_of(recipe, problem.bits_of(choice))
        mixed = config._replace(quantize=replace(config.quantize, rules=(*config.quantize.rules, *rules)))
        return mean_score(mixed, schedule, seeds, experiment.task.steps, pool, seen)

    return score


def accuracies(config: ProblemConfig, trained: nn.Module, score: Rounded, result: Allocation) -> dict[str, float]:
    """Scores on meta-validation: of the float network, with the bits that were found, with equal bits."""
    problem = build_problem(config)
    found = {"float": score_of(problem, trained, "validation")}
    found["allocated"] = score_of(problem, score.module(result.best.choice), "validation")
    if result.uniform is not None:
        found["uniform"] = score_of(problem, score.module(result.uniform.choice), "validation")
    return found


def _show(result: Allocation, scores: dict[str, float], console: Console) -> None:
    p, equal = result.problem, result.uniform
    costs = [p.cost_of(i, b) for i, b in enumerate(result.best.choice)]
    rows: list[tuple[Scalar, ...]] = [
        (layer.name, layer.kind, layer.num_weights, _said(b), f"{cost:,.6g}", f"{cost / p.budget:.1%}")
        for layer, b, cost in zip(p.layers, result.bits.values(), costs, strict=True)
    ]
    rows.append(("(all else)", "", "", "", f"{p.fixed:,.6g}", f"{p.fixed / p.budget:.1%}"))
    console.table(
        f"{result.mean_bits:.2f} bits a weight, {result.best.cost:,.6g} of {p.budget:,.6g} {p.unit}",
        ("layer", "kind", "weights", "bits", p.unit, "of the budget"),
        rows,
    )
    if equal is not None:
        more = f", {next(iter(p.bits_of(equal.choice).values()))} bits in all layers {equal.score:.6g}"
        console.note(f"score {result.best.score:.6g}{more} at {equal.cost:,.6g} {p.unit}")
    if scores:
        console.note("on meta-validation: " + ", ".join(f"{name} {score:.4f}" for name, score in scores.items()))


def _said(bits: int | str) -> str:
    """Bits of a layer, or how many of its channels have how many."""
    if isinstance(bits, int):
        return str(bits)
    return ", ".join(f"{bits.count(b)} x {b}" for b in sorted({*bits}))
