"""From the section ``optimizer`` of an experiment to an update rule and its hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.rows import find_row
from metasched.training.optimizers.base import Optimizer
from metasched.training.optimizers.clipping import CLIPPINGS, Clipped
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.decays import lr_factor
from metasched.training.optimizers.groups import Grouped, resolve
from metasched.training.optimizers.table import OPTIMIZERS


class Recipe(NamedTuple):
    """An optimizer and the values of its hyper-parameters, before any schedule changes them."""

    optimizer: Optimizer
    hyper: dict[str, float]


def recipe(config: OptimizerConfig, module: nn.Module | None = None, names: Iterable[str] | None = None) -> Recipe:
    """What a config asks for; ``hyper["lr"]`` is the rate before warm-up and decay.

    >>> recipe(OptimizerConfig(name="sgd", lr=0.1)).hyper
    {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.0}

    Args:
        config: gradients are clipped first, over all parameters; then each group is stepped.
        module: the network; needed for ``config.groups`` only.
        names: all that is trained, if it is more than the module's parameters.

    Raises:
        MetaschedError: a name that is not in OPTIMIZERS, a parameter that the optimizer does not have, or a group
            without a member.
    """
    spec = find_row(OPTIMIZERS, "optimizer.name", config.name)
    if other := set(config.parameters) - set(spec.parameters):
        raise unknown_parameter("optimizer.parameters", min(other), config.name)
    optimizer = spec.rule(**{option: getattr(config, option) for option in spec.options})
    if config.groups:
        assert module is not None, "groups are found by the module's parameters"
        trained = [name for name, _ in module.named_parameters()] if names is None else names
        optimizer = Grouped(optimizer, resolve(config.groups, trained, module))
    for clipping in CLIPPINGS:
        if getattr(config, clipping) is not None:
            optimizer = Clipped(optimizer, clipping)
    own = {name: config.parameters.get(name, p.default) for name, p in spec.parameters.items()}
    beta1, beta2 = config.betas
    values = {**vars(config), "beta1": beta1, "beta2": beta2, **own}
    return Recipe(optimizer, {name: values[name] for name in optimizer.hyperparameters})


def learning_rates(config: OptimizerConfig, steps: int) -> tuple[float, ...]:
    """The learning rate at each of T steps: lr times ``decays.lr_factor``.

    >>> learning_rates(OptimizerConfig(lr=0.1, decay="linear"), 3)
    (0.1, 0.05, 0.0)
    """
    return tuple(config.lr * lr_factor(config, step, steps) for step in range(steps))


def unknown_parameter(path: str, parameter: str, name: str) -> MetaschedError:
    """The error for a parameter that the optimizer of this name does not have."""
    if known := OPTIMIZERS[name].parameters:
        return unknown_name(path, parameter, known)
    return MetaschedError(path, f"{name} has no parameter {parameter!r}", "leave it out; it has none of its own")
