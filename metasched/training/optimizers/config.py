"""The section ``optimizer`` of an experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Boolean, Float, NonNegative, RowOf, Word
from metasched.training.optimizers.decays import DECAYS
from metasched.training.optimizers.table import OPTIMIZERS

RATE_FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0)  # on lr, where it is tuned; the nearest first


class Values(dict[str, float]):
    """Numbers by name; hashable, because configurations are keys of caches. Not to be changed."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(frozenset(self.items()))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GroupConfig:
    """A rule for some of the trained parameters; the first rule that matches a parameter decides."""

    match: Word
    """norm, bias, scale (learned by the method); the class of the module, as Linear; or a glob, as conv1.*"""
    lr_factor: NonNegative = 1.0
    """factor on the learning rate"""
    weight_decay: NonNegative | None = None
    """in place of optimizer.weight_decay (default: that)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """The inner optimizer, as torch.optim defines it."""

    name: Annotated[Word, RowOf(OPTIMIZERS)] = "adam"
    """update rule"""
    lr: Annotated[Float, Field(gt=0)] = 1e-2
    """step size at the start, after the warm-up; for one_cycle the largest"""
    warmup: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """share of the steps in which the learning rate rises linearly to lr; the decay runs over the others"""
    decay: Annotated[Word, RowOf(DECAYS)] = "constant"
    """factor on lr over progress u, after the warm-up"""
    step_every: Annotated[Float, Field(gt=0, le=1)] = 1 / 3
    """decay step only: after each such share of the steps, rounded to whole steps, comes the next factor"""
    step_gamma: Annotated[Float, Field(gt=0, le=1)] = 0.1
    """decay step only: the factor"""
    pct_start: Annotated[Float, Field(gt=0, lt=1)] = 0.3
    """decay one_cycle only: share of the steps in which the learning rate rises"""
    div_factor: Annotated[Float, Field(ge=1)] = 25.0
    """decay one_cycle only: lr over the first learning rate"""
    final_div_factor: Annotated[Float, Field(ge=1)] = 1e4
    """decay one_cycle only: the first learning rate over the last"""
    clip_norm: Annotated[Float, Field(gt=0)] | None = None
    """largest norm of all gradients together, as clip_grad_norm_ (default: no clipping)"""
    clip_value: Annotated[Float, Field(gt=0)] | None = None
    """largest size of an element of the gradients, as clip_grad_value_ (default: no clipping)"""
    groups: Annotated[tuple[GroupConfig, ...], Field(max_length=256)] = ()
    """rules with an own learning rate or weight decay for some parameters; first match wins"""
    nesterov: Boolean = False
    """SGD only: Nesterov's momentum"""
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """SGD only"""
    betas: tuple[Annotated[Float, Field(ge=0, lt=1)], Annotated[Float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Adam and AdamW only"""
    eps: NonNegative = 1e-8
    """Adam and AdamW only"""
    weight_decay: NonNegative = 0.0
    """added to the gradient; for AdamW the share of the weights, times lr, that a step takes away"""
    parameters: Annotated[dict[Word, Float], Field(max_length=64), AfterValidator(Values)] = Values()
    """what an optimizer from outside this package reads besides, by name"""
