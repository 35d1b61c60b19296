"""``metasched.calibrate``: what it quantizes, from which inputs, and that its result converts like all others."""

from __future__ import annotations

import pytest
import torch
from calibrated import convnet, images, mlp, vectors
from torch import nn

import metasched
from metasched.calibration.adaround import adaround
from metasched.calibration.nearest import nearest
from metasched.calibration.table import PROCEDURES, AdaRoundOptions
from metasched.calibration.walk import inputs_of
from metasched.calibration.walking import Progress, units
from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.network.recipe import Recipe

STEPS = {
    "adaround": {"steps": 30, "lr": 0.05},
    "multipoint": {"budget": 0.02},
    "product": {"codes": 8, "linear_block": 2, "steps": 10},
}


def recipe(levels: str = "balanced3", activations: str | None = None) -> Recipe:
    return Recipe("ste", weights=levels, activations=activations, granularity="channel", last=True)


@pytest.mark.parametrize("method", PROCEDURES)
def test_the_result_converts_and_is_as_good_as_nearest(method: str) -> None:
    model = convnet()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    reports: list[Progress] = []
    batches = [images()[:24], images()[24:]]
    found = metasched.calibrate(model, recipe(), batches, method, progress=reports.append, **STEPS.get(method, {}))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    plain = metasched.convert(found)
    assert not any(type(m).__module__.startswith("metasched") for m in plain.modules())
    with torch.no_grad():
        assert torch.equal(plain(images()), found(images()))
    done = [p.report for p in reports if p.report is not None]
    assert [r.unit for r in done] == ["0", "3.one", "3.two", "5"]
    assert reports[-1].done == reports[-1].total == 4 and reports[-1].left == 0
    if method == "adaround":
        assert all(r.error <= r.nearest for r in done)
    if method == "product":
        assert len(plain[0].weight.reshape(-1, 9).unique(dim=0)) == done[0].details["codes"] <= 8  # pyright: ignore
    elif method != "multipoint":
        assert len(plain[0].weight[0].unique()) <= 7  # pyright: ignore


@pytest.mark.slow
def test_error_is_smaller_in_the_order_of_the_procedures() -> None:
    """Of outputs of the whole network, on the calibration data."""
    model, x = mlp(), vectors()
    errors = {}
    for method, options in {
        "nearest": {},
        "bit_split": {},
        "adaround": {"steps": 100, "lr": 0.05},
        "multipoint": {"budget": 1e-3},
    }.items():
        found = metasched.calibrate(model, recipe(), [x], method, **options)
        with torch.no_grad():
            errors[method] = float((found(x) - model(x)).square().sum() / model(x).square().sum())
    assert errors["bit_split"] < 0.7 * errors["nearest"] and errors["adaround"] < 0.7 * errors["nearest"]
    assert errors["multipoint"] < 0.1 * errors["nearest"]


def test_inputs_are_those_of_the_quantized_prefix_and_targets_those_of_the_float_network() -> None:
    model, x = mlp(), vectors()
    found = metasched.calibrate(model, recipe("balanced2"), [x], "nearest")
    seen = {unit.name: unit for unit in units(model, recipe("balanced2"), [x])}
    for name, layer in (("0", 0), ("2", 2), ("4", 4)):
        ((given,), _), *_ = inputs_of(found, name, [((x,), {})])
        torch.testing.assert_close(given, seen[name].calls[0][0][0])
        with torch.no_grad():
            y = model[: layer + 1](x)  # pyright: ignore
            torch.testing.assert_close(seen[name].targets[0], y.relu() if layer < 4 else y)
    assert not torch.equal(seen["2"].calls[0][0][0], model[:2](x))  # pyright: ignore


def test_normalization_and_activation_count_in_the_error_of_a_layer() -> None:
    model, x = convnet(), images()
    seen = {unit.name: unit for unit in units(model, recipe(), [x])}
    with torch.no_grad():
        torch.testing.assert_close(seen["0"].targets[0], model[:3](x))  # pyright: ignore
        block = model[3]
        inside = model[:3](x)  # pyright: ignore
        torch.testing.assert_close(seen["3.one"].targets[0], block.norm_one(block.one(inside)).relu())  # pyright: ignore
        two = block.norm_one(block.one(inside)).relu()  # pyright: ignore
        torch.testing.assert_close(seen["3.two"].targets[0], block.norm_two(block.two(two)))  # pyright: ignore


def test_blocks() -> None:
    model, x, done = convnet(), images(), []
    found = metasched.calibrate(
        model, recipe(), [x], by="block", steps=12, lr=0.1, progress=lambda p: done.append(p.report)
    )
    reports = [r for r in done if r is not None]
    assert [(r.unit, r.layers) for r in reports] == [("0", ("0",)), ("3", ("3.one", "3.two")), ("5", ("5",))]
    assert reports[1].error < reports[1].nearest
    named = metasched.calibrate(model, recipe(), [x], by=["3"], steps=12, lr=0.1)
    with torch.no_grad():
        assert torch.equal(named(x), found(x))


