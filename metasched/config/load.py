r"""From a YAML file and dotted overrides to a validated experiment.

All problems are reported together, each on one line with the dotted path of its field.

>>> import tempfile, pathlib
>>> file = pathlib.Path(tempfile.mkdtemp()) / "a.yaml"
>>> _ = file.write_text("name: a\nmeta: {steps: 20}\n")
>>> load_experiment(file, ["--meta.steps=10", "--optimizer.lr", "1e-3"]).meta.steps
10
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from metasched.config.explaining import explain, one_of_each_field
from metasched.config.retired import is_record
from metasched.config.schema import Experiment
from metasched.config.writing import OWN_TASK, to_dict
from metasched.core.errors import MetaschedError
from metasched.io.strict_yaml import parse, read_mapping
from metasched.methods import build_method
from metasched.methods.config import DEFAULT, MethodConfig
from metasched.methods.spec import CEILING, QUANTIZERS, declared, find_method
from metasched.quantizers.levels import level_set
from metasched.tasks.config import TaskConfig

MAX_PROBLEMS = 20
_ADAPTER: TypeAdapter[Experiment] = TypeAdapter(cast(Any, Experiment))


class ConfigErrors(MetaschedError):
    """Several mistakes in one configuration, ``left`` more of them not shown; as text one line each."""

    def __init__(self, problems: Sequence[MetaschedError], left: int = 0) -> None:
        self.problems = tuple(problems)
        self.left = left
        super().__init__(problems[0].path, problems[0].problem, problems[0].fix)

    def __str__(self) -> str:
        lines = [str(p) for p in self.problems]
        return "\n".join([*lines, f"and {self.left} more problems"] if self.left else lines)

    def __reduce__(self) -> Any:
        return type(self), (self.problems, self.left)


def load_experiment(
    path: str | Path, overrides: Sequence[str] = (), seen: Callable[[Experiment], None] | None = None
) -> Experiment:
    """The experiment of a YAML file with some fields overridden.

    Args:
        path: the file.
        overrides: ``["--meta.steps", "10", "--name=b"]``; values are YAML (``[1, 3]`` is a list); the last one counts.
        seen: called once each field is known to be right by itself. Whether they fit together only torch can say, and
            loading it takes seconds.

    Raises:
        MetaschedError: the file cannot be read, or (ConfigErrors, where there are several) fields that are wrong.
    """
    document = read_mapping(path)
    overridden = [_override(document, name, text) for name, text in _pairs(overrides)]

    def place(field: str) -> str:
        ours = any(f"{name}.".startswith(f"{field.split('[')[0]}.") for name in overridden)
        return f"--{field}" if ours else f"{path}: {field}"

    return _validated(document, place, overridden if is_record(document) else None, seen)


def experiment_of(document: dict[str, Any], given: Collection[str] | None = None) -> Experiment:
    """The experiment that a document describes, as a YAML file would; sections may be the configurations themselves.

    Args:
        document: as YAML has it.
        given: fields that something must read; None: all.

    Raises:
        MetaschedError: (ConfigErrors, where there are several) fields that are wrong.
    """
    return _validated(to_jsonable_python(document), lambda field: field, given)


def _validated(
    document: dict[str, Any],
    place: Callable[[str], str],
    given: Collection[str] | None = None,
    seen: Callable[[Experiment], None] | None = None,
) -> Experiment:
    """The experiment that a document describes.

    Args:
        document: as YAML has it.
        place: where a field was written.
        given: fields that must not be ignored; None: all.
        seen: see ``load_experiment``.
    """
    left = 0
    _refuse_beside_factory(document.get("task"), place)
    try:
        experiment = _ADAPTER.validate_python(document)
    except ValidationError as error:
        found = one_of_each_field(error.errors(include_url=False))
        problems = [explain(e, place) for e in found[:MAX_PROBLEMS]]
        left = len(found) - len(problems)
    else:
        if seen is not None:
            seen(experiment)
        problems = _contradictions(experiment, place, given)
        if not problems:
            return experiment
    raise problems[0] if len(problems) == 1 else ConfigErrors(problems, left)


def _refuse_beside_factory(task: Any, place: Callable[[str], str]) -> None:
    if not isinstance(task, Mapping):
        return
    if task.get("factory") is None:
        if task.get("args"):
            raise MetaschedError(place("task.args"), "are of a factory, and there is none", "set task.factory")
        return
    known = TaskConfig.__dataclass_fields__
    beside = [name for name in task if name in known and name not in OWN_TASK]
    if beside:
        problem = "has no effect beside task.factory, which makes data, model and batches"
        raise MetaschedError(place(f"task.{beside[0]}"), problem, "leave it out, or pass it on in task.args")


def require_learnable(method: MethodConfig, learn: Sequence[str] | None) -> None:
    """Refuses an experiment in which there is nothing to learn.

    Args:
        method: its section ``method``.
        learn: its field ``schedule.learn``.

    Raises:
        MetaschedError: the method has no controls, or none of them is to be learned.
    """
    if not build_method(method).controls:
        problem = f"there is nothing to learn for {method.name}, which has no controls"
        raise MetaschedError("method.name", problem, f"set it to another method, such as {DEFAULT}")
    if learn == ():
        raise MetaschedError("schedule.learn", "is empty, so that there is nothing to learn", "name controls in it")


def require_one_task(experiment: Experiment, command: str) -> None:
    """Refuses an experiment over several tasks, for a command that would ignore them.

    Raises:
        MetaschedError: it has a section ``tasks``.
    """
    if experiment.tasks.entries:
        problem = f"has several tasks, and `metasched {command}` is for one"
        raise MetaschedError("tasks.entries", problem, "leave the section out, and give one task in the section task")


def of_method(
    config: MethodConfig, name: str, parameters: Mapping[str, Any] | None = None, path: str = "method"
) -> MethodConfig:
    """The configuration of another method with the same quantizers.

    Args:
        config: whose quantizers are taken, and whose parameters if it is the same method.
        name: of the other method.
        parameters: its own parameters; what it does not read is left out.
        path: what error messages begin with.

    Raises:
        MetaschedError: a parameter that the method cannot have.
    """
    if name == config.name:
        return config
    spec = find_method(name)
    shared = {} if name == CEILING else {f: getattr(config, f) for f in QUANTIZERS}
    own = {f: v for f, v in (parameters or {}).items() if f in spec.parameters}
    try:
        return spec.config(name=name, **shared, **own)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MetaschedError(f"{path}: {place}", first["msg"], "correct it, or leave it out") from None


def with_fields(experiment: Experiment, given: Sequence[str], path: str) -> Experiment:
    """The experiment with some fields changed; another ``method.name`` takes the quantizers along, and nothing else.

    Args:
        experiment: what is changed.
        given: ``FIELD=VALUE`` each; values are YAML.
        path: what error messages begin with.

    Raises:
        MetaschedError: a field that does not exist, or a value that it cannot have.
    """
    pairs = [text.partition("=") for text in given]
    for name, equals, _ in pairs:
        if not equals:
            raise MetaschedError(path, f"{name!r} has no value", "write it as FIELD=VALUE")
    document = to_dict(experiment)
    for name, _, text in pairs:
        if name == "method.name" and text != experiment.method.name:
            document["method"] = {f: v for f, v in document["method"].items() if f in QUANTIZERS and text != CEILING}
            rules = document["quantize"]["rules"]
            document["quantize"]["rules"] = [{f: v for f, v in rule.items() if not declared(f)} for rule in rules]
    for name, _, text in pairs:
        _override(document, name, text)
    return _validated(document, lambda field: f"{path}: {field}", [name for name, _, _ in pairs])


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(dotted name, text of the value) of each override."""
    tokens = iter(overrides)
    for token in tokens:
        name, equals, text = token.partition("=")
        if not name.startswith("--"):
            raise MetaschedError(token, "is not an override of a field", "write it as --meta.steps 10")
        value = text if equals else next(tokens, None)
        if value is None:
            raise MetaschedError(name, "has no value", f"write it as {name} VALUE")
        yield name[2:], value


