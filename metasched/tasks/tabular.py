"""Classification of the rows of a CSV file: stratified splits, standardized numbers, one-hot categories."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.models import build_model, check_model
from metasched.tasks.classification import accuracy, check_batch, part_size
from metasched.tasks.config import TaskConfig
from metasched.tasks.csv_table import Table, categories, is_missing, numbers, read_table
from metasched.tasks.splits import Indices, stratified_indices
from metasched.tasks.supervised import Split, SupervisedTask

_LEAST_ROWS = 3  # of a class: one for each part


def tabular_task(config: TaskConfig) -> SupervisedTask:
    """Rows of the CSV file ``task.root``; the column ``task.target`` has the classes, of any names or numbers.

    Parts are disjoint and stratified: each has the share of each class that the file has, up to one row. Sizes default
    to a third of the rows for testing, a fifth of what that leaves for meta-validation, and the rest for training.

    A column of numbers becomes one feature (x - m) / s, with mean m and (population) standard deviation s of the
    training rows; one that does not vary there becomes 0. A column of texts becomes one feature, 0 or 1, for each text
    of the training rows; another text has only zeros. Columns in ``task.drop`` are left out. Empty cells, ``?``,
    ``NA``, ``N/A``, ``NaN`` and ``null`` have no value. They are refused, or with ``task.missing: fill`` become 0 after
    this preprocessing (the mean; no category), and a warning counts them.

    Inputs are [N, features, 1, 1] in float32, so that a model of images takes them as images of one pixel.

    Raises:
        MetaschedError: the file cannot be read, a column is not there or does not fit, values are missing, a class has
            fewer rows than there are parts, or sizes, batch or model do not fit.
    """
    fix = "set it to the path of a CSV file with the names of its columns in the first line"
    if config.root is None:
        raise MetaschedError("task.root", f"is missing, but {config.name} is read from a file", fix)
    table = read_table(config.root)
    if config.target is None:
        named = ", ".join(table.names[-5:])
        raise MetaschedError("task.target", "is missing", f"name the column of classes, such as one of {named}")
    target = table.known(config.target, "task.target")
    dropped = {table.known(name, f"task.drop[{i}]") for i, name in enumerate(config.drop)}
    if target in dropped:
        raise MetaschedError("task.drop", f"names {target!r}, which is task.target", "leave it out of one of them")
    columns = [name for name in table.names if name != target and name not in dropped]
    if not columns:
        raise MetaschedError("task.drop", "leaves no column to predict from", "name fewer columns")
    y = classes(table, target)
    _missing(table, columns, config.missing == "fill")
    chosen = choose_stratified(config, y)
    x = features(table, columns, chosen.train.numpy())
    shape = (x.shape[1], 1, 1)
    check_model(config.model, shape, config.depth)
    train, validation, test = (Split(x[rows].reshape(-1, *shape), y[rows]) for rows in chosen)
    return SupervisedTask(
        name=config.name,
        train=train,
        validation=validation,
        test=test,
        model=partial(build_model, config.model, shape, int(y.max()) + 1, config.width, config.depth),
        criterion=F.cross_entropy,
        metric=accuracy,
        batch_size=config.batch,
    )


def classes(table: Table, target: str) -> torch.Tensor:
    """The class of each row, int64 [N]: the rank of its number or text among all of the column.

    Raises:
        MetaschedError: a row has none, there is one class only, or one of too few rows.
    """
    cells, where = table.column(target), f"task.target: column {target}"
    for cell, line in zip(cells, table.lines, strict=True):
        if is_missing(cell):
            raise MetaschedError(where, f"has no value in line {line}", "mend or remove the line")
    found = numbers(table, target)
    names, y, counts = np.unique(np.array(cells) if found is None else found, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise MetaschedError(where, "has the same value in all rows", "name the column of classes")
    rare = int(counts.argmin())
    if counts[rare] < _LEAST_ROWS:
        name = names[rare] if found is None else f"{names[rare]:g}"
        problem = f"has the class {name!s:.40} in {counts[rare]} rows, and each of three parts needs one"
        fix = "name a column of classes, or remove or join rare ones"
        raise MetaschedError(where, problem, fix)
    return torch.from_numpy(y.reshape(-1)).long()


def choose_stratified(config: TaskConfig, y: torch.Tensor) -> Indices:
    """The rows of each part, for the classes y [N].

    Raises:
        MetaschedError: more rows asked for than there are, or a batch that does not fit.
    """
    n = len(y)
    test = part_size(config, "test", n // 3, available=n - 2)
    validation = part_size(config, "validation", max(1, (n - test) // 5), available=n - test - 1)
    train = part_size(config, "train", n - test - validation, available=n - test - validation)
    check_batch(config, train)
    found = stratified_indices(y, (test, validation, train), config.data_seed)
    return Indices(train=found[2], validation=found[1], test=found[0])


def features(table: Table, columns: list[str], train: np.ndarray) -> torch.Tensor:
    """The features of all rows, float32 [N, F], in the order of the columns; see ``tabular_task``.

    Args:
        table: the file.
        columns: names.
        train: the rows that means, deviations and categories are taken from, int64.

    Raises:
        MetaschedError: a column that does not fit; see ``numbers`` and ``categories``.
    """
    blocks = []
    for name in columns:
        cells, values = table.column(name), numbers(table, name)
        if values is None:
            known = categories(name, [cells[i] for i in train])
            blocks.append(np.array([[float(cell == text) for text in known] for cell in cells]).reshape(len(cells), -1))
        else:
            given = values[train][~np.isnan(values[train])]
            mean, std = (given.mean(), given.std()) if len(given) else (0.0, 0.0)
            blocks.append(np.nan_to_num((values - mean) / std if std > 0 else 0 * values)[:, None])
    return torch.from_numpy(np.hstack(blocks)).float()


def _missing(table: Table, columns: list[str], fill: bool) -> None:
    """Refuses missing values, or says how many there are."""
    counts = {name: sum(map(is_missing, table.column(name))) for name in columns}
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return
    listed = ", ".join(f"{name} ({count})" for name, count in [*counts.items()][:5])
    said = f"{sum(counts.values())} values are missing, in {listed}{', ...' if len(counts) > 5 else ''}"
    if not fill:
        fix = "set task.missing to fill (the mean, no category), drop the columns, or mend the file"
        raise MetaschedError("task.root", said, fix)
    warnings.warn(
        f"task.root: {said}: filled with the mean of the training rows, or no category", MetaschedWarning, stacklevel=2
    )
