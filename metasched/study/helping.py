"""Helping processes: each does the call of its parent, and the storage has every run done once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection

import torch

from metasched.core.errors import MetaschedError


@contextmanager
def helped(workers: int, task: Callable[[], object]) -> Iterator[None]:
    """Within: ``workers - 1`` processes call ``task`` too.

    Args:
        workers: number of processes, this one included.
        task: can be pickled, which is refused otherwise.

    Raises:
        MetaschedError: no number of processes, or a task that cannot be pickled.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise MetaschedError("workers", f"must be at least 1, got {workers!r}", "correct it")
    if workers == 1:
        yield
        return
    try:
        pickle.dumps(task)
    except Exception as error:
        problem = f"more than one needs functions at the top level of a module ({error})"
        raise MetaschedError("workers", problem, "move them there, or start the script several times") from error
    context = multiprocessing.get_context("spawn")
    helpers = [context.Process(target=_help, args=(task,), daemon=True) for _ in range(workers - 1)]
    for helper in helpers:
        helper.start()
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()


def _help(task: Callable[[], object]) -> None:
    """What a helping process does, in silence."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def ends_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=ends_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        task()
    except MetaschedError:
        os._exit(1)  # the parent finds the same
