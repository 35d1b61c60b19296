"""The table of inner optimizers: one row, an ``OptimizerSpec``, per update rule. It does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from metasched.core.lazy import Lazy, origin
from metasched.core.rows import check_row

if TYPE_CHECKING:
    from metasched.training.optimizers.base import Optimizer


class Parameter(NamedTuple):
    """A hyper-parameter that one optimizer has for itself: ``optimizer.parameters.<name>``.

    Attributes:
        default: its value when left out.
        low, high: the range, ends included.
    """

    default: float
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class OptimizerSpec:
    """One row of the table of inner optimizers.

    Attributes:
        name: ``optimizer.name``.
        summary: description in a few words.
        rule: its class. Its ``hyperparameters`` are found in OptimizerConfig (``lr``, ``weight_decay``, ``momentum``,
            ``eps``, and ``beta1`` and ``beta2`` in ``betas``) or in ``parameters``.
        options: fields of OptimizerConfig that are given to the constructor, by name.
        parameters: the hyper-parameters that OptimizerConfig has no field for.
    """

    name: str
    summary: str
    rule: Callable[..., Optimizer]
    options: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where its class is defined."""
        return origin(self.rule)

    @property
    def reads(self) -> frozenset[str]:
        """The fields of OptimizerConfig that this optimizer reads, ``parameters`` aside.

        >>> from metasched.training.optimizers import OPTIMIZERS
        >>> sorted(OPTIMIZERS["adam"].reads)
        ['betas', 'eps', 'lr', 'weight_decay']
        """
        own = [name for name in self.rule().hyperparameters if name not in self.parameters]
        return frozenset(["betas" if name in ("beta1", "beta2") else name for name in own] + [*self.options])


OPTIMIZERS: dict[str, OptimizerSpec] = {}


def register_optimizer(spec: OptimizerSpec) -> OptimizerSpec:
    """Add an optimizer to the table of this process; ``optimizer.name`` can then be its name.

    Call it at the top level of the rule's module: worker processes import the module and then know the rule too.

    Raises:
        MetaschedError: an invalid name, or a name that is in use.
    """
    check_row(OPTIMIZERS, "optimizer.name", spec)
    OPTIMIZERS[spec.name] = spec
    return spec


for _row in (
    OptimizerSpec("sgd", "torch.optim.SGD", Lazy("metasched.training.optimizers.sgd:SGD"), ("nesterov",)),
    OptimizerSpec("adam", "torch.optim.Adam", Lazy("metasched.training.optimizers.adam:Adam")),
    OptimizerSpec("adamw", "torch.optim.AdamW", Lazy("metasched.training.optimizers.adamw:AdamW")),
):
    register_optimizer(_row)
