"""Four modules of a user's, each with one row, and the tables as they were before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metasched.core import imports
from metasched.methods import METHODS
from metasched.models import MODELS
from metasched.tasks import TASKS
from metasched.training import problem
from metasched.training.optimizers import OPTIMIZERS

MODULES = ("alpha_blending", "stripes", "residual", "lion")
collect_ignore = [f"{module}.py" for module in MODULES]  # pytest would import them, to look for doctests
TABLES = (METHODS, TASKS, MODELS, OPTIMIZERS)


@pytest.fixture(scope="module")
def outside() -> Iterator[None]:
    """The modules can be found, and nothing has imported them."""
    before = [dict(table) for table in TABLES]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.setattr(imports, "_ALLOWED", set())
        for module in MODULES:
            patch.delitem(sys.modules, module, raising=False)
        yield
    for module in MODULES:
        sys.modules.pop(module, None)
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)  # type: ignore[arg-type]
    problem.forget()


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    """Torch's own default, as the command line has it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)
