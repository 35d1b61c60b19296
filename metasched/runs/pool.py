"""Independent inner runs on several processes, in order, or one after the other in this one: same numbers either way.

Each process computes with one thread, so that the bits of a run do not depend on where it ran. Work and answers travel
by value: torch's own way from process to process is shared memory, which keeps a file open for each tensor, and which a
process that is stopped at the wrong moment leaves with a traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import starmap
from types import TracebackType
from typing import Any, Protocol

import torch

from metasched.core.errors import MetaschedError
from metasched.io.environment import INNER_THREADS


class Mapper(Protocol):
    """Something that computes functions of independent work, in order: a Pool, or one with a cache (CachedPool)."""

    @property
    def workers(self) -> int:
        """How many processes share the work."""
        ...

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(*a)`` for each ``a``, in order, as they become ready."""
        ...


def _start() -> None:
    torch.set_num_threads(INNER_THREADS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # it was killed, and nobody else will end this process


def _by_value(work: bytes) -> bytes:
    function, arguments = pickle.loads(work)
    return pickle.dumps(function(*arguments))


class Pool:
    """Worker processes; a context manager.

    Args:
        workers: number of processes; 0: one for each core; 1: everything runs in this process.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._threads = torch.get_num_threads()  # given back at the end
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(INNER_THREADS)
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
            self._executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            if kind is not None:
                for process in list((self._executor._processes or {}).values()):
                    process.terminate()  # what they are at is of no use any more
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
        torch.set_num_threads(self._threads)

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(*a)`` for each ``a``, in order, as they become ready."""
        if self._executor is None:
            return starmap(function, arguments)
        # Workers start here and inherit the mask: an interrupt of the whole process group is for this process alone.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [self._executor.submit(_by_value, pickle.dumps((function, a))) for a in arguments]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        return (_answer(future) for future in futures)


def _answer(future: Future[bytes]) -> Any:
    try:
        return pickle.loads(future.result())
    except BrokenProcessPool as error:
        problem = "a worker process ended before its work was done, as when memory runs out"
        raise MetaschedError("run.workers", problem, "set it lower, or make the inner runs smaller") from error
