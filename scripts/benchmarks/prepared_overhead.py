r"""``prepare`` in a plain loop against the same loop with hand-written straight-through modules in plain torch.

    python scripts/benchmarks/prepared_overhead.py --json experiments/results/prepared_overhead.json

The same network, batches and optimizer, one thread. For the CPU time of a step rounds of some steps of each way
alternate in one process; kept are the medians over rounds, and that of the ratio of both within a round. Memory is the
peak of the bytes of tensors in a step, as torch counts them: what a process takes beside them depends on what its
allocator keeps. Both ways must have the same
loss in the first step; later ones differ where a weight lies on the outermost level, on which the gradient is half of
that beside it here, and all of it there. Wall time is not looked at: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import metasched
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.methods.tensors import LayerQuantizer
from metasched.models.resnet import ResNet20
from metasched.quantizers.levels import LevelSet

AGREEMENT = 1e-6  # of the first losses, in float32
HAND = "hand-written"
WAYS = (HAND, "prepare")
CASES: dict[str, dict[str, Any]] = {  # name -> method, and what is measured
    "ternary": {"method": {"name": "ste", "scale": "least_squares"}, "schedule": None},
    "4 bits, learned scales": {
        "method": {
            "name": "ste",
            "scale": "learned",
            "levels": "int4",
            "activation_levels": "uint4",
            "activation_scale": "learned",
        },
        "schedule": None,
    },
}
SIZES = {"ResNet-20, width 4, 1x8x8, batch 64": (1, 8, 64, 4), "ResNet-20, 3x32x32, batch 32": (3, 32, 32, 16)}


class Ternary(torch.autograd.Function):
    """round(clip(x, -1, 1)); its gradient is 1 inside."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """The nearest of -1, 0, 1 for each element of x [...]."""
        ctx.save_for_backward(x)
        return x.round().clamp_(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        """The gradient of x [...]."""
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Rounds x [...], with the gradient of x."""
    return (x.round() - x).detach() + x


def lsq(x: torch.Tensor, scale: torch.Tensor, factor: float, low: int, high: int) -> torch.Tensor:
    """LSQ as its authors write it: a scale [1] whose gradient is multiplied by a factor."""
    scale = (scale - scale * factor).detach() + scale * factor
    return rounded((x / scale).clamp(low, high)) * scale


class HandConv(nn.Conv2d):
    """A convolution with quantized weights."""

    scale: torch.Tensor
    factor: float | None = None  # of the scale's gradient; None: the weight is ternary, its scale fixed
    bounds: tuple[int, int] = (-8, 7)  # lowest and highest level, of learned scales

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Output of the convolution for an input [N, C, H, W]."""
        if self.factor is None:
            w = Ternary.apply(self.weight / self.scale) * self.scale
        else:
            w = lsq(self.weight, self.scale, self.factor, *self.bounds)
        return self._conv_forward(input, w, self.bias)  # pyright: ignore[reportArgumentType]


class HandActivation(nn.Module):
    """A quantized activation."""

    def __init__(self, scale: torch.Tensor | None, factor: float, relu: bool, bounds: tuple[int, int]) -> None:
        super().__init__()
        self.scale = None if scale is None else nn.Parameter(scale.clone())
        self.factor, self.relu, self.bounds = factor, relu, bounds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The quantized value of each element of x [...]."""
        x = F.relu(x) if self.relu else x
        return Ternary.apply(x) if self.scale is None else lsq(x, self.scale, self.factor, *self.bounds)


