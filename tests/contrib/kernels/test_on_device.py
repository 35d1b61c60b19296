"""The kernels on a GPU: the bits of the torch operations there, and of those on the CPU."""

from __future__ import annotations

import pytest
import torch

from metasched.contrib.kernels.coefficients import COEFFICIENTS
from metasched.contrib.kernels.gated_xnor import bit_planes, gated_product
from metasched.contrib.kernels.transition import transition_in_torch, transition_step
from metasched.contrib.packing import pack
from metasched.quantizers.levels import level_set

pytestmark = pytest.mark.gpu
pytest.importorskip("triton", reason="comes with torch on Linux")

RULES = [
    ("adam", {"lr": 0.3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01}),
    ("adamw", {"lr": 0.3, "beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1}),
    ("sgd", {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.0}),
]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["ternary", "binary", "states3"])
@pytest.mark.parametrize(("rule", "hyper"), RULES)
def test_steps_have_the_bits_of_the_cpu(rule: str, hyper: dict[str, float], name: str, rows: int) -> None:
    torch.set_default_dtype(torch.float32)
    n, levels = 30003, level_set(name)
    scale = torch.rand(rows) + 0.3
    w = torch.tensor(levels.levels)[torch.randint(len(levels.levels), (rows, n // rows))] * scale[:, None]
    states = pack(w, scale[:, None], levels)
    ours = [states, *(torch.zeros(n) for _ in range(COEFFICIENTS[rule](hyper, 1).moments))]
    theirs = [t.cuda() for t in ours]
    for t in (1, 2, 3):
        grad = torch.randn(n) * 10.0 ** torch.randint(-6, 1, (n,))
        grad[::5] = 0.0
        rest = {"levels": levels, "temperature": 0.7, "steepness": 3.0, "seed": 2**62 + 1, "offset": t}
        for tensors, device in ((ours, "cpu"), (theirs, "cuda")):
            given = tensors[0], grad.to(device), tensors[1:], COEFFICIENTS[rule](hyper, t)
            transition_step(*given, scale=scale.to(device), **rest)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True)), t


def test_a_kernel_has_the_bits_of_the_torch_operations_there() -> None:
    torch.set_default_dtype(torch.float32)
    n, one = 10007, torch.ones(1, device="cuda")
    states = torch.randint(256, (-(-n // 4),), device="cuda").to(torch.uint8) & 0b10101010
    ours = [states, torch.zeros(n, device="cuda"), torch.zeros(n, device="cuda")]
    theirs = [t.clone() for t in ours]
    numbers = torch.tensor([*COEFFICIENTS["adam"](RULES[0][1], 1)[1:], -1.0, 1.0, 3.0]).tolist()
    rest = (torch.randn(n, device="cuda"), one, one, numbers, 2, 2, 1, 10)
    transition_in_torch(ours[0], ours[1:], *rest)
    torch.ops.metasched.discrete_transition(theirs[0], theirs[1:], *rest)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 33), (300, 65, 1000)])
def test_products_are_those_of_integers(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a, b = (torch.randint(-1, 2, (rows, k)) for rows in (m, n))
    found = gated_product(bit_planes(a.cuda()), bit_planes(b.cuda()))
    assert torch.equal(found.values.cpu().long(), a @ b.T)
    assert int(found.active) == int(((a != 0).long() @ (b != 0).long().T).sum())
