"""A disk that takes nothing more: one line, exit code 2, and a run that goes on once there is room."""

from __future__ import annotations

import json
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import metasched.io.atomic
import metasched.io.json_lines
from metasched.meta.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("blank_plots")

Cli = Callable[..., int]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond that many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def left(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    timeless = [{k: v for k, v in row.items() if k != "outer/seconds"} for row in rows]
    return (folder / "schedule.json").read_bytes(), (folder / "comparison.json").read_bytes(), timeless


@pytest.mark.parametrize("file", ["checkpoint.pt", "metrics.jsonl"])
def test_a_full_disk_ends_the_run_and_loses_nothing(
    cli: Cli, config: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folder = tmp_path / "run"
    sizes = {name: (trained / name).stat().st_size for name in ("checkpoint.pt", "metrics.jsonl")}
    assert sizes["metrics.jsonl"] > sizes["checkpoint.pt"] + 1000
    room = sizes["checkpoint.pt"] + (-1 if file == "checkpoint.pt" else 500)
    capsys.readouterr()
    with largest_file(room):
        assert cli("train", config, "--folder", folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"metasched: error: {folder / file}: cannot be written (File too large);")
    steps = read_checkpoint(folder / "checkpoint.pt").state.step
    assert steps == (2 if file == "metrics.jsonl" else 1) and not (folder / "DONE").exists()
    assert not list(folder.glob(".*.tmp"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli("train", "--resume", folder) == 0
    said = capsys.readouterr().err.splitlines()
    torn = file == "metrics.jsonl"  # the part of the last line for which there was room
    assert len(said) == torn and all("the last line is incomplete" in line for line in said)
    assert left(folder) == left(trained)


@pytest.mark.parametrize(
    ("module", "file"), [(metasched.io.atomic, "checkpoint.pt"), (metasched.io.json_lines, "cells.jsonl")]
)
def test_a_missing_permission(
    cli: Cli,
    config: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    file: str,
) -> None:
    def refusing(path: Any, *arguments: Any, **named: Any) -> Any:
        if file in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *arguments, **named)

    capsys.readouterr()
    monkeypatch.setattr(module, "open", refusing, raising=False)  # chmod would not stop an administrator
    folder = tmp_path / "run"
    assert cli("train", config, "--folder", folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"metasched: error: {folder / file}: cannot be written (Permission denied);")
    monkeypatch.undo()
    assert cli("train", "--resume", folder) == 0
    assert left(folder) == left(trained)


def test_the_last_checkpoint_stays_when_saving_fails_later(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls, fsync = tmp_path / "run", [], metasched.io.atomic.os.fsync

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 14:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(metasched.io.atomic.os, "fsync", failing)
    assert cli("train", config, "--folder", folder) == 2
    monkeypatch.undo()
    read_checkpoint(folder / "checkpoint.pt")
    assert cli("train", "--resume", folder) == 0
