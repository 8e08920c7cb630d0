"""`.npy` files: inputs and labels in separate files, which are named by options or by the layout of a directory."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import (
    ARRAY_NAMES,
    Contents,
    Part,
    Reader,
    as_string,
    check_class_names,
    check_file,
    check_labels,
    files_digest,
)
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError, UsageError, one_line_errors


class Npy(Reader):
    """A file of inputs, and other files of labels and of test rows."""

    format = "an .npy of inputs"
    takes = ("labels", "test-inputs", "test-labels", "test-fraction", "data-format")
    files = ("labels", "test-inputs", "test-labels")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options.test_labels and not self.options.test_inputs:
            raise UsageError("--test-labels needs --test-inputs FILE.npy")

    def contents(self) -> Contents:
        options = self.options
        return Contents(
            train=_part(self.place, options.labels, "labels: --labels FILE.npy"),
            test=_part(options.test_inputs, options.test_labels, "test labels: --test-labels FILE.npy")
            if options.test_inputs
            else None,
        )


class NpyFolder(Reader):
    """A directory of `x_train.npy`, `y_train.npy`, and maybe `x_test.npy`, `y_test.npy` and `class_names.npy`."""

    format = "a directory of x_train.npy and y_train.npy"
    takes = ("test-fraction",)

    def _files(self) -> dict[str, str]:
        """Return the paths of the arrays that exist, by name."""
        paths = {name: self.path / f"{name}.npy" for name in ARRAY_NAMES}
        files = {name: str(path) for name, path in paths.items() if path.exists()}
        for file in files.values():
            check_file("dataset", file)
        return files

    def digest(self) -> str:
        return files_digest(self._files())

    def contents(self) -> Contents:
        files = self._files()
        class_names: list[str] = []
        if file := files.get("class_names"):
            names = mapped_array(file)
            check_class_names(names.shape, names.dtype, file)
            class_names = [as_string(name) for name in names.reshape(-1)]
        return Contents(
            train=_part(files["x_train"], files.get("y_train"), "y_train.npy"),
            test=_part(files["x_test"], files.get("y_test"), "y_test.npy") if "x_test" in files else None,
            class_names=class_names,
        )


def _part(inputs_file: str, labels_file: str | None, missing: str) -> Part:
    """Open inputs and read labels. `missing` is what an error calls labels that are not there."""
    inputs = ArrayRows(mapped_array(inputs_file), inputs_file)
    if labels_file is None:
        return Part(inputs, None, Path(inputs_file).name, missing)
    labels = mapped_array(labels_file)
    check_labels(labels.shape, labels.dtype, inputs.shape[0] if inputs.shape else 0, labels_file)
    return Part(inputs, np.array(labels), Path(inputs_file).name, Path(labels_file).name)


def mapped_array(file: str) -> NDArray[Any]:
    """Return the array of an `.npy` file, memory-mapped.

    Raises:
        KdistillError: if the file is damaged, or if its array needs pickle.
    """
    path = Path(file)
    with one_line_errors(f"{path} is not a readable .npy file"):
        with path.open("rb") as stream:
            shape, _, dtype = read_header(stream)
            start = stream.tell()
        if dtype.hasobject:
            raise KdistillError(f"{path} has type {dtype}, which needs pickle: save plain numbers instead")
        if start + dtype.itemsize * int(np.prod(shape, dtype=object)) != path.stat().st_size:
            raise KdistillError(f"{path} is damaged: its header claims {shape} of {dtype}, which is not its size")
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an array's shape, whether it is in Fortran order, and its type from the start of an `.npy` stream.

    Raises:
        ValueError: if the stream does not start with a valid header.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
    except (SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"its header is damaged ({error})") from None
    if any(length < 0 for length in shape):
        raise ValueError(f"its header is damaged (shape {shape})")
    return tuple(shape), bool(fortran_order), dtype
