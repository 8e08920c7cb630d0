"""`.npz`, laid out as Keras lays out MNIST: `x_train`, `y_train`, `x_test`, `y_test`, and perhaps `class_names`."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data.reader import Contents, Part, Reader, as_text, check_labels, check_names, did_you_mean
from kdistill.data.readers.npy import header
from kdistill.data.rows import Rows, check_values, native
from kdistill.errors import KdistillError, first_line


class Npz(Reader):
    """A file of named arrays; a transfer set may hold `x_train` alone."""

    format = "an .npz, whose arrays are x_train, y_train, x_test and y_test"
    takes = ("test-fraction", "data-format")

    def digest(self) -> str:
        return workspace.digest(self.path)

    def contents(self) -> Contents:
        with readable(self.path), zipfile.ZipFile(self.path) as archive:
            names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
            if "x_train" not in names:
                raise KdistillError(
                    f"{self.path} has no x_train: a dataset holds x_train, y_train, x_test and y_test, and this "
                    f"file holds {', '.join(sorted(names)) or 'nothing'}{did_you_mean('x_train', names)}"
                )
            class_names: list[str] = []
            if "class_names" in names:
                found = member(archive, self.path, "class_names")
                check_names(found.shape, found.dtype, f"{self.path}: class_names")
                class_names = [as_text(name) for name in found.values().reshape(-1)]
            return Contents(
                train=self._part(archive, names, "train"),
                test=self._part(archive, names, "test") if "x_test" in names else None,
                class_names=class_names,
            )

    def _part(self, archive: zipfile.ZipFile, names: set[str], split: str) -> Part:
        x, y = f"x_{split}", f"y_{split}"
        inputs = member(archive, self.path, x)
        if y not in names:
            return Part(inputs, None, x, f"{y}{did_you_mean(y, names)}")
        labels = member(archive, self.path, y)
        check_labels(labels.shape, labels.dtype, len(inputs), f"{self.path}: {y}")
        return Part(inputs, labels.values(), x, y)


@dataclass(frozen=True)
class NpzMember(Rows):
    """One array in an `.npz`, read in blocks from where it lies; its claims are checked before memory is taken.

    `dtype` is in native byte order, `stored` as the file has it.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    fortran: bool
    seekable = False

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        raise NotImplementedError

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        start = 0
        for block in self._blocks(rows):
            yield check_values(block, start, f"{self.path}: {self.name}")
            start += len(block)

    def _blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        if self.fortran or not len(self):  # in Fortran order no row lies in one piece
            whole = self._load()
            yield from (whole[start : start + rows] for start in range(0, max(len(self), 1), rows))
            return
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        with (
            readable(self.path, self.name),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as stream,
        ):
            header(stream)
            for start in range(0, len(self), rows):
                count = min(rows, len(self) - start)
                block = np.empty((count, *self.shape[1:]), self.stored)
                _fill(stream, block, count * row_bytes)
                yield block
            if stream.read(1):  # reading to the end makes zipfile check its CRC-32
                raise EOFError

    def read(self) -> NDArray[Any]:
        (whole,) = self.blocks(max(len(self), 1))
        return whole

    def values(self) -> NDArray[Any]:
        """All of it as it is, for labels and names, which networks don't see."""
        if not self.shape:
            return self._load()
        (whole,) = self._blocks(max(len(self), 1))
        return whole

    def _load(self) -> NDArray[Any]:
        with readable(self.path, self.name), np.load(self.path, allow_pickle=False) as arrays:
            return np.ascontiguousarray(arrays[self.name])


def member(archive: zipfile.ZipFile, path: Path, name: str) -> NpzMember:
    """Read an array's header.

    Raises:
        KdistillError: if it claims more than the file can hold, or would need pickle.
    """
    info = archive.getinfo(f"{name}.npy")
    with readable(path, name), archive.open(info) as stream:
        shape, fortran, dtype = header(stream)
        start = stream.tell()
    if dtype.hasobject:
        raise KdistillError(f"{path}: {name} is of type {dtype}, which only pickle can read: save plain numbers")
    claimed = start + dtype.itemsize * int(np.prod(shape, dtype=object))
    if claimed != info.file_size or info.file_size > 1100 * max(info.compress_size, 1):  # deflate's best is 1032
        raise KdistillError(
            f"{path}: {name} claims {shape} of {dtype}, which is not what the file holds: it is damaged"
        )
    return NpzMember(path, name, shape, native(dtype), dtype, fortran and len(shape) > 1)


@contextlib.contextmanager
def readable(path: Path, name: str | None = None) -> Iterator[None]:
    """Say in one line what goes wrong while an archive, or the array of a name in it, is read.

    Raises:
        KdistillError: for whatever zipfile and its decompressors raise.
    """
    try:
        yield
    except (KdistillError, MemoryError):
        raise
    except Exception as error:  # each decompressor has errors of its own
        if isinstance(error, OSError) and error.errno is not None:  # of the file system: bz2's have no number
            raise
        what = "can't be read" if isinstance(error, RuntimeError) else "is damaged"
        why = first_line(error) if str(error) else "it ends early"
        fix = f"copy the file again, or save it again with numpy.savez_compressed({path.name!r}, ...)"
        if "encrypted" in why:
            why, fix = "it is encrypted", "unpack the archive, and zip its files again without a password"
        raise KdistillError(
            f"{path}: {name} {what}: {why}; {fix}" if name else f"{path} is not a readable .npz: {why}; {fix}"
        ) from None


def _fill(stream: IO[bytes], block: NDArray[Any], count: int) -> None:
    view = block.reshape(-1).view(np.uint8).data
    done = 0
    while done < count:
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        done += got
