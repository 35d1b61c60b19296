"""Drives quantizers of torchao (extra ``torchao``): the switch of fake quantization, and the annealing of PARQ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from metasched.exchange.integrations import Apply, LayerValues, missing
from metasched.exchange.integrations.parts import parts_of

if TYPE_CHECKING:
    from torchao.prototype.parq.optim import ProxPARQ


def switch_fake_quant(model: nn.Module, control: str, on: Callable[[float], bool]) -> Apply:
    """Returns ``apply(values, step)``, which turns fake quantization of each layer on or off.

    It sets ``enabled`` of all fake quantizers, of weights and activations, in the module with the layer's name;
    ``enable_linear_fake_quant`` of torchao does this for a whole model.

    Args:
        model: model after ``quantize_(model, QATConfig(..., step="prepare"))``.
        control: name of the control to read, such as ``freeze_fraction``.
        on: value of the control -> whether the layer is quantized, such as ``lambda fraction: fraction >= 0.5``.

    Raises:
        MetaschedError: torchao is not installed; from ``apply``: a layer has no fake quantizer.
    """
    try:
        from torchao.quantization.qat.fake_quantizer import FakeQuantizerBase
    except ImportError:
        raise missing("torchao", "torchao") from None

    def apply(values: LayerValues, step: int) -> None:
        for name, controls in values.items():
            for quantizer in parts_of(model, name, FakeQuantizerBase):
                quantizer.enabled = on(controls[control])  # pyright: ignore[reportArgumentType]

    return apply


def scheduled_parq(inverse_slope: Callable[[int], float]) -> ProxPARQ:
    """The proximal map of PARQ, with an inverse slope from a schedule.

        optimizer = QuantOptimizer(AdamW(groups), UnifQuantizer(), scheduled_parq(inverse_slope))

    In PARQ, the inverse slope falls from 1 (the identity) to 0 (rounding) along a sigmoid with hand-set start, end,
    steepness and center. Here it is ``inverse_slope(step)``, for instance twice ``step_function(player,
    "weight_noise")``. The step is the optimizer's own count, ``num_steps``, which is in its state dict.

    Args:
        inverse_slope: step -> number; at 0 or below weights are rounded, at 1 or above they are unchanged.

    Raises:
        MetaschedError: torchao is not installed.

    Source: facebookresearch/parq and torchao, ``prototype/parq``. The map is torchao's; only the inverse slope differs.
    """
    try:
        from torchao.prototype.parq.optim import ProxPARQ
    except ImportError:
        raise missing("torchao", "torchao") from None

    class ScheduledPARQ(ProxPARQ):
        def __init__(self) -> None:
            super().__init__(anneal_start=0, anneal_end=2, steepness=1.0)

        def apply_(
            self, p: torch.Tensor, q: torch.Tensor | None, Q: torch.Tensor, step_count: int, dim: int | None = None
        ) -> Any:
            wanted = inverse_slope(step_count)
            moment = -1 if wanted >= 1 else 2 if wanted <= 0 else 1  # before, after, or in the middle of [0, 2)
            if moment == 1:
                # the center for which the sigmoid, normalized to fall from 1 to 0, has the wanted value at that moment
                top, bottom = (1 / (1 + math.exp(half)) for half in (-0.5, 0.5))
                self.anneal_center = 0.5 - math.log(1 / (bottom + wanted * (top - bottom)) - 1)
            return super().apply_(p, q, Q, moment, dim)  # pyright: ignore[reportCallIssue]

    return ScheduledPARQ()
