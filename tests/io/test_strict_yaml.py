from __future__ import annotations

from pathlib import Path

import pytest

from metasched.core.errors import MetaschedError
from metasched.io.strict_yaml import MAX_BYTES, MAX_DEPTH, parse, read_mapping

REFUSED = {
    "a: !!python/object/apply:os.system [touch {side_effect}]": "line 1: tags are not read",
    "a: !!int 3": "line 1: tags are not read",
    "a: &x 1\nb: *x": "line 1: anchors are not read",
    "a: *x": "line 1: aliases are not read",
    "<<: {name: b}": "line 1: a key must be the name of a field",
    "a: 1\nb: 2\na: 3": "line 3: the key 'a' occurs twice",
    "s: {a: 1, a: 1}": "line 1: the key 'a' occurs twice",
    "1: 2": "line 1: a key must be the name of a field",
    "on: 2": "line 1: a key must be the name of a field",
    "? [1]\n: 2": "line 1: a key must be the name of a field",
    '"a\\e[31m": 2': "line 1: a key must be the name of a field",
    "a" * 65 + ": 2": "line 1: a key must be the name of a field",
    "seed: 0x_": "line 1: is not a number",
    "seed: 010": "line 1: is an ambiguous number in YAML",
    "seed: 1:30": "line 1: is an ambiguous number in YAML",
    "seed: 1:30.5": "line 1: is an ambiguous number in YAML",
    "seed: 1" + ":1" * 30_000: "line 1: is an ambiguous number in YAML",
    'a: "\\UFFFFFFFF"': "a number in it is out of range",
    'a: "\\U00110000"': "a number in it is out of range",
    "%YAML " + "9" * 5000 + ".1\n---\na: 1": "a number in it is out of range",
    "seed: " + "9" * 5000: "line 1: is not a number",
    "seed: 0x" + "f" * 5000: "line 1: is an integer of more than 64 bits",
    "a: " + "[" * 50_000: "line 1: is nested more than 10 levels deep",
    "a: [" + "1, " * 20_000 + "]": "line 1: holds more than 10000 values",
    "a: b: c": "line 1: mapping values are not allowed here",
    "a: [1": "line 1: expected ',' or ']'",
    "a: 1\n--- \nb: 2": "but found another document",
    "a: \x00": "it holds control characters",
    "": "is empty",
    "# only a comment": "is empty",
    "- a": "holds a list",
    "just text": "holds no fields",
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.items(), ids=[t[:20] for t in REFUSED])
def test_what_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    side_effect = tmp_path / "executed"
    path = tmp_path / "a.yaml"
    path.write_text(text.replace("{side_effect}", str(side_effect)))
    with pytest.raises(MetaschedError) as caught:
        read_mapping(path)
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)
    assert not side_effect.exists()


def test_places_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "latin1.yaml").write_bytes("name: caf\xe9".encode("latin1"))
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for path, expected in [
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "latin1.yaml", "is not UTF-8 text (byte 9)"),
        (tmp_path / "large.yaml", "larger than 65536 bytes"),
        (f"{tmp_path}/\0", "embedded null byte"),
    ]:
        with pytest.raises(MetaschedError) as caught:
            read_mapping(path)
        assert expected in str(caught.value)


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 2024-13-45\nb: [1, 0x10, 1.5, no, ~]\nc: {d: 'x'}\n")
    assert read_mapping(path) == {"a": "2024-13-45", "b": [1, 16, 1.5, False, None], "c": {"d": "x"}}


def test_the_deepest_value_that_is_read() -> None:
    assert parse("[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1), "x") == [[[[[[[[[1]]]]]]]]]
    with pytest.raises(MetaschedError, match="nested"):
        parse("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH, "x")
