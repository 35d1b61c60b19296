"""Recipes: rules that choose, override and are refused, from Python and from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from metasched import (
    MetaschedError,
    MethodConfig,
    QuantizedModule,
    Recipe,
    Rule,
    build_method,
    load_experiment,
    quantize,
)
from metasched.config.writing import to_dict
from metasched.network.quantized import QuantizedNetwork
from metasched.training.problem import build_problem

STE = MethodConfig(name="ste", scale="max")
X = torch.linspace(-1, 1, 16).reshape(2, 8)


def net() -> nn.Sequential:
    body = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), body, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def wrap(*rules: Any, method: Any = STE, **options: Any) -> QuantizedNetwork:
    return quantize(net(), Recipe(method, rules, **options), X)


def names(network: QuantizedNetwork) -> list[str]:
    return [layer.name for layer in network.layers]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ([], ["0", "2.0", "3"]),
        ([Rule("2.0", quantize=False)], ["0", "3"]),
        ([Rule("2", quantize=False)], ["0", "3"]),  # whatever is inside
        ([Rule("2.*", quantize=False)], ["0", "3"]),
        ([Rule("Linear", quantize=False), Rule("3", quantize=True)], ["3"]),  # later rules win
        ([Rule("3", quantize=True), Rule(cast(str, nn.Linear), quantize=False), Rule("5", quantize=True)], ["5"]),
        ([Rule("5", quantize=True)], ["0", "2.0", "3", "5"]),  # and count more than first and last
        ([{"match": "[03]", "quantize": False}], ["2.0"]),
    ],
)
def test_rules_choose_by_name_glob_and_type(rules: list[Any], chosen: list[str]) -> None:
    assert names(wrap(*rules)) == chosen


def test_plain_words_are_parameters_of_the_method_and_rules() -> None:
    plain = Recipe("joint", weights="int4", activations=None, scale="learned", noise="uniform", exclude="0", last=True)
    method = MethodConfig(name="joint", levels="int4", activation_levels=None, scale="learned", noise="uniform")
    assert plain == Recipe(method, [Rule("0", quantize=False)], last=True)
    assert Recipe(levels="int4", exclude=[nn.Linear], include=["3"], rules=[Rule("3", scale="max")]) == Recipe(
        MethodConfig(levels="int4"),
        [Rule("Linear", quantize=False), Rule("3", quantize=True), Rule("3", scale="max")],
    )
    assert names(wrap(exclude=["2", nn.Tanh], include="5")) == ["0", "3", "5"]
    assert names(wrap(exclude=[nn.Linear], include=["3"])) == ["3"]  # include counts more, and rules more than both
    assert names(wrap(Rule("3", quantize=False), include=["3", "5"])) == ["0", "2.0", "5"]


def test_experiments_have_the_same_words(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: a\nquantize: {exclude: ['0'], include: '5', rules: [{match: '3', levels: int4}]}\n")
    rules = (Rule("0", quantize=False), Rule("5", quantize=True), Rule("3", levels="int4"))
    assert load_experiment(file).quantize.rules == rules
    assert to_dict(load_experiment(file))["quantize"].keys() == {"first", "last", "rules", "redraw"}
    for section, said in (
        ("{exclude: 3}", r"quantize.exclude: is a int; give a list of names, globs or types of modules$"),
        ("{include: [a, 3]}", r"quantize.include\[1\]: is 3; give the name, a glob or the type of a module$"),
        ("{exclude: [a], include: a}", r"quantize.include: names 'a', and exclude does too; leave it out of one of"),
        ("{exclude: [a], rules: 3}", r"quantize.rules: must be a list, got 3"),
    ):
        file.write_text(f"name: a\nquantize: {section}\n")
        with pytest.raises(MetaschedError, match=said):
            load_experiment(file)


def test_a_rule_that_only_sets_levels_chooses_nothing() -> None:
    assert names(wrap(Rule("*", levels="int4"))) == ["0", "2.0", "3"]


def test_each_layer_has_the_levels_and_scales_of_its_rules() -> None:
    rules = (
        Rule("2", levels="int4", activation_levels="uint4", activation_scale=0.01),
        Rule("3", granularity="channel", scale="least_squares"),
    )
    network = wrap(Rule("*", levels="binary"), *rules)
    assert [round(layer.bits, 2) for layer in network.layers] == [1, 4, 1]
    module = QuantizedModule(network, {name: {} for name in names(network)})
    hard, state = module.hardened(), module.method_state()
    for name, bits in (("0", 1), ("2.0", 4), ("3", 1)):
        assert len((hard[f"{name}.weight"] / state[f"{name}/scale"]).unique()) <= 2**bits
    assert len(hard["2.0.weight"].unique()) > 4 and len(hard["0.weight"].unique()) == 2
    assert [state[f"{n}/scale"].numel() for n in names(network)] == [1, 1, 8]
    seen: dict[str, torch.Tensor] = {}
    for name in ("1", "2.1"):
        module.module.get_submodule(name).register_forward_hook(
            lambda _m, _i, o, name=name: seen.update({name: o.detach()})
        )
    module(40 * torch.rand(64, 8), {name: {} for name in names(network)}, 0)
    assert len(seen["2.1"].unique()) > 4 and seen["1"].unique().tolist() == [0, 1]  # ternary after a ReLU


def test_a_state_of_other_levels_by_rule_is_refused() -> None:
    one, two = wrap(), wrap(Rule("2", levels="int4"))
    first, second = (QuantizedModule(network, {name: {} for name in names(network)}) for network in (one, two))
    with pytest.raises(MetaschedError, match="state_dict: is of other layers, levels"):
        second.load_state_dict(first.state_dict())


def test_an_activation_stays_in_float_by_rule_and_says_so() -> None:
    network = wrap(Rule("ReLU", activation="float"), Rule("4", quantize=False))
    assert {layer.quantizes for layer in network.layers} == {"weight"}
    assert "1 (ReLU): a rule says so" in network.describe() and "4 (Tanh): rule '4'" in network.describe()


@pytest.mark.parametrize("name", ["joint", "ana", "ste", "gxnor"])
def test_weights_are_kept_unless_redrawn(name: str) -> None:
    model, method = net(), MethodConfig(name=name)  # scale: unit
    for redraw in (False, True):
        network = quantize(model, Recipe(method, redraw=redraw), X)
        controls = {n: {c.name: max(c.low, min(0.5, c.high)) for c in network.method.controls} for n in names(network)}
        module = QuantizedModule(network, controls)
        weight, was = module.module.get_parameter("0.weight"), model.get_parameter("0.weight")
        if name == "gxnor":  # discrete weights: those nearest to the model's
            assert bool(((weight != 0) <= (weight.sign() == was.sign())).all()) != redraw
        else:
            assert torch.equal(weight, was) != redraw


def test_without_rules_a_recipe_is_its_method() -> None:
    method = build_method(STE)
    model = net()
    one, two = quantize(model, method, X, last=True), quantize(model, Recipe(STE, last=True), X)
    assert one.layers == two.layers and one.method == two.method and one.methods == two.methods == ()
    three = wrap(Rule("0", levels="ternary"))  # what the method has anyway
    assert three.methods == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: wrap(Rule("layer7.*", quantize=False)), r"^rule 'layer7\.\*': matches no weight or activation"),
        (lambda: Rule("a", bits=3), r"^rule 'a': bits: .*a rule has match, quantize, levels"),  # type: ignore[call-arg]
        (lambda: Rule("a", quantize=1), r"^rule 'a': quantize: Input should be a valid boolean"),  # type: ignore
        (lambda: Rule(""), r"^rule '': match: "),
        (lambda: Recipe(STE, [{"quantize": False}]), r"^rule .*: names no module"),
        (lambda: Recipe(STE, ["a"]), r"^rule 'a': names no module"),  # type: ignore[list-item]
        (lambda: wrap(Rule("0", levels="int99")), r"^rule '0': levels: unknown level set 'int99'"),
        (
            lambda: wrap(Rule("0", scale="learned"), method=MethodConfig(name="gxnor")),
            r"^rule '0': scale: cannot be learned",
        ),
        (
            lambda: wrap(Rule("0", scale="learned"), method=MethodConfig(name="inq")),
            r"^rule '0': cannot be learned by inq",
        ),
        (lambda: wrap(Rule("0", levels="int4"), method=build_method(STE)), r"^rule '0': sets levels, .* MethodConfig"),
        (lambda: wrap(exclude=["3.*"]), r"^rule '3\.\*': matches no weight or activation"),
        (lambda: Recipe("joint", weigths="int4"), r"^recipe: unknown name 'weigths'; did you mean 'weights'\?"),
        (lambda: Recipe("joint", exclud=["0"]), r"^recipe: unknown name 'exclud'; did you mean 'exclude'\?"),
        (lambda: Recipe("ste", weights="int4", levels="int4"), r"^recipe: weights and levels are one parameter; "),
        (lambda: Recipe("ste", weights="int99"), r"^recipe: weights: unknown level set 'int99'; use binary"),
        (lambda: Recipe("ste", levels="int99"), r"^recipe: levels: unknown level set 'int99'; use binary"),
        (lambda: Recipe("ste", weights=4), r"^recipe: weights: Input should be a valid string; correct it$"),
        (lambda: Recipe("inq", scale="learned"), r"^recipe: scale: cannot be learned by inq .*; set method.live to h"),
        (lambda: Recipe("inq", noise="uniform"), r"^recipe: noise: has no effect, because method.name is inq; leave"),
        (lambda: Recipe("jiont", weights="int4"), r"^method.name: unknown name 'jiont'; did you mean 'joint'\?"),
        (lambda: Recipe(STE, weights="int4"), r"^recipe: is given weights beside a STEConfig; set them there, or"),
        (lambda: Recipe(exclude=cast(Any, 3)), r"^exclude: is a int; give a list of names, globs or types of modules$"),
        (
            lambda: Recipe(include=cast(Any, ["a", 3])),
            r"^include\[1\]: is 3; give the name, a glob or the type of a module$",
        ),
        (lambda: Recipe(exclude=["a"], include="a"), r"^include: names 'a', and exclude does too; leave it out of"),
        (lambda: quantize(net(), Recipe(STE), X, last=True), r"^quantize: first and last are of the recipe"),
        (
            lambda: wrap(Rule("*", quantize=False)),
            r"^quantize: the model has no layer left to quantize \(in float: .*rule",
        ),
    ],
)
def test_what_a_rule_cannot_be_is_one_line(make: Any, said: str) -> None:
    with pytest.raises(MetaschedError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def experiment(path: Path, quantize: str) -> Any:
    path.write_text(
        f"task: {{name: digits, model: mlp, steps: 2}}\nmethod: {{name: ste, scale: max}}\nquantize: {quantize}\n"
    )
    return load_experiment(path)


def test_rules_of_an_experiment(tmp_path: Path) -> None:
    config = experiment(
        tmp_path / "a.yaml", "{rules: [{match: linear2, levels: int4}, {match: linear3, quantize: false}]}"
    )
    network = build_problem(config.problem).network
    assert names(network) == ["linear1", "linear2"] and [round(layer.bits, 1) for layer in network.layers] == [1.6, 4]


@pytest.mark.parametrize(
    ("quantize", "said"),
    [
        ("{rules: [{match: linear2, bits: 4}]}", r"quantize\.rules\[0\]\.bits: "),
        ("{rules: [{quantize: true}]}", r"quantize\.rules\[0\]\.match"),
        ("{rules: [{match: linear2, activation: tanh}]}", r"quantize\.rules\[0\]\.activation"),
        ("{rules: {match: linear2}}", r"quantize\.rules: "),
    ],
)
def test_bad_rules_of_an_experiment_name_their_place(tmp_path: Path, quantize: str, said: str) -> None:
    with pytest.raises(MetaschedError, match=said):
        experiment(tmp_path / "a.yaml", quantize)


def test_a_rule_of_an_experiment_that_matches_nothing(tmp_path: Path) -> None:
    config = experiment(tmp_path / "a.yaml", "{rules: [{match: conv9, quantize: false}]}")
    with pytest.raises(MetaschedError, match=r"^rule 'conv9': matches no weight"):
        build_problem(config.problem)
