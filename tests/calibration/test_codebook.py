"""Codebooks of layers: the error by definition, steps that cannot raise it, k-means as oracle, sizes to the byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from metasched.calibration.codebook import _filled, blocks_of, clamped, fit, metric_of, stacked


def error_by_definition(w: torch.Tensor, quantized: torch.Tensor, x: torch.Tensor, size: int) -> float:
    """sum_v |x~ (c - v)|^2, written out."""
    off = blocks_of(w - quantized, size)
    return sum(float((x @ o).square().sum()) for o in off)


@pytest.mark.parametrize("rank", [6, 3])
def test_em_never_raises_the_error_of_the_outputs(rank: int) -> None:
    w, x = torch.randn(40, 12), torch.randn(50, rank) @ torch.randn(rank, 6)
    book = fit(w, x.T @ x, codes=8)
    assert len(book.errors) > 3
    assert all(after <= before * (1 + 1e-12) for before, after in zip(book.errors, book.errors[1:], strict=False))
    assert book.errors[-1] == pytest.approx(error_by_definition(w, book.weight, x, 6), rel=1e-9)
    assert len(blocks_of(book.weight, 6).unique(dim=0)) <= 8


def test_with_inputs_of_full_rank_the_m_step_is_that_of_the_pseudo_inverse() -> None:
    w, x = torch.randn(40, 12), torch.randn(50, 6)
    book = fit(w, x.T @ x, codes=8)
    v = blocks_of(w, 6)
    for c in range(8):
        own = v[book.codes == c]
        published = torch.linalg.pinv(x) @ (x @ own.T).mean(1)
        torch.testing.assert_close(book.centroids[c], published, rtol=1e-10, atol=1e-10)
    deficient = x[:, :3] @ torch.randn(3, 6)
    book = fit(w, deficient.T @ deficient, codes=8)
    for c in range(8):  # another centroid, with an equal error
        own = v[book.codes == c]
        published = torch.linalg.pinv(deficient) @ (deficient @ own.T).mean(1)
        errors = [float((deficient @ (own - centroid).T).square().sum()) for centroid in (published, book.centroids[c])]
        assert errors[1] == pytest.approx(errors[0], rel=1e-9)


def test_under_the_identity_it_is_k_means() -> None:
    w = torch.randn(60, 8)
    start = fit(w, torch.eye(4), codes=8, iterations=1)
    book = fit(w, torch.eye(4), codes=8, iterations=300)
    v = blocks_of(w, 4).numpy()
    theirs = KMeans(8, init=start.centroids.numpy(), n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(v)
    assert book.errors[-1] == pytest.approx(theirs.inertia_, rel=1e-9)
    np.testing.assert_array_equal(book.codes.numpy(), theirs.labels_)


def test_a_code_without_blocks_takes_over_some_of_the_largest() -> None:
    centroids, codes = torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([0, 0, 0, 0, 1])
    filled = _filled(centroids, codes, torch.Generator().manual_seed(0))
    assert torch.equal(filled[:2], centroids[:2])
    assert 0 < float(filled[2].abs()) < 1e-6
    w = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0], [1.0], [1.0], [1.0], [2.0], [2.0], [2.0], [2.0]])
    assert fit(w, torch.eye(1), codes=2, iterations=50).errors[-1] <= 2.0 * (1 + 1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding="valid", groups=2),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, (3, 5), padding="same"),
        nn.Linear(8, 5),
    ],
    ids=lambda layer: repr(layer),
)
def test_stacked_inputs_times_blocks_are_the_outputs(layer: nn.Conv2d | nn.Linear) -> None:
    x = torch.randn(3, 8) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 7, 7)
    row = layer.weight[0].numel()
    patches = stacked(layer, x, row)
    y = layer(x) if layer.bias is None else layer(x) - layer.bias.reshape(-1, *[1] * (x.dim() - 2))
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    by_group = patches.reshape(-1, groups, row)
    flat = layer.weight.reshape(groups, -1, row)
    outputs = torch.einsum("pgi,gri->pgr", by_group, flat).flatten(1)
    expected = y if isinstance(layer, nn.Linear) else y.movedim(1, -1).reshape(-1, y.shape[1])
    torch.testing.assert_close(outputs, expected)
    halves = [metric_of(layer, [x], row), metric_of(layer, [x[:1], x[1:]], row)]
    torch.testing.assert_close(halves[0], halves[1])
    torch.testing.assert_close(halves[0], patches.T @ patches / len(patches))


@pytest.mark.parametrize(("shape", "size", "codes"), [((64, 16, 3, 3), 9, 256), ((10, 12), 4, 16), ((7, 9), 3, 4)])
def test_the_size_is_that_of_what_is_stored(shape: tuple[int, ...], size: int, codes: int) -> None:
    w = torch.randn(shape)
    book = fit(w, torch.eye(size), codes, iterations=2)
    blocks = w.numel() // size
    k = clamped(codes, blocks)
    assert book.centroids.shape == (k, size)
    assert book.bytes == -(-blocks * (k.bit_length() - 1) // 8) + 2 * k * size == len(book.stored())
    assert book.weight.shape == w.shape


@pytest.mark.parametrize(("codes", "blocks", "expected"), [(256, 1024, 256), (256, 1023, 128), (16, 8, 2), (16, 4, 1)])
def test_small_layers_have_fewer_codes(codes: int, blocks: int, expected: int) -> None:
    assert clamped(codes, blocks) == expected
