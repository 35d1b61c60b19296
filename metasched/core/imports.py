"""Which packages from outside may be imported: those that the user names with ``--import``.

Experiment files come from strangers, so a file alone imports nothing. The permission is the process's, as ``sys.path``
is; it goes to worker processes with their work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from metasched.core.errors import MetaschedError

_ALLOWED: set[str] = set()


def allow(packages: Iterable[str]) -> None:
    """Imports packages and allows their modules; modules of the current folder are found, as by ``python -m``.

    Raises:
        MetaschedError: one that does not exist, or raises when it is imported.
    """
    for package in packages:
        if package in _ALLOWED:
            continue
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.insert(0, os.getcwd())
        _imported(package, f"--import {package}")
        _ALLOWED.add(package)


def allowed() -> tuple[str, ...]:
    """The packages that ``allow`` has got, sorted."""
    return tuple(sorted(_ALLOWED))


def find_function(where: str, path: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Args:
        where: its name.
        path: what error messages begin with.

    Raises:
        MetaschedError: its package is not allowed, cannot be imported, or has no such function.
    """
    module, _, name = where.partition(":")
    if not any(f"{module}.".startswith(f"{package}.") for package in _ALLOWED):
        fix = f"if you trust it, add `--import {module.partition('.')[0]}`"
        raise MetaschedError(path, f"{where} is code from outside metasched, which is not imported by itself", fix)
    found = getattr(_imported(module, path), name, None)
    if not callable(found):
        raise MetaschedError(path, f"module {module} has no function {name}", "correct the name")
    return found


def _imported(module: str, path: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # whatever a module of the user's raises
        said = f"cannot be imported ({type(error).__name__}: {error})"
        fix = "start in its folder, or put that on PYTHONPATH" if isinstance(error, ModuleNotFoundError) else "mend it"
        raise MetaschedError(path, f"{module} {said}", fix) from error
