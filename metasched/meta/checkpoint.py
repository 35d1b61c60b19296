"""Checkpoints: where ``metasched train`` stands after an outer step, as a file to go on from with the same bits.

The file is torch's (a zip of tensors and a pickle) and holds plain types and tensors only. It is read as one from a
stranger: of the pickle nothing but these is built (``weights_only``), and then every field is held against its type,
its range, and the schedule that it is for. What follows from seeds, random streams above all, is not in it.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import AfterValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from metasched.core.errors import MetaschedError
from metasched.estimators.base import MEND, check_like
from metasched.io.atomic import write_atomic
from metasched.io.reading import read_regular
from metasched.meta.adam import QUANTITIES
from metasched.meta.outer import OuterState, OuterStep
from metasched.network.flat import Tensors

FORMAT, VERSION = "metasched.checkpoint", 1
MAX_BYTES = 2**32


class Checkpoint(NamedTuple):
    """A run between two outer steps.

    Attributes:
        config: the experiment, in the types of JSON.
        versions: {package: version} of what wrote it.
        start: name of the schedule that learning started at.
        base: a hash of that schedule's values.
        selecting: inner steps that choosing it took.
        position: bytes of ``metrics.jsonl`` that belong to the steps done.
        state: of the outer loop.
        fingerprint: of the task; empty in files from before it was stored.
    """

    config: dict[str, Any]
    versions: dict[str, str]
    start: str
    base: str
    selecting: int
    position: int
    state: OuterState
    fingerprint: str = ""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically.

    Raises:
        MetaschedError: it cannot be written; the last one stays.
    """
    state = checkpoint.state._asdict() | {"history": [record._asdict() for record in checkpoint.state.history]}
    tree = {"format": FORMAT, "version": VERSION, **checkpoint._asdict(), "state": state}
    buffer = io.BytesIO()
    torch.save(tree | {"config": json.dumps(checkpoint.config)}, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check everything that can be checked without its schedule; see ``check_fit``.

    Raises:
        MetaschedError: whatever is wrong with it, with the place: ``checkpoint.pt: state.step``.
    """
    data = read_regular(path, MAX_BYTES, MEND)
    try:
        return _checked(_load(data))
    except MetaschedError as error:
        where = f"{path}: {error.path}" if error.path else str(path)
        raise MetaschedError(where, error.problem, error.fix) from None


def check_fit(checkpoint: Checkpoint, schedule: torch.nn.Module, steps: int) -> None:
    """Refuse a state that is none of this schedule's.

    Raises:
        MetaschedError: parameters that the schedule does not have, or more steps than there are.
    """
    state = checkpoint.state
    if state.step > steps:
        raise MetaschedError("state.step", f"is {state.step}, and the run has {steps} outer steps", MEND)
    own = {name: p.detach() for name, p in schedule.named_parameters()}
    count = torch.zeros((), dtype=_step_type(state.optimizer))
    moments = {f"{q}.{name}": count if q == "step" else p for name, p in own.items() for q in QUANTITIES}
    check_like("state.parameters", state.parameters, own)
    check_like("state.totals", state.totals, own)
    check_like("state.optimizer", state.optimizer, moments if state.optimizer else {})


def _step_type(optimizer: Tensors) -> torch.dtype:
    """Adam counts its steps in torch's default dtype, which need not be that of the process that goes on."""
    found = {t.dtype for name, t in optimizer.items() if name.startswith("step.")}
    return torch.float64 if found == {torch.float64} else torch.float32


def _load(data: bytes) -> Any:
    """What the file holds, if it holds nothing but plain types and tensors."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise MetaschedError("", "is compressed, which torch does not do", MEND)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(data), weights_only=True)
    except MetaschedError:
        raise
    except Exception:  # torch has no error type of its own for files that are not what it wrote
        raise MetaschedError("", "is not a checkpoint, or holds more than plain types and tensors", MEND) from None


# --- the fields of the file ---


def _plain(t: torch.Tensor) -> torch.Tensor:
    """A dense tensor that owns what it shows: nothing that expands, and no subclass."""
    plain = type(t) is torch.Tensor and t.layout is torch.strided and not (t.is_quantized or t.is_nested or t.is_meta)
    if not plain or t.requires_grad or t.numel() * t.element_size() > t.untyped_storage().nbytes():
        raise PydanticCustomError("tensor_type", "Input should be a plain tensor")
    return t


def _finite(t: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(t).all()):
        raise PydanticCustomError("finite_tensor", "Input should be a tensor of finite numbers")
    return t


_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
_Name = Annotated[str, Strict(), Field(pattern=r"^[ -~]{0,300}$")]
_Tensors = dict[_Name, Annotated[torch.Tensor, AfterValidator(_plain)]]
_FiniteTensors = dict[_Name, Annotated[torch.Tensor, AfterValidator(_plain), AfterValidator(_finite)]]
_Count = Annotated[int, Strict(), Field(ge=0, lt=2**62)]


@dataclass(config=_CONFIG)
class _State:
    step: _Count
    parameters: _FiniteTensors
    optimizer: _FiniteTensors
    totals: _FiniteTensors
    averaged: _Count
    estimator: _Tensors
    bad_steps: _Count
    history: list[dict[str, Any]]


@dataclass(config=_CONFIG)
class _File:
    format: Literal["metasched.checkpoint"]
    version: _Count
    config: Annotated[str, Strict(), Field(max_length=2**20)]
    versions: dict[_Name, _Name]
    start: _Name
    base: _Name
    selecting: _Count
    position: _Count
    state: dict[str, Any]
    fingerprint: _Name = ""


_FILE, _STATE = TypeAdapter(_File), TypeAdapter(_State)
_STEP = TypeAdapter(OuterStep, config=ConfigDict(strict=True))


def _checked(tree: Any) -> Checkpoint:
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise MetaschedError("format", "this is not a checkpoint of metasched", MEND)
    version = tree.get("version")
    if type(version) is not int or version != VERSION:
        known = f"unknown version {str(version)[:20]}; known: {VERSION}"
        raise MetaschedError("version", known, "update metasched, or start a new run")
    file: _File = _validated(_FILE, tree, "")
    state: _State = _validated(_STATE, file.state, "state")
    history = tuple(_validated(_STEP, r, f"state.history[{i}]") for i, r in enumerate(state.history))
    if len(history) != state.step or any(record.step != i for i, record in enumerate(history)):
        raise MetaschedError("state.history", f"is not that of {state.step} steps", MEND)
    for name in ("averaged", "bad_steps"):
        if getattr(state, name) > state.step:
            raise MetaschedError(f"state.{name}", f"is more than the {state.step} steps done", MEND)
    try:
        config = json.loads(file.config)
    except (ValueError, RecursionError):
        raise MetaschedError("config", "is not JSON", MEND) from None
    if not isinstance(config, dict):
        raise MetaschedError("config", "must be an object", MEND)
    kept = {name: getattr(file, name) for name in ("versions", "start", "base", "selecting", "position", "fingerprint")}
    return Checkpoint(config=config, state=OuterState(**{**file.state, "history": history}), **kept)


def _validated(adapter: TypeAdapter[Any], tree: Any, place: str) -> Any:
    """What an adapter makes of plain types, or the first thing that is wrong with them."""
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise MetaschedError(place, "must be an object", MEND)
    try:
        return adapter.validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        inner = "".join(f".{part}"[:60] for part in first["loc"])
        where = (place + inner).removeprefix(".")
        raise MetaschedError(where, first["msg"].replace("Input should", "must"), MEND) from None
