"""HDF5: datasets named `x_train`, `y_train`, `x_test`, `y_test` and `class_names`, or as the options say."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data.reader import (
    MOST_READ,
    Contents,
    Part,
    Reader,
    as_text,
    as_texts,
    check_labels,
    check_names,
    did_you_mean,
)
from kdistill.data.rows import Rows, check_values, native
from kdistill.errors import KdistillError, first_line

CHUNK_CACHE = 64 << 20  # HDF5's own is too small to hold a row of chunks, which then are decompressed again and again
BEST_COMPRESSION = 40_000  # no common filter does better, even for zeros
LEAST_TEXTS = 100  # read at a time, of texts without a fixed length


class Hdf5(Reader):
    """A file of named datasets; a transfer set may hold inputs alone."""

    format = "an HDF5 file"
    takes = ("inputs", "labels", "test-inputs", "test-labels", "test-fraction", "data-format")

    def digest(self) -> str:
        return workspace.digest(self.path)

    def contents(self) -> Contents:
        options = self.options
        with _readable(self.place):
            file = h5py.File(self.path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=100_003)
            if "kdistill_format" in file.attrs:
                raise KdistillError(
                    f"{self.place} is a soft-target file of kdistill's, which has no inputs: --dataset names the data "
                    "that it was made from, and --soft-targets its own name in the workspace"
                )
            default = options.inputs is None  # the names are the usual ones, as far as there are any
            train = self._part(
                file, options.inputs or "x_train", options.labels or self._if_there(file, "y_train", default=default)
            )
            test_inputs = options.test_inputs or self._if_there(file, "x_test", default=default)
            test_labels = options.test_labels or self._if_there(file, "y_test", default=default)
            names = self._if_there(file, "class_names", default=True)
            return Contents(
                train=train,
                test=self._part(file, test_inputs, test_labels) if test_inputs else None,
                class_names=self._class_names(file, names) if names else (),
            )

    @staticmethod
    def _if_there(file: h5py.File, name: str, *, default: bool) -> str | None:
        return name if default and file.get(name, getlink=True) is not None else None

    def _part(self, file: h5py.File, inputs: str, labels: str | None) -> Part:
        rows = Hdf5Rows(self._open(file, inputs), f"{self.place}: {inputs}")
        if labels is None:
            return Part(rows, None, inputs, "labels (--labels NAME)")
        found = self._open(file, labels)
        where = f"{self.place}: {labels}"
        check_labels(found.shape, found.dtype, rows.shape[0] if rows.shape else 0, where)
        return Part(rows, self._values(found, where), inputs, labels)

    def _class_names(self, file: h5py.File, name: str) -> list[str]:
        found = self._open(file, name)
        where = f"{self.place}: {name}"
        check_names(found.shape, found.dtype, where)
        return [as_text(value) for value in self._values(found, where).reshape(-1)]

    def _values(self, dataset: h5py.Dataset, where: str) -> NDArray[Any]:
        """All of a dataset; texts as objects, (values,).

        Texts of no fixed length may all be one and the same in the file, so that it holds less than it says: they are
        read in blocks that can't be much larger than the file, and their length is checked in between.
        """
        if not h5py.check_string_dtype(dataset.dtype):
            return np.asarray(dataset[()])
        if not dataset.shape:
            return as_texts([dataset.asstr()[()]], where)
        step = max(LEAST_TEXTS, MOST_READ // max(1, self.path.stat().st_size))
        blocks = (dataset.asstr()[start : start + step] for start in range(0, len(dataset), step))
        return np.concatenate([np.empty(0, object), *(as_texts(block.reshape(-1), where) for block in blocks)])

    def _open(self, file: h5py.File, name: str) -> h5py.Dataset:
        """A dataset that lies in the file as it says."""
        node: Any = file
        for step in name.strip("/").split("/"):
            link = node.get(step, getlink=True) if isinstance(node, h5py.Group) and step else None
            if link is None:
                names = _names(file)
                some = ", ".join(names[:10]) + ", ..." * (len(names) > 10) if names else "nothing"
                raise KdistillError(
                    f"{self.place} has no {name}: it holds {some}; --inputs NAME and --labels NAME say which are meant"
                    f"{did_you_mean(name, names)}"
                )
            if not isinstance(link, h5py.HardLink):
                raise KdistillError(
                    f"{self.place}: {name} is a link, which may lead out of the file: copy what it means"
                )
            node = node[step]
        where = f"{self.place}: {name}"
        if not isinstance(node, h5py.Dataset) or node.shape is None:
            raise KdistillError(f"{where} is no dataset with values")
        if node.external or node.is_virtual:
            raise KdistillError(f"{where} lies in other files: copy it into this one")
        if node.dtype.hasobject and not h5py.check_string_dtype(node.dtype):
            raise KdistillError(f"{where} is of type {node.dtype}, of no fixed size: save plain numbers")
        if node.chunks and math.prod(node.chunks) * node.dtype.itemsize > max(node.nbytes, MOST_READ):
            raise KdistillError(f"{where} has chunks of {node.chunks}, beyond its shape {node.shape}: save it again")
        if not _stored(node):
            raise KdistillError(f"{where} claims {node.shape} of {node.dtype} and holds less: it is damaged")
        return node


class Hdf5Rows(Rows):
    """A dataset of an HDF5 file, which is held open."""

    def __init__(self, dataset: h5py.Dataset, where: str) -> None:
        self._dataset, self._where = dataset, where
        self.shape, self.dtype = tuple(dataset.shape), native(dataset.dtype)

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        with _readable(self._where):
            block = np.asarray(self._dataset[start:stop])
        return check_values(block, start, self._where)

    def read(self) -> NDArray[Any]:
        return self.read_range(0, len(self))


def _names(file: h5py.File) -> list[str]:
    """The datasets of a file, in its groups too."""
    names: list[str] = []
    file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return names


def _stored(dataset: h5py.Dataset) -> bool:
    """Whether the file holds what a dataset claims, as far as its size tells."""
    stored = dataset.id.get_storage_size()
    if dataset.chunks is None:
        return bool(stored >= dataset.nbytes)
    chunks = math.prod(-(-length // side) for length, side in zip(dataset.shape, dataset.chunks, strict=True))
    return bool(dataset.id.get_num_chunks() == chunks and dataset.nbytes <= BEST_COMPRESSION * stored)


def dataset_names(path: Path) -> list[str]:
    """What a file holds at its top.

    Raises:
        KdistillError: if it is no HDF5.
    """
    with _readable(str(path)), h5py.File(path, "r", locking=False) as file:
        return [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except KdistillError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise KdistillError(f"{where} is damaged, or no HDF5: {first_line(error)}") from None
