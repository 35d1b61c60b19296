"""Kills runs of ``metasched train`` at random moments, resumes them, and compares what they leave with a whole run.

    python scripts/reliability/kill.py --runs 200 --json kill.json

Each run is killed by SIGKILL one to three times, at moments that are uniform over the length of a whole run; in every
third run the disk is slow, so that many kills hit the middle of a write. Then it is resumed until it is done. Runs are
forked from this process, which has imported everything, and write their plots without drawing them, which would be half
of their time; ``--processes`` of them are started anew, with two workers and real plots.
The result is 0 if every checkpoint could be read, every run was resumed, and all files are those of the whole run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from metasched.core.errors import MetaschedError  # noqa: E402
from metasched.io.run_folder import RunFolder  # noqa: E402

STEPS = 8
EXPERIMENT = {
    "name": "killed",
    "task": {"model": "mlp", "width": 3, "steps": 6, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "method": {"name": "inq"},
    "schedule": {"start": "best", "knots": 4, "hidden": 4},
    "meta": {"steps": STEPS, "runs": 2, "select_runs": 1, "estimator": "pes", "window": 2},
    "compare": {"seeds": 2, "baselines": ["inq_linear", "inq_cubic"]},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1},
}
WARM = ("metasched.commands.train", "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.PngImagePlugin")
MOST_KILLS = 3
LONGEST = 900.0  # seconds of a run that is not killed


class Ended(NamedTuple):
    """How a process ended: its exit code, or None where it was killed before that, and what it said."""

    code: int | None
    said: str


Start = Callable[[Sequence[str], Path], int]


def main() -> int:
    """Runs everything and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200, help="runs that are killed [200]")
    parser.add_argument("--processes", type=int, default=4, help="how many of them are started as new processes [4]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        counts = kill_runs(Path(place), arguments.runs, min(arguments.processes, arguments.runs), arguments.seed)
    text = json.dumps(counts, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return int(any(counts[name] for name in ("unreadable", "unresumable", "different")))


def kill_runs(place: Path, runs: int, processes: int, seed: int) -> dict[str, Any]:
    """Kill and resume that many runs in a folder; the counts, and what went wrong in words."""
    start = time.monotonic()
    for module in WARM:
        importlib.import_module(module)
    draws = random.Random(seed)
    counts: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    wrong: list[str] = []
    for new, number in ((False, runs - processes), (True, processes)):
        if not number:
            continue
        config = place / f"experiment{new:d}.yaml"
        config.write_text(yaml.safe_dump({**EXPERIMENT, "run": {"workers": 1 + new}}))
        whole, length = _whole(config, place / f"whole{new:d}", _started if new else _forked)
        for i in range(number):
            begin = _started if new else _slow if i % 3 == 2 else _forked
            _one(place / f"run{new:d}-{i}", config, begin, length, draws, whole, counts, phases, wrong)
    fixed = {name: counts[name] for name in ("kills", "unreadable", "unresumable", "different")}
    seconds = round(time.monotonic() - start, 1)
    return {"runs": runs, **fixed, "phases": dict(sorted(phases.items())), "wrong": wrong, "seconds": seconds}


def _whole(config: Path, folder: Path, start: Start) -> tuple[dict[str, str], float]:
    """Hashes of what an uninterrupted run leaves, and the seconds it took."""
    begun = time.monotonic()
    ended = _until_end(start(["train", str(config), "--folder", str(folder)], folder), folder)
    assert ended.code == 0, ended
    return fingerprint(folder), time.monotonic() - begun


def _one(
    path: Path,
    config: Path,
    start: Start,
    length: float,
    draws: random.Random,
    whole: dict[str, str],
    counts: Counter[str],
    phases: Counter[str],
    wrong: list[str],
) -> None:
    """Kill one run one to three times, resume it until it is done, and compare.

    A run that is done before its first moment, because the machine was busier when ``length`` was measured, is not
    killed: it is compared too, and begins again with moments in half of the time that it took.
    """
    folder = RunFolder(path)
    afresh = ["train", str(config), "--folder", str(path)]
    left, before, begun = draws.randint(1, MOST_KILLS), counts["kills"], time.monotonic()
    while not folder.done.exists():
        command = ["train", "--resume", str(path)] if folder.config.exists() else afresh
        pid = start(command, path)
        if left:
            ended = _until_killed(pid, path, draws.uniform(0, length))
            if ended.code is None:
                left -= 1
                counts["kills"] += 1
                phases[_phase(folder)] += 1
                if problem := _unreadable(folder):
                    counts["unreadable"] += 1
                    wrong.append(problem)
                continue
        else:
            ended = _until_end(pid, path)
        if ended.code != 0:
            counts["unresumable"] += 1
            wrong.append(f"{path.name}: exit code {ended.code}: {ended.said}")
            return
    if fingerprint(path) != whole:
        counts["different"] += 1
        wrong.append(f"{path.name}: {sorted(k for k, v in fingerprint(path).items() if whole[k] != v)} differ")
    elif counts["kills"] == before:
        shutil.rmtree(path)
        _one(path, config, start, (time.monotonic() - begun) / 2, draws, whole, counts, phases, wrong)


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of the schedule, of the comparison, and of the metrics without their times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    timeless = json.dumps([{k: v for k, v in row.items() if k != "outer/seconds"} for row in rows]).encode()
    files = {name: (folder / name).read_bytes() for name in ("schedule.json", "comparison.json")}
    return {name: hashlib.sha256(data).hexdigest() for name, data in {**files, "metrics.jsonl": timeless}.items()}


def _phase(folder: RunFolder) -> str:
    """Where a run was killed, as its files say."""
    if any(folder.path.glob(".*.tmp")):
        return "writing"
    if not folder.config.exists():
        return "starting"
    if not folder.checkpoint.exists():
        return "selecting"
    if not folder.schedule.exists():
        return "learning"
    return "comparing"


def _unreadable(folder: RunFolder) -> str | None:
    """What is wrong with a checkpoint, if anything is."""
    from metasched.meta.checkpoint import read_checkpoint

    try:
        if folder.checkpoint.exists():
            read_checkpoint(folder.checkpoint)
    except MetaschedError as error:
        return str(error)
    return None


def _forked(arguments: Sequence[str], path: Path) -> int:
    return _fork(arguments, path, slow=0.0)


def _slow(arguments: Sequence[str], path: Path) -> int:
    return _fork(arguments, path, slow=0.02)


def _fork(arguments: Sequence[str], path: Path, slow: float) -> int:
    """A child of this process that runs the command line, with a disk that takes ``slow`` seconds more."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(_log(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        fsync = os.fsync
        os.fsync = lambda descriptor: (time.sleep(slow / 2), fsync(descriptor), time.sleep(slow / 2))[1]
        from matplotlib.figure import Figure

        from metasched.cli import main

        Figure.savefig = _blank  # pyright: ignore
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _blank(figure: object, file: BinaryIO, **_: object) -> None:
    from PIL import Image

    Image.new("RGB", (1, 1)).save(file, format="png")


def _started(arguments: Sequence[str], path: Path) -> int:
    """A new process that runs the command line."""
    with open(_log(path), "wb") as log:
        return subprocess.Popen([sys.executable, "-m", "metasched", *arguments], cwd=ROOT, stdout=log, stderr=log).pid


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _until_killed(pid: int, path: Path, seconds: float) -> Ended:
    """Kill a process after some seconds, unless it has ended by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return Ended(os.waitstatus_to_exitcode(status), _last_line(path))
        time.sleep(min(0.002, max(0.0, deadline - time.monotonic())))
    os.kill(pid, 9)
    _, status = os.waitpid(pid, 0)
    return Ended(None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), _last_line(path))


def _until_end(pid: int, path: Path) -> Ended:
    ended = _until_killed(pid, path, LONGEST)
    return ended if ended.code is not None else Ended(-9, f"not done after {LONGEST} s: {ended.said}")


def _last_line(path: Path) -> str:
    lines = _log(path).read_text(errors="replace").splitlines() if _log(path).exists() else []
    return lines[-1] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
