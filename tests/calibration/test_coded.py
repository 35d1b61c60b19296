"""Product quantization as a procedure: the layers of a recipe, its result, and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibrated import convnet, images
from torch import nn

import metasched
from metasched.calibration.product import ProductOptions, quantize_product
from metasched.core.errors import MetaschedError
from metasched.network.hosting import hosted
from metasched.network.recipe import Recipe


def test_as_a_procedure_it_takes_the_layers_of_the_recipe() -> None:
    """And gives what ``quantize_product`` gives for these layers; activations are quantized afterwards."""
    model, batches = convnet(), [images()[:24], images()[24:]]
    options: dict[str, Any] = {"codes": 8, "linear_block": 2, "iterations": 10, "steps": 8}
    recipe = Recipe("ste", activations="uint4", last=True, exclude="3.one")
    found = metasched.calibrate(model, recipe, batches, "product", **options)
    alone = quantize_product(model, batches, ProductOptions(**options, first=True, exclude=("3.one",)))
    plain = metasched.convert(found)
    for name, p in alone.module.named_parameters():
        assert torch.equal(p, plain.get_parameter(name)), name
    for *_, quantizer in hosted(found):
        stored = quantizer.method.storage(plain.get_parameter(quantizer.layer.weight_key), quantizer.state())
        book = alone.codebooks[quantizer.layer.weight_key.removesuffix(".weight")]
        assert sum(-(-n * bits // 8) for n, bits in stored.values()) == book.bytes == len(book.stored())
    with torch.no_grad():
        assert len(plain[:3](images()).unique()) <= 16  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize(
    ("model", "given", "options", "message"),
    [
        (nn.Sequential(nn.Conv1d(1, 4, 4)), torch.rand(4, 1, 8), {}, "model.0: is no linear layer and no convolution"),
        (nn.Sequential(nn.Linear(6, 4)), torch.rand(4, 6), {}, "model.0: has rows of 6 numbers, which blocks of 4"),
        (nn.Sequential(nn.Linear(8, 3)), torch.rand(4, 8), {}, "model.0: has 6 blocks of 4 numbers, and two centroids"),
        (nn.Sequential(nn.Linear(8, 4)), torch.rand(4, 8), {"codes": 6}, "product: codes: is 6, no power of two"),
        (nn.Sequential(nn.Linear(8, 4)), {"input": torch.rand(4, 8)}, {}, "batches: has keyword arguments"),
        (nn.Sequential(nn.Linear(8, 4)), torch.rand(4, 8), {"onsets": {"1": 0.5}}, "product: onset of 0: is missing"),
        (nn.Sequential(nn.Linear(8, 4)), torch.rand(4, 8), {"by": ["0"]}, "by: needs a procedure that takes blocks"),
    ],
)
def test_what_the_procedure_does_not_take(model: nn.Module, given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaschedError, match=message):
        metasched.calibrate(model, Recipe("ste", activations=None, last=True), [given], "product", **options)
