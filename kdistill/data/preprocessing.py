"""Preprocessing of tables: numbers are standardized and texts become categories, as found in the training rows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import as_strings
from kdistill.errors import KdistillError

NUMBERS = ("boolean", "integer", "floating", "mixed-integer-float", "decimal", "empty")  # in the terms of pandas
FEW_CATEGORIES = 20  # more different texts than this must repeat: otherwise they are names or IDs
MAX_CATEGORIES = 1000
LISTED_COLUMNS = 20


@dataclass(frozen=True)
class TablePreprocessing:
    """How the columns of a table become the inputs of a network.

    - A number is standardized: minus the mean of its column, divided by the standard deviation, or 0 if that is 0.
    - A text becomes one input per category of its column: 1 for its category, 0 for the others. A text that is not in the
      training rows has 0 in all of them.
    - The only column of inputs may have texts that are not categories: then they are the inputs, as they are.
    - With `missing` mean, a missing number is replaced by the mean, and a missing text has 0 in all categories, or is empty.
      Otherwise missing values are errors; with drop, leave out the rows that are not `complete` first.

    Attributes:
        inputs: the columns, in order.
        labels: the column of labels; several are separated by commas.
        missing: a value of `--missing`.
        statistics: the mean and the standard deviation (divisor: number of rows) of each column of numbers.
        categories: of each column of texts, sorted.
        is_text: whether the only input is a column of texts that are not categories.
    """

    inputs: Sequence[str]
    labels: str
    missing: str
    statistics: Mapping[str, Sequence[float]]
    categories: Mapping[str, Sequence[str]]
    is_text: bool = False

    @classmethod
    def fit(
        cls, frame: Any, training: NDArray[np.bool_], *, inputs: Sequence[str], labels: str, missing: str, where: str
    ) -> TablePreprocessing:
        """Return the preprocessing of a table.

        Args:
            frame: a pandas `DataFrame`.
            training: (rows,), which rows are training rows; at least one.
            inputs: the columns that are inputs.
            labels: the column of labels.
            missing: a value of `--missing`.
            where: what messages call the table.

        Raises:
            KdistillError: if a column has neither numbers nor categories, or missing values that are not allowed.
        """
        categories, columns = {}, {}
        for name in inputs:
            column, place = frame[name], f"{where}: column {name}"
            if is_text(column, place):
                present = column[training].dropna()
                if len(inputs) == 1 and not _can_be_categories(present.nunique(), len(present)):
                    return cls(inputs, labels, missing, {}, {}, is_text=True)
                others = [other for other in inputs if other != name]
                categories[name] = _categories(_allowed(column, place, missing), training, place, others)
            else:
                columns[name] = numbers(column, place, missing)[training]
        statistics = _statistics(np.stack(list(columns.values()), 1), list(columns), where) if columns else {}
        return cls(inputs, labels, missing, statistics, categories)

    @classmethod
    def from_json(cls, preprocessing: Mapping[str, Any]) -> TablePreprocessing | None:
        """Return the preprocessing that `as_json` wrote, e.g. to a manifest; None for data that is not a table.

        Raises:
            KdistillError: if it is damaged.
        """
        table, statistics = preprocessing.get("table"), preprocessing.get("standardised")
        if table is None:
            return None
        try:
            pairs = {str(name): (float(mean), float(deviation)) for name, (mean, deviation) in statistics.items()}  # type: ignore[union-attr]
            categories = {str(name): list(map(str, texts)) for name, texts in table.get("categories", {}).items()}
            inputs, labels, missing = list(table["inputs"]), str(table["labels"]), table.get("missing", "error")
            text = bool(table.get("text", False))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise KdistillError(f"the recorded preprocessing of a table is damaged ({error!r})") from error
        if not text and (unknown := [name for name in inputs if name not in pairs and name not in categories]):
            raise KdistillError(f"the recorded preprocessing of a table lacks the column {unknown[0]}")
        return cls(inputs, labels, missing, pairs, categories, text)

    def as_json(self) -> dict[str, Any]:
        """Return the preprocessing as JSON values, for manifests and exports."""
        return {
            "table": {
                "inputs": list(self.inputs),
                "labels": self.labels,
                "missing": self.missing,
                "categories": {name: list(texts) for name, texts in self.categories.items()},
                "text": self.is_text,
            },
            "standardised": {name: list(pair) for name, pair in self.statistics.items()},
        }

    @property
    def columns(self) -> list[str]:
        """What the inputs of the network are: the name of a column of numbers, or `COLUMN=CATEGORY`."""
        names = ([f"{name}={text}" for text in self.categories.get(name, ())] or [name] for name in self.inputs)
        return [each for group in names for each in group]

    @property
    def texts(self) -> Sequence[str]:
        """The columns that have texts, even where these look like numbers."""
        return self.inputs if self.is_text else tuple(self.categories)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that tell the user which columns are categories."""
        return tuple(
            f"{name}: {len(texts):,} categor{'y' if len(texts) == 1 else 'ies'}"
            for name, texts in self.categories.items()
        )

    def complete(self, frame: Any) -> NDArray[np.bool_]:
        """Return which rows of a `DataFrame` have a value in every input, (rows,)."""
        return np.asarray(frame[list(self.inputs)].notna().to_numpy().all(axis=1))

    def apply(self, frame: Any, where: str = "the table") -> NDArray[Any]:
        """Return the inputs of a network: numbers (rows, len(columns)), or texts (rows,).

        Args:
            frame: a pandas `DataFrame` with the columns `inputs`, and maybe others. Columns of categories must be texts where
                these look like numbers, e.g. `07`.
            where: what messages call the table.

        Raises:
            KdistillError: if a value is missing and that is not allowed, if a column of numbers has other values, or if a
                value is too far from its column's mean for float32.
        """
        if self.is_text:
            (name,) = self.inputs
            return text_inputs(frame[name], f"{where}: column {name}", self.missing)
        result = np.empty((len(frame), len(self.columns)), np.float32)
        start = 0
        for name in self.inputs:
            column, place = frame[name], f"{where}: column {name}"
            if name in self.categories:
                encoded = _one_hot(_allowed(column, place, self.missing), self.categories[name], place)
            else:
                encoded = _standardized(numbers(column, place, self.missing), self.statistics[name], place)[:, None]
            result[:, start : start + encoded.shape[1]] = encoded
            start += encoded.shape[1]
        return result


