"""What the checks of scripts/gpu_checks.sh do: each saves what it has found after each part of its work.

Data are random, with the shapes of those that they stand for. A check returns why it was left out, if it was. It raises
at its end if something that it compares differs; goals that are not reached are only noted.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from metasched.core.randomness import generator
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.memory import Plan
from metasched.engines.stacked import control_gradients_mapped
from metasched.engines.sweep import unroll as sweep
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models import build_model
from metasched.network.flat import Tensors, rows
from metasched.network.quantize import quantize
from metasched.tasks.classification import accuracy
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.capture import NotRecordable, cuda_graph, operations
from metasched.training.finite import FINITE
from metasched.training.loop import take_steps, train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.replayed import record, replay
from metasched.training.stacked import mappable, of_run, stacked
from metasched.training.state import InnerProblem, TrainingState

Save = Callable[[dict[str, Any]], None]
ROOT = Path(__file__).parents[2]
AGREEMENT = 1e-4  # in float32, where sums are in another order
GOALS = {"share_of_copy_bandwidth": 0.8, "times_faster_than_eager": 5.0, "times_loop": 5.0}
METHODS = {
    "ste": MethodConfig(name="ste"),
    "ana": MethodConfig(name="ana", forward="expectation", noise="triangular"),
    "inq": MethodConfig(name="inq"),
    "joint": MethodConfig(name="joint", forward="expectation"),
}
SMOOTH = ("ana", "inq")  # in which rounding moves no value to another level


class Trying:
    """Parts of a check, of which each may fail without the others; ``raise_failures`` tells of all."""

    def __init__(self, save: Save) -> None:
        self._save, self._failures = save, []

    def __call__(self, name: str, part: Callable[[], Any]) -> Any:
        """What the part gives, which is saved under its name; None if it fails."""
        try:
            found = part()
        except Exception as error:
            self._failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            self._save({name: {"failed": self._failures[-1]}})
            return None
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self._save({name: found})
        return found

    def raise_failures(self) -> None:
        """Raise if a part has failed."""
        if self._failures:
            raise AssertionError("; ".join(self._failures))


def problem_of(
    model: str,
    image: tuple[int, int, int],
    method: MethodConfig,
    optimizer: OptimizerConfig,
    *,
    width: int,
    batch: int,
    steps: int,
    device: str,
) -> InnerProblem:
    """A network of the table on random images, on a device, in float32."""
    draws = generator(0, "benchmark")

    def split(n: int) -> Split:
        return Split(torch.randn(n, *image, generator=draws), torch.randint(10, (n,), generator=draws))

    def build() -> torch.nn.Module:
        return build_model(model, image, 10, width)

    task = SupervisedTask("random", split(2048), split(256), split(2), build, F.cross_entropy, accuracy, batch)
    rule, hyper = recipe(optimizer)
    torch.manual_seed(0)
    network = quantize(build(), build_method(method), task.train.x[:8])
    network.module.to(device)
    return InnerProblem(network, task.to(device, torch.float32), rule, hyper, steps, seed=0)


def controls_of(problem: InnerProblem, device: str) -> Tensors:
    """{control: [T, L]}: noise that falls from half a quantum, freezing that grows, the others constant."""
    shape, controls = (problem.steps, len(problem.network.layers)), {}
    ramp = torch.linspace(0, 0.9, problem.steps, device=device)[:, None].expand(shape)
    for control in problem.network.method.controls:
        if control.name == "freeze_fraction":
            values = ramp
        elif control.name.endswith("_noise"):
            values = 0.5 * (1 - ramp)
        else:
            values = torch.full(shape, float(control.none_value or 0.0), device=device)
        controls[control.name] = values.contiguous()
    return controls


def synchronized(device: str) -> float:
    """The time when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], device: str, repeats: int) -> dict[str, float]:
    """Median and extremes of the seconds of a call."""
    found = []
    for _ in range(repeats):
        start = synchronized(device)
        work()
        found.append(synchronized(device) - start)
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def differing(one: TrainingState, other: TrainingState) -> dict[str, float]:
    """The largest difference of parameters, and the share of them that differ by more than AGREEMENT."""
    apart = torch.cat([(p.cpu() - other.params[name].cpu()).abs().flatten() for name, p in one.params.items()])
    return {"largest": float(apart.max()), "share": float((apart > AGREEMENT).float().mean())}


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
        save({"reached": {name: step[name] >= GOALS[name] for name in list(GOALS)[:2]}, "goals": GOALS})
    return trying.raise_failures()


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
        # a value at a threshold may be rounded to the other side, but few are
        assert found["share"] <= (0 if method in SMOOTH else 0.02), found
        return found

    for model in ("mlp", "convnet"):
        for method in METHODS:
            trying(f"{model}, {method}", partial(compared, model, method))
    trying.raise_failures()


