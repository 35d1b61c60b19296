"""The checks of scripts/gpu_checks.sh that measure inner runs: stacked, differentiated, and those of VGG8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from gpu_parts import (
    AGREEMENT,
    METHODS,
    Save,
    Trying,
    begun,
    controls_of,
    differing,
    free,
    problem_of,
    seconds,
    synchronized,
)

from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.memory import Plan
from metasched.engines.stacked import control_gradients_mapped
from metasched.engines.sweep import unroll as sweep
from metasched.methods.config import MethodConfig
from metasched.training.capture import NotRecordable, cuda_graph, operations
from metasched.training.finite import FINITE
from metasched.training.loop import take_steps, train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.replayed import record, replay
from metasched.training.stacked import of_run
from metasched.training.state import TrainingState

GOAL = 5.0  # how many times the loop 16 replayed runs are to be


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
        looped = min(runs, 16)
        ways = {
            "loop": (lambda: in_loop(looped), len(few)),
            "mapped": (plainly, len(few)),
            "replayed": (replayed, steps),
        }
        took = {name: seconds(way, device, 1 if small else 3) for name, (way, _) in ways.items()}
        step = {name: took[name]["median"] / count for name, (_, count) in ways.items()}
        step["loop"] *= runs / looped
        whole = recording + took["replayed"]["median"]
        return {
            "runs": runs,
            "runs_in_loop": looped,
            "seconds": took,
            "seconds_to_record": recording,
            "seconds_per_step_of_all": step,
            "times_loop": step["loop"] / step["replayed"],
            f"times_loop_with_recording_{steps}_steps": step["loop"] * steps / whole,
            "mapped_times_loop": step["loop"] / step["mapped"],
            "graph_and_mapped": graph_and_mapped,
            "loop_and_mapped": differing(first, of_run(plainly(), 0)),
            "reached": step["loop"] / step["replayed"] >= GOAL,
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
        three = partial(train, replace(problem, steps=3), {name: values[:3] for name, values in controls.items()})
        three()
        alone = seconds(three, device, 1)["median"] / 3
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
            *_, last = replay(made, state, each, range(count))
            replayed = (synchronized(device) - start) / count
            found |= {"steps": count, "seconds_per_step_replayed": replayed, "times_mapped": step / replayed}
            found |= {"images_per_second_replayed": runs * batch / replayed}
        except (NotRecordable, torch.OutOfMemoryError) as refused:
            found |= {"steps": 2, "not_replayed": " ".join(str(refused).split())[:300]}
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
        free()
    raise AssertionError("no size fits into the memory of the device")
