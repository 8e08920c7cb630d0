"""The interface of a dataset format: a `Reader` opens the data at one place and returns its `Contents`."""

from __future__ import annotations

import difflib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data.rows import Rows, StoredArray
from kdistill.errors import KdistillError
from kdistill.settings import ReadOptions
from kdistill.tasks import as_string

DEFAULT_READ_OPTIONS = ReadOptions()
ARRAY_NAMES = (
    "x_train",
    "y_train",
    "x_test",
    "y_test",
    "class_names",
    "weights",
)  # the first four as in Keras's mnist.npz
MAX_NAME_LENGTH = 1000  # characters of a class name
MAX_NAMES_BYTES = 64 << 20  # of class names
MAX_LABEL_BYTES = 4 << 30  # of several labels per row


@dataclass(frozen=True)
class Part:
    """The training rows or the test rows, and what messages call their inputs and labels.

    Labels (rows,) are numbers or strings as the data has them, or None. Strings have a fixed width, or are objects. Labels
    (rows, columns) are numbers; `columns` names the columns if the data does. `weights` (rows,) are numbers.
    """

    inputs: Rows
    labels: NDArray[Any] | None
    name: str = "inputs"
    labels_name: str = "labels"
    columns: Sequence[str] = ()
    weights: NDArray[Any] | None = None


@dataclass(frozen=True)
class Contents:
    """What a reader found in the data.

    Args:
        train: the training rows.
        test: the test rows, or None if the data lacks a test split.
        class_names: empty if the data does not name its classes.
        categories: whether each distinct label is a class. Otherwise only strings are, and numbers are class numbers.
        preprocessing: what was done to the inputs, as JSON values, for programs that use the network.
        warnings: lines for the user.
        notes: lines for the user about what is as expected.
    """

    train: Part
    test: Part | None = None
    class_names: Sequence[str] = ()
    categories: bool = False
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowSpec:
    """The shape and the preprocessing of a dataset's rows, which other rows must match; `labels`: if theirs are needed."""

    shape: tuple[int, ...]
    preprocessing: Mapping[str, Any]
    labels: bool = True


@dataclass(frozen=True)
class Reader(ABC):
    """Reads the data at one place, a path or a name, in one format.

    A format defines what messages call it (`format`), the options that it takes (`takes`), and which of them name files
    (`files`) or limit the cost of reading without a change of the rows (`limits`). Rows that are slow to decode are kept
    in the directory `cache`, if there is one.

    Raises:
        UsageError: for an option that the format does not take.
        KdistillError: if a file that an option names does not exist.
    """

    place: str
    options: ReadOptions = DEFAULT_READ_OPTIONS
    cache: Path | None = None
    format: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.options.allow(self.format, *self.takes, "task")
        for name, file in self._option_files().items():
            check_file(f"--{name} {file}", file)

    def _option_files(self) -> dict[str, str]:
        return {name: file for name, file in self.options.given().items() if name in self.files}

    @property
    def path(self) -> Path:
        return Path(self.place)

    def digest(self) -> str:
        """Return a SHA-256 that changes whenever the data changes, without importing TensorFlow."""
        return files_digest({"inputs": self.place, **self._option_files()})

    @abstractmethod
    def contents(self) -> Contents:
        """Open the data and read its labels. Inputs are read later, on demand.

        Raises:
            KdistillError: if the data can't be read in this format.
        """

    def matching(self, spec: RowSpec) -> Reader:  # noqa: ARG002 - most formats leave nothing open
        """Return a reader that reads rows as a dataset has them, as far as its own options do not say otherwise."""
        return self


