"""The update of discrete weights in one pass: optimizer, temperature, random jump, clamp and packed storage.

    w = scale (q_0 + k quantum),    dw from the gradient (see coefficients.py),    x = temperature dw / (scale quantum)
    kappa = floor(|x|),    nu = |x| - kappa,    k <- clip(k + sign(x) (kappa + [u < tanh(steepness nu)]), 0, n)

This is an optimizer followed by GXNOR's discrete state transition (quantizers/transitions.py), without derivative. It
is the torch operator ``metasched::discrete_transition``: on a GPU the kernel of transition_triton.py, elsewhere the
torch operations below. The numbers u are those of Philox for (seed, offset, index).

**Same bits.** Both compute in float32 and round each operation separately: there is no fused multiply-add, quotients
and roots are rounded correctly, and tanh is our own polynomial, because libraries differ. So states and moments are
equal bit for bit. The tests compare the kernel in Triton's interpreter with the torch operations; neither has been run
on a GPU. A test compiles the kernel to machine code for sm_80 and sm_90, which has no fused multiply-add.

An update that is NaN does not change its state; the moments contain the NaN. An infinite update moves to the end of the
range.

Source: Deng et al., GXNOR-Net, 2018, arXiv 1705.09283.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from metasched.contrib.kernels.coefficients import Coefficients
from metasched.contrib.kernels.philox import uniform
from metasched.contrib.packing import bits_of, pack, unpack
from metasched.quantizers.levels import LevelSet

TINY = torch.finfo(torch.float32).tiny
LN2_HIGH = 355 / 512  # has so few digits that its multiples up to 2^15 are exact
LN2_LOW = math.log(2) - LN2_HIGH
SHIFT = 1.5 * 2**23  # adding it rounds a small number to an integer, in the last bits of the sum


def transition_step(
    states: torch.Tensor,
    grad: torch.Tensor,
    moments: Sequence[torch.Tensor],
    coefficients: Coefficients,
    *,
    levels: LevelSet,
    scale: torch.Tensor,
    temperature: float | torch.Tensor,
    steepness: float,
    seed: int,
    offset: int,
) -> None:
    """One update of a weight tensor; changes ``states`` and ``moments`` in place.

    Args:
        states: packed by contrib/packing.py, uint8 [ceil(N bits / 8)]; or one state per byte, uint8 [N].
        grad: gradient, float32 [...] with N elements.
        moments: ``coefficients.moments`` tensors, float32, contiguous, N elements each.
        coefficients: coefficients of the optimizer at this step.
        levels: evenly spaced levels, at most 256.
        scale: float32, with one element, or one for each row of the weight.
        temperature: factor of the update; a number or 0-d.
        steepness: m > 0.
        seed, offset: seed and offset of the uniform numbers (see philox.py).

    >>> from metasched.contrib.kernels.coefficients import sgd
    >>> from metasched.quantizers.levels import ternary
    >>> k, grad = torch.tensor([0, 1, 2], dtype=torch.uint8), torch.tensor([-4.0, 0.0, -4.0], dtype=torch.float32)
    >>> rule, one = sgd(dict(lr=1.0, momentum=0.0, weight_decay=0.0), 1), torch.ones(1, dtype=torch.float32)
    >>> settings = dict(levels=ternary(), scale=one, temperature=0.5, steepness=3.0, seed=0, offset=0)
    >>> transition_step(k, grad, [], rule, **settings)
    >>> k
    tensor([2, 1, 2], dtype=torch.uint8)
    """
    n, quantum = grad.numel(), levels.jumps[0]
    bits = 8 if states.numel() == n else bits_of(levels)
    assert states.dtype == torch.uint8 and states.numel() == -(-n * bits // 8), (states.dtype, states.shape, n)
    assert len(moments) == coefficients.moments and all(m.numel() == n and m.is_contiguous() for m in moments)
    assert all(t.dtype == torch.float32 for t in (grad, scale, *moments)), "gradient, scale and moments must be float32"
    assert n % scale.numel() == 0 and len(set(levels.jumps)) == 1
    numbers = (*coefficients[1:], levels.levels[0], quantum, steepness)
    scale = scale.flatten()
    rate = (temperature / (scale * quantum)).to(torch.float32)
    rounded = torch.tensor(numbers, dtype=torch.float32, device="cpu").tolist()
    top = len(levels.levels) - 1
    operator = torch.ops.metasched.discrete_transition
    operator(states, moments, grad.contiguous(), scale, rate, rounded, top, bits, seed, offset)


def bytes_per_weight(bits: int, moments: int) -> float:
    """Bytes per weight that an update moves: gradient read; moments and states read and written.

    >>> bytes_per_weight(2, 2), bytes_per_weight(2, 1), bytes_per_weight(8, 0)
    (20.5, 12.5, 6.0)
    """
    return 4 + 8 * moments + 2 * bits / 8


def transition_in_torch(
    states: torch.Tensor,
    moments: Sequence[torch.Tensor],
    grad: torch.Tensor,
    scale: torch.Tensor,
    rate: torch.Tensor,
    numbers: Sequence[float],
    top: int,
    bits: int,
    seed: int,
    offset: int,
) -> None:
    """The operator in torch operations, each of which rounds once.

    Args:
        states, moments, grad, seed, offset: as in ``transition_step``; contiguous.
        scale: float32 [1], or [R] for R rows of the weight.
        rate: temperature / (scale quantum), with the shape of ``scale``.
        numbers: the fields of Coefficients after ``moments``; then q_0, quantum and steepness.
        top: n, the highest state.
        bits: bits of a packed state; 8: one state per byte.
    """
    size, decay, shrink, keep1, gain1, keep2, gain2, eps, first, quantum, steepness = numbers
    rows = scale.numel()
    k = _unpacked(states, bits, top, grad.numel())
    w = (k.view(rows, -1) * quantum + first) * scale[:, None]
    g = m = grad.view(rows, -1) + w * decay
    if moments:
        m = moments[0].view(rows, -1).mul_(keep1).add_(g * gain1)
    if len(moments) == 2:
        v = moments[1].view(rows, -1).mul_(keep2).add_(g * g * gain2)
        # in double, because MKL rounds one in a hundred float32 roots incorrectly
        m = m / (v.clamp_min(TINY).double().sqrt().to(torch.float32) + eps)
    x = (((m * size) + w * shrink) * rate[:, None]).flatten()
    length = x.abs()
    whole = length.floor()
    draw = uniform(seed, offset, len(x), x.device)
    risen = rise((length - whole) * steepness)
    jump = whole.clamp_max(top) + (draw * (2.0 - risen) < risen)
    jump = torch.where(length >= 0, jump, 0.0)
    states.copy_(_packed((k + torch.where(x < 0, -jump, jump)).clamp(0, top), bits, top))


def rise(x: torch.Tensor) -> torch.Tensor:
    """Computes q = 1 - exp(-2x) for x >= 0, float32 [...], with equal rounding on all devices.

    It serves to sample: u < tanh(x) exactly if u (2 - q) < q.

    With -2x = j ln 2 + r and |r| <= ln(2) / 2, q = (1 - 2^j) - 2^j (exp(r) - 1), where exp(r) - 1 is computed by its
    Taylor polynomial of degree 7. For small x, j is 0 and q a multiple of r, so that small probabilities are accurate.
    """
    z = (x * -2.0).clamp_min(-40.0)
    shifted = z * (1 / math.log(2)) + SHIFT
    j = shifted - SHIFT
    r = (z - j * LN2_HIGH) - j * LN2_LOW
    s = torch.full_like(r, 1 / math.factorial(7))
    for i in range(6, 0, -1):
        s = s * r + 1 / math.factorial(i)
    s = s * r
    power = ((shifted.view(torch.int32) + 127) << 23).view(torch.float32)  # 2^j: j becomes the exponent of a float
    return (1.0 - power) - power * s


def _on_gpu(
    states: torch.Tensor,
    moments: Sequence[torch.Tensor],
    grad: torch.Tensor,
    scale: torch.Tensor,
    rate: torch.Tensor,
    numbers: Sequence[float],
    top: int,
    bits: int,
    seed: int,
    offset: int,
) -> None:
    from metasched.contrib.kernels.transition_triton import launch

    launch(states, moments, grad, scale, rate, numbers, top, bits, seed, offset)


def _states_of(top: int) -> LevelSet:
    return LevelSet(tuple(map(float, range(top + 1))))


def _unpacked(states: torch.Tensor, bits: int, top: int, n: int) -> torch.Tensor:
    if bits == 8:
        return states.to(torch.float32)
    one = torch.ones((), dtype=torch.float32, device=states.device)
    return unpack(states, torch.Size([n]), one, _states_of(top))


def _packed(k: torch.Tensor, bits: int, top: int) -> torch.Tensor:
    return k.to(torch.uint8) if bits == 8 else pack(k, torch.ones_like(k[:1]), _states_of(top))


# not custom_op: its first call imports the compiler, which takes seconds
_LIBRARY = torch.library.Library("metasched", "FRAGMENT")
_LIBRARY.define(
    "discrete_transition(Tensor(a!) states, Tensor(b!)[] moments, Tensor grad, Tensor scale, Tensor rate, "
    "float[] numbers, int top, int bits, int seed, int offset) -> ()"
)
_LIBRARY.impl("discrete_transition", transition_in_torch, "CompositeExplicitAutograd")
_LIBRARY.impl("discrete_transition", _on_gpu, "CUDA")
torch.library.register_fake("metasched::discrete_transition", lambda *arguments: None, lib=_LIBRARY)
