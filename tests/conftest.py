"""For the whole suite: float64, one thread, seeded global generators, and the profiles of hypothesis."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_default_dtype(torch.float64)  # here too, for the tensors that test modules make when they are imported
torch.set_num_threads(1)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """The same generators, default dtype and number of threads for each test, whatever ran before it."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    torch.set_default_dtype(torch.float64)