def begun(problem: InnerProblem, controls: Tensors, runs: int) -> tuple[InnerProblem, TrainingState, Tensors]:
    """The problem for stacked runs, the state that they begin with, and their controls {control: [T, N, L]}."""
    problem, first = mappable(problem), rows(controls, 0)
    state = stacked(problem, [problem.with_seed(seed).initial(first) for seed in range(runs)])
    return problem, state, {name: v[:, None].expand(-1, runs, -1).contiguous() for name, v in controls.items()}


def stacked_runs(device: str, save: Save) -> None:
    """Many runs: one after the other, mapped, and mapped with the step replayed as a CUDA graph."""
    small = device == "cpu"
    trying, capture, steps = Trying(save), operations if small else cuda_graph, 12 if small else 100

    def compared(method: str, runs: int) -> dict[str, Any]:
        given = {"width": 8, "batch": 64, "steps": steps, "device": device}
        problem = problem_of("convnet", (1, 28, 28), METHODS[method], OptimizerConfig(eps=1e-3), **given)
        controls = controls_of(problem, device)
        mapped, state, each = begun(problem, controls, runs)
        seeds, all_steps, few = torch.arange(runs), range(steps), range(10)

        def plainly() -> TrainingState:
            *_, last = take_steps(mapped, state, each, few, seeds=seeds)
            return last.state

        def in_loop(count: int) -> list[TrainingState]:
            own = {name: values[: len(few)] for name, values in controls.items()}
            return [train(replace(problem, seed=i, steps=len(few)), own).state for i in range(count)]

        first = in_loop(1)[0]
        start = synchronized(device)
        made = record(mapped, state, each, all_steps, list(range(runs)), capture)
        recording = synchronized(device) - start
        *_, last = replay(made, state, each, few)
        graph_and_mapped = differing(plainly(), last.state)
        assert graph_and_mapped["largest"] <= AGREEMENT, graph_and_mapped

        def replayed() -> None:
            for _ in replay(made, state, each, all_steps):
                pass

        replayed()
        ways = {
            "loop": (lambda: in_loop(runs), len(few)),
            "mapped": (plainly, len(few)),
            "replayed": (replayed, steps),
        }
        took = {name: seconds(way, device, 1 if small else 3) for name, (way, _) in ways.items()}
        step = {name: took[name]["median"] / count for name, (_, count) in ways.items()}
        whole = recording + took["replayed"]["median"]
        return {
            "runs": runs,
            "seconds": took,
            "seconds_to_record": recording,
            "seconds_per_step_of_all": step,
            "times_loop": step["loop"] / step["replayed"],
            f"times_loop_with_recording_{steps}_steps": step["loop"] * steps / whole,
            "mapped_times_loop": step["loop"] / step["mapped"],
            "graph_and_mapped": graph_and_mapped,
            "loop_and_mapped": differing(first, of_run(plainly(), 0)),
            "reached": step["loop"] / step["replayed"] >= GOALS["times_loop"],
        }

    for method, runs in [("ana", 4)] if small else [("ana", 16), ("joint", 16), ("ste", 16), ("ana", 64)]:
        trying(f"{method}, {runs} runs", partial(compared, method, runs))
    trying.raise_failures()


