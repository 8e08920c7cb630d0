"""`.npz` files with the arrays of Keras's mnist.npz: `x_train`, `y_train`, `x_test`, `y_test` and maybe `class_names`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import ARRAY_NAMES, Contents, Reader, array_contents, did_you_mean
from kdistill.data.readers.npy import read_header
from kdistill.data.rows import StoredArray, check_values, native_dtype
from kdistill.errors import KdistillError, one_line_errors

BEST_COMPRESSION = 1100  # deflate reaches 1032


class Npz(Reader):
    """A file of named arrays. A transfer set needs only `x_train`."""

    format = "an .npz, whose arrays are x_train, y_train, x_test and y_test"
    takes = ("test-fraction", "data-format")

    def contents(self) -> Contents:
        with readable(self.path), zipfile.ZipFile(self.path) as archive:
            names = array_names(archive)
            if "x_train" not in names:
                raise KdistillError(
                    f"{self.path} has no array x_train, only {', '.join(names) or 'an empty archive'} (expected x_train, "
                    f"y_train, x_test and y_test): save the arrays with these names"
                )
            arrays = {name: open_array(archive, self.path, name) for name in ARRAY_NAMES if name in names}
            return array_contents(arrays, lambda name: name + did_you_mean(name, names))


@dataclass(frozen=True)
class NpzRows(StoredArray):
    """One array of an `.npz` file, which is read in blocks.

    `dtype` is in native byte order, `stored_dtype` in that of the file.
    """

    path: Path
    name: str
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored_dtype: np.dtype[Any]
    fortran_order: bool
    seekable = False

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        start = 0
        for block in self._unchecked_blocks(rows):
            yield check_values(block, start, self.where)
            start += len(block)

    def read(self) -> NDArray[Any]:
        return check_values(self.read_unchecked(), 0, self.where)

    def read_unchecked(self) -> NDArray[Any]:
        with readable(self.path, self.name), np.load(self.path, allow_pickle=False) as arrays:
            return np.ascontiguousarray(arrays[self.name])

    def _unchecked_blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        if self.fortran_order:  # the values of a row are scattered over the file
            values = self.read_unchecked()
            yield from (values[start : start + rows] for start in range(0, len(self), rows))
            return
        with (
            readable(self.path, self.name),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as stream,
        ):
            read_header(stream)
            for start in range(0, len(self), rows):  # zipfile checks the CRC-32 when the last byte is read
                block = np.empty((min(rows, len(self) - start), *self.shape[1:]), self.stored_dtype)
                _fill(stream, block)
                yield block


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """Return the sorted names of the arrays of an `.npz` file."""
    return sorted(info.filename.removesuffix(".npy") for info in archive.infolist())


def open_array(archive: zipfile.ZipFile, path: Path, name: str) -> NpzRows:
    """Read the header of an array, and check it before any memory is allocated for its values.

    Raises:
        KdistillError: if the file can't hold an array of that size, or if the array needs pickle or a password.
    """
    info = archive.getinfo(f"{name}.npy")
    if info.flag_bits & 1:
        raise KdistillError(f"{path}: {name} is encrypted: unpack the file, and zip it again without a password")
    with readable(path, name), archive.open(info) as stream:
        shape, fortran_order, dtype = read_header(stream)
        start = stream.tell()
    if dtype.hasobject:
        raise KdistillError(
            f"{path}: {name} has type {dtype} (expected numbers or text): convert it before saving, e.g. with "
            ".astype('float32') or .astype(str)"
        )
    size = start + dtype.itemsize * int(np.prod(shape, dtype=object))
    if size != info.file_size or size > BEST_COMPRESSION * max(info.compress_size, 1):
        raise KdistillError(
            f"{path}: {name} is damaged: its header claims {shape} of {dtype}, which does not match its size"
        )
    return NpzRows(path, name, f"{path}: {name}", shape, native_dtype(dtype), dtype, fortran_order and len(shape) > 1)


def readable(path: Path, name: str | None = None) -> AbstractContextManager[None]:
    """Report any error in reading an `.npz` file, or one array in it, as one line."""
    return one_line_errors(
        f"{path}: can't read {name}" if name else f"{path} is not a readable .npz file",
        fix=f"copy the file again, or save it again with numpy.savez_compressed({path.name!r}, ...)",
    )


def _fill(stream: IO[bytes], block: NDArray[Any]) -> None:
    """Fill a block from a stream of its bytes."""
    view = block.reshape(-1).view(np.uint8).data
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
