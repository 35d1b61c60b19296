"""One seed, many independent streams: every draw is a function of (seed, stream, indices).

Nothing keeps a position, so that a step can be recomputed, resumed, mapped or replayed in another process and sees
the same numbers. The seed of a generator is the upper 63 bits of the 64-bit BLAKE2b hash of the key's text,
``seed/stream/index/...``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Draw:
    """The random numbers of one tensor at one step: a key, not a stream with a position.

    Drawn on the CPU whatever the device of the tensor, so that all devices see the same numbers.

    >>> d = Draw(seed=1, step=3, layer=0)
    >>> bool((d.uniform("weight", torch.zeros(4)) == d.uniform("weight", torch.zeros(4))).all())
    True
    """

    seed: int
    step: int
    layer: int

    def uniform(self, purpose: str, like: torch.Tensor) -> torch.Tensor:
        """Uniform numbers in [0, 1) with the shape, dtype and device of ``like``."""
        draws = torch.rand(like.shape, generator=generator(self.seed, purpose, self.step, self.layer), dtype=like.dtype)
        return draws.to(like.device)

    def permutation(self, purpose: str, n: int) -> torch.Tensor:
        """A random permutation of 0..n-1, int64 on the CPU."""
        return torch.randperm(n, generator=generator(self.seed, purpose, self.step, self.layer))
