"""Settings of an optimizer that contradict each other; those that nothing reads are found by config/ignored.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from metasched.core.errors import MetaschedError
from metasched.training.optimizers import OPTIMIZERS
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import unknown_parameter


def contradictions(config: OptimizerConfig, place: Callable[[str], str]) -> Iterator[MetaschedError]:
    """What is wrong with a well-formed section, one error for each field.

    Args:
        config: the section ``optimizer``.
        place: from a dotted path to what the user wrote there.
    """
    yield from _own_parameters(config, place)
    if config.decay == "one_cycle" and config.warmup:
        problem = "one_cycle has a warm-up of its own"
        yield MetaschedError(place("optimizer.warmup"), problem, "leave it out, and set optimizer.pct_start")
    if config.clip_norm is not None and config.clip_value is not None:
        problem = "cannot be used together with optimizer.clip_norm"
        yield MetaschedError(place("optimizer.clip_value"), problem, "leave one of them out")
    for i, group in enumerate(config.groups):
        if group.weight_decay is not None and "weight_decay" not in OPTIMIZERS[config.name].reads:
            problem = f"has no effect, because {config.name} has no weight decay"
            yield MetaschedError(place(f"optimizer.groups[{i}].weight_decay"), problem, "leave it out")


def _own_parameters(config: OptimizerConfig, place: Callable[[str], str]) -> Iterator[MetaschedError]:
    known = OPTIMIZERS[config.name].parameters
    for name, value in config.parameters.items():
        if name not in known:
            yield unknown_parameter(place("optimizer.parameters"), name, config.name)
        elif not known[name].low <= value <= known[name].high:
            low, high = known[name].low, known[name].high
            problem = f"must be from {low:g} to {high:g}, got {value:g}"
            yield MetaschedError(
                place(f"optimizer.parameters.{name}"), problem, f"the default is {known[name].default:g}"
            )
