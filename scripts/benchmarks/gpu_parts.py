"""What the checks on a GPU have in common: problems on random images, times, differences, parts that may fail."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from metasched.core.randomness import generator
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models import build_model
from metasched.network.flat import Tensors, rows
from metasched.network.quantize import quantize
from metasched.tasks.classification import accuracy
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.stacked import mappable, stacked
from metasched.training.state import InnerProblem, TrainingState

Save = Callable[[dict[str, Any]], None]
METHODS = {
    "ste": MethodConfig(name="ste"),
    "ana": MethodConfig(name="ana", forward="expectation", noise="triangular"),
    "inq": MethodConfig(name="inq"),
    "joint": MethodConfig(name="joint", forward="expectation"),
}
AGREEMENT = 1e-4  # in float32, where sums are in another order


def free() -> None:
    """Give back the memory of the device that nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Trying:
    """Parts of a check, of which each may fail without the others; ``raise_failures`` tells of all."""

    def __init__(self, save: Save) -> None:
        self._save = save
        self._failures: list[str] = []

    def __call__(self, name: str, part: Callable[[], Any]) -> Any:
        """What the part gives, which is saved under its name; None if it fails."""
        try:
            found = part()
        except Exception as error:
            self._failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            self._save({name: {"failed": self._failures[-1]}})
            return None
        finally:
            free()
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


def begun(problem: InnerProblem, controls: Tensors, runs: int) -> tuple[InnerProblem, TrainingState, Tensors]:
    """The problem for stacked runs, the state that they begin with, and their controls {control: [T, N, L]}."""
    problem, first = mappable(problem), rows(controls, 0)
    state = stacked(problem, [problem.with_seed(seed).initial(first) for seed in range(runs)])
    return problem, state, {name: v[:, None].expand(-1, runs, -1).contiguous() for name, v in controls.items()}
