"""Independent inner runs on several processes, in order, or one after the other in this one: same numbers either way.

Each process computes with one thread, so that the bits of a run do not depend on where it ran. Where it is safe
(``start_method``), workers are forks of this process: they start in milliseconds, and share the memory of torch and of
the tasks that this process has built. Elsewhere they are forks of a server that has loaded torch, and each builds its
own tasks.

Work and answers travel by value: torch's own way from process to process is shared memory, which keeps a file open for
each tensor, and which a process that is stopped at the wrong moment leaves with a traceback.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import starmap
from types import TracebackType
from typing import Any, Literal, Protocol

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


def start_method() -> Literal["fork", "forkserver"]:
    """How worker processes start now: as forks of this process, or of a server.

    A fork has one thread, and waits for ever for a lock that another one held. So this process is forked only while it
    has no other thread of Python's; those of native libraries do not count, as where torch's DataLoader forks. An
    accelerator's driver does not survive a fork, nor do the frameworks of macOS.
    """
    alone = threading.active_count() == 1 and not torch.accelerator.is_available()
    return "fork" if alone and sys.platform == "linux" else "forkserver"


def _start(dtype: torch.dtype) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the handler of its parent
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    torch.set_num_threads(INNER_THREADS)
    torch.set_default_dtype(dtype)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextmanager
def _starting() -> Iterator[None]:
    """Workers that start within inherit the mask: an interrupt of the whole process group is for this process alone.

    SIGTERM waits until ``_start`` has put its handler back.
    """
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def _executor(workers: int) -> ProcessPoolExecutor:
    """Worker processes: forks start at once, while this process may be forked, others with their first work."""
    method = start_method()
    context = multiprocessing.get_context(method)
    executor = ProcessPoolExecutor(workers, context, _start, (torch.get_default_dtype(),))
    if method == "forkserver":
        context.set_forkserver_preload(["metasched.runs.pooled"])
        return executor
    gc.freeze()  # else the collector of each worker would write to, and so copy, all that they share
    try:
        with _starting(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, which counts native threads
            executor.submit(int)
    finally:
        gc.unfreeze()
    return executor


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
            self._executor = _executor(self.workers)
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
        with _starting():
            futures = [self._executor.submit(_by_value, pickle.dumps((function, a))) for a in arguments]
        return (_answer(future) for future in futures)


def _answer(future: Future[bytes]) -> Any:
    try:
        return pickle.loads(future.result())
    except BrokenProcessPool as error:
        problem = "a worker process ended before its work was done, as when memory runs out"
        raise MetaschedError("run.workers", problem, "set it lower, or make the inner runs smaller") from error
