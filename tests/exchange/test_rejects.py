"""Files that are no schedules: each is refused with one line that names the place, and with nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metasched.core.errors import MetaschedError
from metasched.exchange.schedule_file import dumps, loads, read_schedule

Edit = Callable[[dict[str, Any]], object]


def refusal(text: str | bytes) -> str:
    """The message, which has to be one printable line that starts with the file."""
    with pytest.raises(MetaschedError) as caught:
        loads(text, "schedule.json")
    message = str(caught.value)
    assert message.startswith("schedule.json: ") and message.isprintable() and len(message) < 500, message
    return message


# What is done to a good file, the path that the message must give, and words that it must hold.
EDITS: dict[str, tuple[Edit, str, str]] = {
    "another format": (lambda f: f.update(format="other"), "format", '"format": "metasched.schedule"'),
    "no format": (lambda f: f.pop("format"), "format", "not a schedule file"),
    "unknown version": (lambda f: f.update(version=4), "version", "unknown version 4; known: 1, 2, 3"),
    "true for version": (lambda f: f.update(version=True), "version", "unknown version True; known: 1, 2, 3"),
    "float for version": (lambda f: f.update(version=1.0), "version", "unknown version 1.0; known: 1, 2, 3"),
    "text for version": (lambda f: f.update(version="1"), "version", "unknown version '1'; known: 1, 2, 3"),
    "no version": (lambda f: f.pop("version"), "version", "known: 1, 2, 3"),
    "unknown key": (lambda f: f.update(extra=1), "extra", "unknown key"),
    "unknown key of a control": (lambda f: f["controls"][1].update(lo=0), "controls[1].lo", "unknown key"),
    "key that is no name": (lambda f: f.update({"a b\n": 1}), "['a b\\n']", "unknown key"),
    "missing key": (lambda f: f.pop("interpolation"), "interpolation", "missing"),
    "missing key of a layer": (lambda f: f["layers"][2].pop("kind"), "layers[2].kind", "missing"),
    "true for a number": (lambda f: f["controls"][0].update(high=True), "controls[0].high", "number, got True"),
    "true for a value": (lambda f: put(f, "noise_mean", 2, 1, True), "values.noise_mean[2][1]", "number, got True"),
    "true for an integer": (lambda f: f["layers"][0].update(fan_in=True), "layers[0].fan_in", "integer, got True"),
    "float for an integer": (lambda f: f["provenance"].update(seeds=[1, 2.0]), "provenance.seeds[1]", "got 2.0"),
    "text for a number": (lambda f: put(f, "weight_noise", 2, 4, "0"), "values.weight_noise[2][4]", "got '0'"),
    "null for a number": (lambda f: f["layers"][1].update(depth=None), "layers[1].depth", "got None"),
    "NaN": (lambda f: put(f, "weight_noise", 2, 4, float("nan")), "values.weight_noise[2][4]", "finite"),
    "Infinity": (lambda f: f["controls"][2].update(high=float("inf")), "controls[2].high", "finite"),
    "negative infinity": (lambda f: f["controls"][2].update(low=-float("inf")), "controls[2].low", "finite"),
    "integer of 400 digits": (lambda f: put(f, "noise_mean", 0, 0, 10**400), "values.noise_mean[0][0]", "64 bits"),
    "integer of 65 bits": (lambda f: f["method"]["parameters"].update(seed=2**63), "method.parameters.seed", "64 bits"),
    "half of a surrogate pair": (lambda f: f["controls"][0].update(unit="\ud800"), "controls[0].unit", "Unicode"),
    "the same in a key": (
        lambda f: f["provenance"]["versions"].update({"\udc00": ""}),
        "provenance.versions[",
        "Unico",
    ),
    "list for an object": (lambda f: f.update(method=[]), "method", "must be an object"),
    "list for a map": (lambda f: f.update(values=[]), "values", "must be an object"),
    "object for a list": (lambda f: f.update(layers={}), "layers", "must be an array"),
    "text for a list": (lambda f: f.update(progress="01"), "progress", "must be an array"),
    "list for a parameter": (
        lambda f: f["method"]["parameters"].update(a=[1]),
        "method.parameters.a",
        "a valid integer or a valid number, got [1]",
    ),
    "name of a control": (lambda f: f["controls"][0].update(name="Noise"), "controls[0].name", "match pattern"),
    "long name of a control": (lambda f: f["controls"][0].update(name="a" * 65), "controls[0].name", "match pattern"),
    "name of values": (lambda f: f["values"].update({"9": []}), "values['9']", "match pattern"),
    "newline after a name": (lambda f: f["layers"][0].update(name="conv1\n"), "layers[0].name", "match pattern"),
    "path for a name": (lambda f: f["layers"][0].update(name="../conv1"), "layers[0].name", "match pattern"),
    "empty name": (lambda f: f["layers"][0].update(name=""), "layers[0].name", "match pattern"),
    "name of a parameter": (lambda f: f["method"]["parameters"].update(A=1), "method.parameters.A", "match pattern"),
    "long text": (lambda f: f["controls"][0].update(unit="a" * 4097), "controls[0].unit", "at most 4096 characters"),
    "unknown word": (lambda f: f.update(interpolation="cubic"), "interpolation", "'linear' or 'previous', got 'cubic'"),
    "unknown direction": (lambda f: f["controls"][1].update(direction="up"), "controls[1].direction", "'free'"),
    "unknown kind": (lambda f: f["layers"][1].update(kind="norm"), "layers[1].kind", "'conv' or 'linear'"),
    "depth beyond 1": (lambda f: f["layers"][1].update(depth=1.5), "layers[1].depth", "less than or equal to 1"),
    "no fan-in": (lambda f: f["layers"][1].update(fan_in=0), "layers[1].fan_in", "greater than or equal to 1"),
    "hash": (lambda f: f["provenance"].update(config_hash="xyz"), "provenance.config_hash", "match pattern"),
    "half an interval": (
        lambda f: f["provenance"]["metric"].update(interval=[1]),
        "provenance.metric.interval[1]",
        "mis",
    ),
    "no runs": (lambda f: f["provenance"]["metric"].update(n=0), "provenance.metric.n", "greater than or equal to 1"),
    "65 controls": (lambda f: f.update(controls=f["controls"][:1] * 65), "controls", "at most 64"),
    "1025 layers": (lambda f: f.update(layers=f["layers"][:1] * 1025), "layers", "at most 1024"),
    "4097 knots": (lambda f: f.update(progress=[i / 4096 for i in range(4097)]), "progress", "at most 4096"),
    "1025 members": (lambda f: f["values"].update({f"a{i}": [] for i in range(1025)}), "values", "more than 1024"),
    "one knot": (lambda f: f.update(progress=[1.0]), "progress", "must have at least 2 items, not 1, got [1.0];"),
    "no layer": (lambda f: f.update(layers=[]), "layers", "at least 1"),
    "first knot": (lambda f: f["progress"].__setitem__(0, 0.01), "progress[0]", "must be 0, got 0.01"),
    "last knot": (lambda f: f["progress"].__setitem__(4, 0.99), "progress[4]", "must be 1, got 0.99"),
    "knots that fall": (
        lambda f: f["progress"].__setitem__(2, 0.05),
        "progress[2]",
        "must be greater than the previous knot, 0.1",
    ),
    "knots that stand": (
        lambda f: f["progress"].__setitem__(2, 0.1),
        "progress[2]",
        "must be greater than the previous knot, 0.1",
    ),
    "knot beyond 1": (lambda f: f["progress"].__setitem__(3, 1.5), "progress[3]", "less than or equal to 1"),
    "control twice": (lambda f: f["controls"].append(f["controls"][0]), "controls[4].name", "occurs twice"),
    "layer twice": (lambda f: f["layers"][2].update(name="features.0"), "layers[2].name", "occurs twice"),
    "no values": (lambda f: f["values"].pop("noise_mean"), "values.noise_mean", "missing"),
    "undeclared values": (lambda f: f["controls"].pop(), "values.noise_mean", "not declared"),
    "curve too few": (lambda f: f["values"]["weight_noise"].pop(), "values.weight_noise", "2 entries for 3 layers"),
    "curve too many": (lambda f: f["layers"].pop(), "values.activation_noise", "3 entries for 2 layers"),
    "value too few": (lambda f: f["values"]["noise_mean"][1].pop(), "values.noise_mean[1]", "4 entries for 5 knots"),
    "value too many": (lambda f: f["values"]["noise_mean"][1].append(0), "values.noise_mean[1]", "6 entries for 5 kn"),
    "below the range": (lambda f: put(f, "noise_mean", 1, 2, -0.51), "values.noise_mean[1][2]", "[-0.5, 0.5]"),
    "above the range": (lambda f: put(f, "noise_mean", 1, 2, 0.51), "values.noise_mean[1][2]", "[-0.5, 0.5]"),
    "rises": (lambda f: put(f, "weight_noise", 0, 2, 0.4), "values.weight_noise[0][2]", "is nonincreasing"),
    "falls": (lambda f: put(f, "freeze_fraction", 0, 2, 0.05), "values.freeze_fraction[0][2]", "is nondecreasing"),
    "wrong end": (lambda f: put(f, "freeze_fraction", 2, 4, 0.9), "values.freeze_fraction[2][4]", "must be 1.0"),
    "leaves too late": (lambda f: put(f, "weight_noise", 1, 3, 0.1), "values.weight_noise[1][3]", "the last 0.25"),
    "empty range": (lambda f: f["controls"][0].update(low=2), "controls[0].low", "at most high = 1.0, got 2.0"),
    "endless range": (
        lambda f: f["controls"][2].update(low=-1e308, high=1e308),
        "controls[2].high",
        "beyond float64 from low = -1e+308: 1e+308",
    ),
    "end out of range": (lambda f: f["controls"][0].update(end=-1), "controls[0].end", "in [0.0, 1.0], got -1.0"),
    "dwell beyond 1": (lambda f: f["controls"][0].update(dwell=2), "controls[0].dwell", "less than or equal to 1"),
}


def put(file: dict[str, Any], control: str, layer: int, knot: int, value: object) -> None:
    file["values"][control][layer][knot] = value


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_that_breaks_the_file_is_named_by_its_path(case: str, golden: str) -> None:
    edit, path, words = EDITS[case]
    tree = json.loads(golden)
    edit(tree)
    message = refusal(json.dumps(tree))
    assert message.startswith(f"schedule.json: {path}"), message
    assert words in message, message


MENDED = {
    "no format": 'give one with "format": "metasched.schedule" at the top level',
    "unknown version": "update metasched or export it again",
    "missing key": "add it",
    "unknown key": "remove it",
    "list for an object": "put it in braces",
    "list for a map": "put it in braces",
    "object for a list": "put it in brackets",
    "true for a number": "correct it",
}


@pytest.mark.parametrize("case", MENDED)
def test_a_refusal_says_how_to_mend_it(case: str, golden: str) -> None:
    tree = json.loads(golden)
    EDITS[case][0](tree)
    assert refusal(json.dumps(tree)).endswith(f"; {MENDED[case]}")


TEXTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "empty": (lambda t: "", "empty"),
    "blank": (lambda t: " \n", "empty"),
    "byte-order mark": (lambda t: "\ufeff" + t, "byte-order mark"),
    "byte-order mark in bytes": (lambda t: b"\xef\xbb\xbf" + t.encode(), "byte-order mark"),
    "UTF-16": (lambda t: t.encode("utf-16"), "not UTF-8 at byte 0"),
    "invalid UTF-8": (lambda t: t.encode().replace(b"learned", b"l\xffarned"), "not UTF-8 at byte"),
    "cut off": (lambda t: t[: len(t) // 2], "not JSON"),
    "trailing comma": (lambda t: t.replace('"version": 1', '"version": 1,'), "not JSON"),
    "comment": (lambda t: "// mine\n" + t, "line 1 column 1: not JSON"),
    "two documents": (lambda t: t + t, "not JSON: Extra data"),
    "control character": (lambda t: t.replace("quantum", "quan\tum"), "not JSON"),
    "number": (lambda t: "1", "format: this is not a schedule file"),
    "list": (lambda t: "[]", "format: this is not a schedule file"),
    "1e999": (lambda t: t.replace("0.0117", "1e999"), "provenance.metric.value: must be a finite number"),
    "5000 digits": (lambda t: t.replace('"n": 16', '"n": ' + "1" * 5000), "provenance.metric.n: must be a finite"),
    "key twice": (lambda t: t.replace('"n": 16', '"n": 16, "n": 16'), "provenance.metric.n: this key occurs twice"),
    "key twice by an escape": (
        lambda t: t.replace('"n": 16', '"n": 1, "\\u006e": 2'),
        "metric.n: this key occurs twice",
    ),
    "lists without end": (lambda t: "[" * 1_000_000, "nested more than 8 levels"),
    "objects without end": (lambda t: '{"a":' * 150_000, "nested more than 8 levels"),
    "deep": (
        lambda t: t.replace('"n": 16', '"n": ' + "[" * 50 + "]" * 50),
        "provenance.metric.n[0][0][0][0][0]: nested",
    ),
    "1 MiB and a byte": (lambda t: t + " " * (2**20 + 1 - len(t)), "larger than 1048576 bytes"),
    "300000 layers": (lambda t: t.replace('"layers": [', '"layers": [' + "{}," * 300_000), "layers[0].name: missing"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_schedule_is_refused(case: str, golden: str) -> None:
    edit, words = TEXTS[case]
    text = edit(golden)
    assert text != golden
    assert words in refusal(text)


def test_a_mebibyte_is_still_read(golden: str) -> None:
    assert dumps(loads(golden + " " * (2**20 - len(golden)), "schedule.json")) == golden


def test_1024_members_and_integers_of_64_bits_are_still_read(golden: str) -> None:
    parameters = {f"a{i}": 2**63 - 1 for i in range(1023)} | {"b": -(2**63) + 1}
    text = json.dumps(json.loads(golden) | {"method": {"name": "ana", "parameters": parameters}})
    assert loads(text, "schedule.json").method.parameters == parameters


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("missing.json", "missing.json: cannot be read: No such file or directory"),
        ("", ": cannot be read: Is a directory"),
        ("null\0byte", "null\\x00byte: cannot be read: embedded null byte"),
        ("line\nbreak", "line\\nbreak: cannot be read: No such file"),
    ],
)
def test_a_path_that_cannot_be_read_is_one_line(tmp_path: Path, path: str, problem: str) -> None:
    with pytest.raises(MetaschedError) as caught:
        read_schedule(f"{tmp_path}/{path}")
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("; give the path of a schedule file")


def test_a_refused_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a\nb.json").write_text("[]")
    with pytest.raises(MetaschedError) as caught:
        read_schedule(tmp_path / "a\nb.json")
    assert str(caught.value).startswith(f"{tmp_path}/a\\nb.json: format: this is not a schedule file")


def test_a_large_file_is_refused_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(MetaschedError, match=r"large\.json: larger than 1048576 bytes"):
        read_schedule(tmp_path / "large.json")


def outcome(text: str | bytes) -> bool:
    """Whether the text is a schedule; if so it has a canonical text, if not the refusal is one line."""
    try:
        file = loads(text, "schedule.json")
    except MetaschedError as error:
        assert str(error).startswith("schedule.json: ") and "\n" not in str(error)
        return False
    assert loads(dumps(file), "schedule.json") == file
    return True


def test_mutated_bytes_are_read_or_refused(golden: str) -> None:
    rng = random.Random(0)
    tokens = [b"NaN", b"-Infinity", b"1e999", b"-1", b"0.25", b"true", b"null", b'""', b"{}", b"[]", b'"\\ud800"', b","]
    good = golden.encode()
    accepted = 0
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            width = rng.choice([0, 1, 1, 2, 8, 64])
            piece = rng.choice([b"", bytes([rng.randrange(256)]), rng.choice(tokens), data[at : at + width] * 2])
            data[at : at + width] = piece
        accepted += outcome(bytes(data))
    assert 0 < accepted < 1000


def test_mutated_trees_are_read_or_refused(golden: str) -> None:
    rng = random.Random(1)
    strange = [None, True, 0, -1, 2**62, 10**30, 0.25, 1e308, "", "conv", "a\u2028b", [], [[]], [0, 1], {}, {"a": 1}]

    def nodes(value: Any) -> list[tuple[Any, Any]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        return [(value, key) for key in keys] + [pair for key in keys for pair in nodes(value[key])]

    accepted = 0
    for _ in range(2000):
        tree = json.loads(golden)
        for _ in range(rng.randint(1, 2)):
            holder, key = rng.choice(nodes(tree))
            move = rng.randrange(4)
            if move == 0:
                del holder[key]
            elif move == 1 and isinstance(holder, list):
                holder.insert(key, holder[key])
            elif move == 2 and isinstance(holder, dict):
                holder[rng.choice(["", "name", "x y", "\ud800"])] = holder[key]
            else:
                holder[key] = rng.choice(strange)
        accepted += outcome(json.dumps(tree))
    assert 0 < accepted < 1000
