"""SIGTERM while worker processes train: exit code 143, one line, nobody left behind, and the run can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metasched.cli.signals import Terminated, stop_on_signals
from metasched.meta.checkpoint import read_checkpoint

Cli = Callable[..., int]
ROOT = Path(__file__).parents[2]


def test_terminated_and_resumed(cli: Cli, config: Path, tmp_path: Path) -> None:
    folder, steps = tmp_path / "run", ["--meta.steps=6", "--compare.baselines=[]", "--compare.horizons=[1]"]
    command = [sys.executable, "-m", "metasched", "train", str(config), "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, *steps, "--run.workers=2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    seen = next((line for line in process.stdout if line.startswith("outer step 2/")), None)
    assert seen is not None, process.communicate()
    process.terminate()  # this one alone: the workers are its affair
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors == f"metasched: terminated; go on with `metasched train --resume {folder}`\n"
    assert read_checkpoint(folder / "checkpoint.pt").state.step >= 1 and not (folder / "DONE").exists()
    _wait_for_end_of_group(process.pid)
    one = ["--run.workers=1", "--allow", "run.workers"]
    assert cli("train", config, "--resume", folder, *steps, *one) == 0
    assert cli("train", config, "--folder", tmp_path / "whole", *steps) == 0
    for name in ("schedule.json", "comparison.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from metasched.runs.pool import Pool\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2) as pool:\n"
        "        list(pool.map(time.sleep, [(0.0,), (0.0,)]))\n"
        "        print(flush=True)\n"
        "        list(pool.map(time.sleep, [(1000.0,), (1000.0,)]))\n"
    )
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == b"\n", process.communicate()
    process.kill()
    process.wait()
    _wait_for_end_of_group(process.pid)
    process.communicate()


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, b"Terminated"), (signal.SIGINT, b"KeyboardInterrupt")])
def test_work_that_cannot_be_left_in_order_is_left_all_the_same(number: signal.Signals, said: bytes) -> None:
    code = (
        "import time, metasched.cli.signals\n"
        "metasched.cli.signals.WITHIN = 0.2\n"
        "with metasched.cli.signals.stop_on_signals(lambda stopped: print(stopped.__name__, flush=True)):\n"
        "    try:\n"
        "        print(flush=True)\n"
        "        time.sleep(1000)\n"
        "    finally:\n"
        "        time.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), errors) == (128 + number, said, b"")


def test_signals_become_exceptions_and_handlers_come_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
        with pytest.raises(error) as caught, stop_on_signals(lambda stopped: None):
            os.kill(os.getpid(), number)
            time.sleep(10)
        assert caught.type is error
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stop_on_signals(lambda stopped: None):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_for_end_of_group(group: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)
