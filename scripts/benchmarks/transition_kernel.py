r"""The transition kernel against the device's copy bandwidth and eager torch; the packed product against bfloat16.

    python scripts/benchmarks/transition_kernel.py --json experiments/results/transition_kernel.json

Needs a CUDA device. With ``--device cpu`` it measures the torch operations that stand in for the kernels there, on
smaller tensors. Before anything is timed, kernel and torch operations must agree bit for bit on the device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from metasched.contrib.kernels.coefficients import COEFFICIENTS
from metasched.contrib.kernels.gated_xnor import bit_planes, gated_product, product_in_torch
from metasched.contrib.kernels.transition import bytes_per_weight, transition_in_torch, transition_step
from metasched.contrib.packing import pack, unpack
from metasched.core.errors import MetaschedError
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.quantizers.levels import ternary
from metasched.quantizers.transitions import discrete_transition
from metasched.training.optimizers import OPTIMIZERS

HYPER = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
STEEPNESS = 3.0
WEIGHTS = {"cuda": 2**27, "cpu": 2**20}
CALLS = 10
SHAPES = {  # of products: rows of activations, outputs, inputs
    "cuda": ((1024, 1024, 1024), (4096, 4096, 4096), (65536, 128, 1152), (128, 4096, 4096)),
    "cpu": ((256, 256, 1024), (64, 512, 4096)),
}


def timed(run: Callable[[], Any], device: str, repeats: int) -> dict[str, float]:
    """Median and extremes of the seconds of a call, after two measurements that are not counted.

    On a GPU a measurement is the mean of calls in a row, so that it works while Python prepares the next launch.
    """
    seconds = []
    for _ in range(repeats + 2):
        if device == "cpu":
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        else:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CALLS):
                run()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000 / CALLS)
    seconds = seconds[2:]
    return {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


class Weights:
    """Ternary weights of one scale with the moments of Adam, and the gradient of a step."""

    def __init__(self, n: int, device: str) -> None:
        self.n, self.scale = n, torch.ones(1, device=device)
        self.states = pack(torch.randint(-1, 2, (n,), device=device).float(), self.scale, ternary())
        self.moments = [0.1 * torch.randn(n, device=device), 0.01 * torch.rand(n, device=device)]
        self.grad = torch.randn(n, device=device)

    def fused(self) -> None:
        """A step by the operator."""
        settings = {"levels": ternary(), "scale": self.scale, "temperature": 1.0, "steepness": STEEPNESS}
        coefficients = COEFFICIENTS["adam"](HYPER, 10)
        transition_step(self.states, self.grad, self.moments, coefficients, **settings, seed=1, offset=10)

    def eager(self) -> None:
        """A step by the package's optimizer and transition, in torch operations, with torch's random numbers."""
        w = unpack(self.states, self.grad.shape, self.scale, ternary())
        state = {"step": torch.tensor(9), "exp_avg.w": self.moments[0], "exp_avg_sq.w": self.moments[1]}
        proposed, state = OPTIMIZERS["adam"].rule().update({"w": w}, {"w": self.grad}, state, HYPER)
        k = discrete_transition(w + 1, proposed["w"] - w, 2, STEEPNESS, torch.rand_like(w))
        self.states = pack(k - 1, self.scale, ternary())
        self.moments = [state["exp_avg.w"], state["exp_avg_sq.w"]]


def check_bits(device: str) -> None:
    """The operator on this device has the bits of the torch operations, in states, moments, products and counts."""
    one, other = Weights(10**6 + 3, device), Weights(1, device)
    other.states, other.moments = one.states.clone(), [m.clone() for m in one.moments]
    coefficients = torch.tensor([*COEFFICIENTS["adam"](HYPER, 10)[1:], -1.0, 1.0, STEEPNESS], device="cpu").tolist()
    one.fused()
    transition_in_torch(other.states, other.moments, one.grad, one.scale, one.scale, coefficients, 2, 2, 1, 10)
    assert torch.equal(one.states, other.states), "states differ"
    assert all(map(torch.equal, one.moments, other.moments)), "moments differ"
    a, b = (bit_planes(torch.randint(-1, 2, (rows, 1000), device=device)) for rows in (300, 70))
    values, active = product_in_torch(a.nonzero, a.sign, b.nonzero, b.sign)
    found = gated_product(a, b)
    assert torch.equal(found.values, values) and int(found.active) == int(active), "products differ"


def transition(device: str, n: int, repeats: int) -> dict[str, Any]:
    """Bytes a second of the operator and of a copy, and its time against that of the eager step."""
    weights, source = Weights(n, device), torch.empty(5 * n, device=device)
    target = torch.empty_like(source)
    fused, eager = timed(weights.fused, device, repeats), timed(weights.eager, device, repeats)
    copy = timed(lambda: target.copy_(source), device, repeats)
    bandwidth = 2 * 4 * len(source) / copy["median"]
    moved = bytes_per_weight(2, 2) * n / fused["median"]
    return {
        "weights": n,
        "n": repeats,
        "bytes_per_weight": bytes_per_weight(2, 2),
        "seconds": {"fused": fused, "eager": eager, "copy": copy},
        "bytes_per_second": {"fused": moved, "copy": bandwidth},
        "share_of_copy_bandwidth": moved / bandwidth,
        "times_faster_than_eager": eager["median"] / fused["median"],
    }


def product(device: str, shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Seconds of the packed product, of packing its activations, and of torch's product of bfloat16 matrices."""
    m, n, k = shape
    x, w = (torch.randint(-1, 2, (rows, k), device=device).to(torch.bfloat16) for rows in (m, n))
    a, b = bit_planes(x), bit_planes(w)
    packed = timed(lambda: gated_product(a, b), device, repeats)
    dense = timed(lambda: x @ w.T, device, repeats)
    return {
        "shape": shape,
        "n": repeats,
        "seconds": {"packed": packed, "packing": timed(lambda: bit_planes(x), device, repeats), "bfloat16": dense},
        "times_faster_than_bfloat16": dense["median"] / packed["median"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Check the bits, measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="OUT", required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--weights", type=int, help="elements of the weight tensor")
    arguments = parser.parse_args(argv)
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        print(MetaschedError("--device", "torch sees no CUDA device here", "give --device cpu"), file=sys.stderr)
        return MetaschedError.exit_code
    check_bits(device)
    step = transition(device, arguments.weights or WEIGHTS[device], arguments.repeats)
    print(
        f"{step['share_of_copy_bandwidth']:.2g} of the copy bandwidth, {step['times_faster_than_eager']:.2g} x eager",
        file=sys.stderr,
    )
    products = [product(device, shape, arguments.repeats) for shape in SHAPES[device]]
    for row in products:
        print(f"product {row['shape']}: {row['times_faster_than_bfloat16']:.2g} x bfloat16", file=sys.stderr)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
        "same_bits": True,
        "transition": step,
        "products": products,
    }
    write_atomic(arguments.json, json_text(result, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
