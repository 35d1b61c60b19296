"""The selection of cases: all pairs are there, with fewer cases than the product, and the same ones each time."""

from __future__ import annotations

from itertools import combinations, product
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest_plugins = ["pytester"]


def pairs(rows):
    return {(i, j, row[i], row[j]) for row in rows for i, j in combinations(range(len(row)), 2)}


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 4, 5), (4, 3, 6, 3), (2, 2, 2, 2, 2), (5, 4)])
def test_all_pairs_of_a_product_are_in_fewer_cases(pairwise, sizes) -> None:
    rows = list(product(*(range(n) for n in sizes)))
    chosen = [rows[i] for i in pairwise(rows)]
    assert pairs(chosen) == pairs(rows)
    largest = sorted(sizes)[-2:]
    assert prod(largest) <= len(chosen) <= 2 * prod(largest)
    assert chosen == [rows[i] for i in pairwise(rows)]
    assert len(sizes) == 2 or len(chosen) < len(rows)


@given(rows=st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=40))
def test_all_pairs_that_occur_are_kept_of_any_rows(pairwise, rows) -> None:
    chosen = pairwise(rows)
    assert pairs(rows[i] for i in chosen) == pairs(rows) and chosen == sorted({*chosen})


def test_marked_functions_alone_are_thinned_out(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text("utf-8"))
    marks = "".join(f"@pytest.mark.parametrize({name!r}, range(3))\n" for name in "abc")
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.pairwise\n{marks}def test_marked(a, b, c): pass\n"
        f"{marks}def test_plain(a, b, c): pass\n"
    )
    plain = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--override-ini", "addopts=")
    few = pytester.runpytest_inprocess(*plain).parseoutcomes()
    assert 27 + 9 <= few["passed"] <= 27 + 12
    assert few["deselected"] == 54 - few["passed"]
    assert pytester.runpytest_inprocess(*plain, "--all-combinations").parseoutcomes() == {"passed": 54}