@pytest.mark.parametrize("method", ["nearest", "adaround", "multipoint"])
def test_activations_are_fitted_to_what_reaches_them(method: str) -> None:
    model, x = mlp(), vectors()
    found = metasched.calibrate(model, recipe("balanced4", "uint4"), [x], method, **STEPS.get(method, {}))
    plain = metasched.convert(found)
    with torch.no_grad():
        inside = plain[:2](x)  # pyright: ignore
        assert len(inside.unique()) <= 16
        assert float((inside - model[:2](x)).square().mean() / model[:2](x).square().mean()) < 0.02  # pyright: ignore


def test_attention_and_transformers_are_calibrated() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    x = torch.randn(6, 3, 5)
    for by, names in (("layer", 4), ("block", 2)):
        done: list[Progress] = []
        found = metasched.calibrate(model.eval(), recipe("int4"), [x], by=by, steps=10, lr=0.05, progress=done.append)
        reports = [p.report for p in done if p.report is not None]
        assert len(reports) == names and all(r.error <= r.nearest for r in reports), reports
        assert found(x).shape == (6, 3, 8)


def test_a_layer_in_float_stays_as_it_is() -> None:
    model, x = mlp(), vectors()
    found = metasched.convert(
        metasched.calibrate(model, Recipe("ste", weights="int4", activations=None), [x], "nearest")
    )
    assert torch.equal(found[4].weight, model[4].weight)  # pyright: ignore


REFUSED = {
    "labels": (
        [(torch.ones(3, 12), torch.ones(3))],
        {},
        r"^calibrate: batch 0: is a tuple of 2, and inputs come without",
    ),
    "labelled": (
        [{"x": torch.ones(3, 12), "labels": torch.ones(3)}],
        {},
        r"^calibrate: batch 0: has labels, and inputs",
    ),
    "nan": (
        [torch.ones(3, 12), torch.full((3, 12), float("nan"))],
        {},
        r"^calibrate: batch 1: has 36 numbers that are",
    ),
    "shape": (
        [torch.ones(3, 12), torch.ones(3, 11)],
        {},
        r"^calibrate: batch 1: has the shape \[N, 11\] of float64, and",
    ),
    "other network": ([torch.ones(3, 7)], {}, r"^calibrate: batch 0: the network does not take it \(RuntimeError"),
    "none": ([], {}, r"^calibrate: batches: has no batches"),
    "tensor": (torch.ones(3, 12), {}, r"^calibrate: batches: is a Tensor, not batches of inputs; give a list"),
    "empty": ([torch.ones(0, 12)], {}, r"^calibrate: batch 0: has the shape \[0, 12\]"),
    "text": (["x"], {}, r"^calibrate: batch 0: is a str, not an input"),
    "method": (
        [torch.ones(3, 12)],
        {"method": "adaruond"},
        r"^calibrate: method: unknown name 'adaruond'; did you mean",
    ),
    "option": ([torch.ones(3, 12)], {"step": 3}, r"^calibrate: option of adaround: unknown name 'step'; did you mean"),
    "value": ([torch.ones(3, 12)], {"steps": 0}, r"^calibrate: steps: Input should be greater than or equal to 1"),
    "no option": (
        [torch.ones(3, 12)],
        {"method": "nearest", "steps": 1},
        r"^calibrate: steps: is no option of nearest",
    ),
    "by": ([torch.ones(3, 12)], {"by": ["7"]}, r"^calibrate: by: unknown name '7'"),
    "no block": ([torch.ones(3, 12)], {"by": "block"}, r"^calibrate: by: is block, and the network has no residual"),
    "block": (
        [torch.ones(3, 12)],
        {"by": ["0"], "method": "bit_split"},
        r"^calibrate: by: needs a procedure that takes",
    ),
    "schedule": (
        [torch.ones(3, 12)],
        {"schedule": "inq_linear"},
        r"^calibrate: schedule: 'inq_linear' lacks rounding_beta",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case: str) -> None:
    batches, options, message = REFUSED[case]
    with pytest.raises(MetaschedError, match=message) as caught:
        metasched.calibrate(mlp(), recipe(), batches, **options)
    assert "\n" not in str(caught.value)


def test_levels_that_a_procedure_cannot_take() -> None:
    with pytest.raises(
        MetaschedError, match=r"^model.0: bit_split takes ternary or balancedB levels, and the layer has 8"
    ):
        metasched.calibrate(mlp(), recipe("int3"), [vectors()], "bit_split")
    with pytest.raises(MetaschedError, match=r"^recipe: has a method that is built already"):
        built = metasched.build_method(metasched.MethodConfig(name="ste"))
        metasched.calibrate(mlp(), Recipe(built), [vectors()])


def test_what_stays_in_float_is_said() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.Softsign(), nn.Linear(8, 3))
    with pytest.warns(MetaschedWarning, match="stay in float"):
        metasched.calibrate(model, recipe("int4", "uint4"), [vectors()], "nearest")


def test_no_channel_of_a_layer_is_worse_than_on_its_nearest_levels() -> None:
    model, x = mlp(), vectors()
    for unit in units(model, recipe("balanced2"), [x]):
        options = AdaRoundOptions(steps=5, lr=0.5)  # which ends anywhere
        errors = [
            unit.by_channel(unit.outputs([r.weight for r in made])) for made in (adaround(unit, options), nearest(unit))
        ]
        assert bool((errors[0] <= errors[1]).all()) and float(errors[0].sum()) < float(errors[1].sum())
