"""Logits or probabilities that another program has written to a file: of a transfer set, or of the test rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.data import Dataset, Split
from kdistill.data.keys import positions, row_keys
from kdistill.data.rows import BLOCK_ROWS, ArrayRows, NumberedBlocks, Rows, Subset
from kdistill.errors import KdistillError
from kdistill.soft_targets.storage import check_usable
from kdistill.tasks import NO_LABEL, Task, as_string
from kdistill.teachers.ensemble import RowBlock
from kdistill.teachers.outputs import PROBED_ROWS, Floats, ZeroCount, check_classes, gives_probabilities, to_logits


@dataclass(frozen=True)
class PrecomputedLogits:
    """Rows of logits or probabilities from a file, in the order of some rows: of the transfer set, or the test rows.

    Attributes:
        positions: (rows,), the number of each row in the file.
        order: how the order of the rows was checked, as a sentence.
        probabilities: whether the file has probabilities; a sequence of one, as an ensemble has one per member.
        task: what the outputs are.
    """

    rows: Rows
    positions: NDArray[np.int64]
    path: Path
    order: str
    probabilities: Sequence[bool]
    task: Task
    zeros: ZeroCount = field(default_factory=ZeroCount)
    parallel: ClassVar[bool] = False

    @property
    def outputs(self) -> int:
        """The number of outputs per row."""
        return self.rows.shape[1]

    def of_blocks(self, rows: int) -> Callable[[RowBlock], Floats]:
        """Return a function that returns the logits of a block, (rows, classes), as `Ensemble.of_blocks` does."""
        numbered = self.numbered(rows)
        return lambda block: numbered(block.number)

    def numbered(self, rows: int) -> Callable[[int], Floats]:
        """Return a function that returns the logits of a block of `rows` rows, (rows, classes), by its number."""
        values = NumberedBlocks(self.rows, rows)

        def block(number: int) -> Floats:
            outputs = _as_float32(values[number], self.path, self.positions[number * rows :])
            return to_logits(outputs, self.zeros, self.path, self.task) if self.probabilities[0] else outputs

        return block


def _as_float32(values: NDArray[np.floating[Any]], path: Path, row_numbers: NDArray[np.int64]) -> Floats:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    check_usable(single, path, row_numbers)
    return single


def read_logits(
    path: Path,
    teacher_output: str,
    dataset: Dataset,
    split: Split,
    selected: NDArray[np.bool_] | None = None,
    *,
    of: str = "transfer set",
    option: str = "logits",
) -> PrecomputedLogits:
    """Open a file of logits or probabilities of a split, and select some of its rows.

    Args:
        path: the file.
        teacher_output: what the file has, as `Soften.teacher_output`.
        dataset: whose classes the logits are for.
        split: the rows that the file is for.
        selected: (rows,), a mask; None for all rows.
        of: what the split is, for messages.
        option: the command-line option with the file, for messages.

    Raises:
        KdistillError: if the file does not have one row per row of the split and one column per class, or its labels or
            row keys are not those of the split.
    """
    from kdistill.data.readers import logits

    file = logits.read(path, option)
    if len(file.logits) != len(split):  # known from the header, before anything is decompressed
        raise KdistillError(f"{path} has {len(file.logits):,} rows of logits (expected {len(split):,}, as the {of})")
    check_classes(file.logits.shape[1], path, dataset)
    selected = np.ones(len(split), np.bool_) if selected is None else selected
    rows, order = np.flatnonzero(selected), ""
    if file.row_keys is not None:
        rows = _find_rows(file.row_keys.read(), split.select(selected).keys(), rows, path, dataset, of)
        order = f"the rows of {path} are matched by row_keys"
    if file.labels is not None and _check_labels(file.labels.read(), split.labels[selected], rows, path, dataset, of):
        order = order or f"the labels in {path} are those of the {of}, row by row"
    if not order:
        why = "no row has a label in both" if file.labels is not None else "the file has neither labels nor row_keys"
        order = (
            f"the order of the rows of {path} is not checked ({why}); to have it checked, save row keys as well: "
            'np.savez("logits.npz", logits=logits, row_keys=kdistill.row_keys(inputs))'
        )
    ordered = _ordered(file.logits, rows, path)
    first_rows = _as_float32(next(ordered.blocks(PROBED_ROWS)), path, rows)
    probabilities = [gives_probabilities(first_rows, teacher_output, path, dataset.task)]
    return PrecomputedLogits(ordered, rows, path, order, probabilities, dataset.task)


def _find_rows(
    keys: NDArray[np.uint8], wanted: NDArray[np.uint8], rows: NDArray[np.int64], path: Path, dataset: Dataset, of: str
) -> NDArray[np.int64]:
    """Return the row of a file with each wanted key: `rows` if they have these keys, so that equal rows keep their own."""
    if np.array_equal(keys[rows], wanted):
        return rows
    rows = positions(wanted, keys)
    if missing := int((rows < 0).sum()):
        raise KdistillError(
            f"{missing:,} of the {len(wanted):,} rows of the {of} match none of the row_keys in {path} (expected "
            f"kdistill.row_keys of the inputs before any scaling: {dataset.input_dtype} rows of {dataset.input_shape})"
        )
    return rows


def _check_labels(
    labels: NDArray[Any], expected: NDArray[np.int64], rows: NDArray[np.int64], path: Path, dataset: Dataset, of: str
) -> bool:
    """Compare labels, by class number or name, with those of the split; return whether any row has both."""
    given, known = labels.reshape(-1)[rows], expected
    counted = expected != NO_LABEL
    if given.dtype.kind in "SUO":
        given, known = np.array([as_string(label) for label in given]), np.array(dataset.class_names)[expected]
    else:
        counted &= given != NO_LABEL
    wrong = counted & (given != known)
    if wrong.any():
        row = int(wrong.argmax())
        raise KdistillError(
            f"{path}: {int(wrong.sum()):,} of {int(counted.sum()):,} labels differ from those of the {of}, first in "
            f"row {rows[row]} ({given[row]}, expected {known[row]}); save the logits in the order of the {of}, or save "
            "row_keys=kdistill.row_keys(inputs) with them"
        )
    return bool(counted.any())


def _ordered(logits: Rows, rows: NDArray[np.int64], path: Path) -> Rows:
    """Return some rows of a file in a given order; they are read into memory unless they are in the file's order."""
    if (np.diff(rows) <= 0).any():
        return ArrayRows(logits.read()[rows], str(path))
    return Subset(logits, np.isin(np.arange(len(logits)), rows))


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher that knows the test rows of a dataset only, from a file of their logits.

    Attributes:
        path: the file.
        keys: (rows, 16), the key of each test row.
        values: (rows, classes), the logits.
        order: how the order of the rows was checked, as a sentence.
    """

    path: Path
    keys: NDArray[np.uint8]
    values: Floats
    order: str
    parallel: ClassVar[bool] = False

    @classmethod
    def load(cls, path: Path, teacher_output: str, dataset: Dataset) -> StoredTeacher:
        """Read the logits of the test rows of a dataset.

        Raises:
            KdistillError: as `read_logits` does.
        """
        rows = dataset.test
        stored = read_logits(path, teacher_output, dataset, rows, of="test rows", option="test-logits")
        block = stored.numbered(BLOCK_ROWS)
        values = np.concatenate([block(number) for number in range(math.ceil(len(rows) / BLOCK_ROWS))])
        return cls(path, rows.keys(), values, stored.order)

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int | None, dataset: str) -> None:
        """Check nothing: the file was read for a dataset."""

    def logits(self, inputs: NDArray[Any]) -> Floats:
        """Return the logits (rows, classes) of test rows (rows, ...); equal rows have those of the first of them.

        Raises:
            KdistillError: if a row is not a test row.
        """
        places = positions(row_keys(inputs), self.keys)
        if (places < 0).any():
            raise KdistillError(f"{self.path} has logits of the test rows only")
        return self.values[places]
