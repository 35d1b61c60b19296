"""The error has its old place too, from which scripts of the first version import it."""

import metasched
from metasched.errors import MetaschedError


def test_it_is_one_class() -> None:
    assert MetaschedError is metasched.MetaschedError