def hypergradients(device: str, save: Save) -> None:
    """The sweep's time and memory against higher, or where that is missing against plain unrolling."""
    small, other = device == "cpu", "higher" if find_spec("higher") else "unroll"
    trying, outer = Trying(save), OuterLoss()
    save({"other": other if other == "higher" else "unroll, because higher is not installed here"})
    engines = {
        "sweep, every state": partial(sweep, plan=Plan((1,), 1)),
        "sweep": find_unroll("sweep"),
        other: find_unroll(other),  # type: ignore[arg-type]
    }

    def peak(work: Callable[[], object]) -> int | None:
        if small:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def compared(model: str, image: tuple[int, int, int], width: int, steps: int) -> dict[str, Any]:
        given = {"width": width, "batch": 64, "steps": steps, "device": device}
        problem = problem_of(model, image, METHODS["ana"], OptimizerConfig(lr=0.01), **given)
        controls = controls_of(problem, device)
        ways: dict[str, Callable[[], Any]] = {"plain": lambda: train(problem, controls)}
        ways |= {n: partial(control_gradient, engine, problem, controls, outer) for n, engine in engines.items()}
        for way in ways.values():
            way()
        took = {name: seconds(way, device, 1 if small else 2) for name, way in ways.items()}
        size = {name: peak(way) for name, way in ways.items()}
        few = replace(problem, steps=2)
        own = {name: values[:2] for name, values in controls.items()}
        slopes = {name: control_gradient(engine, few, own, outer).wrt for name, engine in engines.items()}
        right, ours = slopes[other]["weight_noise"], slopes["sweep"]["weight_noise"]
        median = {name: t["median"] for name, t in took.items()}
        return {
            "steps": steps,
            "seconds": took,
            "bytes": size,
            "times_plain": {name: median[name] / median["plain"] for name in engines},
            f"times_{other}": {name: median[name] / median[other] for name in engines},
            f"bytes_of_{other}": None if small else {n: (size[n] or 0) / (size[other] or 1) for n in engines},
            "disagreement": float((ours - right).norm() / right.norm().clamp_min(1e-30)),
        }

    def mapped(runs: int, steps: int) -> dict[str, Any]:
        given = {"width": 8, "batch": 64, "steps": steps, "device": device}
        problem = problem_of("convnet", (1, 28, 28), METHODS["ana"], OptimizerConfig(lr=0.01), **given)
        each = [controls_of(problem, device)] * runs
        one, many = (
            seconds(partial(control_gradients_mapped, problem, each[:n], list(range(n)), outer), device, 2)
            for n in (1, runs)
        )
        return {"runs": runs, "steps": steps, "one": one, "all": many, "times": runs * one["median"] / many["median"]}

    if small:
        trying("convnet", partial(compared, "convnet", (1, 8, 8), 4, 3))
    else:
        trying("convnet, width 8, 1x28x28", partial(compared, "convnet", (1, 28, 28), 8, 20))
        trying("resnet20, width 16, 3x32x32", partial(compared, "resnet20", (3, 32, 32), 16, 10))
        trying("8 mapped sweeps", partial(mapped, 8, 10))
    trying.raise_failures()


def vgg8(device: str, save: Save) -> str | None:
    """64 stacked runs of VGG8 on random images of CIFAR-10's shape: ANA, ternary, Adam at 1e-3, batches of 256."""
    small = device == "cpu"
    method = MethodConfig(name="ana", levels="ternary", activation_levels="ternary", noise="uniform")
    method = replace(method, forward="expectation")
    runs = 2 if small else 64

    def measured(width: int, batch: int) -> dict[str, Any]:
        if not small:
            torch.cuda.reset_peak_memory_stats()
        given = {"width": width, "batch": batch, "steps": 100, "device": device}
        problem = problem_of("vgg8", (3, 32, 32), method, OptimizerConfig(lr=1e-3), **given)
        controls = controls_of(problem, device)
        start = synchronized(device)
        train(replace(problem, steps=3), {name: values[:3] for name, values in controls.items()})
        alone = (synchronized(device) - start) / 3
        mapped, state, each = begun(problem, controls, runs)
        seeds = torch.arange(runs)

        def taken(count: int) -> Any:
            *_, last = take_steps(mapped, state, each, range(count), seeds=seeds)
            return last

        taken(1)
        start = synchronized(device)
        last = taken(2)
        step = (synchronized(device) - start) / 2
        count = max(2, min(100, int((0 if small else 20) / step)))
        found: dict[str, Any] = {"runs": runs, "width": width, "batch": batch, "seconds_per_step_of_one": alone}
        found |= {"seconds_per_step_of_all": step, "images_per_second": runs * batch / step}
        try:
            if count < 10 and not small:
                raise NotRecordable("a step takes so long that its launches do not count")
            made = record(mapped, state, each, range(count), list(range(runs)), operations if small else cuda_graph)
            start = synchronized(device)
            for last in replay(made, state, each, range(count)):
                pass
            replayed = (synchronized(device) - start) / count
            found |= {"steps": count, "seconds_per_step_replayed": replayed, "times_mapped": step / replayed}
            found |= {"images_per_second_replayed": runs * batch / replayed}
        except NotRecordable as refused:
            found |= {"steps": 2, "not_replayed": str(refused)}
        found["finite_runs"] = int(last.state.health[FINITE].sum())
        found["loss"] = float(last.loss.mean())
        found["peak_bytes"] = None if small else torch.cuda.max_memory_allocated()
        return found

    for width, batch in [(2, 8)] if small else [(128, 256), (128, 128), (128, 64), (64, 64), (32, 64)]:
        name = f"width {width}, batch {batch}"
        try:
            save({name: measured(width, batch)})
            return None
        except torch.OutOfMemoryError as error:
            save({name: {"no_memory": " ".join(str(error).split())[:300]}})
        gc.collect()
        torch.cuda.empty_cache()
    raise AssertionError("no size fits into the memory of the device")


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
