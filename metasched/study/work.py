"""What a study trains: a user's model, training function and score, as one function of schedule and seed."""

from __future__ import annotations

import inspect
import math
import numbers
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.core.randomness import derive_seed
from metasched.methods import build_method
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule
from metasched.study.playing import method_of, network_of, prepared
from metasched.tasks.fingerprint import Seen

FIT = ("model", "player", "seed", "steps")
LEARN, SELECT, COMPARE = 0, 1, 2  # streams of seeds; a seed is equal to its stream modulo 4
SPLITS = {LEARN: "validation", SELECT: "validation", COMPARE: "test"}


def seed_of(seed: int, stream: int, *indices: int) -> int:
    """A seed for a training function, in 0..2^31-1, which NumPy takes too; those of two streams are never equal.

    Args:
        seed: of the study.
        stream: LEARN, SELECT or COMPARE.
        indices: of the run.

    >>> seed_of(0, SELECT, 3) % 4, seed_of(0, COMPARE, 3) % 4
    (1, 2)
    """
    return in_stream(derive_seed(seed, "study", stream, *indices), stream)


def in_stream(seed: int, stream: int) -> int:
    """The seed of a stream that a 63-bit seed gives."""
    return (seed >> 32) & ~3 | stream


@dataclass(frozen=True)
class Work:
    """A training function with what it needs; ``score`` calls it.

    Attributes:
        fit: ``fit(model, player, seed, steps)``; trains the model, with ``player.step()`` after each step of the
            optimizer. Without ``evaluate`` it gives the score.
        evaluate: ``evaluate(model)``, with a parameter ``split`` (``validation`` or ``test``) or ``seed`` if it wants
            them; gives the score, higher is better. It gets the hard network, in eval mode, without gradients.
        make_model: gives the float model; torch's global generator has the run's seed.
        recipe: ``metasched.Recipe``, or the method alone.
        example: a batch, as for ``quantize``.
        steps: T, steps of the optimizer in a run.
    """

    fit: Callable[..., Any]
    evaluate: Callable[..., Any] | None
    make_model: Callable[[], nn.Module]
    recipe: Any
    example: Any
    steps: int

    def __post_init__(self) -> None:
        _takes("fit", self.fit, FIT)
        if self.evaluate is not None:
            check_evaluate(self.evaluate)
        if not callable(self.make_model):
            raise MetaschedError("make_model", "is no function", "give one that makes the float model, such as a class")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise MetaschedError("steps", f"must be at least 1, got {self.steps!r}", "give the steps of one run")
        _ = self.layers  # what is wrong with the model shows now

    @property
    def method(self) -> MethodConfig:
        """The method that is learned for."""
        return method_of(self.recipe)

    @cached_property
    def controls(self) -> tuple[Control, ...]:
        """What its schedules set."""
        return tuple(build_method(self.method).controls)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The quantized layers."""
        with seeded(0):
            return network_of(self._model(), self.recipe, self.example).layers

    def score(self, method: MethodConfig, schedule: Schedule, seed: int, evaluate: Callable[..., Any] | None) -> float:
        """Trains once and gives the score of the hard network; NaN where training diverged.

        Args:
            method: what quantizes; a floor has another one.
            schedule: of this method.
            seed: of the run; see ``seed_of``.
            evaluate: in place of the work's own, if not None.

        Raises:
            MetaschedError: ``fit`` or ``evaluate`` gives no number.
        """
        evaluate = self.evaluate if evaluate is None else evaluate
        with seeded(seed), warnings.catch_warnings():
            model = self._model()
            warnings.filterwarnings("ignore", r"model: |layers: |schedule: ")  # of each of many runs
            module, player = prepared(model, method, self.recipe, self.example, schedule, self.steps, seed)
            module.train()
            given = self.fit(module, player, seed, self.steps)
            if evaluate is None:
                return _number("fit", given, "give the score back, or give the study an evaluate")
            module.eval()
            known = {"split": SPLITS[seed % 4], "seed": seed}
            with torch.no_grad():
                given = evaluate(module, **{name: known[name] for name in _wanted(evaluate)})
            return _number("evaluate", given, "give the score back, a number of which higher is better")

    def identity(self) -> dict[str, str]:
        """Hashes of what a score depends on, by the argument of the study that they are of."""
        found = {}
        for name, value in (
            ("fit", self.fit),
            ("evaluate", self.evaluate),
            ("make_model", self.make_model),
            ("recipe", self.recipe),
            ("model", [(layer.name, layer.kind, layer.num_weights, layer.quantizes) for layer in self.layers]),
        ):
            seen = Seen()
            seen.add(value)
            found[name] = seen.digest()
        return found

    def _model(self) -> nn.Module:
        model = self.make_model()
        if not isinstance(model, nn.Module):
            raise MetaschedError("make_model", f"gives a {type(model).__name__}", "let it give an nn.Module")
        return model


def check_evaluate(evaluate: Any) -> None:
    """Refuses what cannot be called as ``evaluate``.

    Raises:
        MetaschedError: it cannot.
    """
    _takes("evaluate", evaluate, ("model",), tuple(_wanted(evaluate)) if callable(evaluate) else ())


def _takes(name: str, function: Any, positional: tuple[str, ...], keywords: tuple[str, ...] = ()) -> None:
    called = ", ".join((*positional, *(f"{k}={k}" for k in keywords)))
    if not callable(function):
        raise MetaschedError(
            name, f"is a {type(function).__name__}", f"give a function that is called as {name}({called})"
        )
    try:
        inspect.signature(function).bind(*positional, **dict.fromkeys(keywords))
    except TypeError:
        problem = f"takes {inspect.signature(function)}, and is called as {name}({called})"
        raise MetaschedError(name, problem, "give it these parameters") from None
    except ValueError:  # a builtin without a signature
        return


def _wanted(evaluate: Callable[..., Any]) -> list[str]:
    try:
        names = inspect.signature(evaluate).parameters
    except ValueError:
        return []
    return [name for name in ("split", "seed") if name in names]


def _number(name: str, given: Any, fix: str) -> float:
    if isinstance(given, torch.Tensor) and given.numel() == 1:
        given = given.item()
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        what = "nothing" if given is None else f"a {type(given).__name__}"
        raise MetaschedError(name, f"gives {what}, and a score was expected", fix)
    return float(given) if math.isfinite(given) else math.nan


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within: torch, NumPy and Python draw from this seed; after it, as if nothing had been drawn."""
    numpy, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy)
        random.setstate(python)


def describe(method: MethodConfig) -> Mapping[str, Any]:
    """The fields of a method, for keys and files."""
    return {name: getattr(method, name) for name in type(method).__dataclass_fields__}
