"""The methods of the package: the rows of the table of methods."""

from __future__ import annotations

from metasched.core.lazy import Lazy
from metasched.methods.parameters import (
    ANAConfig,
    FloatConfig,
    GXNORConfig,
    INQConfig,
    JointConfig,
    MetropolisConfig,
    STEConfig,
)
from metasched.methods.spec import MethodSpec


def _soft_noise(config: ANAConfig) -> bool:
    return config.forward == "expectation" and config.backward == "noise"


def _float_activations(config: INQConfig) -> bool:
    return config.activation_levels is None


ROWS = (
    MethodSpec(
        FloatConfig,
        "no quantization",
        Lazy("metasched.methods.float_network:build"),
        Lazy("metasched.schedules.table:float_network"),
        lambda config: True,
    ),
    MethodSpec(
        STEConfig,
        "straight-through estimator: no schedule",
        Lazy("metasched.methods.ste:build"),
        Lazy("metasched.schedules.table:ste"),
    ),
    MethodSpec(
        ANAConfig,
        "noise annealing",
        Lazy("metasched.methods.ana:build"),
        Lazy("metasched.schedules.published:ana"),
        _soft_noise,
    ),
    MethodSpec(
        INQConfig,
        "incremental freezing",
        Lazy("metasched.methods.inq:build"),
        Lazy("metasched.schedules.published:inq"),
        _float_activations,
    ),
    MethodSpec(
        JointConfig,
        "noise annealing and freezing at once",
        Lazy("metasched.methods.joint:build"),
        Lazy("metasched.schedules.table:joint"),
        _soft_noise,
    ),
    MethodSpec(
        GXNORConfig,
        "discrete state transition, without float weights",
        Lazy("metasched.methods.gxnor:build"),
        Lazy("metasched.schedules.cooling:gxnor"),
        activation_parameters=("noise", "half_width"),
    ),
    MethodSpec(
        MetropolisConfig,
        "Metropolis transitions, without float weights",
        Lazy("metasched.methods.batch_metropolis:build"),
        Lazy("metasched.schedules.cooling:metropolis"),
        activation_parameters=("noise", "half_width"),
    ),
)
