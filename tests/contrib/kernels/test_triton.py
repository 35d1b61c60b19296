"""The Triton kernels without a GPU: interpreted they give torch's bits, compiled they are what they should be.

What a compiler makes of the arithmetic can only be read here, not run: the machine code has no multiply-add that was
fused, nothing that flushes or approximates, wide accesses to memory, and an instruction for counting ones.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="comes with torch on Linux")

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def test_interpreted_kernels_have_the_bits_of_the_torch_operations() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", HERE / "interpreted.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 23


def machine_code(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], architecture: int) -> str:
    """PTX for a CUDA architecture, as launched with tensors and sizes that are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature = {p.name: "constexpr" if p.is_constexpr else p.annotation_type for p in kernel.params} | pointers
    aligned = [i for i, name in enumerate(signature) if name in pointers or name in ("n", "m", "per_row")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    return compile(source, GPUTarget("cuda", architecture, 32), {"enable_fp_fusion": False}).asm["ptx"]


@pytest.fixture
def _compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set")
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("architecture", [80, 90])
def test_compiled_transition_fuses_and_approximates_nothing(architecture: int) -> None:
    from metasched.contrib.kernels.transition_triton import GROUPS, transition_kernel

    floats = ("first_moment", "second_moment", "grad", "scale", "rate")
    pointers = {"states": "*u8"} | dict.fromkeys(floats, "*fp32")
    constants = {"MOMENTS": 2, "BITS": 2, "ROWS": False, "GROUPS": GROUPS}
    code = machine_code(transition_kernel, pointers, constants, architecture)
    inexact = set(re.findall(r"\S*(?:fma\b|ftz|approx)\S*", code))
    assert inexact <= {"cvt.rmi.ftz.f32.f32"}  # floor: of a number that is not negative it is the same, flushed or not
    weights = 4 * GROUPS // 128  # of a thread
    assert code.count("div.rn.f32") == code.count("sqrt.rn.f32") == weights
    assert len(re.findall(r"ld\.global\.v4\.b32", code)) == 3 * weights / 4  # gradient and two moments, 16 bytes each
    assert len(re.findall(r"st\.global\.v4\.b32", code)) == 2 * weights / 4


@pytest.mark.usefixtures("_compiler")
def test_compiled_product_counts_ones_in_one_instruction() -> None:
    from metasched.contrib.kernels.gated_xnor_triton import ROWS, product_kernel

    planes = ("a_nonzero", "a_sign", "b_nonzero", "b_sign", "values")
    code = machine_code(product_kernel, dict.fromkeys(planes, "*i32") | {"active": "*i64"}, {"ROWS": ROWS}, 90)
    assert len(re.findall(r"popc\.b32", code)) == 2 * ROWS**2 // 128
