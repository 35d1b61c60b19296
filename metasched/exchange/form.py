"""The parametric form of a schedule: from a learnable schedule to its record in a file, and back.

``export`` calls ``form_of`` for every schedule, also for one that many tasks share, so that nobody else has to. The
record is in extras.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from pydantic import ValidationError
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.features import FEATURES
from metasched.core.layer import Layer
from metasched.exchange.extras import FeatureEntry, FormEntry
from metasched.exchange.fields import MAX_HIDDEN, MAX_NUMBERS
from metasched.exchange.format import ControlEntry, ScheduleFile
from metasched.methods import METHODS
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule
from metasched.schedules.curves import HandCoded
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.feedback import FeedbackSchedule
from metasched.schedules.learnable import LearnableSchedule
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.shared import SharedSchedule
from metasched.schedules.table import NO_SCHEDULE, floor_of, has_floor, schedules_of

_SOME = tuple(Layer(f"layer{i}", i / 2, "conv", "weight+activation", 9, 90, 2.0) for i in range(3))


def form_of(schedule: Schedule | SharedSchedule, method: MethodConfig) -> FormEntry | None:
    """The form of a schedule network or family on a hand-coded base, or of one that many tasks share.

    That of a closed-loop schedule is the form of its open-loop part.

    Args:
        schedule: anything that gives schedules.
        method: that plays it, with its parameters.

    Returns:
        None where a file can hold its table only; ``why_table_only`` says why.
    """
    found = _form_or_reason(schedule, method)
    return found if isinstance(found, FormEntry) else None


def why_table_only(schedule: Schedule | SharedSchedule, method: MethodConfig) -> str:
    """Why a schedule has no form, as the end of a sentence; empty if it has one."""
    found = _form_or_reason(schedule, method)
    return found if isinstance(found, str) else ""


def schedule_of(
    form: FormEntry, method: MethodConfig, controls: Sequence[Control], features: Mapping[str, float]
) -> LearnableSchedule:
    """The schedule that a form is for a task.

    Args:
        form: from a file.
        method: that plays it, with its parameters.
        controls: all controls of the file.
        features: of the task, {name: x}; the form reads those that it names.

    Raises:
        MetaschedError: the method has no such base, or the numbers are not those of the controls.
    """
    base = _base(form.base, method)
    if base is None:
        problem = f"{form.base!r} is not a hand-coded schedule of {method.name}"
        raise MetaschedError("form.base", problem, "update metasched, or remove the form to play the table")
    for control in controls:
        if control.name not in base.curves:
            raise MetaschedError("form.base", f"{form.base} does not set {control.name}", "remove the form")
    numbers = _numbers(form, features)
    own: LearnableSchedule
    if form.kind == "family":
        own = ScheduleFamily(controls, base, form.learned, knots=form.knots, edges=form.edges)
        needed = sum(p.numel() for p in own.parameters())
        if needed != len(numbers):
            problem = f"has {len(numbers)} entries for the {needed} numbers of these windows"
            raise MetaschedError("form.numbers[0]", problem, "give the numbers of each window in their order")
        nn.utils.vector_to_parameters(numbers, own.parameters())
    else:
        hidden = len(form.body[0])
        own = ScheduleNetwork(controls, base, form.learned, knots=form.knots, hidden=hidden, seed=0)
        for module, rows in zip(_linear(own), form.body, strict=True):
            _set(module, torch.tensor(rows, dtype=torch.float64))
        _set(own.heads, numbers.view(own.heads.out_features, hidden + 1))
    return own


def method_of(file: ScheduleFile) -> MethodConfig:
    """The method of a file, with the parameters that it was made for.

    Raises:
        MetaschedError: there is no such method, or a parameter that it cannot have.
    """
    if file.method.name not in METHODS:
        fix = "import what registers it, or remove the form"
        raise MetaschedError("method.name", f"{file.method.name!r} is not a method here", fix)
    try:
        return MethodConfig(name=file.method.name, **file.method.parameters)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MetaschedError(f"method.parameters.{place}", first["msg"], "correct it") from None


def layers_of(file: ScheduleFile) -> tuple[Layer, ...]:
    """The layers of a file."""
    return tuple(Layer(**asdict(entry)) for entry in file.layers)


def controls_of(file: ScheduleFile) -> list[Control]:
    """The controls that a file declares, as far as playing needs them."""
    fields = ControlEntry.__dataclass_fields__
    return [Control(**{name: getattr(entry, name) for name in fields}) for entry in file.controls]


def check_form(file: ScheduleFile, tolerance: float) -> None:
    """Raises if the form of a file does not give its table, at its layers and the features of its task.

    Args:
        file: with a form.
        tolerance: largest difference, in units of the largest value of the control, or of 1.

    Raises:
        MetaschedError: it does not, or the form cannot be evaluated.
    """
    assert file.form is not None
    layers = layers_of(file)
    with torch.no_grad():
        given = schedule_of(file.form, method_of(file), controls_of(file), file.task).at_knots(layers)
    for control in file.controls:
        table = torch.tensor(file.values[control.name], dtype=torch.float64).T
        off = (given[control.name] - table).abs()
        wrong = ~(off <= tolerance * max(1.0, abs(control.low), abs(control.high)))  # NaN is wrong
        if wrong.any():
            k, i = wrong.nonzero()[0].tolist()
            at = f"{control.name} of {layers[i].name} at knot {k}"
            problem = f"gives {float(given[control.name][k, i])!r} for {at}, and the table has {float(table[k, i])!r}"
            raise MetaschedError("form", problem, "export the schedule again, or remove the form")


def _form_or_reason(schedule: Schedule | SharedSchedule, method: MethodConfig) -> FormEntry | str:
    shared = isinstance(schedule, SharedSchedule)
    own = schedule.form if shared else schedule.base if isinstance(schedule, FeedbackSchedule) else schedule
    if not isinstance(own, ScheduleFamily | ScheduleNetwork):
        return "it is no schedule network or family"
    if not own.learned:
        return "it learns no control"
    if not isinstance(own.base, HandCoded):
        return "what it starts at is no hand-coded schedule, but was found itself"
    if not _is_known(own.base, method, own.knots):
        return f"{own.base.name}, which it starts at, is not a hand-coded schedule of {method.name} with a name"
    rows = schedule.weights if shared else nn.utils.parameters_to_vector(own.parameters())[None]
    rows, edges, body = rows.detach(), (), ()
    if isinstance(own, ScheduleFamily):
        edges = own.edges
    else:
        width = own.heads.in_features
        if own.directions:
            rows = rows @ own.pulled_back.flatten(1)  # pyright: ignore[reportCallIssue]
        elif shared:
            return "all weights of its network differ from task to task: learn directions"
        else:
            rows = _rows(own.heads).flatten()[None]
        if width > MAX_HIDDEN or rows.shape[1] > MAX_NUMBERS:
            return f"its network is too large for a file, which may have {MAX_HIDDEN} hidden units"
        body = tuple(_tuples(_rows(module)) for module in _linear(own))
    return FormEntry(
        kind="family" if isinstance(own, ScheduleFamily) else "network",
        base=own.base.name,
        knots=len(own.knots),
        learned=tuple(control.name for control in own.learned),
        features=tuple(FeatureEntry(name=f.name, centre=f.centre, spread=f.spread) for f in FEATURES) if shared else (),
        numbers=_tuples(rows),
        edges=edges,
        body=body,
    )


def _base(name: str, method: MethodConfig) -> HandCoded | None:
    """The hand-coded schedule of a method that has a name, or no schedule."""
    if name == NO_SCHEDULE:
        return floor_of(method, "form.base") if has_floor(method) else None
    return schedules_of(method).get(name)


def _is_known(base: HandCoded, method: MethodConfig, knots: torch.Tensor) -> bool:
    """Whether the name of a base means this schedule, and no other one or none."""
    named = _base(base.name, method)
    if named is None:
        return False
    try:
        own, known = base(knots, _SOME), named(knots, _SOME)
    except MetaschedError:  # it is made for a network of its own
        return False
    return all(name in known and torch.equal(values, known[name]) for name, values in own.items())


def _numbers(form: FormEntry, features: Mapping[str, float]) -> torch.Tensor:
    """[D]: those of a task; see extras.py."""
    weights = torch.tensor(form.numbers, dtype=torch.float64)
    bounded = [math.tanh((features[f.name] - f.centre) / f.spread) if f.name in features else 0 for f in form.features]
    return weights.new_tensor([1.0, *(phi / math.sqrt(len(bounded)) for phi in bounded)]) @ weights


def _linear(network: ScheduleNetwork) -> list[nn.Linear]:
    return [module for module in network.body if isinstance(module, nn.Linear)]


def _rows(module: nn.Linear) -> torch.Tensor:
    """[outputs, inputs + 1], the bias last."""
    return torch.cat([module.weight, module.bias[:, None]], 1).detach()


def _tuples(rows: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows.tolist())


def _set(module: nn.Linear, rows: torch.Tensor) -> None:
    with torch.no_grad():
        module.weight.copy_(rows[:, :-1])
        module.bias.copy_(rows[:, -1])