def files_digest(files: Mapping[str, str]) -> str:
    """Return the digest of a file, or of several files by their roles."""
    digests = {role: workspace.digest(Path(file)) for role, file in files.items()}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "\n".join(f"{role} {digest}" for role, digest in digests.items())
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def array_contents(arrays: Mapping[str, StoredArray], missing: Callable[[str], str] = str) -> Contents:
    """Return the contents of data that consists of arrays with the roles `ARRAY_NAMES`.

    Args:
        arrays: the arrays that exist, by role. Their headers are checked before labels and names are read.
        missing: returns what messages call the missing labels with the role "y_train" or "y_test".

    Raises:
        KdistillError: if labels or class names have a wrong shape or type.
    """

    def part(split: str) -> Part:
        inputs, labels = arrays[f"x_{split}"], arrays.get(f"y_{split}")
        if labels is None:
            return Part(inputs, None, inputs.name, missing(f"y_{split}"))
        check_labels(labels.shape, labels.dtype, len(inputs), labels.where)
        return Part(inputs, labels.read_unchecked(), inputs.name, labels.name, weights=weights(split, len(inputs)))

    def weights(split: str, rows: int) -> NDArray[Any] | None:
        array = arrays.get("weights") if split == "train" else None
        if array is None:
            return None
        if array.shape != (rows,) or array.dtype.kind not in "biuf":
            raise KdistillError(
                f"{array.where} has shape {array.shape} of {array.dtype} (expected a number per row, ({rows},))"
            )
        return array.read_unchecked()

    class_names: list[str] = []
    if (names := arrays.get("class_names")) is not None:
        _check_length(names.dtype, names.where)
        if names.nbytes > MAX_NAMES_BYTES:
            raise KdistillError(f"{names.where} has shape {names.shape} of {names.dtype} (expected one name per class)")
        class_names = [as_string(name) for name in names.read_unchecked().reshape(-1)]
    return Contents(part("train"), part("test") if "x_test" in arrays else None, class_names)


def check_labels(shape: tuple[int, ...], dtype: np.dtype[Any], rows: int, where: str) -> None:
    """Check the header of an array of labels before reading it: a small file may claim to hold many.

    Raises:
        KdistillError: if there is not a label, or a row of labels, per row; or if labels are longer than
            `MAX_NAME_LENGTH`.
    """
    if shape[:1] != (rows,):
        count = f"{shape[0]} labels" if shape else "a single value"
        raise KdistillError(f"{where} has {count} for {rows} rows of inputs (expected one label per row)")
    _check_length(dtype, where)
    several = math.prod(shape) > rows
    if several and (len(shape) > 2 or dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize > MAX_LABEL_BYTES):
        raise KdistillError(f"{where} has shape {shape} (expected one label per row, ({rows},))")


def _check_length(dtype: np.dtype[Any], where: str) -> None:
    length = dtype.itemsize // (4 if dtype.kind == "U" else 1)
    if dtype.kind in "US" and length > MAX_NAME_LENGTH:
        raise KdistillError(f"{where} contains strings of up to {length:,} characters {_LENGTH_LIMIT}")


_LENGTH_LIMIT = f"(expected class names of at most {MAX_NAME_LENGTH:,} characters)"


def as_strings(values: Iterable[Any], where: str) -> NDArray[np.object_]:
    """Return strings or bytes as an array of objects (rows,). In an array of fixed width, one long string widens all.

    Raises:
        KdistillError: if a string is longer than `MAX_NAME_LENGTH`.
    """
    strings = [as_string(value) for value in values]
    for row, string in enumerate(strings):
        if len(string) > MAX_NAME_LENGTH:
            raise KdistillError(f"{where} contains a string of {len(string):,} characters in row {row} {_LENGTH_LIMIT}")
    return np.array(strings, object)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a hint at the most similar name, to be appended to an error; empty if none is similar."""
    by_lower = {other.lower(): other for other in names if name not in ARRAY_NAMES or other not in ARRAY_NAMES}
    similar = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[similar[0]]}?)" if similar else ""


def check_file(argument: str, place: str) -> None:
    """Check that a path leads to a regular file. A pipe or a device may never end, and can be read only once.

    Raises:
        KdistillError: naming the argument, e.g. `--dataset FILE`.
    """
    path = Path(place)
    if not path.exists():
        raise KdistillError(f"{argument}: no such file")
    if path.is_dir():
        raise KdistillError(f"{argument}: is a directory (expected a file)")
    if not path.is_file():
        raise KdistillError(f"{argument}: not a regular file (a pipe or a device): copy its contents into a file")
