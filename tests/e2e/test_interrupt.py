"""Ctrl-C while worker processes train: exit code 130, one line, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_interrupt(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metasched", "train", str(config), "--folder", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--run.workers=2", "--meta.steps=100000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives it
    )
    assert process.stdout is not None
    watchdog = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))  # or it would wait for a line for ever
    watchdog.start()
    seen = next((line for line in process.stdout if line.startswith("outer step 2/")), None)
    watchdog.cancel()
    assert seen is not None, process.communicate()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, errors = process.communicate(timeout=60)
    said = f"metasched: interrupted; go on with `metasched train --resume {tmp_path / 'run'}`\n"
    assert (process.returncode, errors) == (130, said)
    assert not (tmp_path / "run" / "DONE").exists()
    deadline = time.monotonic() + 20
    while _alive(process.pid):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