def _override(document: dict[str, Any], name: str, text: str) -> str:
    """Sets one field of the document, in place; returns its name."""
    value = parse(text, f"--{name}")
    if isinstance(value, dict):
        raise MetaschedError(f"--{name}", "takes no mapping", "override its fields one by one")
    *sections, field = name.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise MetaschedError(f"--{name}", f"{section} is not a section", "see `metasched train --help`")
    document[field] = value
    return name


def _contradictions(
    experiment: Experiment, place: Callable[[str], str], given: Collection[str] | None
) -> list[MetaschedError]:
    """Fields that are well-formed, but not together."""
    from metasched.config.ignored import ignored  # what reads a field is in torch
    from metasched.network.recipe import not_by_layer
    from metasched.training.optimizers.check import contradictions

    problems = list(contradictions(experiment.optimizer, place))
    for field in ("levels", "activation_levels"):
        name = getattr(experiment.method, field)
        try:
            _ = name is None or level_set(name, place(f"method.{field}"))
        except MetaschedError as error:
            problems.append(error)
    if not experiment.compare.horizons:
        problems.append(MetaschedError(place("compare.horizons"), "is empty", "give at least one, such as [1]"))
    for i, rule in enumerate(experiment.quantize.rules):
        for name, fix in not_by_layer(experiment.method, rule).items():
            problem = f"is not a parameter of {experiment.method.name} by layer"
            problems.append(MetaschedError(place(f"quantize.rules[{i}].{name}"), problem, fix))
    problems += ignored(experiment, place, given)
    return problems
