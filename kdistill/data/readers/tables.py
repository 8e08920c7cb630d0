"""`.csv` and `.parquet`: a row an example, a column a number of its input, and a column of labels; through pandas."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data.reader import Contents, Part, Reader, RowSpec, as_texts, did_you_mean
from kdistill.data.rows import TableRows
from kdistill.errors import KdistillError, first_line

LABEL = "label"
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]  # where numbers are meant; a label may be such a text
SEPARATORS = (",", ";", "\t", "|")  # of columns of text
BEST_COMPRESSION = 20  # rows in a byte of Parquet: more holds nothing but repetitions
UNDOUBTED = 1 << 30  # bytes in memory up to which a table may hold nothing but repetitions


@dataclass(frozen=True)
class TableFile:
    """A file, and its format: csv or parquet."""

    path: Path
    format: str


@dataclass(frozen=True)
class Table(Reader):
    """A table of numbers, which are to be standardised, and of labels of any values; perhaps another of test rows.

    Without `--inputs`, every column but the labels' is a part of the input. `columns` are the inputs, and `labels` the
    column of labels (if it is there), where a dataset has settled them.
    """

    columns: tuple[str, ...] | None = None
    labels: str = LABEL
    format = "a table"
    takes = ("inputs", "labels", "test-inputs", "test-fraction", "data-format")
    files = ("test-inputs",)

    def matching(self, task: RowSpec) -> Table:
        table = task.preprocessing.get("table")
        return replace(self, columns=tuple(table["inputs"]), labels=table["labels"]) if table else self

    def _file(self, place: str) -> TableFile:
        path = Path(place)
        return TableFile(path, self.options.data_format or path.suffix.lower().removeprefix("."))

    def digest(self) -> str:
        digest = workspace.digest(self.path)
        if self.options.test_inputs is None:
            return digest
        both = f"{digest} {workspace.digest(Path(self.options.test_inputs))}"
        return "sha256:" + hashlib.sha256(both.encode()).hexdigest()

    def contents(self) -> Contents:
        path = self._file(self.place)
        there = _names(path)
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
            train=_part(path, inputs, found),
            test=_part(self._file(test), inputs, labels) if test else None,
            categories=True,
            columns=inputs,
            preprocessing={"table": {"inputs": inputs, "labels": labels}},
        )


def _names(file: TableFile) -> list[str]:
    """What a table's columns are called."""
    with _pandas(file.path) as pandas:
        if file.format == "csv":
            _check_head(file.path)
            head = pandas.read_csv(file.path, nrows=0, sep=_separator(file.path), compression=None)
            return [str(name) for name in head.columns]
        from pyarrow import parquet

        return [str(name) for name in parquet.read_schema(file.path).names]


def _part(file: TableFile, inputs: Sequence[str], labels: str | None) -> Part:
    path = file.path
    wanted = [*inputs, *([labels] if labels else [])]
    there = _names(file)
    if lacking := [name for name in wanted if name not in there]:
        raise KdistillError(
            f"{path} has no column {lacking[0]}: it has {', '.join(there[:10])}{', ...' * (len(there) > 10)}"
            f"{did_you_mean(lacking[0], there)}"
        )
    with _pandas(path) as pandas, warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # what it would leave out
        frame = _csv(pandas, path, wanted, labels) if file.format == "csv" else _parquet(pandas, path, wanted)
        values = np.empty((len(frame), len(inputs)))
        for place, name in enumerate(inputs):
            hint = "leave it out of --inputs" if labels else f"say that it is the label, --labels {name}"
            values[:, place] = _numbers(pandas, frame[name], f"{path}: column {name}", hint)
        found = _labels(frame[labels], f"{path}: column {labels}") if labels else None
    missing = f"column {LABEL}, and no --labels COLUMN was given{did_you_mean(LABEL, there)}"
    return Part(
        inputs=TableRows(values, str(path)),
        labels=found,
        name="the table",
        labels_name=f"column {labels}" if labels else missing,
    )


def _csv(pandas: Any, path: Path, wanted: Sequence[str], labels: str | None) -> Any:
    return pandas.read_csv(
        path,
        sep=_separator(path),
        index_col=False,  # else rows that are longer than the head are taken as having names
        na_values={name: [""] if name == labels else MISSING for name in wanted},
        keep_default_na=False,
        low_memory=False,
        compression=None,
    )


