"""Independent random streams from one seed: every draw is a pure function of (seed, stream, indices).

There is no hidden state, so a step can be recomputed, resumed, mapped or replayed in another process with the same
random numbers. The seed of a generator is the upper 63 bits of the 64-bit BLAKE2b hash of the key's text,
``seed/stream/index/...``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from metasched.core.recording import Make, host_values


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
    key = ("permutation", stream, *indices, n)
    return of_run(seed, 0, lambda s, _: torch.randperm(n, generator=generator(s, stream, *indices)), key)


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
        shape, dtype, layer = like.shape, like.dtype, self.layer

        def draw(seed: int, step: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator(seed, purpose, step, layer), dtype=dtype)

        return of_run(self.seed, self.step, draw, ("uniform", purpose, layer, shape, dtype), like.device)

    def permutation(self, purpose: str, n: int) -> torch.Tensor:
        """A random permutation of 0..n-1, [n], int64 on the CPU."""
        return permutation(self.seed, purpose, self.step, self.layer, n=n)


def of_run(
    seed: int | torch.Tensor, step: int, make: Make, key: Hashable, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """``make(seed, step)``, put on a device; under torch.vmap the seed may be a mapped tensor, as in ``Draw``.

    In a step that is recorded the tensor of ``key`` stands for it, which is filled before each replay (recording.py).
    """
    return (
        _OfEachSeed.apply(seed, step, make, key, device)
        if isinstance(seed, torch.Tensor)
        else make(seed, step).to(device)
    )


class _OfEachSeed(torch.autograd.Function):
    """``make(seed, step)``, stacked over mapped seeds; without derivative."""

    @staticmethod
    def forward(seed: torch.Tensor, step: int, make: Make, key: Hashable, device: torch.device | str) -> torch.Tensor:
        return make(int(seed), step).to(device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def vmap(  # pyright: ignore
        info: Any,
        in_dims: tuple[int | None, ...],
        seed: torch.Tensor,
        step: int,
        make: Make,
        key: Hashable,
        device: torch.device | str,
    ) -> tuple[torch.Tensor, int]:
        if (values := host_values()) is not None:
            return values.of(key, make, step, device), 0
        return torch.stack([make(s, step) for s in seed.tolist()]).to(device), 0
