"""The procedure ``product``: the layers that a recipe quantizes as codes; see product.py.

The recipe says which layers, and what becomes of activations, which are in float while centroids are trained and are
quantized afterwards. Its levels, scales and granularity of weights play no part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from metasched.calibration import product as whole
from metasched.calibration.codebook import VALUE_BITS
from metasched.calibration.table import ProductOptions
from metasched.calibration.unit import Rounded
from metasched.calibration.walk import Walk
from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods.base import Coding, Control, Method, State, Values
from metasched.methods.tensors import LayerQuantizer


@dataclass(frozen=True)
class Coded(Method):
    """The deployed form of a layer: each block of its weight is a centroid.

    Its state has ``centroids`` [K, d] and ``codes``, int64, one for each block of d numbers.

    Attributes:
        quantizer: levels of the activation.
    """

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        """None."""
        return ()

    @property
    def coding(self) -> Coding:
        """Codes of blocks."""
        return "codes"

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """The centroids of its blocks, with the shape of w [C_out, ...]."""
        return self.harden(w, state, 0.5)

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """As deployed: x [N, ...] on its levels."""
        return self.quantizer.harden_activation(x, state, 0.5)

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The centroids of its blocks, with the shape of w [C_out, ...]."""
        return state["centroids"][state["codes"]].reshape(w.shape)

    def storage(self, w: torch.Tensor, state: State) -> dict[str, tuple[int, int]]:
        """A code of log2(K) bits for each block, and the numbers of the centroids in 16 bits."""
        bits = (len(state["centroids"]) - 1).bit_length()
        return {"codes": (state["codes"].numel(), bits), "centroids": (state["centroids"].numel(), VALUE_BITS)}


def product(walk: Walk, options: ProductOptions, tick: Callable[[float], None]) -> list[Rounded]:
    """Each layer of the walk as codes.

    Raises:
        MetaschedError: a layer that is no convolution of 2 dimensions and no linear layer, batches that are not single
            tensors, and as ``quantize_product``.
    """
    names = [layer.weight_key.removesuffix(".weight") for layer in walk.layers]
    known = {name: m for name, m in walk.reference.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for name, layer in zip(names, walk.layers, strict=True):
        if name not in known:
            problem = "is no linear layer and no convolution of 2 dimensions, as product takes"
            raise MetaschedError(f"model.{layer.name}", problem, "leave it in float by a rule")
    if any(len(args) != 1 or kwargs for args, kwargs in walk.calls):
        raise MetaschedError("calibrate: batches", "has keyword arguments, and product takes inputs", "give tensors")
    others = tuple(name for name in known if name not in names)
    own = whole.ProductOptions(**asdict(options), first=True, exclude=others)
    found = whole.quantize_product(walk.reference, [args[0] for args, _ in walk.calls], own, tick)
    rounded = []
    for name, method in zip(names, walk.methods, strict=True):
        book = found.codebooks[name]
        details = {"codes": float(len(book.centroids)), "bytes": float(book.bytes)}
        state = {"centroids": book.centroids, "codes": book.codes}
        rounded.append(Rounded(Coded(method.quantizer), book.weight, state, details))
    return rounded