def _parquet(pandas: Any, path: Path, wanted: Sequence[str]) -> Any:
    """Some columns of a `.parquet`, where the file is large enough for what it claims."""
    from pyarrow import parquet, types

    rows, stored = parquet.read_metadata(path).num_rows, path.stat().st_size
    if rows > BEST_COMPRESSION * stored and 8 * rows * len(wanted) > UNDOUBTED:
        raise KdistillError(
            f"{path} claims {rows:,} rows in {stored:,} bytes: it is damaged, or holds little but repeated rows"
        )
    schema = parquet.read_schema(path)
    texts = [name for name in wanted if types.is_string(kind := schema.field(name).type) or types.is_large_string(kind)]
    frame = pandas.read_parquet(path, columns=list(wanted), engine="pyarrow", read_dictionary=texts)
    for name in texts:  # one text that many rows have was read once, and stays so
        frame[name] = frame[name].astype(object)
    return frame


def _head(path: Path) -> str:
    """The first line of a CSV that is not blank, as far as its first MiB reaches."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        lines = stream.read(1 << 20).splitlines()
    return next((line for line in lines if line.strip()), "")


def _separator(path: Path) -> str:
    """What most often separates words in the head: comma, semicolon, tab, bar, or else white space."""
    line = re.sub(r'"[^"]*"', "", _head(path))
    most = max(SEPARATORS, key=line.count)
    return most if line.count(most) or not line.split()[1:] else r"\s+"


def _check_head(path: Path) -> None:
    """Refuse a CSV whose first line holds numbers, which are a row of data; columns numbered in order are fine.

    Raises:
        KdistillError: with the command that puts a head before it.
    """
    line, separator = _head(path), _separator(path)
    fields = [field.strip(" \"'") for field in line.split(None if separator == r"\s+" else separator)]
    numbers = [field for field in fields if _is_number(field)]
    if not numbers or (numbers[0].isdecimal() and numbers == [str(int(numbers[0]) + i) for i in range(len(numbers))]):
        return
    between = {r"\s+": "' '", "\t": r"$'\t'"}.get(separator, f"'{separator}'")
    label = next((place for place, field in enumerate(fields) if field not in numbers), len(fields) - 1)
    raise KdistillError(
        f"{path} has no header row: its first row holds numbers ({', '.join(numbers[:3])}); number the columns with "
        f"(seq -s {between} 0 {len(fields) - 1}; cat {shlex.quote(str(path))}) > numbered.csv, and name that of the "
        f"labels, e.g. --dataset numbered.csv --labels {label}"
    )


def _is_number(field: str) -> bool:
    """Whether a field is written in digits: the words nan and inf may be names."""
    try:
        float(field)
    except ValueError:
        return False
    return any(map(str.isdigit, field))


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
        raise KdistillError(f"{where} holds {_count(bad, 'infinite value')}, the first in row {_first(numbers)}")
    return np.asarray(numbers)


def _labels(column: Any, where: str) -> NDArray[Any]:
    """A column of labels (rows,): whole numbers, other numbers, or texts."""
    _check_missing(column, where)
    if column.dtype.kind not in "iuf":
        return as_texts(column, where)
    numbers = column.to_numpy(np.float64 if column.dtype.kind == "f" else np.int64)
    if bad := int(np.count_nonzero(~np.isfinite(numbers))):
        raise KdistillError(f"{where} holds {_count(bad, 'infinite value')}, the first in row {_first(numbers)}")
    return np.asarray(numbers)


def _check_missing(column: Any, where: str) -> None:
    if missing := int(column.isna().sum()):
        first = int(np.argmax(column.isna().to_numpy()))
        raise KdistillError(
            f"{where} has {_count(missing, 'missing value')}, the first in row {first}: fill them in, or leave out the "
            "rows"
        )


def _first(numbers: NDArray[Any]) -> int:
    """The first row that isn't finite."""
    return int(np.argmin(np.isfinite(numbers)))


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
        raise KdistillError(f"{path} can't be read as a table: {first_line(error)}") from None
