"""The table of methods. It does not import torch: a method's own file is imported when the method is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metasched.methods.config import MethodConfig
from metasched.methods.spec import METHODS, MethodSpec, find_method, register_method
from metasched.methods.table import ROWS

if TYPE_CHECKING:
    from metasched.methods.base import Method

for _row in ROWS:
    register_method(_row)


def build_method(config: MethodConfig) -> Method:
    """The method of a configuration.

    Raises:
        MetaschedError: a level set does not exist, or the method cannot use it.
    """
    return find_method(config.name).builder(config)


__all__ = ["METHODS", "MethodSpec", "build_method", "find_method", "register_method"]
