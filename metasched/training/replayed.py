"""Stacked inner runs whose step is recorded once and replayed for each further one, with CUDA graphs on a GPU.

    (s, c_t, h_t, v_t) -> s,   all in tensors that stay where they are

The step overwrites the state s. The host fills the rest before each replay: controls c_t, hyper-parameters h_t that
change from step to step, and functions of seed and step v_t, which are indices of batches and random numbers. Adam's
steps are counted on the device. So a step costs the host a few copies and one launch.

Numbers are those of ``take_steps`` on stacked runs, with the same operations. They may differ by the rounding of Adam's
bias corrections, and of a learning rate that changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from metasched.core.errors import MetaschedWarning
from metasched.core.recording import HostValues, recording
from metasched.network.flat import Tensors, rows
from metasched.training.capture import Capture, NotRecordable, RefusingHost, Replay, cuda_graph
from metasched.training.loop import Stepped, take_steps
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

_WORTH = 10  # steps: to record takes about five


def stacked_steps(
    problem: InnerProblem,
    state: TrainingState,
    controls: Mapping[str, torch.Tensor],
    steps: range,
    seeds: torch.Tensor,
    capture: Capture | None = None,
) -> Iterator[Stepped]:
    """``take_steps`` of stacked runs, by replays of one recorded step where that pays and can be done.

    A state, loss and gradients are good until the next step.

    Args:
        problem, state, controls, steps, seeds: as for ``take_steps`` of stacked runs.
        capture: how a step is recorded; None: as a CUDA graph on a GPU, not at all elsewhere.
    """
    like = next(problem.network.module.parameters())
    if capture is None and like.is_cuda:
        capture = cuda_graph
    if capture is not None and len(steps) >= _WORTH:
        try:
            with torch.cuda.device_of(like):  # nothing on the CPU
                recorded = record(problem, state, controls, steps, seeds.tolist(), capture)
        except NotRecordable as refused:
            why = f"steps of stacked runs are not replayed but taken one by one: {refused}"
            warnings.warn(MetaschedWarning(why), stacklevel=2)
        else:
            yield from replay(recorded, state, controls, steps)
            return
    yield from take_steps(problem, state, controls, steps, seeds=seeds)


@dataclass(frozen=True)
class Recorded:
    """A step of stacked runs and the tensors that it works on.

    Attributes:
        state: before the step, and after it.
        row: the controls, {control: [N, L]}.
        hyper: hyper-parameters that change from step to step, with their values: name -> (0-d, [T]).
        values: what the host computes.
        found: the loss [N], and the gradients.
        again: does the step.
    """

    state: TrainingState
    row: Tensors
    hyper: dict[str, tuple[torch.Tensor, Sequence[float]]]
    values: HostValues
    found: tuple[torch.Tensor, Tensors]
    again: Replay


def record(
    problem: InnerProblem,
    state: TrainingState,
    controls: Mapping[str, torch.Tensor],
    steps: range,
    seeds: Sequence[int],
    capture: Capture,
) -> Recorded:
    """Record a step of stacked runs.

    Args:
        problem, state, controls, steps: as for ``take_steps`` of stacked runs; nothing of them is changed.
        seeds: of the runs.
        capture: how it is recorded.

    Raises:
        NotRecordable: the step reads values on the host, or CUDA does not record it.
        RuntimeError: torch.vmap refuses the model or the method.
    """
    like = next(iter(state.params.values()))
    kept, row, hyper = _own(state, like), _copies(rows(controls, 0)), _changing(problem, steps, like)
    fixed = replace(problem, hyper={**problem.hyper_at(steps.start), **{name: now for name, (now, _) in hyper.items()}})
    values, each = HostValues(seeds), torch.tensor(seeds, dtype=torch.int64)
    found: list[tuple[torch.Tensor, Tensors]] = []

    def step() -> None:
        after, loss, gradients = inner_step(fixed, kept, row, steps.start, differentiable=False, seeds=each)
        _overwrite(kept, after)
        found[:] = [(loss, gradients)]

    with recording(values):
        step()  # what torch.vmap refuses comes up here; constants are made
        with RefusingHost():
            step()
        try:
            again = capture(step)
        except RuntimeError as error:
            raise NotRecordable(" ".join(str(error).split())[:200]) from error
    return Recorded(kept, row, hyper, values, found[0], again)


def replay(
    recorded: Recorded, state: TrainingState, controls: Mapping[str, torch.Tensor], steps: range
) -> Iterator[Stepped]:
    """Take the steps by replays, from the state before the first of them, which is left as it is."""
    kept = recorded.state
    with torch.no_grad():
        _overwrite(kept, state)
    for i, step in enumerate(steps):
        recorded.values.fill(step)
        with torch.no_grad():
            for name, values in controls.items():
                recorded.row[name].copy_(values[i])
            for now, values in recorded.hyper.values():
                now.fill_(values[step])
        recorded.again()
        loss, gradients = recorded.found
        last = i == len(steps) - 1
        yield Stepped(step, _returned(kept, state) if last else kept, loss, gradients, recorded.row)


def _own(state: TrainingState, like: torch.Tensor) -> TrainingState:
    """A copy of the state, all on one device, where a recorded step can change it."""
    return TrainingState(*({name: t.detach().clone().to(like.device) for name, t in part.items()} for part in state))


def _returned(kept: TrainingState, state: TrainingState) -> TrainingState:
    """A copy whose tensors are where those of ``state`` are: Adam counts its steps on the CPU."""
    return TrainingState(
        *(
            {name: t.clone().to(old[name].device) for name, t in part.items()}
            for part, old in zip(kept, state, strict=True)
        )
    )


def _copies(row: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: values.detach().clone() for name, values in row.items()}


def _changing(
    problem: InnerProblem, steps: range, like: torch.Tensor
) -> dict[str, tuple[torch.Tensor, Sequence[float]]]:
    """The hyper-parameters that are not the same in all steps: name -> (0-d, for the value; [T], the values)."""
    found = {}
    for name, values in problem.hyper.items():
        if isinstance(values, torch.Tensor) and values.dim():
            values = tuple(values.detach().tolist())
        if isinstance(values, tuple) and len({*values[steps.start : steps.stop]}) > 1:
            found[name] = (like.new_zeros(()), values)
    return found


@torch.no_grad()
def _overwrite(kept: TrainingState, after: TrainingState) -> None:
    """Write a state into the tensors of another one, with which it may share some, or parts of some."""
    memory = {t.untyped_storage()._cdata for part in kept for t in part.values()}
    pairs = []
    for old, new in zip(kept, after, strict=True):
        if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
            raise NotRecordable("the state has other tensors after a step than before it")
        for name, t in old.items():
            if new[name] is not t:
                shared = new[name].untyped_storage()._cdata in memory
                pairs.append((t, new[name].clone() if shared else new[name]))
    for old, new in pairs:
        old.copy_(new)
