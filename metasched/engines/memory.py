"""What an adjoint sweep holds in memory, and the storage of states that recomputes least within a budget.

With s the bytes of a training state and g those of the graph of one step, a plan with c_1 states stored by the forward
pass, c states at most while it goes back, and K steps that keep their graph takes

    max(c_1 s + K (g + s),  c s + g + s) + 2 s

bytes: the last term is the state that moves and the adjoint.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from metasched.core.errors import MetaschedError

_MIB = 2**20


class Plan(NamedTuple):
    """Which states a sweep stores, and which graphs it keeps.

    Attributes:
        strides: every ``strides[0]``-th state of the run is stored; a segment between two of them is run again on the
            way back with every ``strides[1]``-th state stored, and so on; the last stride is 1.
        kept: the last steps of the run, at least one, whose graph is kept from the forward pass.
    """

    strides: tuple[int, ...]
    kept: int


@lru_cache(maxsize=64)
def plan(steps: int, state_bytes: int, graph_bytes: int, budget: int | None) -> Plan:
    """The plan that recomputes least.

    Args:
        steps: T.
        state_bytes: s, of one training state.
        graph_bytes: g, of one step's graph.
        budget: bytes that ``predicted_bytes`` may take; None is economical: one kept step, and states that take no
            more than max(g, 2 sqrt(T) s).

    Raises:
        MetaschedError: a budget that no plan fits.

    >>> plan(100, state_bytes=1, graph_bytes=50, budget=None)
    Plan(strides=(3, 1), kept=1)
    >>> plan(100, state_bytes=1, graph_bytes=50, budget=1000)
    Plan(strides=(1,), kept=17)
    """
    assert steps >= 1 and state_bytes >= 0 and graph_bytes >= 0, (steps, state_bytes, graph_bytes)
    if budget is None:
        most = max(graph_bytes, 2 * math.sqrt(steps) * state_bytes)
        fitting = [p for s in _strides(steps) if stored_states(p := Plan(s, 1), steps) * state_bytes <= most]
    else:
        filled = [Plan(s, _most_kept(s, steps, state_bytes, graph_bytes, budget)) for s in _strides(steps)]
        fitting = [p for p in filled if p.kept and predicted_bytes(p, steps, state_bytes, graph_bytes) <= budget]
    if not fitting:
        needed = min(predicted_bytes(Plan(s, 1), steps, state_bytes, graph_bytes) for s in _strides(steps))
        raise MetaschedError(
            "meta.memory",
            f"is less than the {math.ceil(needed / _MIB)} MiB that one step and its states need",
            "raise it, or make task.batch or task.width smaller",
        )
    return min(fitting, key=lambda p: (recomputed_steps(p, steps), stored_states(p, steps)))


def predicted_bytes(plan: Plan, steps: int, state_bytes: int, graph_bytes: int) -> int:
    """The most that the sweep holds at once, beside data and controls: the formula of the module's docstring."""
    back = (stored_states(plan, steps) + 3) * state_bytes + graph_bytes
    return max(_forward_bytes(plan, steps, state_bytes, graph_bytes), back)


def stored_states(plan: Plan, steps: int) -> int:
    """c: the most states that are stored at once.

    >>> stored_states(Plan((1,), kept=1), steps=100), stored_states(Plan((10, 1), kept=1), steps=100)
    (99, 19)
    """
    return _stored(steps - plan.kept, plan.strides)


def recomputed_steps(plan: Plan, steps: int) -> int:
    """How often a step is computed again, with or without a graph, after the forward pass.

    >>> recomputed_steps(Plan((1,), kept=1), steps=100), recomputed_steps(Plan((10, 1), kept=1), steps=100)
    (99, 188)
    """
    unkept, (stride, *deeper) = steps - plan.kept, plan.strides
    whole, rest = divmod(unkept, stride)
    return unkept + whole * _rerun(stride, tuple(deeper)) + _rerun(rest, tuple(deeper))


def keep_freed_memory() -> None:
    """Lets the C library keep up to 64 MiB of freed memory for the next step; it would give it back to the system.

    glibc sets that threshold to twice the size of the largest block that was mapped by itself and freed, up to blocks
    of 32 MiB (mallopt(3), M_MMAP_THRESHOLD). This one is never written to, so that it takes no memory.
    """
    np.empty(31 * _MIB, dtype=np.uint8)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages under the tensors (any shape [...] and dtype), each counted once."""
    storages = [t.untyped_storage() for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def graph_bytes(make: Callable[[], object], existing: Iterable[torch.Tensor]) -> int:
    """Bytes that the graph built by ``make()`` holds: each storage once.

    Those of ``existing`` tensors (any shape [...]) do not count.
    """
    held: dict[int, int] = {}

    def see(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return x.detach()  # an operation that saved its own result would hold itself

    with torch.autograd.graph.saved_tensors_hooks(see, lambda x: x):
        made = make()  # alive until it is counted, so that no address is used twice
    for x in existing:
        held.pop(x.untyped_storage().data_ptr(), None)
    del made
    return sum(held.values())


def _strides(steps: int) -> Iterator[tuple[int, ...]]:
    """Every state; every k-th; two levels, of k and about sqrt(k)."""
    yield (1,)
    for k in range(2, steps):
        yield k, 1
        if k >= 4:
            yield k, math.isqrt(k), 1


def _most_kept(strides: tuple[int, ...], steps: int, state_bytes: int, graph_bytes: int, budget: int) -> int:
    """How many kept steps fit into the forward pass, which takes more with each of them; 0 where not even one does."""
    return bisect_right(
        range(1, steps + 1),
        budget,
        key=lambda kept: _forward_bytes(Plan(strides, kept), steps, state_bytes, graph_bytes),
    )


def _forward_bytes(plan: Plan, steps: int, state_bytes: int, graph_bytes: int) -> int:
    stored = _segments(steps - plan.kept, plan.strides[0])
    return stored * state_bytes + plan.kept * (graph_bytes + state_bytes) + 2 * state_bytes


def _segments(steps: int, stride: int) -> int:
    return -(-steps // stride)


def _stored(steps: int, strides: tuple[int, ...]) -> int:
    """The first state of a segment is its own and one of the level above, but stored once."""
    if not strides or steps == 0:
        return min(steps, 1)
    stride, deeper = strides[0], strides[1:]
    return _segments(steps, stride) - 1 + _stored(min(stride, steps), deeper)


def _rerun(steps: int, strides: tuple[int, ...]) -> int:
    """Steps without a graph that give the states of a segment: up to the last one stored, and within its parts."""
    if not strides or steps == 0:
        return 0
    stride, deeper = strides[0], strides[1:]
    whole, rest = divmod(steps, stride)
    return stride * ((steps - 1) // stride) + whole * _rerun(stride, deeper) + _rerun(rest, deeper)
