"""The table of methods. It does not import torch: a method's own file is imported when the method is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metasched.core.errors import MetaschedError
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
        MetaschedError: a level set does not exist, or the method cannot use it, or not learn a scale.
    """
    spec = find_method(config.name)
    for field in ("scale", "activation_scale"):
        if getattr(config, field) in ("learned", "clip") and field not in spec.learns(config):
            able = ", ".join(name for name, other in METHODS.items() if field in other.learns(other.config()))
            raise MetaschedError(f"method.{field}", f"cannot be learned by {config.name}", f"use it with {able}")
    return spec.builder(config)


__all__ = ["METHODS", "MethodSpec", "build_method", "find_method", "register_method"]
