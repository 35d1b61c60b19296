"""The codebook of one layer: its weight as blocks of d numbers, each replaced by one of K centroids.

The weight [C_out, C_in, k, k] is C_out rows of C_in k^2 numbers, cut into blocks v of d. With the layer's inputs, cut
alike into x~ [N, d] and stacked over blocks, G = x~^T x~, and the codes a(v),

    error     sum_v |x~ (c_a(v) - v)|^2 = sum_v (c_a(v) - v)^T G (c_a(v) - v)
    E step    a(v) = the centroid with the smallest error
    M step    c = the mean of its blocks

No step can raise the error. A centroid without blocks moves next to the one that has most, at a distance of 1e-8, and
takes over some of these in the next E step. K is at most the largest power of two below a quarter of the blocks.

Source: Stock, Joulin, Gribonval, Graham, Jegou: And the Bit Goes Down: Revisiting the Quantization of Neural Networks.
ICLR 2020, arXiv 1907.05686; section 3, whose M step is the pseudo-inverse of x~ times the mean of x~ v: the mean of v
where x~ has full column rank, and the one with the smallest norm of equally good centroids elsewhere. We differ: the
inputs stay the same in all iterations, so that the error cannot rise; centroids start as k-means++ picks them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from metasched.quantizers.codebooks import packed, stored_bytes

FEWEST = 8  # blocks of a layer with two centroids
_APART = 1e-8
VALUE_BITS = 16  # of a stored centroid's numbers


@dataclass(frozen=True)
class Codebook:
    """A layer as codes.

    Attributes:
        centroids: [K, d].
        codes: int64 [C_out C_in k^2 / d], in the order of the weight's numbers.
        shape: of the weight.
        errors: at the start, after each iteration, and at the end; none of them above the one before.
    """

    centroids: torch.Tensor
    codes: torch.Tensor
    shape: torch.Size
    errors: tuple[float, ...] = ()

    @property
    def weight(self) -> torch.Tensor:
        """The weight, with its shape; differentiable in the centroids."""
        return self.centroids[self.codes].reshape(self.shape)

    @property
    def bytes(self) -> int:
        """Size as stored: log2(K) bits a code, and 16 bits for each number of the centroids."""
        k, d = self.centroids.shape
        return stored_bytes(len(self.codes), k, k * d, VALUE_BITS)

    def stored(self) -> bytes:
        """Packed codes, then the centroids as float16."""
        return packed(self.codes, len(self.centroids)) + self.centroids.detach().half().cpu().numpy().tobytes()


def blocks_of(w: torch.Tensor, size: int) -> torch.Tensor:
    """The blocks of a weight w [C_out, ...]: [C_out C_in k^2 / d, d]."""
    return w.detach().flatten(1).reshape(-1, size)


@torch.no_grad()
def metric_of(layer: nn.Conv2d | nn.Linear, inputs: Iterable[torch.Tensor], size: int) -> torch.Tensor:
    """G of a layer for its inputs, [d, d] in float64, divided by the number of rows of x~."""
    total, rows = torch.zeros(size, size, dtype=torch.float64, device=layer.weight.device), 0
    for x in inputs:
        found = stacked(layer, x, size).double()
        total, rows = total + found.T @ found, rows + len(found)
    return total / max(rows, 1)


def stacked(layer: nn.Conv2d | nn.Linear, x: torch.Tensor, size: int) -> torch.Tensor:
    """The inputs of a layer as its weight's blocks meet them, x~: [N, d].

    Args:
        layer: whose input x is, [N, C_in, H, W] or [..., C_in]. Patches of a convolution count at all places.
        size: d, which divides the numbers of a row of the weight.
    """
    if isinstance(layer, nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
        x = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride).mT  # [N, places, C_in k^2]
    return x.reshape(-1, size)


def clamped(codes: int, blocks: int) -> int:
    """The largest power of two up to K and up to a quarter of the blocks, at least 1.

    >>> clamped(256, 300), clamped(16, 300)
    (64, 16)
    """
    most = max(blocks // 4, 1)
    return min(codes, 1 << (most.bit_length() - 1))


@torch.no_grad()
def fit(w: torch.Tensor, metric: torch.Tensor, codes: int, iterations: int = 100, seed: int = 0) -> Codebook:
    """The codebook of a weight by expectation and maximization.

    Args:
        w: [C_out, ...].
        metric: G up to a factor, [d, d]; the identity for plain k-means.
        codes: K, a power of two; see ``clamped``.
        iterations: E and M steps at most; it ends earlier where no code changes.
        seed: of the start and of centroids that move.
    """
    from sklearn.cluster import kmeans_plusplus

    v = blocks_of(w, len(metric)).double()
    values, vectors = torch.linalg.eigh(metric.double())
    root = values.clamp_min(0).sqrt()[:, None] * vectors.T  # G = root^T root
    u, k = v @ root.T, clamped(codes, len(v))
    _, first = kmeans_plusplus(u.cpu().numpy(), k, random_state=seed)
    centroids = v[torch.from_numpy(first).long().to(v.device)]
    draws = torch.Generator().manual_seed(seed)
    assigned, errors = _nearest(u, centroids @ root.T)
    found = [float(errors.sum())]
    for _ in range(iterations):
        centroids = _filled(_means(v, assigned, centroids), assigned, draws)
        before, (assigned, errors) = assigned, _nearest(u, centroids @ root.T)
        found.append(float(errors.sum()))
        if torch.equal(before, assigned):
            break
    centroids = _means(v, assigned, centroids)
    found.append(float((u - (centroids @ root.T)[assigned]).square().sum()))
    return Codebook(centroids.to(w), assigned, w.shape, tuple(found))


def _nearest(u: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest centroid of each row, and its squared distance."""
    distances = torch.cdist(u, centroids, compute_mode="donot_use_mm_for_euclid_dist").square()
    errors, codes = distances.min(1)
    return codes, errors


def _means(v: torch.Tensor, codes: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The mean of the rows of each code; centroids without rows stay."""
    counts = torch.bincount(codes, minlength=len(centroids))
    sums = torch.zeros_like(centroids).index_add_(0, codes, v)
    return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centroids)


def _filled(centroids: torch.Tensor, codes: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Centroids without rows, next to the one that has most; that one stays, so that no row gets farther away."""
    counts = torch.bincount(codes, minlength=len(centroids))
    filled = centroids.clone()
    for i in (counts == 0).nonzero().flatten().tolist():
        largest = int(counts.argmax())
        noise = torch.randn(centroids.shape[1], generator=draws, dtype=centroids.dtype).to(centroids.device)
        filled[i] = centroids[largest] + _APART * noise
        counts[i], counts[largest] = counts[largest] // 2, counts[largest] - counts[largest] // 2
    return filled
