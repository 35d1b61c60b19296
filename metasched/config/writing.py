"""An experiment as a document: in the types of JSON, as YAML, as a hash, and compared with another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from metasched.arena.config import ArenaConfig
from metasched.config.fields import FieldInfo, fields
from metasched.config.schema import Experiment
from metasched.families.config import TasksConfig
from metasched.network.config import QuantizeConfig
from metasched.runs.config import RunConfig
from metasched.tasks.config import TaskConfig
from metasched.tasks.table import OF_TABLES

LATER = ("channel_bits", "sparsity")  # fields of rules that files from before do not have
OWN_TASK = ("factory", "args", "steps")  # what the section task has for a task of the user's own


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment in the types of JSON, every field written out; of ``tasks`` and ``arena`` only what is given.

    Files and hashes from before these sections do not have them.
    """
    document = {
        **to_jsonable_python(experiment),
        **{name: section_dict(getattr(experiment, name)) for name in ("task", "quantize", "run")},
    }
    unused = {
        name
        for name, default in (("tasks", TasksConfig()), ("arena", ArenaConfig()))
        if getattr(experiment, name) == default
    }
    return {name: section for name, section in document.items() if name not in unused}


def section_dict(section: Any) -> dict[str, Any]:
    """One section in the types of JSON; of a task of the user's own only what it reads.

    Fields of tables, some of rules, and where runs are done are left out where they have their defaults: files and
    hashes from before do not have them.
    """
    fields_of = to_jsonable_python(section)
    if isinstance(section, TaskConfig):
        default = {name for name in OF_TABLES if getattr(section, name) == getattr(TaskConfig, name)}
        keep = OWN_TASK if section.factory is not None else fields_of.keys() - {"factory", "args"} - default
        return {name: value for name, value in fields_of.items() if name in keep}
    if isinstance(section, QuantizeConfig):
        rules = [{k: v for k, v in rule.items() if k not in LATER or v is not None} for rule in fields_of["rules"]]
        return {**fields_of, "rules": rules}
    if isinstance(section, RunConfig):
        return {name: v for name, v in fields_of.items() if v is not None or name not in ("where", "store")}
    return fields_of


def dump_yaml(document: Mapping[str, Any]) -> str:
    """An experiment, as ``to_dict`` has it, as YAML that ``load_experiment`` reads back to an equal one."""
    return yaml.safe_dump(dict(document), sort_keys=False)


def config_hash(experiment: Experiment, fingerprint: str = "") -> str:
    """SHA-256, in hexadecimal, of the experiment's canonical JSON (sorted keys, no spaces, shortest exact floats).

    A task from outside the package joins it by its fingerprint: the name of a factory or a row does not say what that
    makes.
    """
    document = to_dict(experiment)
    if experiment.task.outside:
        document["task"]["fingerprint"] = fingerprint
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Dotted paths of fields in which two experiments, as ``to_dict`` has them, differ; a missing one is its default.

    >>> differing({"seed": 1, "meta": {"steps": 2}}, {"seed": 0, "meta": {"steps": 2}})
    ['seed']
    """
    return [f.path for f in fields() if _value(a, f) != _value(b, f)]


def _value(document: Any, field: FieldInfo) -> Any:
    for part in field.path.split("."):
        if not isinstance(document, Mapping) or part not in document:
            return to_jsonable_python(field.default)
        document = document[part]
    return document
