"""The table of methods: a row, a ``MethodSpec``, each. Their parameters are in parameters.py.

This file does not import torch, so that the command line can list methods quickly.
"""

from __future__ import annotations

from metasched.core.lazy import Lazy
from metasched.methods.config import MethodConfig, of_part
from metasched.methods.parameters import (
    AdaRoundConfig,
    ADMMConfig,
    ANAConfig,
    BayesianBitsConfig,
    BlendConfig,
    DPQConfig,
    FloatConfig,
    GXNORConfig,
    INQConfig,
    JointConfig,
    MetropolisConfig,
    OscillationConfig,
    PARQConfig,
    PruningConfig,
    QuantNoiseConfig,
    RatesConfig,
    RoundingConfig,
    STEConfig,
    TemperatureConfig,
    WidthsConfig,
)
from metasched.methods.spec import QUANTIZERS, MethodSpec, find_method

SCALES = ("scale", "activation_scale")
_LEVELS = tuple(f"method.{name}" for name in QUANTIZERS)
ONE_NOISE = {"noise_scale": ("weight_noise", "activation_noise")}  # until weights and activations had one each


def _soft_noise(config: ANAConfig) -> bool:
    return config.forward == "expectation" and config.backward == "noise"


def _smooth_joint(config: JointConfig) -> bool:
    return "ana" in config.parts and _soft_noise(config)


def _learnt_jointly(config: JointConfig) -> tuple[str, ...]:
    """The scales that each part can learn."""
    rows = [find_method(name) for name in config.parts]
    return tuple(field for field in SCALES if all(field in row.learns(config) for row in rows))


def _both(config: MethodConfig) -> tuple[str, ...]:
    return SCALES


def _nothing(config: MethodConfig) -> tuple[str, ...]:
    return ()


def _through_levels(config: BlendConfig) -> tuple[str, ...]:
    return SCALES if config.weight_gradient == "both" else ("activation_scale",)


def _gradients_of_levels(config: BlendConfig) -> str:
    return "set method.weight_gradient to both" if config.weight_gradient == "float" else ""


def _hard_live_weights(config: INQConfig) -> str:
    return "set method.live to hard" if config.live == "float" else ""


def _sparse_by_layer(config: PruningConfig) -> dict[str, str]:
    return {"sparsity": "set method.budget to layer" if config.budget == "global" else ""}


def _sparse_where_pruned(config: ADMMConfig) -> dict[str, str]:
    return {"sparsity": "set method.constraint to both or prune" if config.constraint == "quantize" else ""}


def _jointly_by_layer(config: JointConfig) -> dict[str, str]:
    """What each part has by layer."""
    return {k: v for name in config.parts for k, v in find_method(name).by_layer(of_part(config, name)).items()}


def _without_activations(config: AdaRoundConfig) -> bool:
    return config.activation_levels is None


def _in_float(config: INQConfig) -> bool:
    return config.activation_levels is None and config.live == "float"


