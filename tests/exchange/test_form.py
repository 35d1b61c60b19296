"""The parametric form: from a schedule to a file and back without loss, and refused where it makes no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.core.features import FEATURE_NAMES, features_of
from metasched.core.layer import Layer
from metasched.exchange import extras
from metasched.exchange.export import export
from metasched.exchange.extras import FormEntry
from metasched.exchange.form import check_form, form_of, why_table_only
from metasched.exchange.format import Provenance, ScheduleFile
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import dumps, loads, read_schedule
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.curves import HandCoded
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.learnable import LearnableSchedule
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.shared import SharedSchedule
from metasched.schedules.table import floor_of, schedules_of

FORMATS = Path(__file__).parents[1] / "formats"
KNOTS = 9


def layers(number: int) -> list[Layer]:
    return [
        Layer(f"l{i}", i / (number - 1), "conv", "weight+activation", 9 * (i + 1), 90 * (i + 1), 1.585)
        for i in range(number)
    ]


def base_of(method: MethodConfig, name: str) -> HandCoded:
    return floor_of(method, "") if name == "floor" else schedules_of(method)[name]


def learnable(kind: str, method: MethodConfig, base: Any, seed: int = 1) -> LearnableSchedule:
    """A schedule with numbers that were drawn, for three layers; all controls with a derivative are learned."""
    controls = build_method(method).controls
    learn = [c.name for c in controls if c.name != "noise_mean"]
    found: LearnableSchedule
    if kind == "family":
        found = ScheduleFamily(controls, base, learn, knots=KNOTS, layers=layers(3))
    else:
        most = 20 if kind == "directions" else None
        found = ScheduleNetwork(controls, base, learn, knots=KNOTS, hidden=8, seed=2, layers=layers(3), most=most)
    scatter(found, seed)
    return found


def scatter(module: torch.nn.Module, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=draws, dtype=p.dtype))


def file_of(schedule: Any, method: MethodConfig, task: dict[str, float] | None = None) -> ScheduleFile:
    return export(
        schedule,
        method_name=method.name,
        method_parameters={},
        controls=build_method(method).controls,
        layers=layers(3),
        knots=progress_of_steps(KNOTS),
        interpolation="linear",
        provenance=Provenance(kind="learned", name="experiment"),
        task=task,
    )


CASES = [
    ("ana", "ana_linear"),
    ("ana", "ana_overlapped_homogeneous_static"),
    ("widths", "floor"),
    ("widths", "widths_narrowing"),
    ("inq", "inq_input_first"),
]


@pytest.mark.parametrize("kind", ["family", "directions", "weights"])
@pytest.mark.parametrize(("method", "base"), CASES)
def test_three_layers_played_on_nine_are_the_schedule_there(kind: str, method: str, base: str) -> None:
    config = MethodConfig(name=method)
    schedule = learnable(kind, config, base_of(config, base))
    file = loads(dumps(file_of(schedule, config)), "schedule.json")
    assert file.version == 2 and file.form is not None and file.form.base == base
    progress = progress_of_steps(33)
    played, expected = PlayedSchedule(file)(progress, layers(9)), schedule(progress, layers(9))
    table = PlayedSchedule(replace(file, version=2, form=None))(progress, layers(9))
    for name, values in expected.items():
        torch.testing.assert_close(played[name], values.detach(), rtol=0, atol=1e-12)
    assert any((table[name] - values).abs().max() > 1e-3 for name, values in expected.items())  # not its plateaus


@pytest.mark.parametrize("kind", ["family", "directions"])
def test_a_shared_schedule_is_that_of_each_task(kind: str) -> None:
    config = MethodConfig(name="widths")
    shared = SharedSchedule(learnable(kind, config, base_of(config, "floor")))
    scatter(shared, 3)
    here = features_of(layers(3), 100, rate=0.01, batches_per_epoch=12, pretrained=False)
    there = features_of(layers(9), 1000, rate=0.1, batches_per_epoch=300, pretrained=True)
    file = loads(dumps(file_of(shared, config, here)), "schedule.json")
    schedule, progress = PlayedSchedule(file), progress_of_steps(33)
    assert schedule.reads == FEATURE_NAMES and file.task == here
    own = schedule(progress, schedule.layers)
    for name, values in shared.at(here)(progress, schedule.layers).items():
        torch.testing.assert_close(own[name], values.detach(), rtol=0, atol=1e-12)
    for features, number in ((there, 9), (there, 3), ({"rate": -1.0}, 3), ({}, 9)):
        played = schedule.at(features)(progress, layers(number))
        for name, values in shared.at(features)(progress, layers(number)).items():
            torch.testing.assert_close(played[name], values.detach(), rtol=0, atol=1e-12)


def test_before_learning_a_shared_schedule_reads_nothing() -> None:
    config = MethodConfig(name="widths")
    shared = SharedSchedule(learnable("family", config, base_of(config, "floor")))
    assert PlayedSchedule(file_of(shared, config)).reads == ()


def test_numbers_keep_every_bit() -> None:
    config = MethodConfig(name="ana")
    schedule = learnable("family", config, base_of(config, "ana_linear"))
    form = loads(dumps(file_of(schedule, config)), "x").form
    assert form is not None
    assert form.numbers[0] == tuple(torch.nn.utils.parameters_to_vector(schedule.parameters()).tolist())


def test_what_has_a_table_only_says_why() -> None:
    config = MethodConfig(name="widths")
    file = file_of(learnable("family", config, base_of(config, "floor")), config)
    stolen = replace(base_of(config, "widths_narrowing"), name="widths_halving")
    for schedule, why in (
        (lambda progress, layers: {}, "it is no schedule network or family"),
        (learnable("family", config, PlayedSchedule(file)), "what it starts at is no hand-coded schedule"),
        (learnable("family", config, stolen), "is not a hand-coded schedule of widths with a name"),
        (SharedSchedule(learnable("weights", config, base_of(config, "floor"))), "learn directions"),
    ):
        assert form_of(schedule, config) is None and why in why_table_only(schedule, config)
    assert why_table_only(learnable("family", config, base_of(config, "floor")), config) == ""
    of_another = learnable("family", config, stolen)
    assert file_of(of_another, config).version == 1


def test_a_schedule_from_a_file_keeps_its_form_on_other_layers() -> None:
    schedule = PlayedSchedule(read_schedule(FORMATS / "schedule_v2_network.json"))
    other = export(
        schedule,
        method_name="widths",
        method_parameters={},
        controls=build_method(MethodConfig(name="widths")).controls,
        layers=layers(5),
        knots=schedule.knots,
        interpolation="linear",
        provenance=schedule.file.provenance,
    )
    assert other.form == schedule.file.form and len(other.layers) == 5


def test_the_body_has_the_inputs_of_the_network() -> None:
    config = MethodConfig(name="widths")
    network = learnable("weights", config, base_of(config, "floor"))
    assert isinstance(network, ScheduleNetwork)
    first = network.body[0]
    assert isinstance(first, torch.nn.Linear) and first.in_features == extras.INPUTS


def test_a_form_agrees_with_its_table() -> None:
    config = MethodConfig(name="ana")
    file = file_of(learnable("family", config, base_of(config, "ana_linear")), config)
    check_form(file, 1e-12)
    curves = [list(curve) for curve in file.values["weight_noise"]]
    curves[1][0] -= 1e-8
    with pytest.raises(MetaschedError, match=r"form: gives .* for weight_noise of l1 at knot 0, and the table has"):
        check_form(replace(file, values={**file.values, "weight_noise": curves}), 1e-9)


def test_a_form_of_another_base_is_refused_at_export() -> None:
    form = replace(read_schedule(FORMATS / "schedule_v2_family.json"), version=2).form
    assert isinstance(form, FormEntry)
    file = read_schedule(FORMATS / "schedule_v2_family.json")
    with pytest.raises(MetaschedError, match=r"form\.base: 'inq_linear' is not a hand-coded schedule of ana"):
        check_form(replace(file, form=replace(form, base="inq_linear")), 1e-9)


Edit = Callable[[dict[str, Any]], object]


def of(name: str, **fields: Any) -> Edit:
    return lambda tree: tree["form"].update(fields)


# the golden file, what is done to it, the path that the message must give, and words that it must hold
EDITS: dict[str, tuple[str, Edit, str, str]] = {
    "contradicts": ("family", lambda f: f["form"]["numbers"][0].__setitem__(0, 0.5), "form", "and the table has"),
    "explodes": ("family", lambda f: f["form"]["numbers"][0].__setitem__(0, 1e308), "form", "and the table has"),
    "version 1": ("family", lambda f: f.update(version=1), "form", "is not a field of version 1"),
    "other kind": ("family", lambda f: f["form"].update(kind="spline"), "form.kind", "'family' or 'network'"),
    "wrong kind": ("family", lambda f: f["form"].update(kind="network"), "form.edges", "is that of a family"),
    "no edges": ("family", lambda f: f["form"].pop("edges"), "form.edges", "missing"),
    "no body": ("network", lambda f: f["form"].pop("body"), "form.body", "missing"),
    "few edges": ("family", lambda f: f["form"]["edges"].pop(), "form.edges", "1 entries for 2 learned controls"),
    "an edge inside": ("family", lambda f: f["form"]["edges"].__setitem__(0, 0.5), "form.numbers[0]", "12 entries for"),
    "unknown key": ("family", lambda f: f["form"].update(seed=1), "form.seed", "unknown key"),
    "unknown base": (
        "family",
        lambda f: f["form"].update(base="mine"),
        "form.base",
        "not a hand-coded schedule of ana",
    ),
    "path as base": ("family", lambda f: f["form"].update(base="../x"), "form.base", "match pattern"),
    "no floor": ("family", lambda f: f["form"].update(base="floor"), "form.base", "'floor' is not a hand-coded"),
    "knots": ("family", lambda f: f["form"].update(knots=10), "progress", "9 entries for 10 knot"),
    "many knots": ("family", lambda f: f["form"].update(knots=10**9), "form.knots", "less than or equal to 512"),
    "uneven": ("family", lambda f: f["progress"].__setitem__(1, 0.1), "progress[1]", "must be 0.125, as the knots"),
    "steps": ("family", lambda f: f.update(interpolation="previous"), "interpolation", "must be 'linear'"),
    "undeclared": ("family", lambda f: f["form"].update(learned=["a", "b"]), "form.learned[0]", "not declared"),
    "order": ("family", lambda f: f["form"]["learned"].reverse(), "form.learned", "another order"),
    "twice": ("family", lambda f: f["form"].update(learned=["noise_mean"] * 2), "form.learned[1]", "occurs twice"),
    "nothing learned": ("family", lambda f: f["form"].update(learned=[]), "form.learned", "at least 1"),
    "few numbers": ("family", lambda f: f["form"]["numbers"][0].pop(), "form.numbers[0]", "11 entries for the 12"),
    "rows": ("shared", lambda f: f["form"]["numbers"].pop(), "form.numbers", "8 entries for 9 rows"),
    "ragged": ("shared", lambda f: f["form"]["numbers"][3].pop(), "form.numbers[3]", "6 entries for 7"),
    "huge row": ("family", lambda f: f["form"].update(numbers=[[0] * 16385]), "form.numbers[0]", "at most 16384"),
    "huge rows": ("family", lambda f: f["form"].update(numbers=[[0]] * 66), "form.numbers", "at most 65"),
    "true": ("family", lambda f: f["form"]["numbers"][0].__setitem__(2, True), "form.numbers[0][2]", "got True"),
    "NaN": ("family", lambda f: f["form"]["numbers"][0].__setitem__(2, float("nan")), "form.numbers[0][2]", "finite"),
    "no spread": ("shared", lambda f: f["form"]["features"][2].update(spread=0), "form.features[2].spread", "greater"),
    "feature twice": (
        "shared",
        lambda f: f["form"]["features"][2].update(name="horizon"),
        "form.features[2].name",
        "occurs twice",
    ),
    "weights": (
        "network",
        lambda f: f["form"]["numbers"][0].pop(),
        "form.numbers[0]",
        "9 entries for 10 output weight",
    ),
    "three hidden layers": ("network", lambda f: f["form"]["body"].append([[0, 0]]), "form.body", "at most 2"),
    "one hidden layer": ("network", lambda f: f["form"]["body"].pop(), "form.body", "1 entries for 2 hidden layers"),
    "units": ("network", lambda f: f["form"]["body"][1].pop(), "form.body[1]", "3 entries for 4 hidden units"),
    "inputs": ("network", lambda f: f["form"]["body"][0][1].pop(), "form.body[0][1]", "11 entries for 12 input"),
    "wide": ("network", lambda f: f["form"]["body"].__setitem__(0, [[0] * 12] * 129), "form.body[0]", "at most 128"),
    "parameter": (
        "family",
        lambda f: f["method"]["parameters"].update(noise="pink"),
        "method.parameters.noise",
        "Input",
    ),
    "method": ("family", lambda f: f["method"].update(name="mine"), "method.name", "'mine' is not a method here"),
    "feature of the task": ("shared", lambda f: f["task"].update({"../x": 1}), "task['../x']", "match pattern"),
    "text in the task": ("shared", lambda f: f["task"].update(rate="1"), "task.rate", "number, got '1'"),
    "reference": ("shared", lambda f: f["reference"]["floor"].update(n=0), "reference.floor.n", "greater than"),
    "rank": ("shared", lambda f: f["portfolio"].update(rank=0), "portfolio.rank", "greater than or equal to 1"),
    "rule": ("shared", lambda f: f["recipe"]["rules"][0].update(match=["x"]), "recipe.rules[0].match", "got ['x']"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_form_that_makes_no_sense_is_refused_in_one_line(case: str) -> None:
    name, edit, path, words = EDITS[case]
    tree = json.loads((FORMATS / f"schedule_v2_{name}.json").read_text("ascii"))
    loads(json.dumps(tree), "schedule.json")
    edit(tree)
    with pytest.raises(MetaschedError) as caught:
        loads(json.dumps(tree), "schedule.json")
    message = str(caught.value)
    assert message.startswith(f"schedule.json: {path}: ") and words in message, message
    assert message.isprintable() and len(message) < 500


def test_a_form_that_overflows_is_refused_where_it_is_played() -> None:
    config = MethodConfig(name="ana")
    file = file_of(learnable("weights", config, base_of(config, "ana_linear")), config)
    assert file.form is not None
    huge = replace(file.form, numbers=[[1e308] * len(file.form.numbers[0])])
    schedule = PlayedSchedule(replace(file, form=huge))
    with pytest.raises(MetaschedError, match="form: leaves the range of weight_noise on these layers"):
        schedule(schedule.knots, layers(4))


def test_other_layer_kinds_need_version_2(golden: str) -> None:
    tree = json.loads(golden)
    tree["layers"][1]["kind"] = "attention"
    with pytest.raises(MetaschedError, match="must be 'conv' or 'linear' in version 1, got 'attention'; set version"):
        loads(json.dumps(tree), "schedule.json")
    file = loads(json.dumps({**tree, "version": 2}), "schedule.json")
    assert file.version == 2 and loads(dumps(file), "schedule.json") == file


def test_a_file_has_the_lowest_version_that_can_say_what_it_holds(golden: str) -> None:
    file = loads(json.dumps({**json.loads(golden), "version": 2}), "schedule.json")
    assert file.version == 1 and dumps(file) == golden
