"""Drives quantizers of brevitas (extra ``brevitas``): the delay of quantization, and the temperature of rounding."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from metasched.exchange.integrations import Apply, LayerValues, missing
from metasched.exchange.integrations.parts import parts_of


def switch_quant(model: nn.Module, control: str, on: Callable[[float], bool]) -> Apply:
    """Turns quantization of each layer on and off: ``apply(values, step)`` for a callback or a loop of your own.

    It sets ``disable_quant`` of the weight and activation proxies in the module that a layer is named after. A switch
    that is off until step n is brevitas's ``quant_delay_steps=n``; but that one counts forward passes, and its count is
    not in the state dict, so that a resumed run delays again.

    Args:
        model: with modules of ``brevitas.nn``.
        control: the control that decides, such as ``freeze_fraction``.
        on: its value -> whether the layer is quantized, such as ``lambda fraction: fraction >= 0.5``.

    Raises:
        MetaschedError: brevitas is not installed; from the function, a layer without a quantizer.
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


def drive_temperature(model: nn.Module, control: str, temperature: Callable[[float], float]) -> Apply:
    """Sets the temperature of learned rounding in each layer: ``apply(values, step)``.

    Learned rounding adds sigmoid(p / temperature) to the floor of a weight: low temperatures decide between the two
    neighbours.

    Args:
        model: whose weight quantizers round by ``LearnedRoundSigmoid``; without brevitas's JIT, which makes the
            temperature a constant.
        control: the control that decides, such as ``noise_scale``.
        temperature: its value -> temperature, above 0, such as ``lambda scale: max(2 * scale, 0.01)``.

    Raises:
        MetaschedError: brevitas is not installed; from the function, a layer without such rounding.
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
