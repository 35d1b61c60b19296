"""What the checks of scripts/gpu_checks.sh do: each saves what it has found after each part of its work.

Data are random, with the shapes of those that they stand for. A check returns why it was left out, if it was. It raises
at its end if something that it compares differs; goals that are not reached are only noted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_parts import METHODS, Save, Trying, controls_of, differing, problem_of
from gpu_runs import hypergradients, stacked_runs, vgg8

from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig

ROOT = Path(__file__).parents[2]
GOALS = {"share_of_copy_bandwidth": 0.8, "times_faster_than_eager": 5.0}
SMOOTH = ("ana",)  # in which rounding moves no value to another level, and no weight in the order of freezing


def kernels(device: str, save: Save) -> str | None:
    """The transition kernel against copy bandwidth and eager torch; the packed product against bfloat16."""
    if device == "cuda" and find_spec("triton") is None:
        return "triton is not installed here"
    import transition_kernel as bench

    trying, large = Trying(save), device == "cuda" and torch.cuda.mem_get_info()[0] > 40e9
    weights = bench.WEIGHTS["cuda"] if large else 2**24 if device == "cuda" else 5000
    repeats = 10 if device == "cuda" else 1

    def bits() -> bool:
        bench.check_bits(device)
        return True

    trying("same_bits", bits)
    step = trying("transition", lambda: bench.transition(device, weights, repeats))
    for shape in bench.SHAPES[device]:
        trying(f"product {shape}", partial(bench.product, device, shape, repeats))
    if step is not None:
        save({"reached": {name: step[name] >= GOALS[name] for name in GOALS}, "goals": GOALS})
    trying.raise_failures()
    return None


def devices(device: str, save: Save) -> None:
    """Three steps on the CPU and on the device end at the same parameters."""
    torch.backends.cudnn.allow_tf32 = False
    trying = Trying(save)

    def compared(model: str, method: str) -> dict[str, float]:
        ends = []
        for where in ("cpu", device):
            rule = OptimizerConfig(name="adam", lr=0.01, eps=1e-3)  # eps: of gradients that are rounding noise
            given = {"width": 8, "batch": 32, "steps": 3, "device": where}
            problem = problem_of(model, (1, 28, 28), METHODS[method], rule, **given)
            ends.append(train(problem, controls_of(problem, where)).state)
        found = differing(*ends)
        # a value may be rounded to the other side of a threshold, or to another place in the order of freezing
        assert found["share"] <= (0 if method in SMOOTH else 0.02), found
        return found

    for model in ("mlp", "convnet"):
        for method in METHODS:
            trying(f"{model}, {method}", partial(compared, model, method))
    trying.raise_failures()


def tests(device: str, save: Save) -> str | None:
    """The tests that are marked gpu."""
    if missing := [name for name in ("pytest", "hypothesis") if find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed here"
    files = sorted(str(p) for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # without the options of pyproject.toml, which need pytest-xdist
        options = ["-o", "addopts=", "--import-mode=importlib", "-W", "default", "-p", "no:cacheprovider", "-q"]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", *options, f"--junitxml={report}", *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        suite = next(ET.parse(report).getroot().iter("testsuite"), None) if report.exists() else None
    counts = (
        {} if suite is None else {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    )
    bad = (
        []
        if suite is None
        else [c.get("name") for c in suite if c.find("failure") is not None or c.find("error") is not None]
    )
    save({**counts, "bad": bad, "status": done.returncode, "tail": done.stdout[-6000:] if done.returncode else ""})
    assert done.returncode == 0, f"pytest ended with {done.returncode}: {bad or done.stderr[-500:]}"
    return None


CHECKS: dict[str, Callable[[str, Save], str | None]] = {
    "kernels": kernels,
    "devices": devices,
    "stacked": stacked_runs,
    "hypergradients": hypergradients,
    "vgg8": vgg8,
    "tests": tests,
}
