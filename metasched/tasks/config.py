"""The section ``task`` of an experiment."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Boolean, Int, PathText, Positive, RowOf, Units, Word
from metasched.core.rows import find_row, from_outside
from metasched.models import MODELS, ModelSpec
from metasched.tasks.table import TASKS, TaskSpec


class Arguments(dict[str, Any]):
    """Plain YAML values by name; hashable, because configurations are keys of caches. Not to be changed."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(json.dumps(self, sort_keys=True, default=str))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    """Data, model and length of an inner run."""

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=300)] | None = None
    """function of a task of one's own, as package.module:function; needs `--import package`, see docs/own_task.md"""
    args: Annotated[dict[Word, Any], Field(max_length=256), AfterValidator(Arguments)] = Arguments()
    """with factory: its keyword arguments"""
    name: Annotated[Word, RowOf(TASKS)] = "digits"
    """data set; most are read under `root`"""
    root: PathText | None = None
    """folder of the data set, as torchvision lays it out (cifar10_npz: the folder of the npz file; imagenet: that of
    the folders train and val, with a folder for each class; text: a file in UTF-8, in place of Python's documentation;
    tabular: a CSV file)"""
    download: Boolean = False
    """let torchvision fetch the data set into `root`"""
    target: Word | None = None
    """tabular only: the column of classes"""
    drop: Annotated[tuple[Word, ...], Field(max_length=1000)] = ()
    """tabular only: columns that are left out, such as identifiers"""
    missing: Literal["refuse", "fill"] = "refuse"
    """tabular only: what is done where values are missing; fill: numbers get the mean of the training part, texts no
    category"""
    train: Positive | None = None
    """training examples (default: all that the split leaves; text: windows of 33 characters)"""
    validation: Positive | None = None
    """meta-validation examples, taken from the training part (default: a fifth of it; imagenet: 512, in memory; text: a
    twentieth of all)"""
    test: Positive | None = None
    """test examples (default: all)"""
    image_size: Annotated[Int, Field(ge=1, le=2048)] = 224
    """imagenet only: pixels a side, after resizing and a crop of the centre"""
    data_seed: Annotated[Int, Field(ge=0)] = 0
    """seed of the split"""
    model: Annotated[Word, RowOf(MODELS)] = "convnet"
    """the float network"""
    width: Units = 8
    """channels of the first block (MLP: units of the hidden layers; text: channels of the transformer, at most 16 or a
    multiple of 16)"""
    depth: Annotated[Int, Field(ge=1, le=1024)] | None = None
    """convolutions of the convnet, hidden layers of the MLP (default: 3), blocks of the transformer of text (default:
    2); the other models have their own"""
    steps: Annotated[Int, Field(ge=1, le=10**7)] = 100
    """T, the training steps of an inner run"""
    batch: Positive = 64
    """examples of a step"""
    pretrained: Annotated[Int, Field(ge=0, le=10**6)] = 0
    """steps of training in float before any inner run; all start from the same weights (0: drawn anew for each seed)"""

    @property
    def outside(self) -> bool:
        """Whether code from outside the package makes it: a factory, or a row of a table."""
        return self.factory is not None or any(from_outside(row) for row in self.rows)

    @property
    def rows(self) -> tuple[TaskSpec | ModelSpec, ...]:
        """The rows of the tables that make it; none for a factory.

        Raises:
            MetaschedError: this process does not have them.
        """
        if self.factory is not None:
            return ()
        task = find_row(TASKS, "task.name", self.name)
        return (task, find_row(MODELS, "task.model", self.model)) if "model" in task.reads else (task,)

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.factory or self.name
