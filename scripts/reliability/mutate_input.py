"""Damaged and random files by the thousand: nothing but a schedule, an experiment or a MetaschedError may come of them.

    python scripts/reliability/mutate_input.py --files 50000 --configs 5000 --policies 5000 --round-trips 10000 \
        --json experiments/results/reliability_input.json

Schedule files, experiments and policy files of Ray Tune are damaged as texts and as trees, by a seed, and read in this
process; some of the experiments that are refused go through the command line too. Random valid schedules are written,
read and written again. The exit code is 1 if anything else than the above happened.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from metasched.config.load import load_experiment
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.exchange.format import ControlEntry, LayerEntry, MethodEntry, Metric, Provenance, ScheduleFile, Spent
from metasched.exchange.pbt import import_policy
from metasched.exchange.schedule_file import dumps, loads
from metasched.methods.ana import ACTIVATION_NOISE, NOISE_MEAN, WEIGHT_NOISE

ROOT = Path(__file__).parents[2]
SCHEDULES = (
    "tests/formats/schedule_v1.json",
    "tests/formats/schedule_v2_family.json",
    "tests/formats/schedule_v2_network.json",
    "tests/formats/schedule_v2_shared.json",
    "metasched/data/learned/digits_inq.json",
    "experiments/baselines/ana_2019.json",
)
CONFIGS = ("tests/formats/config_v1.yaml", "experiments/digits_joint.yaml", "experiments/digits_inq.yaml")
POLICY = "tests/formats/pbt_policy_ray.txt"
SEED = 0
SHOWN = 10  # seeds of failures that the result names

_TOKENS = [
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"0.25", b"9" * 30, b"true", b"null", b'""', b"{}", b"[]", b"[" * 40),
    *(b'"\\ud800"', b"\\u0000", b",", b":", b'"', b"\x00", b"\x1b[2J", b"\xff", b"\xef\xbb\xbf", b"\n", b" " * 9),
    *(
        b"- ",
        b"? ",
        b"!!python/object/apply:os.system [touch planted]",
        b"&a ",
        b"*a",
        b"<<: ",
        b"...\n---\n",
        b"%YAML 9\n",
    ),
    *(b'"\\UFFFFFFFF"', b"010", b"1:30", b"../../planted", b"/planted", b"~x"),
]
_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        2**62,
        2**63,
        10**30,
        0.25,
        -0.0,
        1e308,
        1e-320,
        "",
        "x",
        "conv",
        "a\u2028b",
        "\x1b[31m",
    ),
    *("../planted", "/planted", "a" * 5000, "\u202e", [], [[]], [0, 1], ["a"] * 2000, {}, {"a": 1}, {"": {}}),
]


def damaged_text(good: bytes, rng: random.Random) -> bytes:
    """A text after one to four edits: pieces cut, doubled, moved, or replaced by what parsers stumble on."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(at + rng.choice([0, 0, 1, 1, 2, 8, 64, 1024]), len(data))
        from_ = rng.randrange(len(data) + 1)
        data[at:end] = rng.choice(
            [b"", bytes([rng.randrange(256)]), rng.choice(_TOKENS), data[at:end] * 2, data[from_ : from_ + 32]]
        )
    return bytes(data)


