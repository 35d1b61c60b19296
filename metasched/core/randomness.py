"""Independent random streams from one seed: every draw is a pure function of (seed, stream, indices).

There is no hidden state, so a step can be recomputed, resumed, mapped or replayed in another process with the same
random numbers. The seed of a generator is the upper 63 bits of the 64-bit BLAKE2b hash of the key's text,
``seed/stream/index/...``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def derive_seed(seed: int, stream: str, *indices: int) -> int:
    """A 63-bit seed for one stream and position; different keys give independent seeds.

    >>> derive_seed(0, "weights") == derive_seed(0, "weights")
    True
    >>> derive_seed(0, "weights") == derive_seed(0, "batches")
    False
    """
    key = "/".join([str(int(seed)), stream, *(str(int(i)) for i in indices)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, *indices: int) -> torch.Generator:
    """A CPU generator at the start of the stream named by (seed, stream, indices)."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, *indices))


def permutation(seed: int | torch.Tensor, stream: str, *indices: int, n: int) -> torch.Tensor:
    """A random permutation of 0..n-1, [n], int64 on the CPU: a function of (seed, stream, indices).

    Under torch.vmap the seed may be a mapped tensor, as in ``Draw``.
    """
    return _drawn(seed, lambda s: torch.randperm(n, generator=generator(s, stream, *indices)))


@dataclass(frozen=True)
class Draw:
    """The random numbers of one layer at one step; a key without hidden state.

    Numbers are drawn on the CPU, so that they do not depend on the device of the tensor. Under torch.vmap the seed may
    be a mapped tensor, int64 on the CPU: each run then has the numbers of its own seed.

    >>> d = Draw(seed=1, step=3, layer=0)
    >>> bool((d.uniform("weight", torch.zeros(4)) == d.uniform("weight", torch.zeros(4))).all())
    True
    """

    seed: int | torch.Tensor
    step: int
    layer: int

    def uniform(self, purpose: str, like: torch.Tensor) -> torch.Tensor:
        """Uniform numbers in [0, 1) with the shape [...], dtype and device of ``like``."""
        shape, dtype = like.shape, like.dtype

        def draw(seed: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator(seed, purpose, self.step, self.layer), dtype=dtype)

        return _drawn(self.seed, draw).to(like.device)

    def permutation(self, purpose: str, n: int) -> torch.Tensor:
        """A random permutation of 0..n-1, [n], int64 on the CPU."""
        return permutation(self.seed, purpose, self.step, self.layer, n=n)


def _drawn(seed: int | torch.Tensor, draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
    return _OfEachSeed.apply(seed, draw) if isinstance(seed, torch.Tensor) else draw(seed)


class _OfEachSeed(torch.autograd.Function):
    """``draw(seed)``, stacked over mapped seeds; without derivative."""

    @staticmethod
    def forward(seed: torch.Tensor, draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
        return draw(int(seed))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def vmap(  # pyright: ignore
        info: Any, in_dims: tuple[int | None, ...], seed: torch.Tensor, draw: Callable[[int], torch.Tensor]
    ) -> tuple[torch.Tensor, int]:
        return torch.stack([draw(s) for s in seed.tolist()]), 0
