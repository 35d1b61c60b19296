"""Independent inner runs on the processes that torchrun has started: rank 0 asks, all answer, in the order of the work.

    torchrun --nproc_per_node 8 -m metasched train CONFIG

Work goes out in rounds of one item a rank. An answer is a function of its item alone, and each process computes with
one thread, so that the numbers are those of one process. Rank 0 alone writes and speaks; the others serve it. Work and
answers travel by value (gloo), whatever the device; with ``run.device: cuda`` each process has the GPU of its local
rank to itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any

from metasched.core.errors import MetaschedError
from metasched.io.environment import INNER_THREADS
from metasched.runs.by_value import answered, packed, result

_PATIENCE = timedelta(days=365)  # a lost process shows as a closed connection; silence is work


def serves() -> bool:
    """Whether this is a process of torchrun that works for another one."""
    return launched() and os.environ["RANK"] != "0"


def launched() -> bool:
    """Whether torchrun has started several processes."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def refuse_ranks(command: str) -> None:
    """Refuses a command that the ranks of torchrun do not share.

    Raises:
        MetaschedError: torchrun has started this process.
    """
    if launched():
        fix = "start it alone, with run.workers or run.where: ray"
        raise MetaschedError("torchrun", f"does not share the work of `metasched {command}`", fix)


class Ranks:
    """All processes that torchrun has started, as rank 0 sees them; a context manager, and a Mapper."""

    def __init__(self) -> None:
        self.workers = int(os.environ["WORLD_SIZE"])

    def __enter__(self) -> Ranks:
        join_group()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # else torchrun ends the others, once this process has ended
            self._round([None] * self.workers)
            leave_group()

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(*a)`` for each ``a``, in order, as their rounds are done."""
        items = [packed(function, a) for a in arguments]
        for i in range(0, len(items), self.workers):
            part = items[i : i + self.workers]
            idle = [packed(_nothing, ())] * (self.workers - len(part))
            yield from self._round([*part, *idle])[: len(part)]

    def _round(self, items: list[bytes | None]) -> list[Any]:
        import torch.distributed as dist

        own: list[Any] = [None]
        answers: list[Any] = [None] * self.workers
        try:
            dist.scatter_object_list(own, items)
            dist.gather_object(_answer(own[0]), answers)
        except RuntimeError as error:  # gloo's, which says it in many words
            problem = "a process of another rank ended before its work was done"
            raise MetaschedError("torchrun", problem, "see what that rank has written") from error
        return [result(answer) for answer in answers if answer is not None]


def serve() -> None:
    """Works for rank 0 until that has no more work; for every other rank."""
    see_own_gpu()
    import torch.distributed as dist

    join_group()
    work: list[Any] = [None]
    while True:
        dist.scatter_object_list(work, None)
        dist.gather_object(_answer(work[0]))
        if work[0] is None:
            break
    leave_group()


def _nothing() -> None:
    pass


def _answer(work: bytes | None) -> bytes | None:
    return None if work is None else answered(work)


def join_group(backend: str = "gloo") -> None:
    """Makes this process a member of the group of ranks, with one thread."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(INNER_THREADS)
    dist.init_process_group(backend, timeout=_PATIENCE)


def leave_group() -> None:
    """Leaves the group of ranks."""
    import torch.distributed as dist

    dist.destroy_process_group()


def see_own_gpu() -> None:
    """To be called before anything looks for a GPU; where rank 0 has looked, it has the first one, which is its own."""
    local, listed = int(os.environ["LOCAL_RANK"]), os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = listed.split(",")[local:][:1] if listed else [str(local)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
