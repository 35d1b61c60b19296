"""Drives quantizers of torchao (extra ``torchao``): the switch of fake quantization, and the annealing of PARQ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from metasched.core.errors import MetaschedError
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
    return _parq(lambda p, step: inverse_slope(step))


def scheduled_parq_by_layer(model: nn.Module, inverse_slopes: Callable[[int], Mapping[str, float]]) -> ProxPARQ:
    """``scheduled_parq`` with an inverse slope for each layer.

        slopes = lambda step: {name: 2 * values["weight_noise"] for name, values in player.at(step).items()}
        optimizer = QuantOptimizer(AdamW(groups), UnifQuantizer(), scheduled_parq_by_layer(model, slopes))

    PARQ's annealed weight decay has one value for a group of parameters, which is that of the group's last layer: give
    each layer a group where ``anneal_wd_frac`` is used.

    Args:
        model: what is trained; a parameter belongs to the layer whose name its own name begins with.
        inverse_slopes: step -> {layer: number}, as for ``scheduled_parq``.

    Raises:
        MetaschedError: torchao is not installed; in a step of the optimizer: a parameter of none of the layers.
    """

    def slope(p: torch.Tensor, step: int) -> float:
        name = next((n for n, own in model.named_parameters() if _same_memory(own, p)), None)
        slopes = inverse_slopes(step)
        layer = next((layer for layer in slopes if name is not None and name.startswith(f"{layer}.")), None)
        if layer is None:
            problem = "is quantized by the optimizer, and the schedule has no value for it"
            fix = f"leave it out, or name its layer: {', '.join(slopes)}"
            raise MetaschedError(f"model.{name or '?'}", problem, fix)
        return slopes[layer]

    return _parq(slope)


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _parq(inverse_slope: Callable[[torch.Tensor, int], float]) -> ProxPARQ:
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
            wanted = inverse_slope(p, step_count)
            moment = -1 if wanted >= 1 else 2 if wanted <= 0 else 1  # before, after, or in the middle of [0, 2)
            if moment == 1:
                # the center for which the sigmoid, normalized to fall from 1 to 0, has the wanted value at that moment
                top, bottom = (1 / (1 + math.exp(half)) for half in (-0.5, 0.5))
                self.anneal_center = 0.5 - math.log(1 / (bottom + wanted * (top - bottom)) - 1)
            return super().apply_(p, q, Q, moment, dim)  # pyright: ignore[reportCallIssue]

    return ScheduledPARQ()
