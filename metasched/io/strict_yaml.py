"""Strict parsing of experiment files: a small, safe subset of YAML, and one clear error for anything else.

The subset has plain mappings, lists and scalars. It excludes tags (which construct objects), anchors and aliases (which
expand), duplicate keys (which lose values) and ambiguous numbers (010, 1:30). The limits are 64 KiB, 10 levels and
10,000 values. A date is read as text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from metasched.core.errors import MetaschedError, printable
from metasched.io.reading import read_regular

MAX_BYTES = 2**16
MAX_DEPTH = 10
MAX_VALUES = 10_000
MAX_KEY = 64
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+|[^:]*:.*")  # octal or decimal; base 60 or text


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        MetaschedError: the file cannot be read, is larger than 64 KiB, is not UTF-8, or is not a mapping in the subset.
    """
    where = printable(os.fspath(path))
    data = read_regular(path, MAX_BYTES, "give the path of an experiment's YAML file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MetaschedError(where, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    document = parse(text, where)
    if not isinstance(document, dict):
        found = {type(None): "is empty", list: "holds a list, not fields"}.get(type(document), "holds no fields")
        raise MetaschedError(where, found, "write at least one field, such as `name: my_experiment`")
    return document


def parse(text: str, where: str) -> Any:
    """The value of a YAML text; ``where`` is the prefix of error messages.

    >>> parse("{steps: 10, lr: 1e-3}", "x")
    {'steps': 10, 'lr': '1e-3'}
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader, made stricter
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{where}: line {mark.line + 1}" if mark else where
        raise MetaschedError(line, error.problem or "is not YAML", "write plain lines of `field: value`") from error
    except yaml.YAMLError as error:
        raise MetaschedError(where, "is not YAML: it holds control characters", "save it as plain text") from error
    except (ValueError, OverflowError) as error:  # invalid characters or version numbers
        raise MetaschedError(where, "is not YAML: a number in it is out of range", "write plain text") from error


class _Loader(yaml.SafeLoader):
    depth = 0
    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases are not read", event)
        if event.anchor is not None:
            raise _refused("anchors are not read", event)
        if event.tag is not None:
            raise _refused("tags are not read", event)
        if self.depth == MAX_DEPTH:
            raise _refused(f"is nested more than {MAX_DEPTH} levels deep", event)
        if self.values == MAX_VALUES:
            raise _refused(f"holds more than {MAX_VALUES} values", event)
        self.values += 1
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" or not key.value.isprintable() or len(key.value) > MAX_KEY:
                raise _refused("a key must be the name of a field", key)
            if key.value in seen:
                raise _refused(f"the key {key.value!r} occurs twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and _AMBIGUOUS.fullmatch(node.value):
            raise _refused("is an ambiguous number in YAML", node)
        try:
            value = super().construct_object(node, deep)
        except ValueError as error:  # such as 0x_
            raise _refused("is not a number", node) from error
        if isinstance(value, int) and value.bit_length() > 64:  # Python cannot print the largest ones
            raise _refused("is an integer of more than 64 bits", node)
        return value


def _refused(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, where.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
