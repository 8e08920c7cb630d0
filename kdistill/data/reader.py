"""The interface of a dataset format: a `Reader` opens the data at one place and returns its `Contents`."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.data.rows import Rows
from kdistill.errors import KdistillError
from kdistill.settings import ReadOptions

DEFAULT_READ_OPTIONS = ReadOptions()
LAYOUT = ("x_train", "y_train", "x_test", "y_test", "class_names")  # what arrays are called, unless options name others
MOST_TEXT = 1000  # characters of a class's name
MOST_READ = 64 << 20  # bytes of class names, and of a matrix of labels, which is read only to say what is wrong with it


@dataclass(frozen=True)
class Part:
    """Inputs, and their labels as they were found: one a row, numbers or texts; None where there are none.

    Texts are arrays of fixed width or, from `texts`, of objects.

    `name` and `labels_name` are what the two are called where they come from.
    """

    inputs: Rows
    labels: NDArray[Any] | None
    name: str = "inputs"
    labels_name: str = "labels"


@dataclass(frozen=True)
class Contents:
    """What a reader found. `test` is None where the data has no test part; `class_names` is empty where it has none.

    With `categories`, as where they are texts, labels are any values, of which each is a class; otherwise they are
    class numbers from 0. `columns` names the values in a row, where these are a table's: each column has a scale of
    its own, and is to be standardised. `preprocessing` is what else has to be done to an input before the network
    sees it, as JSON can say it. `warnings` are lines for the user about data that is read all the same.
    """

    train: Part
    test: Part | None = None
    class_names: Sequence[str] = ()
    categories: bool = False
    columns: Sequence[str] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def by_name(self) -> bool:
        """Whether labels name their classes, and are no class numbers."""
        return self.categories or (self.train.labels is not None and self.train.labels.dtype.kind in "USO")


@dataclass(frozen=True)
class RowSpec:
    """What a dataset's rows are like, where a transfer set must be like them."""

    shape: tuple[int, ...]
    preprocessing: Mapping[str, Any]


@dataclass(frozen=True)
class Reader(ABC):
    """One format's reader of one place.

    `format` is what it is called in messages, `takes` the options that it takes, `files` those that name files, and
    `limits` those that bound what reading may cost and change nothing that is read. `cache` is a directory for rows that
    are slow to decode; without one they are decoded each time they are read.

    Raises:
        UsageError: if it is given an option that it does not take.
        KdistillError: if a file that an option names is not there.
    """

    place: str
    options: ReadOptions = DEFAULT_READ_OPTIONS
    cache: Path | None = None
    format: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.options.allow(self.format, *self.takes)
        for name, file in self.options.given().items():
            if name in self.files:
                check_file(name, file)

    @property
    def path(self) -> Path:
        return Path(self.place)

    @abstractmethod
    def digest(self) -> str:
        """What stands for the data: a SHA-256 that changes when it does; cheap, and without TensorFlow."""

    @abstractmethod
    def contents(self) -> Contents:
        """Open the data: labels are read, inputs when they are asked for.

        Raises:
            KdistillError: if it can't be read as what it should be, in one line.
        """

    def matching(self, task: RowSpec) -> Reader:  # noqa: ARG002 - most formats leave nothing open
        """The same, reading as a task's dataset was read what its own options leave open."""
        return self


def check_labels(shape: tuple[int, ...], dtype: np.dtype[Any], rows: int, where: str) -> None:
    """Refuse labels by their header alone, before any of them is read: a small file may claim many.

    Raises:
        KdistillError: if there is not one label a row, or labels are longer than `MOST_TEXT` or a huge matrix.
    """
    if shape[:1] != (rows,):
        what = f"{shape[0]} labels" if shape else "one value"
        raise KdistillError(f"{where} has {what} for {rows} rows of inputs")
    _check_text(dtype, where)
    if math.prod(shape) > rows and (dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize > MOST_READ):
        raise KdistillError(f"{where} has shape {shape}: labels are one class per row, ({rows},)")


def check_names(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Refuse class names by their header alone, as `check_labels` does labels.

    Raises:
        KdistillError: if they are longer than `MOST_TEXT`, or too many.
    """
    _check_text(dtype, where)
    if math.prod(shape) * dtype.itemsize > MOST_READ:
        raise KdistillError(f"{where} claims {shape} of {dtype}: it needs one name per class")


def _check_text(dtype: np.dtype[Any], where: str) -> None:
    length = dtype.itemsize // (4 if dtype.kind == "U" else 1)
    if dtype.kind in "US" and length > MOST_TEXT:
        raise KdistillError(
            f"{where} holds texts of up to {length:,} characters: a class's name has {MOST_TEXT:,} at most"
        )


def as_texts(values: Iterable[Any], where: str) -> NDArray[np.object_]:
    """Texts, which may be bytes, as objects (rows,): in an array of fixed width a single long one would widen all.

    Raises:
        KdistillError: if one is longer than `MOST_TEXT`.
    """
    found = [as_text(value) for value in values]
    if long := [row for row, value in enumerate(found) if len(value) > MOST_TEXT]:
        row = long[0]
        raise KdistillError(
            f"{where} holds a text of {len(found[row]):,} characters in row {row}: a class's name has {MOST_TEXT:,} at "
            "most"
        )
    return np.array(found, object)


def explain_label_matrix(labels: NDArray[Any], fix: str) -> str:
    """What is wrong with labels (rows, ...) of several numbers each, in words.

    Args:
        labels: of some rows.
        fix: what makes class numbers of one-hot labels.
    """
    flat = labels.reshape(len(labels), math.prod(labels.shape[1:]))
    if not flat.size or flat.dtype.kind not in "biuf" or not np.isin(flat, (0, 1)).all():
        return "labels are one class per row, of shape (rows,)"
    ones = flat.astype(bool).sum(axis=1)
    if (ones == 1).all():
        return f"one-hot labels become class numbers by {fix}"
    row = int(np.argmax(ones != 1))
    return f"multi-label data is not supported: row {row} has {ones[row]} ones, and each row needs exactly one class"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint at the name that may have been meant, to be put after a message; empty where none is near."""
    by_lower = {other.lower(): other for other in names if name not in LAYOUT or other not in LAYOUT}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def check_file(option: str, place: str) -> None:
    """Refuse what isn't a regular file, or a link to one: a pipe or a device may never end, and is read only once.

    Raises:
        KdistillError: naming the option.
    """
    path = Path(place)
    if not path.exists():
        raise KdistillError(f"--{option} {place}: there is no such file")
    if path.is_dir():
        raise KdistillError(f"--{option} {place}: it is a directory, and a file is needed")
    if not path.is_file():
        raise KdistillError(f"--{option} {place}: it is not a regular file (a pipe or a device): copy it into a file")


def as_text(value: Any) -> str:
    """A label or a name, which may be bytes, as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
