"""Compares the integer network, image by image, with PyTorch and with the runtimes of exported models.

PyTorch computes in float64 with the deployed weights, on the same input codes as the integer network, and with the same
slack for sums at a threshold (see thresholds.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from metasched.deploy import simulator
from metasched.deploy.stages import Array, IntegerNetwork, Thresholds

Runtime = Callable[[npt.NDArray[np.floating]], Sequence[Array]]
Twin = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


@dataclass(frozen=True)
class Agreement:
    """Result of a comparison.

    Attributes:
        images: number of images.
        integers: number of compared integers.
        other_integers: number of integers that differ.
        other_classes: number of images whose predicted class differs.
    """

    images: int = 0
    integers: int = 0
    other_integers: int = 0
    other_classes: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing differs."""
        return self.other_integers == self.other_classes == 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def agreement(twin: Twin, integer: IntegerNetwork, batches: Iterable[Array]) -> Agreement:
    """Compares the twin with the simulator on batches of codes, int64 [N, C, H, W]."""
    total = Agreement()
    for codes in batches:
        outputs, seen = twin(torch.from_numpy(codes))
        ours = list(simulator.outputs(integer, codes))
        levels = [(s, y) for s, y in zip(integer.stages, ours, strict=True) if isinstance(s, Thresholds)]
        differing = sum(
            int((y != np.rint(theirs.cpu().numpy() / float(stage.step))).sum())
            for (stage, y), theirs in zip(levels, seen, strict=True)
        )
        classes = int((ours[-1].argmax(1) != outputs.argmax(1).cpu().numpy()).sum())
        total += Agreement(len(codes), sum(y.size for _, y in levels), differing, classes)
    return total


def runtime_agreement(run: Runtime, integer: IntegerNetwork, batches: Iterable[Array]) -> Agreement:
    """Compares a runtime with the simulator on batches of codes.

    Args:
        run: real images [N, C, H, W] -> logits [N, K] and, optionally, the output of each stage.
        integer: the integer network of the simulator.
        batches: batches of codes, int64 [N, C, H, W].
    """
    total = Agreement()
    for codes in batches:
        ours = list(simulator.outputs(integer, codes))
        logits, *seen = run(codes * float(integer.step))
        pairs = [(ours[-1], logits), *(zip(ours, seen, strict=True) if seen else ())]
        differing = sum(int((y != theirs).sum()) for y, theirs in pairs)
        classes = int((ours[-1].argmax(1) != logits.argmax(1)).sum())
        total += Agreement(len(codes), sum(y.size for y, _ in pairs), differing, classes)
    return total
