"""For the whole suite: float64, one thread, seeded generators, profiles of hypothesis, and pairwise combinations.

Of the product of stacked parametrize marks, ``@pytest.mark.pairwise`` keeps a part in which each pair of values of two
of them occurs: most faults need one value or two to show (Kuhn, Wallace, Gallo 2004, IEEE TSE 30(6)). The choice is a
function of the cases in their order. ``--all-combinations`` keeps the product.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import combinations
from typing import BinaryIO

import numpy as np
import pytest
import torch
from hypothesis import settings

# Tests start many processes, and each would compile what it imports, which takes longer than most of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

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


@pytest.fixture
def blank_plots() -> Iterator[None]:
    """Plots are written, but not drawn, which takes half of a short run; those of fixtures of a wider scope are."""
    from matplotlib.figure import Figure
    from PIL import Image

    def savefig(figure: Figure, file: BinaryIO, **_: object) -> None:
        Image.new("RGB", (1, 1)).save(file, format="png")

    with pytest.MonkeyPatch.context() as patch:  # of its own: tests undo what they have patched
        patch.setattr(Figure, "savefig", savefig)
        yield


# --- pairwise combinations ---


def _pairwise(rows: Sequence[Sequence[Hashable]]) -> list[int]:
    """Indices, ascending, of rows in which all pairs of values of two columns occur that occur in the rows at all.

    Greedy: the row with most pairs that are new comes next, the first one of equals.
    """
    pairs = [{(i, j, row[i], row[j]) for i, j in combinations(range(len(row)), 2)} for row in rows]
    wanted: set[object] = set().union(*pairs)
    chosen = []
    while wanted:
        best = max(range(len(rows)), key=lambda r: len(pairs[r] & wanted))
        chosen.append(best)
        wanted -= pairs[best]
    return sorted(chosen)


@pytest.fixture(scope="session")
def pairwise() -> Callable[[Sequence[Sequence[Hashable]]], list[int]]:
    return _pairwise


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-combinations", action="store_true", help="keep all cases of tests marked pairwise")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pairwise: of the product of the parametrize marks, enough for all pairs")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the cases that are not needed, before anything else selects."""
    if config.getoption("--all-combinations", default=False):
        return
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("pairwise"):
            families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    dropped: set[pytest.Item] = set()
    for cases in families.values():
        dropped |= {*cases} - {cases[i] for i in _pairwise([_values(case) for case in cases])}
    if dropped:
        config.hook.pytest_deselected(items=[item for item in items if item in dropped])
        items[:] = [item for item in items if item not in dropped]


def _values(item: pytest.Item) -> list[Hashable]:
    """What each parametrize mark gives to a case, by the identity of the value of its first argument."""
    params = item.callspec.params  # type: ignore[attr-defined]
    names = [mark.args[0] for mark in item.iter_markers("parametrize")]
    return [id(params[name.split(",")[0].strip() if isinstance(name, str) else name[0]]) for name in names]
