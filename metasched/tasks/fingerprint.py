"""A hash of what a task is: its model, data, loss and code. Two tasks of one hash are taken to be the same.

What it sees: the source of the task's class and of every function and class that this reaches by name within its own
top-level module or package (plain constants too); the attributes of the task, with the contents of tensors, arrays,
modules and data sets in memory; the network's modules, and the names and shapes of its parameters; the pretrained
state.

What it does not see: code of other packages, files that data sets read when an example is asked for, and what code
reaches in other ways than by name (``getattr``, registries). Where that changes, give the task another ``name``, or a
``fingerprint`` of its own.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from metasched.tasks.base import Task

_LIBRARIES = {"metasched", "torch", "torchvision", "numpy", "sklearn", *sys.stdlib_module_names} - {"__main__"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEEPEST = 6


def fingerprint_of(task: Task) -> str:
    """The default of ``Task.fingerprint``: 32 hexadecimal digits."""
    seen = Seen()
    seen.add(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.build()
    seen.put(str(model))
    for name, p in model.named_parameters():
        seen.put(name, tuple(p.shape))
    seen.add(task.initial())
    return seen.digest()


def code_fingerprint(*functions: Callable[..., Any]) -> str:
    """A hash of the code of functions, and of what they reach by name."""
    seen = Seen()
    for function in functions:
        seen.add(function)
    return seen.digest()


class Seen:
    """A hash that grows; each piece of code enters once."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._code: set[str] = set()

    def digest(self) -> str:
        """Of all that was put in, in hexadecimal."""
        return self._hash.hexdigest()

    def put(self, *values: object) -> None:
        """Plain values."""
        self._hash.update(repr(values).encode())

    def add(self, value: Any, depth: int = 0) -> None:
        """Any value: by its contents where they are known, otherwise by its type."""
        if isinstance(value, torch.Tensor):
            self.put(str(value.dtype), tuple(value.shape))
            data = value.detach().cpu().contiguous().view(-1)
            self._hash.update(data.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):
            self.put(str(value.dtype), value.shape)
            self._hash.update(np.ascontiguousarray(value).tobytes() if value.dtype != object else b"objects")
        elif isinstance(value, _PLAIN) or isinstance(value, torch.dtype | torch.device):
            self.put(value)
        elif isinstance(value, partial):
            self._all((value.func, value.args, value.keywords), depth)
        elif isinstance(value, types.MethodType):
            self._all((value.__func__, value.__self__), depth)
        elif isinstance(value, type | types.FunctionType):
            self._add_code(value)
        elif isinstance(value, nn.Module):
            self.put(str(value))
            self._add_code(type(value))
            self._all(value.state_dict().items(), depth)
        elif depth > _DEEPEST:
            self.put(type(value).__qualname__)
        elif isinstance(value, Mapping):
            self._all(sorted(value.items(), key=lambda item: str(item[0])), depth)
        elif isinstance(value, tuple | list | set | frozenset):
            self.put(type(value).__qualname__, len(value))
            self._all(sorted(value, key=str) if isinstance(value, set | frozenset) else value, depth)
        else:
            self._add_code(type(value))
            self._all(sorted(getattr(value, "__dict__", {}).items()), depth)

    def _all(self, values: Iterable[Any], depth: int) -> None:
        for value in values:
            self.add(value, depth + 1)

    def _add_code(self, root: Any) -> None:
        """The source of a function or class, and of what it reaches by name in its own package."""
        waiting = [root]
        while waiting:
            one = waiting.pop()
            name = one.__qualname__ if _library(one) else f"{_home(one)}.{one.__qualname__}"
            if name in self._code:
                continue
            self._code.add(name)
            self.put(one.__qualname__)
            if _library(one):
                continue
            self.put(_source(one))
            for other_name, other in _reached(one):
                if isinstance(other, type | types.FunctionType):
                    waiting.append(other)
                elif isinstance(other, _PLAIN):
                    self.put(other_name, other)


def _home(one: Any) -> str:
    return (getattr(one, "__module__", None) or "").partition(".")[0]


def _library(one: Any) -> bool:
    return _home(one) in _LIBRARIES


def _source(one: Any) -> str:
    try:
        return inspect.getsource(one)
    except (OSError, TypeError):  # made by exec, or in an interpreter
        return repr([(code.co_code, _constants(code)) for code in _codes(one)])


def _constants(code: types.CodeType) -> list[object]:
    return [constant for constant in code.co_consts if not isinstance(constant, types.CodeType)]


def _codes(one: Any) -> list[types.CodeType]:
    """The code objects of a function, or of the methods of a class, and those within them."""
    if isinstance(one, type):
        methods = [getattr(v, "__func__", getattr(v, "fget", v)) for _, v in sorted(vars(one).items())]
        return [code for m in methods if isinstance(m, types.FunctionType) for code in _codes(m)]
    found = [one.__code__]
    for code in found:
        found += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return found


def _reached(one: Any) -> list[tuple[str, Any]]:
    """Names that a function or class reads, with what they stand for, where that is of its own package or plain."""
    if isinstance(one, type):
        found: list[tuple[str, Any]] = [(b.__qualname__, b) for b in one.__bases__ if not _library(b)]
        values = vars(sys.modules.get(one.__module__, types.ModuleType("none")))
    else:
        found = []
        values = dict(one.__globals__)
        cells = zip(one.__code__.co_freevars, one.__closure__ or (), strict=True)
        values |= {name: cell.cell_contents for name, cell in cells if not _empty(cell)}
    names = sorted({name for code in _codes(one) for name in (*code.co_names, *code.co_freevars)})
    for name in names:
        if name in values:
            value = values[name]
            code = isinstance(value, type | types.FunctionType)
            if (code and _home(value) == _home(one)) or (not code and isinstance(value, _PLAIN)):
                found.append((name, value))
    return found


def _empty(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False
