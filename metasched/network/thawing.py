"""What is frozen stays frozen: fractions of frozen weights that do not fall, whatever the schedule says."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from metasched.core.errors import MetaschedWarning
from metasched.core.layer import Layer

NAME = "freeze_fraction"


def held(
    values: dict[str, list[float]], before: Sequence[float], layers: Sequence[Layer], *, say: bool
) -> tuple[dict[str, list[float]], bool]:
    """The controls of a step, with fractions that are no smaller than before; and whether one would have fallen.

    Args:
        values: control -> the value of each of the L layers; one is the fraction.
        before: L fractions that are frozen; empty: nothing is.
        layers: the L layers.
        say: warn of the first layer whose fraction would fall by more than one weight.
    """
    if not before:
        return values, False
    fractions, fell = values[NAME], False
    for layer, was, now in zip(layers, before, fractions, strict=True):
        if now < was - 1 / layer.num_weights and not fell:
            fell = True
            if say:
                what = f"freeze_fraction of {layer.name} falls from {was:.3g} to {now:.3g}: frozen weights stay frozen"
                warnings.warn(f"{what}; a run that goes on needs its own total_steps", MetaschedWarning, stacklevel=4)
    return {**values, NAME: [max(pair) for pair in zip(before, fractions, strict=True)]}, fell


def frozen_share(mask: torch.Tensor) -> float:
    """The share of a layer's weights that is frozen, from their mask [C_out, ...]."""
    return float((mask > 0).double().mean())
