"""``allocate``: bits of each layer's weights under a budget, as a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.methods.config import MethodConfig
from metasched.network.flow import Example
from metasched.network.recipe import Recipe
from metasched.search.bits.channels import with_channels
from metasched.search.bits.problem import BitProblem, Choice, Judge, Tried
from metasched.search.bits.resources import bit_problem, rules_of
from metasched.search.bits.rounding import Loss, Rounded, check_loss
from metasched.search.bits.table import BIT_SEARCHES
from metasched.search.config import AllocateConfig


@dataclass(frozen=True)
class Allocation:
    """What a search for bits has found.

    Attributes:
        recipe: the recipe with a rule for each layer; ``prepare``, ``learn`` and ``compare`` take it.
        problem: layers, choices, costs and budget.
        best: the allocation, its score and its cost.
        uniform: the same for equal bits in all layers, as many as fit; None where no equal bits do.
        tried: everything that was scored, in order, also what exceeds the budget.
    """

    recipe: Recipe
    problem: BitProblem
    best: Tried
    uniform: Tried | None
    tried: tuple[Tried, ...]

    @property
    def bits(self) -> dict[str, int | str]:
        """Layer to its number of bits; of bits by channel one digit for each."""
        return self.problem.bits_of(self.best.choice)

    @property
    def mean_bits(self) -> float:
        """Bits of a weight, on average over the weights that get bits."""
        sizes = [layer.num_weights for layer in self.problem.layers]
        means = (b if isinstance(b, int) else sum(map(int, b)) / len(b) for b in self.bits.values())
        return sum(n * b for n, b in zip(sizes, means, strict=True)) / sum(sizes)

    def to_dict(self) -> dict[str, Any]:
        """The result in the types of JSON."""
        p = self.problem

        def entry(tried: Tried) -> dict[str, Any]:
            return {"bits": list(p.bits_of(tried.choice).values()), "score": tried.score, "cost": tried.cost}

        return {
            "unit": p.unit,
            "budget": p.budget,
            "fixed": p.fixed,
            "layers": [layer.name for layer in p.layers],
            **entry(self.best),
            "mean_bits": self.mean_bits,
            "uniform": None if self.uniform is None else entry(self.uniform),
            "tried": [entry(tried) for tried in self.tried],
        }


def allocate(
    model: nn.Module,
    recipe: Recipe | MethodConfig | str,
    example: Example,
    loss: Loss,
    *,
    seed: int = 0,
    **settings: Any,
) -> Allocation:
    """Bits for the weights of each layer of a trained network, with the least loss that a budget allows.

    An allocation is scored by the loss of the network with its weights rounded to nearest; nothing is trained. The
    recipe that is found trains with these bits in ``prepare``, ``learn`` and ``compare``.

    >>> import torch
    >>> torch.manual_seed(0) and None
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> x, recipe = torch.randn(64, 8), Recipe("ste", weights="balanced4", activations=None, scale="max", last=True)
    >>> def loss(module): return (module(x) - model(x)).square().mean()
    >>> found = allocate(model, recipe, x, loss, budget="3 bits", bits=(2, 3, 4))
    >>> sorted(found.bits) == ["0", "2", "4"] and found.best.cost <= found.problem.budget
    True

    Args:
        model: any module that ``quantize`` takes, trained in float; it stays as it is.
        recipe: method, scales, family of levels, and which layers; a method, or its name, is a recipe without rules.
        example: a batch, as for ``quantize``.
        loss: of a module like the model, in eval mode, 0-d; on data that the network was not trained on.
        seed: of the search.
        settings: of ``AllocateConfig``: ``search``, ``bits``, ``resource``, ``budget``, ``latency``, ``evaluations``,
            ``exploration_decay``.

    Raises:
        MetaschedError: settings, model or recipe that do not fit, a budget that nothing fits, a layer that the latency
            table lacks, or a loss that is no number.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
    config = _config(settings)
    check_loss(loss, model)
    problem = bit_problem(model, recipe, example, config)
    if BIT_SEARCHES[config.search].by_channel:
        problem = with_channels(problem, model, recipe, example, config)
    return found_bits(problem, recipe, Rounded(model, recipe, example, problem, loss), config, seed)


def found_bits(
    problem: BitProblem,
    recipe: Recipe,
    score: Callable[[Choice], float],
    settings: AllocateConfig,
    seed: int,
    seen: Callable[[Tried], None] | None = None,
) -> Allocation:
    """The result of the search that the settings name.

    Args:
        problem: layers, choices, costs and budget.
        recipe: gets the rules.
        score: of an allocation, higher is better.
        settings: name the search.
        seed: of the search.
        seen: called with each allocation when it has a score.

    Raises:
        MetaschedError: as the search.
    """
    spec, judge = BIT_SEARCHES[settings.search], Judge(problem, score, seen)
    if spec.check is not None:
        spec.check(problem, settings)
    uniform = uniform_choice(problem)
    if uniform is not None:
        judge(uniform)  # what a search has to beat; the result is not worse
    spec.run(problem, judge, settings, seed)
    best = judge.best
    mixed = replace(recipe, rules=(*recipe.rules, *rules_of(recipe, problem.bits_of(best.choice))))
    equal = None if uniform is None else Tried(uniform, judge(uniform), problem.total(uniform))
    return Allocation(mixed, problem, best, equal, tuple(judge.tried))


def uniform_choice(problem: BitProblem) -> Choice | None:
    """The most equal bits in all layers that fit."""
    num_layers = len(problem.layers)
    choices = ((b,) * num_layers for b in range(len(problem.bits) - 1, -1, -1))
    return next((choice for choice in choices if problem.fits(choice)), None)


def _config(settings: Mapping[str, Any]) -> AllocateConfig:
    for name in ("score", "runs"):
        if name in settings:
            fix = "leave it out, or use `metasched allocate`"
            raise MetaschedError(f"allocate: {name}", "is for experiments, which say how to train", fix)
    try:
        return AllocateConfig(**settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][:1])
        raise MetaschedError(f"allocate: {place}", first["msg"], "") from None