def by_hand(prepared: nn.Module, learned: bool) -> nn.Module:
    """The same network by hand, with the weights and scales that ``prepare`` has chosen."""
    plain = metasched.convert(prepared).train()
    kept = {name: p.detach().clone() for name, p in prepared.named_parameters()}
    for name, m in list(plain.named_modules()):
        if f"{name}.weight_quantizer.identity" not in prepared.state_dict():
            continue
        quantizer = prepared.get_submodule(f"{name}.weight_quantizer")
        m.__class__ = HandConv
        assert isinstance(m, HandConv)
        with torch.no_grad():
            m.weight.copy_(kept[f"{name}.weight"])
        scale = quantizer.scale.detach().clone()  # pyright: ignore
        m.scale = nn.Parameter(scale) if learned else scale
        m.factor = float(quantizer.scale_factor) if learned else None  # pyright: ignore
        own: LayerQuantizer = quantizer.method.quantizer  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
        assert own.activation_levels is not None
        m.bounds = _bounds(own.levels)
        for other, activation in list(prepared.named_modules()):
            if getattr(activation, "layer", None) == quantizer.index and "calls" in vars(activation):
                found = dict(quantizer.named_parameters()), dict(quantizer.named_buffers())
                scale = found[0].get("activation_scale")
                factor = float(found[1].get("activation_scale_factor", 1.0))
                scale, bounds = None if scale is None else scale.detach(), _bounds(own.activation_levels)
                plain.set_submodule(other, HandActivation(scale, factor, bool(activation.keep), bounds))
    return plain


def _bounds(levels: LevelSet) -> tuple[int, int]:
    return int(levels.levels[0]), int(levels.levels[-1])


Step = Callable[[], torch.Tensor]


def steps_of(size: str, case: str, way: str, total: int) -> Step:
    """A function that trains one step and returns its loss."""
    torch.manual_seed(0)
    channels, pixels, batch, width = SIZES[size]
    x, y = torch.randn(batch, channels, pixels, pixels), torch.arange(batch) % 10
    method = metasched.MethodConfig(**CASES[case]["method"])
    model = ResNet20(channels, 10, width)
    module, player = metasched.prepare(model, method, x[:8], CASES[case]["schedule"], total)
    settle: Callable[[], object] = player.step
    if way == HAND:
        module, settle = by_hand(module, "learned" in case), lambda: None
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)

    def step() -> torch.Tensor:
        loss = F.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        settle()
        return loss.detach()

    return step


def bytes_of(step: Step) -> int:
    """The peak of the bytes of tensors that are alive in a step, beside those before it, as torch counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(path := Path(folder) / "trace.json"))
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
    return max(accumulate(event["args"]["Bytes"] for event in events if event["name"] == "[memory]"))


def compared(size: str, case: str, rounds: int, steps: int) -> dict[str, Any]:
    """Medians of both ways, alternating, and the ratios."""
    ways = {way: steps_of(size, case, way, steps * (rounds + 1)) for way in WAYS}
    losses = [float(step()) for step in ways.values()]
    assert abs(losses[0] - losses[1]) < AGREEMENT, losses
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    for i in range(rounds + 1):  # the first one warms up
        for way, step in ways.items():
            started = time.process_time()
            for _ in range(steps):
                step()
            if i:
                cpu[way].append((time.process_time() - started) / steps)
    peaks = {way: [bytes_of(step)] for way, step in ways.items()}
    row: dict[str, Any] = {"network": size, "case": case, "rounds": rounds, "steps": steps}
    for key, found in (("cpu", cpu), ("bytes", peaks)):
        each = sorted(b / a for a, b in zip(*found.values(), strict=True))
        row[key] = {
            **{way: statistics.median(values) for way, values in found.items()},
            "ratio": statistics.median(each),
            "lowest": each[0],
            "highest": each[-1],
        }
    return row


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        for case in CASES:
            rows.append(row := compared(size, case, arguments.rounds, arguments.steps))
            cpu, memory = row["cpu"]["ratio"], row["bytes"]["ratio"]
            print(f"{size}, {case}: {cpu:.3f} times the CPU time, {memory:.3f} times the memory", flush=True)
            if arguments.json:  # after each row: a stopped benchmark keeps what it has
                result = {"environment": environment(), "cpu": cpu_model(), "rows": rows}
                write_atomic(arguments.json, (json_text(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