def damaged_tree(tree: Any, rng: random.Random) -> Any:
    """A tree, changed in place at one to three nodes: removed, doubled, renamed, or of another value."""
    for _ in range(rng.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            break
        holder, key = rng.choice(places)
        move = rng.randrange(4)
        if move == 0:
            del holder[key]
        elif move == 1 and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif move == 2 and isinstance(holder, dict):
            holder[rng.choice(["", "name", "x y", "\x1b[2J", "../x", "__class__", "a" * 300])] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
    return tree


def random_schedule(rng: random.Random) -> ScheduleFile:
    """A valid schedule file of random size, with floats of every magnitude."""
    knots = sorted({0.0, 1.0, *(rng.random() for _ in range(rng.randrange(6)))})
    layers = [f"{rng.choice(['conv', 'features.', 'A_b.'])}{i}" for i in range(rng.randint(1, 5))]
    controls, values = [], {}
    for name in rng.sample(["weight_noise", "noise_mean", "freeze_fraction", "z9_", "b" * 64], rng.randrange(4)):
        direction: Literal["free", "nonincreasing", "nondecreasing"]
        direction = rng.choice(["free", "nonincreasing", "nondecreasing"])
        low, high = sorted([_number(rng), _number(rng)])
        end = {"free": None, "nonincreasing": low, "nondecreasing": high}[direction] if rng.random() < 0.5 else None
        curves = []
        for _ in layers:
            curve = [min(max(low + rng.random() * (high - low), low), high) for _ in knots]
            if direction != "free":
                curve.sort(reverse=direction == "nonincreasing")
            if end is not None:
                curve[-1] = end
            curves.append(curve)
        values[name] = curves
        controls.append(
            ControlEntry(
                name=name,
                low=low,
                high=high,
                unit=_text(rng),
                direction=direction,
                end=end,
                dwell=0.0,
                granularity=rng.choice(["layer", "channel", "network"]),
                gradient=rng.choice(["path", "surrogate", "none"]),
            )
        )
    kinds: list[Literal["conv", "linear"]] = ["conv", "linear"]
    quantizes: list[Literal["weight", "activation", "weight+activation"]] = [
        "weight",
        "activation",
        "weight+activation",
    ]
    metric = Metric(name=_text(rng), value=_number(rng), n=rng.randint(1, 2**63 - 1), interval=(_number(rng), 0.0))
    return ScheduleFile(
        method=MethodEntry(
            name=rng.choice(["ana", "inq", "joint"]),
            parameters={
                name: rng.choice([_text(rng), True, rng.randint(-(2**62), 2**62), _number(rng), None])
                for name in rng.sample(["levels", "noise", "relaxation", "seed"], rng.randrange(5))
            },
        ),
        controls=tuple(controls),
        progress=tuple(knots),
        layers=tuple(
            LayerEntry(
                name=name,
                depth=rng.random(),
                kind=rng.choice(kinds),
                quantizes=rng.choice(quantizes),
                fan_in=rng.randint(1, 2**63 - 1),
                num_weights=rng.randint(1, 100),
                bits=rng.random() * 8,
            )
            for name in layers
        ),
        values={name: tuple(map(tuple, curves)) for name, curves in values.items()},
        interpolation=rng.choice(["linear", "previous"]),
        provenance=Provenance(
            kind=rng.choice(["learned", "hand-coded"]),
            name=rng.choice(["digits", "x"]),
            citation=rng.choice([None, _text(rng)]),
            config_hash=rng.choice([None, "0123456789abcdef"]),
            seeds=tuple(rng.randrange(2**63) for _ in range(rng.randrange(3))),
            tasks=tuple(_text(rng) for _ in range(rng.randrange(3))),
            outer_steps=rng.choice([None, rng.randrange(2**63)]),
            versions={"torch": _text(rng)} if rng.random() < 0.5 else {},
            metric=rng.choice([None, metric]),
            spent=tuple(
                Spent(by=rng.choice(["es", "tpe"]), inner_steps=rng.randrange(2**63)) for _ in range(rng.randrange(3))
            ),
        ),
    )


def try_files(count: int, seed: int = SEED) -> dict[str, Any]:
    """Damaged schedule files, half of them as texts and half as trees."""
    good = [(ROOT / name).read_bytes() for name in SCHEDULES]

    def damaged(i: int) -> bytes:
        rng = random.Random(f"file {seed} {i}")
        text = rng.choice(good)
        if rng.random() < 0.5:
            return damaged_text(text, rng)
        return json.dumps(damaged_tree(json.loads(text), rng)).encode()

    def read(data: bytes) -> None:
        file = loads(data, "schedule.json")
        assert loads(dumps(file), "schedule.json") == file

    return _attempts(count, damaged, read)


def try_configs(count: int, folder: Path, seed: int = SEED, through_cli: int = 0) -> dict[str, Any]:
    """Damaged experiments, half of them as texts and half as trees; the first refused ones through the command line."""
    good = [(ROOT / name).read_bytes() for name in CONFIGS]
    path = folder / "experiment.yaml"
    refused: list[bytes] = []

    def damaged(i: int) -> bytes:
        rng = random.Random(f"config {seed} {i}")
        text = rng.choice(good)
        if rng.random() < 0.5:
            return damaged_text(text, rng)
        tree = damaged_tree(yaml.safe_load(text), rng)
        return yaml.safe_dump(tree).encode()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            load_experiment(path)
        except MetaschedError:
            if len(refused) < through_cli:
                refused.append(data)
            raise

    result = _attempts(count, damaged, read)
    return {**result, "command_line": _through_cli(refused, folder)} if through_cli else result


def try_policies(count: int, folder: Path, seed: int = SEED) -> dict[str, Any]:
    """Damaged policy files, half of them as texts and half as trees."""
    good = (ROOT / POLICY).read_bytes()
    path = folder / "policy.txt"

    def damaged(i: int) -> bytes:
        rng = random.Random(f"policy {seed} {i}")
        if rng.random() < 0.5:
            return damaged_text(good, rng)
        rows = damaged_tree([json.loads(line) for line in good.splitlines()], rng)
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        file = import_policy(
            path,
            total=40,
            name="x",
            method_name="ana",
            method_parameters={},
            controls=[WEIGHT_NOISE, ACTIVATION_NOISE, NOISE_MEAN],
            layers=[Layer(f"conv{i}", i - 1.0, "conv", "weight", 9, 72, 1.0) for i in (1, 2)],
        )
        assert loads(dumps(file), "schedule.json") == file

    return _attempts(count, damaged, read)


def try_round_trips(count: int, seed: int = SEED) -> dict[str, Any]:
    """Random schedules, written, read, and written again: equal in every bit, and of one text."""

    def check(file: ScheduleFile) -> None:
        text = dumps(file)
        again = loads(text, "schedule.json")
        assert again == file and dumps(again) == text

    result = _attempts(count, lambda i: random_schedule(random.Random(f"schedule {seed} {i}")), check)
    return {"count": count, "exact": result["accepted"], "failures": count - result["accepted"]}


def _attempts(count: int, make: Callable[[int], Any], read: Callable[[Any], None]) -> dict[str, Any]:
    """What became of each input: accepted, refused by a line of its own, or failed, and how long the slowest took."""
    accepted, refused, failed, times = 0, 0, [], []
    before = 0
    for i in range(-1, count):  # the one before the first pays for imports, and is not counted
        data = make(i)
        start = time.process_time()  # on a busy machine a clock on the wall would time the others
        outcome = _outcome(data, read)
        times.append(time.process_time() - start)
        if i < 0:
            before = _resident()
            times.clear()
        elif outcome == "accepted":
            accepted += 1
        elif outcome == "refused":
            refused += 1
        else:
            failed.append([i, outcome])
    times.sort()
    return {
        "count": count,
        "accepted": accepted,
        "refused": refused,
        "failures": len(failed),
        "first_failures": failed[:SHOWN],
        "worst_cpu_ms": round(times[-1] * 1e3, 2),
        "median_cpu_ms": round(times[len(times) // 2] * 1e3, 3),
        "resident_growth_mib": round((_resident() - before) / 2**20, 1),
    }


def _outcome(data: Any, read: Callable[[Any], None]) -> str:
    try:
        read(data)
    except MetaschedError as error:
        lines = str(error).split("\n")
        return "refused" if all(line and line.isprintable() for line in lines) else f"unprintable: {error!r}"
    except Exception as error:  # what this script looks for
        return f"{type(error).__name__}: {error}"[:200]
    return "accepted"


def _through_cli(configs: Sequence[bytes], folder: Path) -> dict[str, Any]:
    """``metasched check`` on experiments that are to be refused: exit code 2, lines of its own, nothing written."""
    path, times, failed = folder / "refused.yaml", [], []
    for i, data in enumerate(configs):
        path.write_bytes(data)
        before = sorted(folder.rglob("*"))
        command = [sys.executable, "-m", "metasched", "check", path.name]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        lines = done.stderr.splitlines()
        clear = lines and all(line.startswith("metasched: error: ") for line in lines)
        if done.returncode != 2 or done.stdout or not clear or sorted(folder.rglob("*")) != before:
            failed.append([i, done.returncode, done.stderr[-200:]])
    result = {"count": len(configs), "failures": len(failed), "first_failures": failed[:SHOWN]}
    return {**result, "worst_ms": round(max(times) * 1e3)} if times else result


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _number(rng: random.Random) -> float:
    return rng.choice([0.0, -0.0, 0.1, rng.uniform(-1, 1), rng.uniform(-1, 1) * 10.0 ** rng.randint(-320, 307)])


def _text(rng: random.Random) -> str:
    alphabet = 'a Z9_"\\/\n\t\x00\x1b\x7f\xe9\u2028\U0001f600'
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))


def _resident() -> int:
    """Bytes of memory that this process holds now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def main(argv: Sequence[str] | None = None) -> int:
    """Try everything; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=2000, metavar="N", help="damaged schedule files [2000]")
    parser.add_argument("--configs", type=int, default=500, metavar="N", help="damaged experiments [500]")
    parser.add_argument("--commands", type=int, default=30, metavar="N", help="of them through the command line [30]")
    parser.add_argument("--policies", type=int, default=500, metavar="N", help="damaged policy files [500]")
    parser.add_argument("--round-trips", type=int, default=1000, metavar="N", help="random schedules [1000]")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"of all of them [{SEED}]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes, besides standard output")
    arguments = parser.parse_args(argv)

    from metasched.io.atomic import write_atomic
    from metasched.io.environment import cpu_model, environment

    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "files": try_files(arguments.files, arguments.seed),
            "configs": try_configs(arguments.configs, Path(folder), arguments.seed, arguments.commands),
            "policies": try_policies(arguments.policies, Path(folder), arguments.seed),
            "round_trips": try_round_trips(arguments.round_trips, arguments.seed),
        }
    given = sys.argv[1:] if argv is None else argv
    result = {
        "command": shlex.join(["python", "scripts/reliability/mutate_input.py", *given]),
        "environment": environment(),
        "cpu": cpu_model(),
        "cpu_seconds": round(time.process_time() - start, 1),
        "seed": arguments.seed,
        **parts,
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.json:
        write_atomic(arguments.json, text.encode())
    print(text, end="")
    return int(any(part["failures"] or part.get("command_line", {}).get("failures") for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
