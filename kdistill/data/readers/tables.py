"""`.csv` and `.parquet` tables: one row per example, columns of numbers as inputs, one column of labels. Uses pandas."""

from __future__ import annotations

import contextlib
import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import Contents, Part, Reader, RowSpec, as_strings, did_you_mean
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError, one_line_errors

DEFAULT_LABELS = "label"
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]  # in columns of numbers; labels may be such strings
SEPARATORS = (",", ";", "\t", "|")
BEST_COMPRESSION = 20  # rows per byte of Parquet; only repeated rows compress better
TRUSTED_BYTES = 1 << 30  # in memory; up to this size, a table may consist of repeated rows


@dataclass(frozen=True)
class Table(Reader):
    """A table of numbers, which will be standardized, and of labels; maybe another table of test rows.

    Without `--inputs`, every column except the labels is an input.

    Args:
        columns: the inputs of the dataset, for the transfer set of a dataset.
        labels: the column of labels; a transfer set may lack it.
    """

    columns: tuple[str, ...] | None = None
    labels: str = DEFAULT_LABELS
    format = "a table"
    takes = ("inputs", "labels", "row-weights", "test-inputs", "test-fraction", "data-format")
    files = ("test-inputs",)

    def matching(self, spec: RowSpec) -> Table:
        table = spec.preprocessing.get("table")
        if not table:
            return self
        return replace(self, columns=tuple(table["inputs"]), labels=table["labels"] if spec.labels else "")

    def contents(self) -> Contents:
        options = self.options
        names = self._column_names(self.path)
        label_columns = _label_columns(options.labels or self.labels, names)
        inputs = [name for name in names if name not in (*label_columns, options.row_weights)]
        if options.inputs:
            inputs = options.inputs.split(",")
        elif self.columns:
            inputs = list(self.columns)
        if not inputs:
            raise KdistillError(
                f"{self.place} has no column besides the labels, {','.join(label_columns)} (expected inputs)"
            )
        if set(label_columns) & set(inputs) or len(set(inputs)) < len(inputs):
            labels = ",".join(label_columns)
            raise KdistillError(f"--inputs {','.join(inputs)} repeats a column or names the labels ({labels})")
        has_labels = bool(options.labels) or label_columns[0] in names
        return Contents(
            train=self._part(self.path, inputs, label_columns if has_labels else (), options.row_weights),
            test=self._part(Path(options.test_inputs), inputs, label_columns) if options.test_inputs else None,
            categories=True,
            columns=inputs,
            preprocessing={"table": {"inputs": inputs, "labels": ",".join(label_columns)}},
        )

    def _is_csv(self, path: Path) -> bool:
        return (self.options.data_format or path.suffix.lower()).removeprefix(".") == "csv"

    def _column_names(self, path: Path) -> list[str]:
        with _pandas_errors(path):
            import pandas as pd
            from pyarrow import parquet

            if not self._is_csv(path):
                return [str(name) for name in parquet.read_schema(path).names]
            _check_header(path)
            return [str(name) for name in pd.read_csv(path, nrows=0, sep=_separator(path), compression=None).columns]

    def _part(self, path: Path, inputs: Sequence[str], labels: Sequence[str], weights: str | None = None) -> Part:
        columns = [*inputs, *labels, *([weights] if weights else [])]
        names = self._column_names(path)
        if missing := [name for name in columns if name not in names]:
            raise KdistillError(
                f"{path} does not have the column {missing[0]} (expected one of {', '.join(names[:10])}{', ...' * (len(names) > 10)})"
                f"{did_you_mean(missing[0], names)}"
            )
        with _pandas_errors(path), warnings.catch_warnings():
            frame = _read_csv(path, columns, labels) if self._is_csv(path) else _read_parquet(path, columns)
            values = np.empty((len(frame), len(inputs)))
            for index, name in enumerate(inputs):
                fix = "leave it out of --inputs" if labels else f"pass --labels {name} if it is the label"
                values[:, index] = _numbers(frame[name], f"{path}: column {name}", fix)
            label_values = _label_values(frame, labels, path)
            fix = "name a column of numbers with --row-weights"
            row_weights = _numbers(frame[weights], f"{path}: column {weights}", fix) if weights else None
        no_labels = f"column {DEFAULT_LABELS}, and --labels COLUMN is missing{did_you_mean(DEFAULT_LABELS, names)}"
        return Part(
            inputs=ArrayRows(values, str(path), check=False),
            labels=label_values,
            name="the table",
            labels_name=f"column {','.join(labels)}" if labels else no_labels,
            columns=labels,
            weights=row_weights,
        )


def _label_columns(option: str, names: Sequence[str]) -> list[str]:
    """Return the columns that an option names: one, or several separated by commas. A name may have a comma itself."""
    return [option] if option in names else option.split(",")


def _read_csv(path: Path, columns: Sequence[str], labels: Sequence[str]) -> Any:
    import pandas as pd

    warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas warns of values that it drops
    return pd.read_csv(
        path,
        sep=_separator(path),
        index_col=False,  # otherwise the first values of rows longer than the header become row names
        na_values={name: [""] if [name] == list(labels) else MISSING for name in columns},
        keep_default_na=False,
        low_memory=False,
        compression=None,
    )


