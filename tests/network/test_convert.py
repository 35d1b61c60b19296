"""``convert``: the hard network as plain torch, saved and exported without this package."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from metasched import MetaschedError, MethodConfig, QuantizedModule, build_method, convert, prepare, quantize
from metasched.network.staircase import staircase
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import level_set

X = torch.linspace(-2, 2, 256).reshape(4, 1, 8, 8).sin()
IGNORED = "DeprecationWarning", "FutureWarning", "torch.jit.TracerWarning", "UserWarning"  # of the recorders themselves
CASES: list[dict[str, Any]] = [
    {"name": "ste"},
    {"name": "inq", "levels": "int4", "activation_levels": "uint4", "activation_scale": 0.25},
    {"name": "ste", "levels": "binary", "activation_levels": "binary"},
    {"name": "joint", "of": "widths+inq", "scale": "learned", "activation_scale": "learned"},
    {"name": "oscillation", "granularity": "channel", "activation_levels": "pow2_3"},
]


class Residual(nn.Module):
    """A block with a skip, and an activation in place before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.relu(self.norm(self.conv1(x)))) + x


def trained(**method: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), Residual(), nn.Flatten(), nn.Linear(144, 3))
    module, player = prepare(model, MethodConfig(**method), X, None, 3)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        module(X).square().mean().backward()
        optimizer.step()
        player.step()
    return module


@pytest.mark.parametrize("method", CASES, ids=lambda case: case["name"])
def test_it_is_the_hard_network_bit_for_bit_in_plain_modules(method: dict[str, Any]) -> None:
    module = trained(**method)
    plain = convert(module)
    assert module.training and not plain.training
    assert torch.equal(plain(X), module.eval()(X))
    assert not any("metasched" in type(m).__module__ for m in plain.modules())
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in module_names(module)}
    assert type(plain[0]) is nn.Conv2d and len(plain[0].weight.unique()) <= 16  # pyright: ignore


def module_names(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if "_quantizer." not in name]


@pytest.mark.parametrize("name", ["ternary", "binary", "int4", "uint4", "balanced4", "pow2_3", "states3"])
def test_staircases_have_the_bits_of_the_quantizer(name: str) -> None:
    levels = level_set(name, "levels")
    edges = torch.tensor([*levels.levels, *levels.thresholds])
    x = torch.cat([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1), 3 * torch.randn(500)])
    x = torch.cat([x, torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])])
    found, wanted = staircase(levels, 1.0, rewrites=False)(x), hard(x, levels)
    assert torch.equal(found.view(torch.int64), wanted.view(torch.int64))
    given = x.clone()
    assert staircase(levels, torch.tensor(0.5), rewrites=True)(given) is given
    torch.testing.assert_close(given, hard(x / 0.5, levels) * 0.5, equal_nan=True, rtol=0, atol=0)


class Functions(nn.Module):
    """Activations as functions, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.relu = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm(self.a(x)))
        return self.head(nn.functional.gelu(self.b(self.relu(self.c(y) + x))))


def test_functions_and_modules_called_twice_are_traced(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 8)
    module, player = prepare(Functions(), MethodConfig(name="inq", activation_levels="int4"), x, "inq_linear", 3)
    for _ in range(3):
        module(x).square().mean().backward()
        player.step()
    module, player = pickle.loads(pickle.dumps((copy.deepcopy(module), player)))
    plain = convert(module, [x])
    assert torch.equal(plain(x), convert(module, [x])(x))
    assert torch.equal(convert(module)(x), module.eval()(x))
    torch.save(plain, tmp_path / "plain.pt")
    assert b"metasched" not in (tmp_path / "plain.pt").read_bytes()
    assert torch.equal(torch.load(tmp_path / "plain.pt", weights_only=False)(x), plain(x))


@pytest.mark.parametrize("scale", [0.5, "learned"])
def test_a_module_that_takes_controls_is_converted_too(scale: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 8)
    config = MethodConfig(name="ste", activation_levels="int4", activation_scale=scale, scale="max")
    module = QuantizedModule(quantize(Functions(), build_method(config), x), {key: {} for key in "abc"}, 0, x)
    module.eval()
    plain = convert(module)
    assert torch.equal(plain(x), module.deployed(x)) and not plain.training
    assert not any("metasched" in type(m).__module__ for m in plain.modules())
    estimated = convert(module, [x[:3], x[1:]])
    assert torch.equal(plain(x), module.deployed(x)) and not torch.equal(estimated(x), plain(x))


class Branching(Functions):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if bool(x.sum() > 0) else -x)


def test_what_cannot_be_traced_is_refused_in_one_line() -> None:
    module, _ = prepare(Branching(), MethodConfig(name="ste"), torch.randn(5, 8))
    with pytest.raises(MetaschedError, match=r"^convert: calls activations as functions, and torch.fx cannot trace it"):
        convert(module)


def test_it_loads_and_runs_where_the_package_cannot_be_imported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(5, 8)
    module, _ = prepare(model, MethodConfig(name="ste", activation_scale="learned"), x)
    plain = convert(module)
    torch.save(plain, tmp_path / "plain.pt")
    torch.export.save(torch.export.export(plain, (x,)), tmp_path / "plain.pt2")
    torch.save((x, plain(x).detach()), tmp_path / "wanted.pt")
    program = f"""
