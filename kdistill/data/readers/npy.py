"""`.npy`: inputs and labels in a file each, named by options or, in a directory, as an `.npz` names its arrays."""

from __future__ import annotations

import hashlib
import tokenize
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data.reader import Contents, Part, Reader, as_text, check_file, check_labels, check_names
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError, UsageError, first_line

Header = tuple[tuple[int, ...], bool, np.dtype[Any]]


class Npy(Reader):
    """A file of inputs, and others of labels and of a test part."""

    format = "an .npy of inputs"
    takes = ("labels", "test-inputs", "test-labels", "test-fraction", "data-format")
    files = ("labels", "test-inputs", "test-labels")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options.test_labels and not self.options.test_inputs:
            raise UsageError("--test-labels are of --test-inputs: give those too")

    def digest(self) -> str:
        given = self.options.given()
        return _digest({"inputs": self.place, **{name: given[name] for name in self.files if name in given}})

    def contents(self) -> Contents:
        options = self.options
        train = _part(self.place, options.labels, "labels: --labels FILE.npy")
        if options.test_inputs is None:
            return Contents(train)
        return Contents(train, _part(options.test_inputs, options.test_labels, "test labels: --test-labels FILE.npy"))


class NpyFolder(Reader):
    """A directory of `x_train.npy`, `y_train.npy`, and perhaps `x_test.npy`, `y_test.npy` and `class_names.npy`."""

    format = "a directory of x_train.npy and y_train.npy"
    takes = ("test-fraction",)

    def _file(self, name: str) -> str | None:
        path = self.path / f"{name}.npy"
        if not path.exists():
            return None
        check_file("dataset", str(path))
        return str(path)

    def digest(self) -> str:
        names = ("x_train", "y_train", "x_test", "y_test", "class_names")
        return _digest({name: path for name in names if (path := self._file(name))})

    def contents(self) -> Contents:
        test, names = self._file("x_test"), self._file("class_names")
        return Contents(
            train=_part(str(self.path / "x_train.npy"), self._file("y_train"), "y_train.npy"),
            test=_part(test, self._file("y_test"), "y_test.npy") if test else None,
            class_names=_class_names(names) if names else (),
        )


def _digest(files: dict[str, str]) -> str:
    parts = [f"{role} {workspace.digest(Path(file))}" for role, file in files.items()]
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _part(inputs: str, labels: str | None, missing: str) -> Part:
    """`missing` is what the message calls labels that there are none of."""
    rows, name = ArrayRows(mapped(inputs), inputs), Path(inputs).name
    if labels is None:
        return Part(rows, None, name, missing)
    found = mapped(labels)
    check_labels(found.shape, found.dtype, rows.shape[0] if rows.shape else 0, labels)
    return Part(rows, np.array(found), name, Path(labels).name)


def _class_names(file: str) -> list[str]:
    names = mapped(file)
    check_names(names.shape, names.dtype, file)
    return [as_text(name) for name in names.reshape(-1)]


def mapped(file: str) -> NDArray[Any]:
    """The array of an `.npy`, mapped into memory.

    Raises:
        KdistillError: if its header claims what the file does not hold, or would need pickle.
    """
    path = Path(file)
    try:
        with path.open("rb") as stream:
            shape, _, dtype = header(stream)
            start = stream.tell()
        if dtype.hasobject:
            raise KdistillError(f"{path} is of type {dtype}, which only pickle can read: save plain numbers")
        if start + dtype.itemsize * int(np.prod(shape, dtype=object)) != path.stat().st_size:
            raise KdistillError(f"{path} claims {shape} of {dtype}, which is not what the file holds: it is damaged")
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise KdistillError(f"{path} is not a readable .npy: {first_line(error)}") from None


def header(stream: IO[bytes]) -> Header:
    """An array's shape, whether it is in Fortran order, and its type, from the head of a stream.

    Raises:
        ValueError: if there is no such head.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"its header is damaged ({error})") from None
    if any(length < 0 for length in shape):
        raise ValueError(f"its header is damaged (shape {shape})")
    return tuple(shape), bool(fortran), dtype