ROWS = (
    MethodSpec(
        FloatConfig,
        "no quantization",
        Lazy("metasched.methods.float_network:build"),
        Lazy("metasched.schedules.table:float_network"),
        lambda config: True,
        learns=_nothing,
        part=False,
        ignores=_LEVELS,
    ),
    MethodSpec(
        STEConfig,
        "straight-through estimator: no schedule",
        Lazy("metasched.methods.ste:build"),
        Lazy("metasched.schedules.table:ste"),
        learns=_both,
    ),
    MethodSpec(
        WidthsConfig,
        "straight-through estimator with scheduled surrogate widths",
        Lazy("metasched.methods.widths:build"),
        Lazy("metasched.schedules.widths:widths"),
        learns=_both,
    ),
    MethodSpec(
        RatesConfig,
        "straight-through estimator with learning rates and weight decays by layer",
        Lazy("metasched.methods.rates:build"),
        Lazy("metasched.schedules.rates:rates"),
        learns=_both,
    ),
    MethodSpec(
        ANAConfig,
        "noise annealing",
        Lazy("metasched.methods.ana:build"),
        Lazy("metasched.schedules.published:ana"),
        _soft_noise,
        learns=_both,
        former=ONE_NOISE,
    ),
    MethodSpec(
        BlendConfig,
        "from float to hard by a blend of both",
        Lazy("metasched.methods.blend:build"),
        Lazy("metasched.schedules.blending:blend"),
        learns=_through_levels,
        floor_needs=_gradients_of_levels,
    ),
    MethodSpec(
        TemperatureConfig,
        "from soft to hard by the temperature of a softmax over the levels",
        Lazy("metasched.methods.temperature:build"),
        Lazy("metasched.schedules.tempering:temperature"),
        lambda config: True,
        learns=_both,
    ),
    MethodSpec(
        PARQConfig,
        "from float to hard by a piecewise-affine map that steepens",
        Lazy("metasched.methods.parq:build"),
        Lazy("metasched.schedules.tempering:parq"),
        learns=_both,
    ),
    MethodSpec(
        INQConfig,
        "incremental freezing",
        Lazy("metasched.methods.inq:build"),
        Lazy("metasched.schedules.freezing:inq"),
        _in_float,
        learns=_both,
        floor_needs=_hard_live_weights,
    ),
    MethodSpec(
        OscillationConfig,
        "straight-through estimator that freezes oscillating weights",
        Lazy("metasched.methods.oscillation:build"),
        Lazy("metasched.schedules.freezing:oscillation"),
        learns=_both,
    ),
    MethodSpec(
        PruningConfig,
        "straight-through estimator with a growing share of zero weights",
        Lazy("metasched.methods.pruning:build"),
        Lazy("metasched.schedules.pruning:pruning"),
        learns=_both,
        by_layer=_sparse_by_layer,
    ),
    MethodSpec(
        QuantNoiseConfig,
        "straight-through estimator that quantizes a random share in each step",
        Lazy("metasched.methods.quant_noise:build"),
        Lazy("metasched.schedules.noising:quant_noise"),
        learns=_both,
    ),
    MethodSpec(
        RoundingConfig,
        "straight-through estimator that rounds at random, ever more rarely",
        Lazy("metasched.methods.rounding:build"),
        Lazy("metasched.schedules.rounding:rounding"),
        learns=_both,
    ),
    MethodSpec(
        ADMMConfig,
        "float weights that a growing penalty pulls to sparse or quantized ones",
        Lazy("metasched.methods.admm:build"),
        Lazy("metasched.schedules.admm:admm"),
        by_layer=_sparse_where_pruned,
    ),
    MethodSpec(
        JointConfig,
        "several methods at once; by default noise annealing and freezing",
        Lazy("metasched.methods.joint:build"),
        Lazy("metasched.schedules.table:joint"),
        _smooth_joint,
        learns=_learnt_jointly,
        floor_needs=_gradients_of_levels,
        part=False,
        parts=lambda config: config.parts,
        by_layer=_jointly_by_layer,
        former=ONE_NOISE,
    ),
    MethodSpec(
        GXNORConfig,
        "discrete state transition, without float weights",
        Lazy("metasched.methods.gxnor:build"),
        Lazy("metasched.schedules.cooling:gxnor"),
        activation_parameters=("noise", "half_width"),
        part=False,
    ),
    MethodSpec(
        MetropolisConfig,
        "Metropolis transitions, without float weights",
        Lazy("metasched.methods.batch_metropolis:build"),
        Lazy("metasched.schedules.cooling:metropolis"),
        activation_parameters=("noise", "half_width"),
        part=False,
    ),
    MethodSpec(
        DPQConfig,
        "product quantization of embeddings, trained by a softmax that is cooled",
        Lazy("metasched.methods.dpq:build"),
        Lazy("metasched.schedules.dpq:dpq"),
        lambda config: config.selection == "soft",
        learns=_nothing,
        part=False,
        ignores=(*_LEVELS, "quantize.first", "quantize.last"),
    ),
    MethodSpec(
        BayesianBitsConfig,
        "gates that choose 2 to 16 bits for each weight tensor and prune its channels",
        Lazy("metasched.methods.bayesian_bits:build"),
        Lazy("metasched.schedules.bayesian_bits:bayesian_bits"),
        part=False,
        ignores=("method.levels", "method.scale", "method.granularity"),
    ),
    MethodSpec(
        AdaRoundConfig,
        "trained rounding of weights that stand still",
        Lazy("metasched.methods.adaround:build"),
        Lazy("metasched.schedules.adaround:adaround"),
        _without_activations,
        part=False,
    ),
)