import sys
sys.modules["metasched"] = None
import torch
folder = {str(tmp_path)!r}
x, wanted = torch.load(folder + "/wanted.pt")
saved = torch.load(folder + "/plain.pt", weights_only=False)
exported = torch.export.load(folder + "/plain.pt2").module()
assert torch.equal(saved(x), wanted) and torch.equal(exported(x), wanted)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@pytest.mark.filterwarnings(*(f"ignore::{name}" for name in IGNORED))
def test_it_is_recorded_by_export_and_trace() -> None:
    for method in CASES[1:4]:
        module = trained(**method).eval()
        plain, wanted = convert(module), module(X)
        assert torch.equal(torch.export.export(plain, (X,)).module()(X), wanted)
        assert torch.equal(torch.jit.trace(plain, X)(X), wanted)  # pyright: ignore
        assert torch.equal(torch.export.export(module, (X,)).module()(X), wanted)  # the prepared one, too


@pytest.mark.filterwarnings(*(f"ignore::{name}" for name in IGNORED))
@pytest.mark.parametrize("method", CASES[1:3], ids=lambda case: case["name"])
def test_onnx_runtime_computes_the_same(method: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    plain, x = convert(trained(**method)).float(), X.float()
    torch.onnx.export(plain, (x,), tmp_path / "plain.onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "plain.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), plain(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["tensors", "pairs", "keywords", "function"])
def test_batch_normalization_is_estimated_for_the_hard_network(form: str) -> None:
    module = trained(name="inq")
    batches = {"tensors": [X, X + 1], "pairs": [(X, 0), [X + 1, 0]], "keywords": [{"input": X}, {"input": X + 1}]}
    whole = {**batches, "function": lambda network: [network(x) for x in (X, X + 1)]}
    plain = convert(module, whole[form])
    seen: list[torch.Tensor] = []
    plain[2].conv1.register_forward_hook(lambda m, i, out: seen.append(out))  # pyright: ignore
    plain(X), plain(X + 1)
    norm = plain[2].norm  # pyright: ignore
    means, variances = zip(*((s.mean((0, 2, 3)), s.transpose(0, 1).flatten(1).var(1)) for s in seen), strict=True)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert norm.momentum == 0.1 and not norm.training
    assert not torch.equal(module[2].norm.running_mean, norm.running_mean)  # pyright: ignore


def test_wrappers_are_looked_into_and_others_refused() -> None:
    module = trained(name="inq")
    assert torch.equal(convert(AveragedModel(module))(X), convert(module)(X))
    for wrong, given in ((nn.Linear(2, 2), None), (convert(module), None)):
        with pytest.raises(MetaschedError, match=r"^convert: the module has nothing that prepare has made"):
            convert(wrong, given)
    with pytest.raises(MetaschedError, match=r"^calibrate: has no batches"):
        convert(module, [])
