"""Settings that an experiment would ignore, because another setting decides that nothing reads them.

A rule says which values of a setting read which other fields:

    meta.estimator: {"sweep": {meta.memory, ...}, "es": {meta.sigma}, ...}

A field that some value reads, and the chosen one does not, is refused where it differs from its default. In a file that
a run has left, which lists every field, only what the command line overrides is looked at. A rule takes what it knows
from the table of the part that reads: tasks, models, methods, optimizers, decays. Parameters of other methods never get
here, because the section ``method`` has only the fields of its own method (methods/config.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from metasched.config.fields import fields
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.estimators.table import ESTIMATORS
from metasched.methods import METHODS, build_method
from metasched.methods.base import Method
from metasched.methods.config import MethodConfig
from metasched.methods.spec import CEILING, QUANTIZERS
from metasched.models import MODELS
from metasched.search.bits.table import BIT_SEARCHES
from metasched.search.table import SEARCHES
from metasched.tasks.table import TASKS
from metasched.training.optimizers.decays import DECAYS
from metasched.training.optimizers.table import OPTIMIZERS

Look = Callable[[str], Any]  # the value of a field, or a section, of an experiment by its dotted path


class Rule(NamedTuple):
    """Which fields the values of one setting read.

    Attributes:
        setting: dotted path.
        reads: {value of the setting: dotted paths of the fields that it reads}; fields in no entry are not its concern.
        chosen: the key of ``reads`` that an experiment has, which it looks up by dotted paths.
        mend: what a message advises; empty: to leave the field out, with the values that read it.
    """

    setting: str
    reads: Mapping[str, Collection[str]]
    chosen: Callable[[Look], str]
    mend: str = ""

    @property
    def governed(self) -> tuple[str, ...]:
        """The fields that it concerns, sorted."""
        return tuple(sorted({field for read in self.reads.values() for field in read}))

    def unread(self, look: Look) -> tuple[str, ...]:
        """The fields that it concerns and an experiment with these values does not read, sorted."""
        read = self.reads.get(self.chosen(look), self.governed)  # what has no row may read everything
        return tuple(field for field in self.governed if field not in read)

    def fix(self, field: str) -> str:
        """What a message advises about a field that is not read."""
        names = [value for value, read in self.reads.items() if field in read]
        listed = " and ".join([part for part in (", ".join(names[:-1]), names[-1]) if part])
        return self.mend or f"leave it out; it is for {listed}"


def rules(method: str) -> Iterator[Rule]:
    """All rules for experiments with this method; rows from outside the package are among the tables."""
    yield _of("task", "name", _reads(TASKS))
    yield _of("task", "model", _reads(MODELS))
    yield _of("optimizer", "name", _reads(OPTIMIZERS))
    yield _of("optimizer", "decay", _reads(DECAYS))
    yield _of("meta", "estimator", _reads(ESTIMATORS))
    yield _of("meta", "objective", {"hardened": ("surrogate",), "relaxed": (), "trajectory": ("surrogate",)})
    yield _of("schedule", "kind", {"network": ("hidden", "directions"), "family": ()})
    yield _of("tune", "search", _reads(SEARCHES))
    yield _of("allocate", "search", _reads(BIT_SEARCHES))
    yield _of("allocate", "score", {"rounded": (), "trained": ("runs",)})
    yield _of("allocate", "resource", {"size": (), "operations": (), "latency": ("latency",)})
    yield _quantization()
    yield _levels()
    yield _relaxation()
    yield _noise_floor()
    of_activations = METHODS[method].activation_parameters
    yield _unless("method.activation_levels", None, "activation_scale", *of_activations)
    yield _unless("method.scale", "unit", "granularity")
    yield _unless("optimizer.momentum", 0.0, "nesterov")
    yield _unless("meta.search_steps", 0, "search_numbers")
    numbers = {"network": ("meta.search_numbers",), "family": ()}
    yield Rule("schedule.kind", numbers, lambda look: look("schedule.kind"))
    yield _unless("tracking.wandb", "disabled", "project")
    own = {"here": ("run.workers",), "elsewhere": ()}
    yield Rule("run.where", own, _where, "leave it out; it is for processes here")
    of_several = tuple(f"tasks.{f}" for f in ("per_step", "cheaper", "normalize", "features", "examples"))
    yield Rule(
        "tasks.entries",
        {"several": of_several, "none": ()},
        lambda look: "several" if look("tasks.entries") else "none",
        "leave it out, or give tasks in tasks.entries",
    )
    yield Rule(
        "schedule.start",
        {"best": ("meta.select_runs",), "another": ()},
        lambda look: "best" if look("schedule.start") == "best" else "another",
    )


def ignored(
    experiment: Experiment, place: Callable[[str], str], given: Collection[str] | None = None
) -> Iterator[MetaschedError]:
    """Settings that differ from their default and have no effect, one error for each.

    Args:
        experiment: well-formed, each setting for itself.
        place: from a dotted path to what the user wrote there.
        given: the fields that are looked at; None: all.
    """
    defaults = {field.path: field for field in fields()}
    seen: set[str] = set()
    look = partial(value_at, experiment)
    for rule in rules(experiment.method.name):
        for path in rule.unread(look):
            value = look(path)
            if path in seen or (given is not None and path not in given) or value in (_MISSING, defaults[path].default):
                continue
            if experiment.tasks.entries and path.startswith("task."):
                continue  # what entries share: some may read it, and those that do not leave it out
            seen.add(path)
            shown = look(rule.setting)
            problem = f"has no effect, because {rule.setting} is {'null' if shown is None else shown}"
            yield MetaschedError(place(path), problem, rule.fix(path))


def unread(experiment: Experiment) -> set[str]:
    """Dotted paths of all fields that nothing reads."""
    look = partial(value_at, experiment)
    return {path for rule in rules(experiment.method.name) for path in rule.unread(look)}


def _where(look: Look) -> str:
    return "here" if look("run.where") in (None, "local") else "elsewhere"


_MISSING = object()  # of a parameter that the method does not have


def value_at(value: Any, path: str) -> Any:
    """The value of a field of an experiment, or of a section, by its dotted path."""
    for name in path.split("."):
        value = getattr(value, name, _MISSING)
    return value


def _reads(table: Mapping[str, Any]) -> dict[str, Collection[str]]:
    """{name: fields that it reads} of a table whose rows say so."""
    return {name: row.reads for name, row in table.items()}


def _of(section: str, name: str, table: Mapping[str, Collection[str]]) -> Rule:
    """The rule of a setting whose values and fields are of one section."""
    reads = {value: [f"{section}.{field}" for field in read] for value, read in table.items()}
    return Rule(f"{section}.{name}", reads, lambda look: look(f"{section}.{name}"))


def _unless(setting: str, value: object, *governed: str) -> Rule:
    """Fields of its section that every value of a setting reads but one."""
    fields = [f"{setting.partition('.')[0]}.{name}" for name in governed]

    def chosen(look: Look) -> str:
        return "none" if look(setting) == value else "some"

    return Rule(setting, {"some": fields, "none": ()}, chosen, f"leave it out, or set {setting}")


def _quantization() -> Rule:
    """Float networks read nothing of how weights and activations are quantized."""
    chosen = "quantize.first", "quantize.last", "quantize.rules", "quantize.redraw"
    governed = (*(f"method.{name}" for name in QUANTIZERS), *chosen, "meta.surrogate")
    reads = {name: () if name == CEILING else governed for name in METHODS}
    return Rule("method.name", reads, lambda look: look("method.name"), "leave it out; it is for methods that quantize")


def _levels() -> Rule:
    """Methods without level sets read nothing of them."""
    governed = sorted({field for row in METHODS.values() for field in row.ignores})
    reads = {name: [field for field in governed if field not in row.ignores] for name, row in METHODS.items()}
    mend = "leave it out; it is for methods that put each weight on a level, such as ste"
    return Rule("method.name", reads, lambda look: look("method.name"), mend)


def _relaxation() -> Rule:
    """Methods whose relaxed form is another one read its width."""

    def chosen(look: Look) -> str:
        method = _built(look("method"))
        return "exact" if method is not None and method.relaxed(1.0) == method else "relaxed"

    mend = "leave it out; it is for methods that freeze weights, such as inq and joint"
    return Rule("method.name", {"relaxed": ("meta.relaxation",), "exact": ()}, chosen, mend)


def _noise_floor() -> Rule:
    """Methods with a control that has a floor while learning read another floor."""

    def chosen(look: Look) -> str:
        method = _built(look("method"))
        floors = method is None or any(c.learning_floor is not None for c in method.controls)
        return "floors" if floors else "none"

    mend = "leave it out; it is for methods with noise, such as ana and joint"
    return Rule("method.name", {"floors": ("meta.noise_floor",), "none": ()}, chosen, mend)


def _built(config: MethodConfig) -> Method | None:
    """The method; None where its settings do not go together, which others report."""
    try:
        return build_method(config)
    except MetaschedError:
        return None
