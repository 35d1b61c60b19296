"""What ``metasched inspect`` does."""

from __future__ import annotations

from typing import Any

from metasched.config.schema import Experiment
from metasched.network.inspect import inspection
from metasched.tracking.console import Console
from metasched.training.problem import ingredients


def inspect(experiment: Experiment, console: Console, *, strict: bool = False) -> dict[str, Any]:
    """Shows what an experiment quantizes of its model.

    Args:
        experiment: its task gives the model and the example: the loss of its first batch.
        console: gets the table.
        strict: as for ``metasched.inspect``.

    Returns:
        the totals and the rows, in the types of JSON.

    Raises:
        MetaschedError: the model, its task or a rule does not fit; with ``strict``, something stays in float.
    """
    model, recipe, example = ingredients(experiment.problem)
    found = inspection(model, recipe, example, strict=strict)
    columns = ("module", "tensor", "type", "quantized, or why not", "levels", "parameters", "MACs")
    console.table(found.total, columns, found.cells())
    return found.to_dict()
