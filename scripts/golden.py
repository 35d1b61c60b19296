"""Golden values: recorded results of training, hypergradients, schedules and commands.

    python scripts/golden.py                # lists the results that have changed; exit code 1 if there are any
    python scripts/golden.py --record       # records all again in tests/golden/*.json; only on purpose, on one machine

The cases are in tests/golden (``cases.py``, ``runs.py``), each with a JSON file of the same name. A case has entries:

    tensor           kept in full up to 64 numbers, else as its Euclidean norm; and a hash of its bits
    dict of tensors  kept as the norm of each; and one hash of all
    list of numbers  scores: kept in full
    text             kept as a hash of it without its numbers; and a hash of all

If processor, instruction set and torch are those of the record, all hashes must be equal. Elsewhere rounding may
differ: the kept numbers of a tensor must agree to 1e-12 of the largest of them, each norm of a dict to a relative
1e-12 (a few cases less: ``LOOSER``), and scores and words of texts exactly.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from metasched.io.environment import environment

FOLDER = Path(__file__).parents[1] / "tests" / "golden"
FILES = ("cases", "runs")
SAME_BITS = ("cpu", "cpu_capability", "torch")  # of the environment
RECORDED = (*SAME_BITS, "numpy", "python", "system", "machine", "blas", "onednn", "threads")
TOLERANCE = 1e-12
# Where rounding grows within a run, numbers differ by more between processors: temperatures and the moments of Adam are
# small divisors. A last bit of the learning rate alone moves hypergradients of temperature_both by 7e-11, training of
# blend_learned by 7e-12, and ana by 3e-15. Each bound is two or three times the largest difference between an AMD EPYC
# and an Intel Xeon; on the recorded processor all bits must be equal as ever.
LOOSER = {
    ("engine", "temperature_both"): 1e-8,
    ("training", "temperature_both"): 3e-11,
    ("training", "blend_learned"): 2e-11,
    ("engine/forward", "joint"): 5e-12,
}
MOST = 64  # numbers that are kept in full

Record = dict[str, dict[str, Any]]  # entry -> {"kept": ..., "hash": ...}


def cases(file: str) -> dict[str, Callable[[], Mapping[str, Any]]]:
    """The table CASES of ``tests/golden/<file>.py``."""
    spec = importlib.util.spec_from_file_location(f"golden_{file}", FOLDER / f"{file}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


@contextmanager
def fixed() -> Iterator[None]:
    """Within: float64, one thread, torch's generator at 0."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def record(case: Callable[[], Mapping[str, Any]]) -> Record:
    """What a case gives, as it is kept."""
    with fixed():
        entries = case()
    return {name: {"kept": kept(entry), "hash": digest(entry)} for name, entry in entries.items()}


def kept(entry: Any) -> Any:
    """The short form of an entry, which JSON holds without loss."""
    if isinstance(entry, str):
        return digest(re.sub(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", "#", entry))
    if isinstance(entry, list):
        return entry
    if isinstance(entry, Mapping):
        return {name: float(entry[name].double().norm()) for name in sorted(entry)}
    flat = entry.detach().double().flatten()
    return flat.tolist() if len(flat) <= MOST else [float(flat.norm())]


def digest(entry: Any) -> str:
    """BLAKE2b of an entry: of tensors by type, shape and bits, of everything else by its text."""
    found = hashlib.blake2b(digest_size=12)
    tensors = entry if isinstance(entry, Mapping) else {"": entry} if isinstance(entry, torch.Tensor) else {}
    for name in sorted(tensors):
        t = tensors[name].detach().contiguous()
        found.update(f"{name} {t.dtype} {list(t.shape)}".encode() + t.numpy().tobytes())
    if not isinstance(entry, Mapping | torch.Tensor):
        found.update(repr(entry).encode())
    return found.hexdigest()


def tolerance(case: str) -> float:
    """How far the numbers of a case may be from the recorded ones on another processor, relative to the largest."""
    parts = case.split("/")
    own = [looser for (start, name), looser in LOOSER.items() if case.startswith(f"{start}/") and name in parts]
    return max([TOLERANCE, *own])


def differences(found: Record, golden: Record, *, bits: bool, tolerance: float = TOLERANCE) -> list[str]:
    """What is not as recorded, a line for each entry; bits: hashes are compared too."""
    lines = [f"{name}: {'is new' if name in found else 'is missing'}" for name in sorted(found.keys() ^ golden.keys())]
    for name in sorted(found.keys() & golden.keys()):
        now, then = found[name], golden[name]
        error = distance(now["kept"], then["kept"], exact=name.startswith("scores"))
        if error > tolerance:
            lines.append(f"{name}: differs by {error:.1e}")
        elif bits and now["hash"] != then["hash"]:
            lines.append(f"{name}: other bits (kept numbers differ by {error:.1e})")
    return lines


def distance(now: Any, then: Any, *, exact: bool) -> float:
    """How far kept numbers are from the recorded ones, relative to these; infinity where they are no numbers alike."""
    if now == then:
        return 0.0
    if exact or isinstance(now, str) or isinstance(then, str) or len(now) != len(then):
        return math.inf
    if isinstance(now, Mapping):
        return max(distance([now[n]], [then[n]], exact=False) if n in now else math.inf for n in then)
    a, b = torch.tensor([now, then], dtype=torch.float64)
    if not torch.equal(a.isfinite(), b.isfinite()):
        return math.inf
    a, b = a[a.isfinite()], b[b.isfinite()]
    return 0.0 if torch.equal(a, b) else float((a - b).abs().max() / b.abs().max())


def golden(file: str) -> dict[str, Any]:
    """The record ``tests/golden/<file>.json``: its environment and its cases."""
    return json.loads((FOLDER / f"{file}.json").read_text())


def same_machine(recorded: Mapping[str, Any]) -> bool:
    """Whether this environment must give the bits of the recorded one."""
    here = environment()
    return all(recorded[name] == here[name] for name in SAME_BITS)


def write(file: str) -> None:
    """Record the cases of a file anew, a line for each entry."""
    with fixed():
        here = environment()
    lines = [f' "environment": {json.dumps({name: here[name] for name in RECORDED})}']
    for case, work in cases(file).items():
        entries = [f"   {json.dumps(name)}: {json.dumps(entry)}" for name, entry in record(work).items()]
        lines.append(f"  {json.dumps(case)}: {{\n" + ",\n".join(entries) + "\n  }")
    body = lines[0] + ',\n "cases": {\n' + ",\n".join(lines[1:]) + "\n }"
    (FOLDER / f"{file}.json").write_text("{\n" + body + "\n}\n")


def main(argv: Sequence[str]) -> int:
    """Compares or records; 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the files anew")
    if parser.parse_args(argv).record:
        for file in FILES:
            write(file)
        return 0
    different = 0
    for file in FILES:
        recorded, work = golden(file), cases(file)
        bits = same_machine(recorded["environment"])
        print(f"{file}: {'all bits' if bits else f'values to {TOLERANCE:g}: not the recorded machine'}")
        for case in sorted(work.keys() | recorded["cases"].keys()):
            found = record(work[case]) if case in work else {}
            lines = differences(found, recorded["cases"].get(case, {}), bits=bits)
            different += bool(lines)
            for line in lines:
                print(f"  {case}: {line}")
    print(f"{different} cases differ")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
