"""The tables of what can be quantized: types of layers with their weights, and activation functions.

To add a type, add its row. Types of other libraries are named by their class, so that those need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from metasched.core.layer import Kind


@dataclass(frozen=True)
class WeightKind:
    """A type of layer.

    Attributes:
        types: classes, or names of classes of other libraries; subclasses too.
        kind: what schedules know it as.
        weights: names of its weights; those that are None are left out.
        groups: the layer -> 0 where the weight is [C_out, C_in / G, ...]; G where it is [C_in, C_out / G, ...].
        default: whether it is quantized without a rule.
        sums: whether each output sums over inputs; a row of a table of embeddings is just one.
    """

    types: tuple[type[nn.Module] | str, ...]
    kind: Kind
    weights: tuple[str, ...] = ("weight",)
    groups: Callable[[nn.Module], int] = lambda layer: 0
    default: bool = True
    sums: bool = True


def _groups(layer: nn.Module) -> int:
    return layer.groups  # pyright: ignore[reportReturnType]


def _one(layer: nn.Module) -> int:
    return 1


WEIGHT_KINDS = (
    WeightKind((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
    WeightKind((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "conv", groups=_groups),
    WeightKind((nn.Linear,), "linear"),
    WeightKind(("Conv1D",), "linear", groups=_one),  # Hugging Face: a linear layer whose weight is [in, out]
    WeightKind(
        (nn.MultiheadAttention,), "linear", ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    ),
    WeightKind((nn.Embedding, nn.EmbeddingBag), "linear", default=False, sums=False),
)


@dataclass(frozen=True)
class ActivationKind:
    """An activation function.

    ``replaced`` ones only cut off: a quantizer, whose levels end, may stand for them. All others are kept, and their
    outputs are quantized. A quantizer without negative levels is exactly one after a ReLU; one with negative levels
    stands for a ReLU as ANA publishes it, where the network is trained anew, and follows it where weights are kept.

    Attributes:
        name: class in torch.nn, by which rules name it.
        functions: names of functions and methods of tensors; those in place have ``_`` at the end.
        types: other classes, by name.
        replaced: whether a quantizer may stand for it.
        signed: whether it puts out negative numbers; then it stays in float where there are no negative levels.
        gate: whether its outputs lie in [0, 1], so that a product with another tensor makes it a gate.
        default: whether it is quantized without a rule.
    """

    name: str
    functions: tuple[str, ...]
    types: tuple[str, ...] = ()
    replaced: bool = False
    signed: bool = False
    gate: bool = False
    default: bool = True


ACTIVATION_KINDS = (
    ActivationKind("ReLU", ("relu",), replaced=True),
    ActivationKind("ReLU6", ("relu6",), replaced=True),
    ActivationKind("Hardtanh", ("hardtanh",), replaced=True, signed=True),
    ActivationKind("LeakyReLU", ("leaky_relu",), signed=True),
    ActivationKind("PReLU", ("prelu",), signed=True),
    ActivationKind("ELU", ("elu",), signed=True),
    ActivationKind("SELU", ("selu",), signed=True),
    ActivationKind("CELU", ("celu",), signed=True),
    ActivationKind(
        "GELU",
        ("gelu",),
        (
            *("GELUActivation", "NewGELUActivation", "FastGELUActivation", "QuickGELUActivation", "GELUTanh"),
            *("ClippedGELUActivation", "AccurateGELUActivation", "PytorchGELUTanh", "QuickGELU"),
        ),
        signed=True,
    ),
    ActivationKind("SiLU", ("silu",), ("SiLUActivation", "Swish"), signed=True),
    ActivationKind("Hardswish", ("hardswish",), ("HardSwish",), signed=True),
    ActivationKind("Mish", ("mish",), ("MishActivation",), signed=True),
    ActivationKind("Tanh", ("tanh",), signed=True),
    ActivationKind("Softplus", ("softplus",)),
    ActivationKind("Sigmoid", ("sigmoid",), gate=True),
    ActivationKind("Hardsigmoid", ("hardsigmoid",), ("HardSigmoid",), gate=True),
    ActivationKind("Softmax", ("softmax",), default=False),
)
_BY_TYPE = {name: kind for kind in ACTIVATION_KINDS for name in (kind.name, *kind.types)}
BY_FUNCTION = {f"{name}{end}": kind for kind in ACTIVATION_KINDS for name in kind.functions for end in ("", "_")}


def weight_kind(module: nn.Module) -> WeightKind | None:
    """The row of a layer; None if it is none that can be quantized."""
    for row in WEIGHT_KINDS:
        for one in row.types:
            if isinstance(module, one) if isinstance(one, type) else _is_called(module, one):
                return row
    return None


def _is_called(module: nn.Module, name: str) -> bool:
    own = module._parameters.get("weight")
    return type(module).__name__ == name and own is not None and own.dim() == 2 and hasattr(module, "nf")


def weights_of(module: nn.Module) -> list[str]:
    """Names of the weights of a layer; of several those that are not None."""
    row = weight_kind(module)
    if row is None:
        return []
    has = [name for name in row.weights if module._parameters.get(name) is not None]
    return list(row.weights) if len(row.weights) == 1 else has


def activation_kind(module: nn.Module) -> ActivationKind | None:
    """The row of an activation module; None if it is none."""
    return next((kind for c in type(module).__mro__ if (kind := _BY_TYPE.get(c.__name__)) is not None), None)