def _read_parquet(path: Path, columns: Sequence[str]) -> Any:
    """Read some columns, unless the file claims far more rows than a file of its size can hold."""
    import pandas as pd
    from pyarrow import parquet, types

    rows, size = parquet.read_metadata(path).num_rows, path.stat().st_size
    if rows > BEST_COMPRESSION * size and 8 * rows * len(columns) > TRUSTED_BYTES:
        raise KdistillError(
            f"{path} claims {rows:,} rows in {size:,} bytes: it is damaged, or nearly all rows are equal"
        )
    kinds = {name: parquet.read_schema(path).field(name).type for name in columns}
    strings = [name for name, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)]
    frame = pd.read_parquet(path, columns=list(columns), engine="pyarrow", read_dictionary=strings)
    for name in strings:  # equal strings are read once, and share one object
        frame[name] = frame[name].astype(object)
    return frame


def _header(path: Path) -> str:
    """Return the first line of a CSV that is not blank, from its first MiB."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        lines = stream.read(1 << 20).splitlines()
    return next((line for line in lines if line.strip()), "")


def _separator(path: Path) -> str:
    """Return the most frequent separator in the header: comma, semicolon, tab, bar, or else white space."""
    line = re.sub(r'"[^"]*"', "", _header(path))
    separator = max(SEPARATORS, key=line.count)
    return separator if separator in line or not line.split()[1:] else r"\s+"


def _check_header(path: Path) -> None:
    """Check that the first line of a CSV names the columns. Consecutive integers are names; other numbers are data.

    Raises:
        KdistillError: with the command that adds a header.
    """
    separator = _separator(path)
    fields = [field.strip(" \"'") for field in _header(path).split(None if separator == r"\s+" else separator)]
    numbers = [field for field in fields if _is_number(field)]
    if not numbers or (numbers[0].isdecimal() and numbers == [str(int(numbers[0]) + i) for i in range(len(numbers))]):
        return
    quoted = {r"\s+": "' '", "\t": r"$'\t'"}.get(separator, f"'{separator}'")
    label = next((index for index, field in enumerate(fields) if field not in numbers), len(fields) - 1)
    raise KdistillError(
        f"{path} has no header row, its first row contains numbers ({', '.join(numbers[:3])}): number the columns with "
        f"(seq -s {quoted} 0 {len(fields) - 1}; cat {shlex.quote(str(path))}) > numbered.csv, and name the column of "
        f"labels, e.g. --dataset numbered.csv --labels {label}"
    )


def _is_number(field: str) -> bool:
    """Return whether a field is a number in digits; nan and inf may be names."""
    with contextlib.suppress(ValueError):
        float(field)
        return any(map(str.isdigit, field))
    return False


def _numbers(column: Any, where: str, fix: str) -> NDArray[np.float64]:
    """Return a column of finite numbers (rows,). `fix` says what to do with strings."""
    import pandas as pd

    _check_missing(column, where)
    if not len(column):
        return np.empty(0)
    if column.dtype.kind not in "fiub":
        is_string = pd.to_numeric(column, errors="coerce").isna().to_numpy()
        row = int(np.argmax(is_string))
        strings = f"{_count(is_string, 'string')}, {column.iloc[row]!r}"
        values = strings if is_string.any() else f"values of type {column.dtype}"
        raise KdistillError(f"{where} contains {values} (expected numbers): encode it as numbers, or {fix}")
    return _finite(column.to_numpy(np.float64), where)


def _labels(column: Any, where: str) -> NDArray[Any]:
    """Return a column of labels (rows,): integers, floats or strings."""
    _check_missing(column, where)
    if column.dtype.kind not in "iuf":
        return as_strings(column, where)
    return _finite(column.to_numpy(np.float64 if column.dtype.kind == "f" else np.int64), where)


def _label_values(frame: Any, labels: Sequence[str], path: Path) -> NDArray[Any] | None:
    """Return the labels of a frame: (rows,) of one column, (rows, columns) numbers of several, None without any."""
    if len(labels) > 1:
        return np.stack(
            [_numbers(frame[name], f"{path}: column {name}", "leave it out of --labels") for name in labels], 1
        )
    return _labels(frame[labels[0]], f"{path}: column {labels[0]}") if labels else None


def _finite(values: NDArray[Any], where: str) -> NDArray[Any]:
    if (infinite := ~np.isfinite(values)).any():
        raise KdistillError(f"{where} contains {_count(infinite, 'infinite value')}: remove those rows")
    return values


def _check_missing(column: Any, where: str) -> None:
    if (missing := column.isna().to_numpy()).any():
        raise KdistillError(f"{where} has {_count(missing, 'missing value')}: fill them in, or remove those rows")


def _count(bad: NDArray[np.bool_], noun: str) -> str:
    number = int(bad.sum())
    return f"{number:,} {noun}{'s' * (number != 1)}, first in row {int(np.argmax(bad))}"


@contextlib.contextmanager
def _pandas_errors(path: Path) -> Iterator[None]:
    """Check that pandas is installed, and report any error in reading a file with it as one line."""
    try:
        import pandas as pd  # noqa: F401
        import pyarrow as pa  # noqa: F401 - pandas misses it only when it reads a .parquet
    except ModuleNotFoundError:
        raise KdistillError(f"{path}: tables need pandas and pyarrow: pip install 'kdistill[tables]'") from None
    with one_line_errors(
        f"{path} can't be read as a table", fix="save it again with a header row and a row per example"
    ):
        yield
