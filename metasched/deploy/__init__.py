"""From trained networks to integers and to files for other runtimes.

The package itself can be called: ``metasched.deploy(module, data, folder)`` is ``deploy.converted.deploy``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from metasched.deploy.converted import deploy

        return deploy(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
