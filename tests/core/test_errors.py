"""The error of a user's mistake: one line, whole also after a process boundary."""

from __future__ import annotations

import copy
import pickle

import pytest

from metasched.core.errors import MetaschedError, unknown_name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("meta.steps", "must be at least 1", "set it to 50"), "meta.steps: must be at least 1; set it to 50"),
        (("meta.steps", "must be at least 1"), "meta.steps: must be at least 1"),
        (("", "no file", "name one"), "no file; name one"),
        (("a\nb", "two\n  lines", "mend\tthem"), "a b: two lines; mend them"),
        (("a\x1b[2J", "\u202eb\x9b\x07", "\ud800"), "a\\x1b[2J: \\u202eb\\x9b\\x07; \\ud800"),
        (("caf\xe9", "\u4e2d", ""), "caf\xe9: \u4e2d"),
    ],
)
def test_it_is_one_line(arguments: tuple[str, ...], text: str) -> None:
    error = MetaschedError(*arguments)
    assert str(error) == text
    assert isinstance(error, ValueError)


def test_it_crosses_processes_whole() -> None:
    error = MetaschedError("a.b", "is wrong", "mend it")
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(copied) is MetaschedError
        assert (copied.path, copied.problem, copied.fix) == ("a.b", "is wrong", "mend it")
        assert str(copied) == str(error)


def test_unknown_names_suggest_the_nearest_known_one() -> None:
    known = ["inq", "ana", "joint"]
    assert str(unknown_name("method.name", "joined", known)) == (
        "method.name: unknown name 'joined'; did you mean 'joint'? Known: ana, inq, joint"
    )
    assert str(unknown_name("method.name", "xyz", known)) == "method.name: unknown name 'xyz'; Known: ana, inq, joint"
