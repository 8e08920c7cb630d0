"""`.npy` files: inputs and labels in separate files, which are named by options or by the layout of a directory."""

from __future__ import annotations

import tokenize
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import ARRAY_NAMES, Contents, Reader, array_contents, check_file, files_digest
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError, UsageError, one_line_errors


class NpyFiles(Reader):
    """Arrays that are files, whose paths `files_by_role` returns."""

    missing: ClassVar[Mapping[str, str]]

    @abstractmethod
    def files_by_role(self) -> dict[str, str]: ...

    def digest(self) -> str:
        return files_digest(self.files_by_role())

    def contents(self) -> Contents:
        files = self.files_by_role()
        arrays = {role: ArrayRows(mapped_array(file), file, Path(file).name) for role, file in files.items()}
        return array_contents(arrays, self.missing.__getitem__)


class Npy(NpyFiles):
    """A file of inputs, and other files of labels and of test rows."""

    format = "an .npy of inputs"
    takes = ("labels", "test-inputs", "test-labels", "test-fraction", "data-format")
    files = ("labels", "test-inputs", "test-labels")
    missing: ClassVar = {"y_train": "labels: --labels FILE.npy", "y_test": "test labels: --test-labels FILE.npy"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options.test_labels and not self.options.test_inputs:
            raise UsageError("--test-labels needs --test-inputs FILE.npy")

    def files_by_role(self) -> dict[str, str]:
        options = self.options
        paths = (self.place, options.labels, options.test_inputs, options.test_labels)
        return {role: path for role, path in zip(ARRAY_NAMES, paths, strict=False) if path}


class NpyFolder(NpyFiles):
    """A directory of `x_train.npy`, `y_train.npy`, and maybe `x_test.npy`, `y_test.npy` and `class_names.npy`."""

    format = "a directory of x_train.npy and y_train.npy"
    takes = ("test-fraction",)
    missing: ClassVar = {"y_train": "y_train.npy", "y_test": "y_test.npy"}

    def files_by_role(self) -> dict[str, str]:
        paths = {role: self.path / f"{role}.npy" for role in ARRAY_NAMES}
        files = {role: str(path) for role, path in paths.items() if path.exists()}
        for file in files.values():
            check_file(f"--dataset {file}", file)
        return files


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
            raise KdistillError(
                f"{path} is damaged: its header claims {shape} of {dtype}, which does not match its size"
            )
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
