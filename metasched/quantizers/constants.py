"""Numbers as 0-d tensors: one of Python would be cast anew to the dtype of its partner in every operation."""

from __future__ import annotations

from functools import lru_cache

import torch


def constants(values: tuple[float, ...], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The values in the dtype and on the device of ``like``; not to be written to.

    >>> [(float(c), c.dtype) for c in constants((1.0, 0.5), torch.zeros(3, dtype=torch.float32))]
    [(1.0, torch.float32), (0.5, torch.float32)]
    """
    return _constants(values, like.dtype, like.device)


@lru_cache(maxsize=1024)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode(False):  # whoever asks first does not decide what may be done with them
        return tuple(torch.tensor(v, dtype=dtype, device=device) for v in values)
