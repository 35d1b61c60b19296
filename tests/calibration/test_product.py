"""Product quantization of a network: its order, what stands still, fine-tuning, sizes, and mistakes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from metasched.calibration.codebook import blocks_of
from metasched.calibration.product import ProductOptions, chosen, quantize_product
from metasched.core.errors import MetaschedError

SMALL = ProductOptions(codes=8, conv_block=9, linear_block=8, iterations=10, steps=30, lr=0.05)


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


@cache
def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    data = load_digits()
    x = torch.from_numpy(data.images).reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(data.target)
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(120):
        batch = torch.arange(step * 64, step * 64 + 64) % 1200
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), x, y


def accuracy(model: nn.Module) -> float:
    _, x, y = trained()
    with torch.no_grad():
        return float((model(x[1200:]).argmax(1) == y[1200:]).double().mean())


def batches() -> list[torch.Tensor]:
    return list(trained()[1][:256].split(64))


def test_fine_tuning_recovers_what_codes_cost() -> None:
    model = trained()[0]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    alone = quantize_product(model, batches(), replace(SMALL, codes=16, steps=0))
    tuned = quantize_product(model, batches(), replace(SMALL, codes=16, steps=60))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert list(tuned.codebooks) == ["3", "7"] and len(tuned.losses) == 60
    lost, left = (accuracy(model) - accuracy(found.module) for found in (alone, tuned))
    assert lost > 0.05 and left < lost / 2
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "4.running_var", "7.bias"):
        assert torch.equal(tuned.module.state_dict()[name], before[name]), name
    for name, size in (("3", 9), ("7", 8)):
        w, book = tuned.module.get_parameter(f"{name}.weight"), tuned.codebooks[name]
        assert torch.equal(w, book.weight) and len(blocks_of(w, size).unique(dim=0)) <= 16
        assert torch.equal(book.centroids, book.centroids.half().double())  # as it is stored


def test_size_to_the_byte() -> None:
    found = quantize_product(trained()[0], batches(), replace(SMALL, steps=0))
    conv, linear = -(-64 * 3 // 8) + 2 * 8 * 9, -(-160 * 3 // 8) + 2 * 8 * 8
    rest = 72 + 8 + 8 + 16 + 16 + 10  # first weight, biases, normalization
    assert found.bytes == conv + linear + 4 * rest
    assert found.float_bytes == 4 * (rest + 576 + 1280)


def test_onsets_order_the_layers() -> None:
    model = trained()[0]
    last_first = quantize_product(model, batches(), replace(SMALL, onsets={"7": 0.0, "3": 0.5}, steps=10))
    assert list(last_first.codebooks) == ["7", "3"]
    at_end = quantize_product(model, batches(), replace(SMALL, onsets={"3": 0.0, "7": 1.0}, steps=10))
    alone = quantize_product(model, batches(), replace(SMALL, exclude=("7",), onsets="at_once", steps=10))
    assert torch.equal(at_end.codebooks["3"].centroids, alone.codebooks["3"].centroids)
    assert at_end.losses == alone.losses
    assert list(quantize_product(model, batches(), replace(SMALL, first=True, steps=0)).codebooks) == ["0", "3", "7"]


def test_a_layer_is_quantized_from_the_inputs_of_the_quantized_network() -> None:
    model = trained()[0]
    both = quantize_product(model, batches(), replace(SMALL, steps=0))
    alone = quantize_product(model, batches(), replace(SMALL, exclude=("3",), steps=0))
    assert both.codebooks["7"].errors != alone.codebooks["7"].errors
    assert (
        both.codebooks["3"].errors
        == quantize_product(model, batches(), replace(SMALL, exclude=("7",), steps=0)).codebooks["3"].errors
    )


def test_the_gradient_of_a_centroid_is_the_mean_of_those_of_its_blocks() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False)).double()
    x = torch.randn(16, 4)
    options = ProductOptions(codes=2, linear_block=2, steps=1, lr=0.1, momentum=0.0, first=True, iterations=3)
    before = quantize_product(model, [x], replace(options, steps=0)).codebooks["0"]
    exact = quantize_product(model, [x], options).codebooks["0"]
    start = quantize_product(model, [x], replace(options, lr=0.0)).codebooks["0"]
    assert torch.equal(start.centroids, before.centroids)
    from metasched.calibration.codebook import fit, metric_of

    first = fit(model[0].weight, metric_of(model[0], [x], 2), 2, 3)
    w = first.weight.clone().requires_grad_()
    loss = F.kl_div((x @ w.T).log_softmax(1), model(x).log_softmax(1).detach(), reduction="batchmean", log_target=True)
    (g,) = torch.autograd.grad(loss, w)
    means = torch.stack([blocks_of(g, 2)[first.codes == c].mean(0) for c in range(2)])
    torch.testing.assert_close(exact.centroids, (first.centroids - 0.1 * means).half().double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"linear_block": 7}, r"^model\.7: has rows of 128 numbers, which blocks of 7 do not divide; set another"),
        ({"codes": 12}, r"^product: codes: is 12, no power of two; set it to 16 or 256"),
        ({"steps": -1}, r"^product: steps: is -1; set it to 0 or more"),
        ({"exclude": ("8",)}, r"^product: exclude: names '8', no convolution or linear layer"),
        ({"exclude": ("3", "7")}, r"^product: the model has no layer to quantize; set first"),
        ({"onsets": {"3": 0.5}}, r"^product: onset of 7: is missing; give a number in \[0, 1\]"),
        ({"onsets": {"3": 0.5, "7": 2.0}}, r"^product: onset of 7: is 2\.0, outside of \[0, 1\]"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(MetaschedError, match=line) as caught:
        quantize_product(trained()[0], batches(), replace(SMALL, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "product: batches: has no batches"),
        (torch.zeros(2, 1, 8, 8), r"product: batches: is a Tensor, not batches of inputs; give \[x\]"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(2))], "product: batch 0: is a tuple; give inputs without labels"),
        ([torch.full((2, 1, 8, 8), torch.nan)], "product: batch 0: has numbers that are not finite"),
        ([torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 9, 9)], r"product: batch 1: has the shape \(2, 1, 9, 9\); give"),
    ],
)
def test_batches_that_are_none(given: Any, line: str) -> None:
    with pytest.raises(MetaschedError, match=line):
        quantize_product(trained()[0], given, SMALL)


def test_layers_come_in_the_order_of_the_pass() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    assert list(chosen(Swapped(), torch.randn(2, 8), replace(SMALL, first=True))) == ["first", "second"]
