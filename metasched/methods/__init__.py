"""The table of methods: to add one, write its file, add its row here and its row in tests/methods."""

from __future__ import annotations

from collections.abc import Callable

from metasched.config.schema import MethodConfig
from metasched.methods.ana import ANA
from metasched.methods.base import Control, Method
from metasched.methods.batch_metropolis import BatchMetropolis
from metasched.methods.discrete import check_even
from metasched.methods.float_network import FloatNetwork
from metasched.methods.gxnor import GXNOR
from metasched.methods.inq import INQ
from metasched.methods.joint import Joint
from metasched.methods.metropolis import Metropolis
from metasched.methods.ste import STE
from metasched.methods.tensors import LayerQuantizer
from metasched.quantizers.levels import level_set


def _ana(config: MethodConfig, quantizer: LayerQuantizer) -> ANA:
    return ANA(quantizer, config.noise, config.forward, config.backward)


def _inq(config: MethodConfig, quantizer: LayerQuantizer) -> INQ:
    return INQ(quantizer, config.partition)


def _gxnor(config: MethodConfig, quantizer: LayerQuantizer) -> GXNOR:
    check_even(quantizer.levels, "method.levels")
    return GXNOR(quantizer, config.noise, config.half_width, config.steepness)


def _metropolis(config: MethodConfig, quantizer: LayerQuantizer) -> Metropolis:
    check_even(quantizer.levels, "method.levels")
    settings = (
        quantizer,
        config.noise,
        config.half_width,
        config.steepness,
        config.uphill,
        config.cooling == "adaptive",
    )
    return BatchMetropolis(*settings, config.blocks) if config.energy == "batch" else Metropolis(*settings)


METHODS: dict[str, Callable[[MethodConfig, LayerQuantizer], Method]] = {
    "float": lambda config, quantizer: FloatNetwork(),
    "ste": lambda config, quantizer: STE(quantizer),
    "ana": _ana,
    "inq": _inq,
    "joint": lambda config, quantizer: Joint(_ana(config, quantizer), _inq(config, quantizer)),
    "gxnor": _gxnor,
    "metropolis": _metropolis,
}


def build_method(config: MethodConfig) -> Method:
    """The method that a configuration describes.

    Raises:
        MetaschedError: a level set that does not exist, or that does not suit the method.
    """
    activations = config.activation_levels
    quantizer = LayerQuantizer(
        level_set(config.levels, "method.levels"),
        None if activations is None else level_set(activations, "method.activation_levels"),
        config.scale,
        config.granularity,
        config.activation_scale,
    )
    return METHODS[config.name](config, quantizer)


__all__ = ["METHODS", "Control", "Method", "build_method"]
