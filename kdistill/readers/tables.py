"""`.csv` and `.parquet`: a row an example, a column a number of its input, and a column of labels; through pandas."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.errors import KdistillError, gist
from kdistill.readers import Array, Contents, Part, Reader, Task

LABEL = "label"
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]  # where numbers are meant; a label may be such a text


@dataclass(frozen=True)
class Table(Reader):
    """A table of numbers, which are to be standardised, and of labels of any values; perhaps another of test rows.

    Without `--inputs`, every column but the labels' is a part of the input. `columns` are the inputs, and `labels` the
    column of labels (if it is there), where a dataset has settled them.
    """

    columns: tuple[str, ...] | None = None
    labels: str = LABEL
    format = "a table"
    takes = ("inputs", "labels", "test-inputs", "test-fraction")
    files = ("test-inputs",)

    def suited(self, task: Task) -> Table:
        table = task.preprocessing.get("table")
        return replace(self, columns=tuple(table["inputs"]), labels=table["labels"]) if table else self

    def digest(self) -> str:
        digest = workspace.digest(self.path)
        if self.options.test_inputs is None:
            return digest
        both = f"{digest} {workspace.digest(Path(self.options.test_inputs))}"
        return "sha256:" + hashlib.sha256(both.encode()).hexdigest()

    def contents(self) -> Contents:
        there = _names(self.path)
        labels = self.options.labels or self.labels
        found = labels if self.options.labels or labels in there else None
        inputs = [name for name in there if name != labels]
        if self.options.inputs:
            inputs = self.options.inputs.split(",")
        elif self.columns:
            inputs = list(self.columns)
        if not inputs:
            raise KdistillError(f"{self.place} has no column but {labels}: inputs are the other columns")
        if labels in inputs or len(set(inputs)) < len(inputs):
            raise KdistillError(f"--inputs {','.join(inputs)} names a column twice, or that of the labels ({labels})")
        test = self.options.test_inputs
        return Contents(
            train=_part(self.path, inputs, found),
            test=_part(Path(test), inputs, labels) if test else None,
            categories=True,
            columns=inputs,
            preprocessing={"table": {"inputs": inputs, "labels": labels}},
        )


def _names(path: Path) -> list[str]:
    """What a table's columns are called."""
    with _pandas(path) as pandas:
        if path.suffix.lower() == ".csv":
            return [str(name) for name in pandas.read_csv(path, nrows=0).columns]
        from pyarrow import parquet

        return [str(name) for name in parquet.read_schema(path).names]


def _part(path: Path, inputs: Sequence[str], labels: str | None) -> Part:
    wanted = [*inputs, *([labels] if labels else [])]
    there = _names(path)
    if lacking := [name for name in wanted if name not in there]:
        raise KdistillError(
            f"{path} has no column {lacking[0]}: it has {', '.join(there[:10])}{', ...' * (len(there) > 10)}"
        )
    with _pandas(path) as pandas, warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # what it would leave out
        if path.suffix.lower() == ".csv":
            frame = pandas.read_csv(
                path,
                index_col=False,  # else rows that are longer than the head are taken as having names
                na_values={name: [""] if name == labels else MISSING for name in wanted},
                keep_default_na=False,
                low_memory=False,
            )
        else:
            frame = pandas.read_parquet(path, columns=wanted)
        values = np.empty((len(frame), len(inputs)))
        for place, name in enumerate(inputs):
            hint = "leave it out of --inputs" if labels else f"say that it is the label, --labels {name}"
            values[:, place] = _numbers(pandas, frame[name], f"{path}: column {name}", hint)
        found = _labels(frame[labels], f"{path}: column {labels}") if labels else None
    return Part(
        inputs=Array(values, str(path)),
        labels=found,
        name="the table",
        labels_name=f"column {labels}" if labels else f"column {LABEL}, and no --labels COLUMN was given",
    )


def _numbers(pandas: Any, column: Any, where: str, hint: str) -> NDArray[np.float64]:
    """A column of numbers (rows,), all of them there and finite; `hint` says what else can be done with texts."""
    _check_missing(column, where)
    if not len(column):
        return np.empty(0)
    if column.dtype.kind not in "fiub":
        no_number = pandas.to_numeric(column, errors="coerce").isna().to_numpy()
        first = int(np.argmax(no_number))
        what = f"{_count(int(no_number.sum()), 'text')}, the first {column.iloc[first]!r} in row {first}"
        raise KdistillError(
            f"{where} holds {what if no_number.any() else f'values of type {column.dtype}'}, and inputs are numbers: "
            f"encode it as such, or {hint}"
        )
    numbers = column.to_numpy(np.float64)
    if bad := int(np.count_nonzero(~np.isfinite(numbers))):
        first = int(np.argmin(np.isfinite(numbers)))
        raise KdistillError(f"{where} holds {_count(bad, 'infinite value')}, the first in row {first}")
    return np.asarray(numbers)


def _labels(column: Any, where: str) -> NDArray[Any]:
    """A column of labels (rows,): whole numbers, other numbers, or texts."""
    _check_missing(column, where)
    if column.dtype.kind in "iu":
        return np.asarray(column.to_numpy(np.int64))
    if column.dtype.kind == "f":
        numbers = column.to_numpy(np.float64)
        if np.array_equal(numbers, np.round(numbers)):
            return np.asarray(numbers.astype(np.int64))
        if len(np.unique(numbers)) > len(numbers) // 2:
            raise KdistillError(
                f"{where} holds almost as many different numbers as rows: a label is one of some classes"
            )
        return np.asarray(numbers)
    return np.array([str(value) for value in column])


def _check_missing(column: Any, where: str) -> None:
    if missing := int(column.isna().sum()):
        first = int(np.argmax(column.isna().to_numpy()))
        raise KdistillError(
            f"{where} has {_count(missing, 'missing value')}, the first in row {first}: fill them in, or leave out the "
            "rows"
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


@contextlib.contextmanager
def _pandas(path: Path) -> Iterator[Any]:
    """The library, while a file is read with it; what goes wrong becomes one line."""
    try:
        import pandas as pd
        import pyarrow as pa  # noqa: F401 - what reads .parquet, which pandas would only miss later
    except ModuleNotFoundError:
        raise KdistillError(
            f"{path}: reading tables needs pandas and pyarrow: pip install 'kdistill[tables]'"
        ) from None
    try:
        yield pd
    except (KdistillError, PermissionError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - each library's parsers have errors of their own
        raise KdistillError(f"{path} can't be read as a table: {gist(error)}") from None
