"""Run with TRITON_INTERPRET=1: the Triton kernels, in Triton's interpreter, give the bits of the torch operations.

Prints how many cases agreed.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl

from metasched.contrib.kernels import gated_xnor, gated_xnor_triton, transition, transition_triton
from metasched.contrib.kernels.coefficients import COEFFICIENTS
from metasched.contrib.kernels.transition_triton import _rise, _uniform
from metasched.contrib.packing import bits_of
from metasched.quantizers.levels import level_set

RULES = [
    ("adam", {"lr": 0.3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01}),
    ("adamw", {"lr": 0.3, "beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1}),
    ("sgd", {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.0}),
    ("sgd", {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.01}),
]
SIZES = [(1030, 1), (1023, 3), (6, 6)]  # elements and scales: beyond a block of 1024, within one, in less than a group
DRAWS = torch.Generator().manual_seed(0)


def check(rule: str, hyper: dict[str, float], name: str, packed: bool, n: int, rows: int) -> None:
    """Three steps of both, with gradients that are large, zero and NaN here and there."""
    levels = level_set(name)
    top, bits = len(levels.levels) - 1, bits_of(levels) if packed else 8
    k = torch.randint(top + 1, (n,), generator=DRAWS).float()
    scale = torch.rand(rows, generator=DRAWS) + 0.3
    ours = [transition._packed(k, bits, top)]
    ours += [torch.zeros(n) for _ in range(COEFFICIENTS[rule](hyper, 1).moments)]
    theirs = [t.clone() for t in ours]
    moved = False
    for t in (1, 2, 3):
        grad = torch.randn(n, generator=DRAWS) * 10.0 ** torch.randint(-6, 1, (n,), generator=DRAWS)
        grad[::5] = 0.0
        if t == 3:
            grad[1::7], grad[2::7] = torch.inf, torch.nan
        numbers = (*COEFFICIENTS[rule](hyper, t)[1:], levels.levels[0], levels.jumps[0], 3.0)
        rounded = torch.tensor(numbers).tolist()
        rest = (grad, scale, 0.7 / (scale * levels.jumps[0]), rounded, top, bits, 2**62 + n, 2**33 + t)
        before = ours[0].clone()
        transition.transition_in_torch(ours[0], ours[1:], *rest)
        transition_triton.launch(theirs[0], theirs[1:], *rest)
        moved |= not torch.equal(ours[0], before)
        for one, other in zip(ours, theirs, strict=True):
            same = (one == other) | (one.isnan() & other.isnan())
            assert bool(same.all()), (rule, name, bits, n, t, int((~same).sum()))
    assert moved or n < 10


def check_last_bits(rule: str, hyper: dict[str, float]) -> None:
    """Steps of one quantum but for rounding, and no chance of more: whether a weight moves is in the last bits."""
    n = 4000
    signs = 1 - 2 * torch.randint(2, (n,), generator=DRAWS)
    noise = torch.rand(n, generator=DRAWS)
    if rule == "adam":  # its first step is the learning rate, whatever the gradient
        scale, grad = torch.ones(1), signs * (0.01 + noise)
    else:
        scale = 0.3 + torch.rand(n, generator=DRAWS)
        grad = signs * scale / hyper["lr"] * (1 + 4e-7 * (noise - 0.5))
    coefficients = COEFFICIENTS[rule](hyper, 1)
    rounded = torch.tensor([*coefficients[1:], -1.0, 1.0, 0.0]).tolist()
    ours = [torch.ones(n, dtype=torch.uint8)] + [torch.zeros(n) for _ in range(coefficients.moments)]
    theirs = [t.clone() for t in ours]
    transition.transition_in_torch(ours[0], ours[1:], grad, scale, 1 / scale, rounded, 2, 8, 0, 0)
    transition_triton.launch(theirs[0], theirs[1:], grad, scale, 1 / scale, rounded, 2, 8, 0, 0)
    assert all(map(torch.equal, ours, theirs)), (rule, int((ours[0] != theirs[0]).sum()))
    assert 0.05 < float((ours[0] != 1).double().mean()) < 0.95, "nothing was decided by rounding"


@triton.jit
def parts_kernel(x, risen, drawn, seed: tl.int64, offset: tl.int64, N: tl.constexpr):
    """What decides a jump, by itself."""
    i = tl.arange(0, N)
    tl.store(risen + i, _rise(tl.load(x + i)))
    group = tl.arange(0, N // 4)
    tl.store(drawn + group[:, None] * 4 + tl.arange(0, 4)[None, :], _uniform(seed, offset, group))


def check_parts() -> None:
    """The chance of all magnitudes of a remainder, and the uniform numbers."""
    n = 2**14
    x = torch.cat([torch.logspace(-38, 1.6, n // 2), 3 * torch.rand(n // 2, generator=DRAWS)])
    for seed, offset in ((0, 0), (2**63 - 1, 2**63 - 1), (2**32 + 5, 2**32)):
        risen, drawn = torch.empty(n), torch.empty(n)
        parts_kernel[(1,)](x, risen, drawn, seed, offset, N=n)
        assert torch.equal(risen, transition.rise(x))
        assert torch.equal(drawn, transition.uniform(seed, offset, n))


def check_product(m: int, n: int, k: int) -> None:
    """Product and count of both."""
    a, b = (gated_xnor.bit_planes(torch.randint(-1, 2, (rows, k), generator=DRAWS)) for rows in (m, n))
    planes = (a.nonzero, a.sign, b.nonzero, b.sign)
    ours, theirs = gated_xnor.product_in_torch(*planes), gated_xnor_triton.launch(*planes)
    assert torch.equal(ours[0], theirs[0]) and int(ours[1]) == int(theirs[1]), (m, n, k)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = 0
    for (rule, hyper), packed in itertools.product(RULES, (True, False)):
        check(rule, hyper, "ternary", packed, *SIZES[cases % 2])
        cases += 1
    for rule, hyper in RULES[:3:2]:
        for name in ("binary", "states2", "states3", "states5"):
            check(rule, hyper, name, True, *SIZES[cases % 3])
            cases += 1
    check(*RULES[0], "ternary", True, 1, 1)
    for shape in ((1, 1, 1), (3, 70, 33), (64, 65, 64)):
        check_product(*shape)
    check_last_bits("adam", {"lr": 1 - 2**-24, "beta1": 0.9, "beta2": 0.99, "eps": 0.0, "weight_decay": 0.0})
    check_last_bits("sgd", {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.0})
    check_parts()
    print(cases + 7)
