"""Datasets in memory: splits of labeled rows, and the description that is stored with a trained network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.keys import row_keys
from kdistill.data.rows import BLOCK_ROWS, Concat, Rows, Subset, type_name
from kdistill.tasks import Task, is_labeled

MAX_DESCRIBED_CLASSES = 10_000  # a longer list of class names would swamp the manifest


@dataclass(frozen=True)
class Split:
    """Rows of a dataset, e.g. its training rows, or the rows of a transfer set.

    Attributes:
        name: e.g. `train`, for messages.
        inputs: (rows, ...), read when needed.
        labels: (rows,) or (rows, ...), as the task encodes them; `NO_LABEL` or NaN for rows without a label.
        weights: (rows,), 0 or more; None if all rows count the same.
        warnings: lines for the user about a transfer set. The warnings about a dataset are in `Dataset.warnings`.
        notes: lines for the user about what is as expected in a transfer set.
    """

    name: str
    inputs: Rows
    labels: NDArray[Any]
    weights: NDArray[np.float32] | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labeled_rows(self) -> int:
        """The number of rows that have a label."""
        return int(self.labeled.sum())

    @property
    def labeled(self) -> NDArray[np.bool_]:
        """Which rows have a label, (rows,)."""
        return is_labeled(self.labels)

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield the inputs in order, `rows` at a time, with one block in memory."""
        yield from self.inputs.blocks(rows)

    def read(self) -> NDArray[Any]:
        """Return all inputs, (rows, ...)."""
        return self.inputs.read()

    def keys(self) -> NDArray[np.uint8]:
        """Return the `row_keys` of all inputs, (rows, 16). Only the first call reads the inputs."""
        return self._keys

    @cached_property
    def _keys(self) -> NDArray[np.uint8]:
        keys = np.concatenate([row_keys(block) for block in self.blocks(BLOCK_ROWS)])
        keys.flags.writeable = False
        return keys

    def select(self, mask: NDArray[np.bool_]) -> Split:
        """Return the rows that a mask (rows,) selects."""
        if mask.all():
            return self
        weights = None if self.weights is None else self.weights[mask]
        return replace(self, inputs=Subset(self.inputs, mask), labels=self.labels[mask], weights=weights)


@dataclass(frozen=True)
class Dataset:
    """Training and test rows of one task.

    Attributes:
        name: how the dataset can be loaded again, e.g. `digits` or a path with read options.
        train: the training rows.
        test: the test rows, of the same shape and type.
        task: what the labels are.
        classes: the number of classes, or of the numbers per row of a regression.
        class_names: their names, in order.
        preprocessing: what was done to the stored inputs, in JSON types, for programs that use a trained network.
        warnings: lines for the user.
        notes: lines for the user about what is as expected, e.g. the number of categories in a column of texts.
    """

    name: str
    train: Split
    test: Split
    task: Task
    classes: int
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.inputs.shape[1:])

    @property
    def input_dtype(self) -> str:
        return type_name(self.train.inputs.dtype)

    @property
    def row_type(self) -> str:
        """What a row is, e.g. `28x28 uint8` or `text`."""
        shape = "x".join(map(str, self.input_shape))
        return f"{shape} {self.input_dtype}" if shape else "text"

    @property
    def outputs(self) -> int | None:
        """The number of outputs of a network; None if labels do not define it."""
        return self.classes if self.task.needs_labels else None

    @cached_property
    def rescaling(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Offset and scale (outputs,) of a network's outputs; None for 0 and 1."""
        return self.task.rescaling(self.train.labels)

    @property
    def description(self) -> dict[str, Any]:
        """What a program needs to use a trained network: task, class names (None if very many), preprocessing and input."""
        return {
            "task": self.task.name,
            "class_names": list(self.class_names) if self.classes <= MAX_DESCRIBED_CLASSES else None,
            "preprocessing": dict(self.preprocessing),
            "input": {
                "shape": list(self.input_shape),
                "data_dtype": self.input_dtype,
                "divide_by": 255 if self.input_dtype == "uint8" else 1,  # as in `saved_models.scale_inputs`
            },
        }


def concatenate(splits: Sequence[Split]) -> Split:
    """Return the rows of one or more splits of equal shape and type, one split after the other."""
    if len(splits) == 1:
        return splits[0]
    return Split(
        name=" + ".join(split.name for split in splits),
        inputs=Concat([split.inputs for split in splits]),
        labels=np.concatenate([split.labels for split in splits]),
        weights=_concatenate_weights(splits),
        warnings=tuple(warning for split in splits for warning in split.warnings),
        notes=tuple(note for split in splits for note in split.notes),
    )


def _concatenate_weights(splits: Sequence[Split]) -> NDArray[np.float32] | None:
    """Return the weights of all rows; those of a split without weights are 1."""
    if all(split.weights is None for split in splits):
        return None
    each = (np.ones(len(split), np.float32) if split.weights is None else split.weights for split in splits)
    return np.concatenate(list(each))
