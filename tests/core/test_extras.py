"""A missing package of an extra is one line that names the extra."""

from __future__ import annotations

import sys

import pytest

from metasched.core.errors import MetaschedError
from metasched.core.extras import from_extra, missing, require


def test_a_package_that_is_there_is_imported() -> None:
    with from_extra("train"):
        import json.decoder as found
    assert found is sys.modules["json.decoder"]
    require("train", "json", "math")


def test_a_part_of_a_missing_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "scipy.special", raising=False)
    for attempt in (lambda: require("train", "json", "scipy"), _import_scipy):
        with pytest.raises(MetaschedError) as caught:
            attempt()
        assert str(caught.value) == str(missing("scipy", "train"))
        assert str(caught.value) == "scipy: is not installed; pip install 'metasched[train]'"


def test_another_error_of_an_import_is_not_hidden() -> None:
    with pytest.raises(ImportError, match="nothing_like_it"), from_extra("train"):
        from json import nothing_like_it  # type: ignore[attr-defined]  # noqa: F401


def _import_scipy() -> None:
    with from_extra("train"):
        from scipy.special import stdtr  # noqa: F401
