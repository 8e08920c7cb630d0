"""`.csv` and `.parquet` tables: one row per example, columns of numbers or texts as inputs, and labels. Uses pandas."""

from __future__ import annotations

import contextlib
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.preprocessing import (
    TablePreprocessing,
    check_finite,
    check_missing,
    is_text,
    numbers,
    text_inputs,
)
from kdistill.data.reader import Contents, Part, Reader, RowSpec, as_strings, did_you_mean
from kdistill.data.rows import ArrayRows, held_out
from kdistill.errors import KdistillError, one_line_errors

DEFAULT_LABELS = "label"
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]  # in columns of numbers; labels may be such strings
SEPARATORS = (",", ";", "\t", "|")
BEST_COMPRESSION = 20  # rows per byte of Parquet; only repeated rows compress better
TRUSTED_BYTES = 1 << 30  # in memory; up to this size, a table may consist of repeated rows


@dataclass(frozen=True)
class _Columns:
    """Columns of a table as pandas read them, which are inputs, labels and row weights, and a line for the user."""

    path: Path
    frame: Any
    inputs: Sequence[str]
    labels: Sequence[str]
    weights: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Table(Reader):
    """A table of numbers and categories, and of labels; maybe another table of test rows.

    Without `--inputs`, every column except the labels is an input.

    Args:
        preprocessing: that of a dataset, to read other rows as it has them, maybe without labels; None for a dataset.
        unscaled: whether numbers stay as they are, for rows of a dataset that is not a table.
    """

    preprocessing: TablePreprocessing | None = None
    unscaled: bool = False
    format = "a table"
    takes = ("inputs", "labels", "row-weights", "test-inputs", "test-fraction", "missing", "data-format")
    files = ("test-inputs",)

    def matching(self, spec: RowSpec) -> Table:
        preprocessing = TablePreprocessing.from_json(spec.preprocessing)
        if preprocessing and not spec.labels:  # no row is left out, so that row numbers stay what they are in the table
            missing = "error" if preprocessing.missing == "drop" else preprocessing.missing
            preprocessing = replace(preprocessing, labels="", missing=missing)
        return replace(self, preprocessing=preprocessing, unscaled=preprocessing is None)

    def contents(self) -> Contents:
        options, known = self.options, self.preprocessing
        names = self._column_names(self.path)
        label_columns = _label_columns(options.labels or (known.labels if known else DEFAULT_LABELS), names)
        inputs = [name for name in names if name not in (*label_columns, options.row_weights)]
        if options.inputs:
            inputs = options.inputs.split(",")
        elif known:
            inputs = list(known.inputs)
        if not inputs:
            raise KdistillError(
                f"{self.place} has no column besides the labels, {','.join(label_columns)} (expected inputs)"
            )
        if set(label_columns) & set(inputs) or len(set(inputs)) < len(inputs):
            labels = ",".join(label_columns)
            raise KdistillError(f"--inputs {','.join(inputs)} repeats a column or names the labels ({labels})")
        has_labels = bool(options.labels) or label_columns[0] in names
        train = self._read(self.path, inputs, label_columns if has_labels else [], options.row_weights)
        test = self._read(Path(options.test_inputs), inputs, label_columns) if options.test_inputs else None
        preprocessing = self._preprocessing(train, inputs, ",".join(label_columns))
        notes = [part.note for part in (train, test) if part and part.note]
        return Contents(
            train=self._part(train, preprocessing),
            test=self._part(test, preprocessing) if test else None,
            categories=True,
            preprocessing=preprocessing.as_json() if preprocessing else {},
            notes=(*(preprocessing.notes if preprocessing and not known else ()), *notes),
        )

    @property
    def _missing(self) -> str:
        return self.options.missing or (self.preprocessing.missing if self.preprocessing else "error")

    def _preprocessing(self, train: _Columns, inputs: Sequence[str], labels: str) -> TablePreprocessing | None:
        """Return the preprocessing of the dataset, or that of the training rows among `train`; None for unscaled rows."""
        if self.unscaled:
            return None
        if known := self.preprocessing:
            if len(inputs) != len(known.inputs):
                raise KdistillError(
                    f"--inputs {','.join(inputs)} names {len(inputs)} columns (expected {len(known.inputs)}, for the inputs "
                    f"{', '.join(known.inputs)} of the dataset)"
                )
            return replace(known, missing=self._missing)
        training, fraction = np.ones(len(train.frame), bool), self.options.test_fraction
        if fraction is not None and not self.options.test_inputs:
            training = ~held_out(len(training), fraction)
        if not training.any():  # too few rows for a fraction: refused later
            training[:] = True
        with _pandas_errors(train.path):
            return TablePreprocessing.fit(
                train.frame, training, inputs=inputs, labels=labels, missing=self._missing, where=str(train.path)
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

    def _read(self, path: Path, inputs: Sequence[str], labels: Sequence[str], weights: str | None = None) -> _Columns:
        """Read columns of a table, without the rows that `--missing drop` leaves out."""
        columns = [*inputs, *labels, *([weights] if weights else [])]
        names = self._column_names(path)
        if missing := [name for name in columns if name not in names]:
            raise KdistillError(
                f"{path} does not have the column {missing[0]} (expected one of {', '.join(names[:10])}{', ...' * (len(names) > 10)})"
                f"{did_you_mean(missing[0], names)}"
            )
        texts = self.preprocessing.texts if self.preprocessing else ()
        with _pandas_errors(path), warnings.catch_warnings():
            frame = _read_csv(path, columns, labels, texts) if self._is_csv(path) else _read_parquet(path, columns)
            if not len(frame):
                raise KdistillError(f"{path} is empty (expected at least one row)")
            if self._missing != "drop":
                return _Columns(path, frame, inputs, labels, weights)
            complete = frame[columns].notna().to_numpy().all(axis=1)
            if not complete.any():
                raise KdistillError(
                    f"{path}: --missing drop leaves none of the {len(frame):,} rows: pass --missing mean"
                )
            dropped = int((~complete).sum())
            note = f"{path.name}: --missing drop leaves out {dropped:,} of {len(frame):,} rows"
            return _Columns(path, frame[complete], inputs, labels, weights, note if dropped else "")

    def _part(self, columns: _Columns, preprocessing: TablePreprocessing | None) -> Part:
        path, frame, labels, where = columns.path, columns.frame, columns.labels, str(columns.path)
        with _pandas_errors(path):
            label_values = _label_values(frame, labels, path)
            weights = columns.weights
            row_weights = numbers(frame[weights], f"{path}: column {weights}") if weights else None
            if preprocessing:
                renamed = frame[list(columns.inputs)].set_axis(list(preprocessing.inputs), axis=1)
                inputs: NDArray[Any] = preprocessing.apply(renamed, where)
            elif len(columns.inputs) == 1 and is_text(frame[columns.inputs[0]], where):
                inputs = text_inputs(frame[columns.inputs[0]], f"{path}: column {columns.inputs[0]}")
            else:
                inputs = np.stack([numbers(frame[name], f"{path}: column {name}") for name in columns.inputs], 1)
        names = self._column_names(path)
        texts = list(preprocessing.texts) if preprocessing else []
        no_labels = (
            f"column {DEFAULT_LABELS}, and --labels COLUMN is missing{f', e.g. --labels {texts[-1]}' if texts else ''}"
            f"{did_you_mean(DEFAULT_LABELS, names)}"
        )
        return Part(
            inputs=ArrayRows(inputs, where),
            labels=label_values,
            name="the table",
            labels_name=f"column {','.join(labels)}" if labels else no_labels,
            columns=labels,
            weights=row_weights,
        )


def _label_columns(option: str, names: Sequence[str]) -> list[str]:
    """Return the columns that an option names: one, or several separated by commas. A name may have a comma itself."""
    return [option] if option in names else option.split(",")


def _read_csv(path: Path, columns: Sequence[str], labels: Sequence[str], texts: Iterable[str]) -> Any:
    """Read a CSV; the columns `texts` have texts even where these look like numbers."""
    import pandas as pd

    warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas warns of values that it drops
    return pd.read_csv(
        path,
        sep=_separator(path),
        index_col=False,  # otherwise the first values of rows longer than the header become row names
        na_values={name: [""] if [name] == list(labels) else MISSING for name in columns},
        keep_default_na=False,
        dtype=dict.fromkeys(texts, str),
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
    is_string = (types.is_string, types.is_large_string, types.is_dictionary)
    strings = [name for name, kind in kinds.items() if any(check(kind) for check in is_string)]
    frame = pd.read_parquet(path, columns=list(columns), engine="pyarrow", read_dictionary=strings)
    for name in strings:  # equal strings are read once, and share one object
        frame[name] = frame[name].astype(object)
    return frame.reset_index(drop=True)


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


def _labels(column: Any, where: str) -> NDArray[Any]:
    """Return a column of labels (rows,): integers, floats or strings."""
    check_missing(column, where, "--missing drop")
    if column.dtype.kind not in "iuf":
        return as_strings(column, where)
    return check_finite(column, column.to_numpy(np.float64 if column.dtype.kind == "f" else np.int64), where)


def _label_values(frame: Any, labels: Sequence[str], path: Path) -> NDArray[Any] | None:
    """Return the labels of a frame: (rows,) of one column, (rows, columns) numbers of several, None without any."""
    if len(labels) > 1:
        return np.stack([numbers(frame[name], f"{path}: column {name}") for name in labels], 1)
    return _labels(frame[labels[0]], f"{path}: column {labels[0]}") if labels else None


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
