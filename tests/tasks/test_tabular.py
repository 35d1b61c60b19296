"""Tables: stratified disjoint splits, preprocessing from the training rows alone, one line for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.tasks.build import build_task
from metasched.tasks.check import check_disjoint
from metasched.tasks.config import TaskConfig
from metasched.tasks.csv_table import read_table
from metasched.tasks.supervised import SupervisedTask
from metasched.tasks.tabular import choose_stratified, classes

N = 60
CITIES = ("Bonn", "Oslo", "Rome")


def lines(n: int = N) -> list[str]:
    """A header, and rows of identifier, age, city, income and class; one in three is of class yes."""
    rng = np.random.default_rng(0)
    ages, incomes = rng.integers(20, 70, n), rng.normal(30_000, 9_000, n)
    rows = [f"{1000 + i},{ages[i]},{CITIES[i % 3]},{incomes[i]:.2f},{'no' if i % 3 else 'yes'}" for i in range(n)]
    return ["id,age,city,income,left", *rows]


def write(folder: Path, text: list[str] | str | bytes) -> str:
    path = folder / "table.csv"
    content = "\n".join(text) + "\n" if isinstance(text, list) else text
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def config(root: str, **changes: Any) -> TaskConfig:
    given: dict[str, Any] = {"target": "left", "drop": ("id",), "model": "mlp", "width": 4, "batch": 8}
    return TaskConfig(name="tabular", root=root, **{**given, **changes})


def built(folder: Path, text: list[str] | str, **changes: Any) -> SupervisedTask:
    task = build_task(config(write(folder, text), **changes))
    assert isinstance(task, SupervisedTask)
    return task


def refused(folder: Path, text: list[str] | str | bytes, **changes: Any) -> str:
    with pytest.raises(MetaschedError) as caught:
        build_task(config(write(folder, text), **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_features_are_standardized_by_the_training_rows_and_texts_are_one_hot(tmp_path: Path) -> None:
    task = built(tmp_path, lines())
    table = read_table(str(tmp_path / "table.csv"))
    chosen = choose_stratified(config("unread.csv"), classes(table, "left"))
    age, income = (np.array(table.column(name), float) for name in ("age", "income"))
    city = np.array([[cell == name for name in CITIES] for cell in table.column("city")], float)
    for part, rows in ((task.train, chosen.train), (task.validation, chosen.validation), (task.test, chosen.test)):
        assert part.x.shape == (len(rows), 5, 1, 1) and part.x.dtype == torch.float32
        wanted = np.column_stack(
            [
                (age[rows] - age[chosen.train].mean()) / age[chosen.train].std(),
                city[rows],
                (income[rows] - income[chosen.train].mean()) / income[chosen.train].std(),
            ]
        )
        np.testing.assert_allclose(part.x.flatten(1).numpy(), wanted, rtol=1e-5, atol=1e-6)
        assert part.y.tolist() == [int(table.column("left")[i] == "yes") for i in rows]
    assert task.build()(task.train.x.to(torch.get_default_dtype())).shape == (32, 2)


def test_parts_are_disjoint_stratified_and_of_the_default_sizes(tmp_path: Path) -> None:
    task = built(tmp_path, lines())
    assert [len(part.y) for part in (task.train, task.validation, task.test)] == [32, 8, 20]
    for part in (task.train, task.validation, task.test):
        assert abs(int(part.y.sum()) - len(part.y) / 3) < 1
    check_disjoint(task.splits())


def test_test_rows_do_not_reach_the_preprocessing(tmp_path: Path) -> None:
    text = lines()
    before = built(tmp_path, text)
    chosen = choose_stratified(config("unread.csv"), classes(read_table(str(tmp_path / "table.csv")), "left"))
    row = int(chosen.test[0])
    cells = text[row + 1].split(",")
    text[row + 1] = ",".join([cells[0], "1e6", "Atlantis", cells[3], cells[4]])
    after = built(tmp_path, text)
    assert torch.equal(before.train.x, after.train.x) and torch.equal(before.validation.x, after.validation.x)
    assert torch.equal(before.test.x[1:], after.test.x[1:])
    assert after.test.x[0, 1:4].flatten().tolist() == [0, 0, 0]  # a city that no training row has


def test_missing_values_are_refused_or_filled_and_counted(tmp_path: Path) -> None:
    text = lines()
    text[5] = "1004,,Oslo,NA,no"
    text[9] = "1008,33,?,100,no"
    said = refused(tmp_path, text)
    assert "3 values are missing, in age (1), city (1), income (1)" in said and "task.missing to fill" in said
    with pytest.warns(MetaschedWarning, match=r"3 values are missing, .* filled"):
        task = built(tmp_path, text, missing="fill")
    x = torch.cat([task.train.x, task.validation.x, task.test.x]).flatten(1)
    assert (x[:, 0] == 0).sum() == 1 and (x[:, 4] == 0).sum() == 1 and (x[:, 1:4].sum(1) == 0).sum() == 1
    assert abs(float(task.train.x[:, 0].mean())) < 1  # the mean of those that have a value


def test_other_delimiters_quotes_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    plain = built(tmp_path, lines())
    text = "\ufeff" + "\r\n\r\n".join(line.replace(",", ";").replace("Bonn", '"Bonn"') for line in lines())
    other = built(tmp_path, text)
    assert torch.equal(plain.train.x, other.train.x) and torch.equal(plain.test.y, other.test.y)


def test_a_column_without_variation_and_numeric_classes(tmp_path: Path) -> None:
    text = ["a,b,y", *(f"{i},7,{i % 2 + 10}" for i in range(30))]
    task = built(tmp_path, text, target="y", drop=())
    assert task.train.x[:, 1].abs().max() == 0
    assert {*task.train.y.tolist()} == {0, 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": None}, r"task\.target: is missing; name the column of classes, such as one of id, age"),
        ({"target": "leaft"}, r"task\.target: the file has no column 'leaft'; did you mean 'left'"),
        ({"drop": ("id", "nose")}, r"task\.drop\[1\]: the file has no column 'nose'"),
        ({"drop": ("left",)}, r"task\.drop: names 'left', which is task\.target"),
        ({"drop": ("id", "age", "city", "income")}, r"task\.drop: leaves no column"),
        ({"target": "id", "drop": ()}, r"task\.target: column id: has the class 1000 in 1 rows"),
        ({"batch": 33}, r"task\.batch: must be between 2, .* and the 32 training examples"),
        ({"test": 59}, r"task\.test: asks for 59 examples, but tabular has only 58"),
        ({"model": "convnet"}, r"task\.model: convnet needs images .* use one of mlp"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    import re

    assert re.search(said, refused(tmp_path, lines(), **change))


def changed(row: int, line: str) -> list[str]:
    return [*lines()[:row], line, *lines()[row + 1 :]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,age\n", "has no row below"),
        (b"id,left\n\xff,1\n", "is not UTF-8 (byte 8)"),
        (["id,id,left", "1,2,3"], "names the column 'id' twice"),
        (["id,,left", "1,2,3"], "has a column without a name"),
        (changed(4, "1,2,3"), "line 5: has 3 cells, and the first line names 5 columns"),
        (changed(4, "1003,forty,Rome,1,no"), "column age: holds numbers, and 'forty' in line 5"),
        (changed(4, "1003,1e999,Rome,1,no"), "column age: has a number in line 5 that is too large"),
        (changed(4, "1003,30,Rome,1,"), "column left: has no value in line 5"),
        (["id,left,name", *(f"{i},{i % 2},n{i}" for i in range(900))], "column name: has 480 different texts"),
        (["id,left,a", *(f"{i},same,{i}" for i in range(30))], "has the same value in all rows"),
        ('id,left\n"1,2\n', "is not CSV"),
    ],
)
def test_files_that_do_not_fit(text: list[str] | str | bytes, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, text)


def test_a_column_without_any_value_is_refused_where_others_are_filled(tmp_path: Path) -> None:
    text = ["id,left,name", *(f"{i},{i % 2}," for i in range(30))]
    with pytest.warns(MetaschedWarning, match="30 values are missing"):
        assert "column name: has no value; add it to task.drop" in refused(tmp_path, text, missing="fill")


def test_no_file(tmp_path: Path) -> None:
    for root in (None, str(tmp_path / "gone.csv"), str(tmp_path)):
        with pytest.raises(MetaschedError, match="CSV file"):
            build_task(TaskConfig(name="tabular", root=root, target="left"))
