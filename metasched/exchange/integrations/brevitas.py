"""Drives quantizers of brevitas (extra ``brevitas``): the quantization switch and the temperature of rounding."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from metasched.exchange.integrations import Apply, LayerValues, missing
from metasched.exchange.integrations.parts import parts_of

_FOREVER = 2**31 - 1  # forward passes


def switch_quant(model: nn.Module, control: str, on: Callable[[float], bool]) -> Apply:
    """Returns ``apply(values, step)``, which turns quantization of each layer on or off.

    It sets ``disable_quant`` of the weight and activation proxies in the module with the layer's name. A switch that is
    off until step n resembles brevitas's ``quant_delay_steps=n``, but that one counts forward passes, and the count is
    not in the state dict, so that a resumed run starts the delay again.

    Args:
        model: model with modules of ``brevitas.nn``.
        control: name of the control to read, such as ``freeze_fraction``.
        on: value of the control -> whether the layer is quantized, such as ``lambda fraction: fraction >= 0.5``.

    Raises:
        MetaschedError: brevitas is not installed; from ``apply``: a layer has no quantizer.
    """
    try:
        from brevitas.proxy.quant_proxy import QuantProxyFromInjector
    except ImportError:
        raise missing("brevitas", "brevitas") from None

    def apply(values: LayerValues, step: int) -> None:
        for name, controls in values.items():
            for proxy in parts_of(model, name, QuantProxyFromInjector):
                proxy.disable_quant = not on(controls[control])

    return apply


def drive_delay(model: nn.Module, control: str, on: Callable[[float], bool]) -> Apply:
    """Returns ``apply(values, step)``, which ends the delay of each layer's quantizers when its control says so.

    A quantizer with ``quant_delay_steps`` gives its input as it is while it waits, with scale and bit width, which a
    quantized bias needs. brevitas counts forward passes down, those of evaluation too, and does not save the count.
    Here a layer waits as long as its control says, whatever is counted, and ``apply`` sets it anew after a resume.

    Args:
        model: model whose quantizers have a delay, such as ``weight_quant_delay_steps=1`` of a layer.
        control: name of the control to read, such as ``freeze_fraction``.
        on: value of the control -> whether the layer is quantized, such as ``lambda fraction: fraction >= 0.5``.

    Raises:
        MetaschedError: brevitas is not installed; from ``apply``: a layer has no quantizer with a delay.
    """
    try:
        from brevitas.core.quant.delay import _DelayQuant
    except ImportError:
        raise missing("brevitas", "brevitas") from None

    def apply(values: LayerValues, step: int) -> None:
        for name, controls in values.items():
            for delay in parts_of(model, name, _DelayQuant):
                delay.quant_delay_steps = 0 if on(controls[control]) else _FOREVER

    return apply


def drive_temperature(model: nn.Module, control: str, temperature: Callable[[float], float]) -> Apply:
    """Returns ``apply(values, step)``, which sets the temperature of learned rounding in each layer.

    Learned rounding adds sigmoid(p / temperature) to the floor of a weight; at low temperatures the sum is one of the
    two neighbouring integers.

    Args:
        model: model whose weight quantizers use ``LearnedRoundSigmoid``, without brevitas's JIT, which would make the
            temperature a constant.
        control: name of the control to read, such as ``weight_noise``.
        temperature: value of the control -> temperature > 0, such as ``lambda scale: max(2 * scale, 0.01)``.

    Raises:
        MetaschedError: brevitas is not installed; from ``apply``: a layer has no such rounding.
    """
    try:
        from brevitas.core.function_wrapper.learned_round import LearnedRoundSigmoid
    except ImportError:
        raise missing("brevitas", "brevitas") from None

    def apply(values: LayerValues, step: int) -> None:
        for name, controls in values.items():
            for rounding in parts_of(model, name, LearnedRoundSigmoid):
                rounding.learned_round_temperature = temperature(controls[control])

    return apply