def is_text(column: Any, where: str) -> bool:
    """Return whether a column has texts rather than numbers.

    Raises:
        KdistillError: if it has neither, e.g. dates.
    """
    from pandas.api.types import infer_dtype

    kind = infer_dtype(column, skipna=True)
    if kind not in (*NUMBERS, "string"):
        raise KdistillError(
            f"{where} contains values of type {kind} (expected numbers or texts): convert it, or leave it out of --inputs"
        )
    return bool(kind == "string")


def numbers(column: Any, where: str, missing: str = "error") -> NDArray[np.float64]:
    """Return a column of numbers or booleans, (rows,); NaN for missing values if these are replaced by the mean.

    Raises:
        KdistillError: naming the first text, infinite value, or missing value that is not allowed.
    """
    import pandas as pd

    if is_text(_allowed(column, where, missing), where):
        is_string = (pd.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy()
        row = int(np.argmax(is_string))
        raise KdistillError(
            f"{where} contains {_count(is_string, 'text', column)}, {column.iloc[row]!r} (expected numbers)"
        )
    return check_finite(column, column.to_numpy(np.float64, na_value=np.nan), where)


def text_inputs(column: Any, where: str, missing: str = "error") -> NDArray[Any]:
    """Return a column of texts, (rows,); an empty text for a missing one if `missing` is mean.

    Raises:
        KdistillError: if a value is missing and that is not allowed.
    """
    return np.asarray(_allowed(column, where, missing).fillna("").to_numpy(object))


def check_finite(column: Any, values: NDArray[Any], where: str) -> NDArray[Any]:
    """Return the values of a column, which can be NaN.

    Raises:
        KdistillError: if a value is infinite.
    """
    if (infinite := np.isinf(values)).any():
        raise KdistillError(f"{where} contains {_count(infinite, 'infinite value', column)}: remove those rows")
    return values


def check_missing(column: Any, where: str, *fixes: str) -> None:
    """Refuse missing values in a column.

    Raises:
        KdistillError: with the options that allow them.
    """
    if (missing := column.isna().to_numpy()).any():
        options = " or ".join(fixes or ("--missing mean", "--missing drop"))
        raise KdistillError(f"{where} has {_count(missing, 'missing value', column)}: fill them in, or pass {options}")


def _allowed(column: Any, where: str, missing: str) -> Any:
    """Return a column, after a check that it may have the missing values that it has."""
    if missing != "mean":
        check_missing(column, where)
    return column


def _count(bad: NDArray[np.bool_], noun: str, column: Any) -> str:
    """Return how many values of a column are bad, and the row of the first one, as a phrase."""
    number = int(bad.sum())
    return f"{number:,} {noun}{'s' * (number != 1)}, first in row {column.index[int(np.argmax(bad))]}"


def _can_be_categories(different: int, rows: int) -> bool:
    return different <= FEW_CATEGORIES or (different <= MAX_CATEGORIES and 2 * different <= rows)


def _categories(column: Any, training: NDArray[np.bool_], where: str, others: Sequence[str]) -> list[str]:
    """Return the different texts of the training rows, sorted. `others` are the other inputs, for the message."""
    import pandas as pd

    present = column[training & column.notna().to_numpy()]
    texts = sorted(set(as_strings(present.unique(), where)))
    if not texts:
        raise KdistillError(f"{where} is empty in all training rows: leave it out{_inputs_without(others)}")
    if _can_be_categories(len(texts), len(present)):
        return texts
    is_string = (pd.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy()
    row = int(np.argmax(is_string))
    if 2 * is_string.sum() < len(column):
        raise KdistillError(
            f"{where} contains {_count(is_string, 'text', column)}, {column.iloc[row]!r}, among numbers: replace them by numbers, or "
            f"by empty fields and pass --missing mean, or leave the column out{_inputs_without(others)}"
        )
    raise KdistillError(
        f"{where} contains {len(texts):,} different texts in {len(present):,} rows, e.g. {texts[0][:40]!r} (expected numbers, "
        f"or categories that repeat, at most {MAX_CATEGORIES:,}): leave it out{_inputs_without(others)}"
    )


def _inputs_without(others: Sequence[str]) -> str:
    return f" with --inputs {shlex.quote(','.join(others))}" if 0 < len(others) <= LISTED_COLUMNS else " of --inputs"


def _one_hot(column: Any, categories: Sequence[str], where: str) -> NDArray[np.float32]:
    present = column.notna().to_numpy()
    index = {text: number for number, text in enumerate(categories)}
    texts = as_strings(column[present], where)
    numbers_of = np.full(len(column), -1)
    numbers_of[present] = [index.get(text, -1) for text in texts]
    return np.asarray(numbers_of[:, None] == np.arange(len(categories)), np.float32)


def _standardized(values: NDArray[np.float64], pair: Sequence[float], where: str) -> NDArray[np.float32]:
    mean, deviation = pair
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.where(np.isnan(values), 0, (values - mean) * (1 / deviation if deviation else 0)).astype(np.float32)
    if not (fits := np.isfinite(result)).all():
        raise KdistillError(
            f"{where} contains {values[int(np.argmin(fits))]:g}, which is too far from the mean of the training rows "
            f"({mean:g}) to standardize in float32: correct the value, or leave the column out of --inputs"
        )
    return result


def _statistics(values: NDArray[np.float64], names: Sequence[str], where: str) -> dict[str, list[float]]:
    """Return the mean and the standard deviation of the known values (rows, columns) of each column; 0 if it is constant."""
    if (unknown := np.isnan(values).all(axis=0)).any():
        name = names[int(np.argmax(unknown))]
        raise KdistillError(f"{where}: column {name} is empty in all training rows: leave it out of --inputs")
    with np.errstate(over="ignore", invalid="ignore"):
        means, deviations = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    deviations[np.nanmin(values, axis=0) == np.nanmax(values, axis=0)] = 0.0
    if not (fits := np.isfinite(means) & np.isfinite(deviations)).all():
        raise KdistillError(
            f"{where}: the values of column {names[int(np.argmin(fits))]} are too large to standardize: rescale them, or "
            "leave the column out of --inputs"
        )
    return {
        name: [float(mean), float(deviation)] for name, mean, deviation in zip(names, means, deviations, strict=True)
    }
