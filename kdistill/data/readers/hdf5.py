"""HDF5 files with datasets named `x_train`, `y_train`, `x_test`, `y_test` and `class_names`, or named by options."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import (
    ARRAY_NAMES,
    MAX_NAMES_BYTES,
    Contents,
    Reader,
    array_contents,
    as_strings,
    did_you_mean,
)
from kdistill.data.rows import StoredArray, check_values, native_dtype
from kdistill.errors import KdistillError, one_line_errors

CHUNK_CACHE_BYTES = 64 << 20  # HDF5's default is too small for a row of chunks, which it would decompress repeatedly
BEST_COMPRESSION = 40_000  # the common filters do not reach it, even with zeros
MIN_STRINGS_PER_BLOCK = 100


class Hdf5(Reader):
    """A file of named datasets. A transfer set needs only inputs."""

    format = "an HDF5 file"
    takes = ("inputs", "labels", "row-weights", "test-inputs", "test-labels", "test-fraction", "data-format")

    def contents(self) -> Contents:
        with _readable(self.place):
            file = h5py.File(self.path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE_BYTES, rdcc_nslots=100_003)
            if "kdistill_format" in file.attrs:
                raise KdistillError(
                    f"{self.place} is a soft-target file of kdistill, which has no inputs: pass the data that it was made "
                    "from to --dataset"
                )
            names = self._names(file)
            arrays = {role: Hdf5Rows(self._open(file, name), self.path, name) for role, name in names.items()}
            return array_contents(arrays, lambda role: "labels (--labels NAME)" if role == "y_train" else "test labels")

    def _names(self, file: h5py.File) -> dict[str, str]:
        """Return the names of the datasets by role: from the options, or the roles themselves if they exist."""
        options = self.options
        named = (options.inputs, options.labels, options.test_inputs, options.test_labels, None, options.row_weights)
        default = ARRAY_NAMES if options.inputs is None else ("class_names",)
        existing = {role: role for role in default if file.get(role, getlink=True) is not None}
        given = {role: name for role, name in zip(ARRAY_NAMES, named, strict=True) if name}
        return {"x_train": "x_train", **existing, **given}

    def _open(self, file: h5py.File, name: str) -> h5py.Dataset:
        """Return a dataset after checking that the file itself holds all the values that the header claims."""
        node: Any = file
        for step in name.strip("/").split("/"):
            link = node.get(step, getlink=True) if isinstance(node, h5py.Group) and step else None
            if link is None:
                raise KdistillError(f"{self.place} has no dataset {name}: {_describe_names(file, name)}")
            if not isinstance(link, h5py.HardLink):
                raise KdistillError(f"{self.place}: {name} is a link, which may lead to another file: copy the dataset")
            node = node[step]
        where = f"{self.place}: {name}"
        if not isinstance(node, h5py.Dataset) or node.shape is None:
            raise KdistillError(f"{where} is not a dataset with values: {_describe_names(file, name)}")
        if node.external or node.is_virtual:
            raise KdistillError(f"{where} stores its values in other files: copy them into this file")
        if node.dtype.hasobject and not h5py.check_string_dtype(node.dtype):
            raise KdistillError(f"{where} has type {node.dtype} of variable size: save plain numbers instead")
        if node.chunks and math.prod(node.chunks) * node.dtype.itemsize > max(node.nbytes, MAX_NAMES_BYTES):
            raise KdistillError(
                f"{where} has chunks of {node.chunks}, larger than its shape {node.shape}: save it again"
            )
        if not _is_stored(node):
            raise KdistillError(
                f"{where} is damaged: its header claims {node.shape} of {node.dtype}, the file has less"
            )
        return node


class Hdf5Rows(StoredArray):
    """Rows of an HDF5 dataset, whose file stays open."""

    def __init__(self, dataset: h5py.Dataset, path: Path, name: str) -> None:
        self._dataset, self._path = dataset, path
        self.name, self.where = name, f"{path}: {name}"
        self.shape, self.dtype = tuple(dataset.shape), native_dtype(dataset.dtype)

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        with _readable(self.where):
            block = np.asarray(self._dataset[start:stop])
        return check_values(block, start, self.where)

    def read(self) -> NDArray[Any]:
        return self.read_range(0, len(self))

    def read_unchecked(self) -> NDArray[Any]:
        """Return all values; strings as objects (values,).

        Variable-length strings can all point to the same bytes, so that a small file claims to hold many long ones. The
        larger the file, the smaller the blocks that are read before the lengths of their strings are checked.
        """
        if not h5py.check_string_dtype(self.dtype):
            return np.asarray(self._dataset[()])
        strings = self._dataset.asstr()
        if not self.shape:
            return as_strings([strings[()]], self.where)
        step = max(MIN_STRINGS_PER_BLOCK, MAX_NAMES_BYTES // max(1, self._path.stat().st_size))
        blocks = (strings[start : start + step] for start in range(0, len(self), step))
        return np.concatenate([np.empty(0, object), *(as_strings(block.reshape(-1), self.where) for block in blocks)])


def _describe_names(file: h5py.File, missing: str) -> str:
    """Describe the datasets of a file, also those in groups, for an error about a missing one."""
    names: list[str] = []
    file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    listed = ", ".join(names[:10]) + ", ..." * (len(names) > 10) if names else "no datasets"
    return f"it has {listed}; choose with --inputs NAME and --labels NAME{did_you_mean(missing, names)}"


def _is_stored(dataset: h5py.Dataset) -> bool:
    """Return whether the file holds all values of a dataset, judging by its size on disk."""
    stored = dataset.id.get_storage_size()
    if dataset.chunks is None:
        return bool(stored >= dataset.nbytes)
    chunks = math.prod(-(-length // side) for length, side in zip(dataset.shape, dataset.chunks, strict=True))
    return bool(dataset.id.get_num_chunks() == chunks and dataset.nbytes <= BEST_COMPRESSION * stored)


def top_level_names(path: Path) -> list[str]:
    """Return the names at the top level of a file, without links.

    Raises:
        KdistillError: if it is not a readable HDF5 file.
    """
    with _readable(str(path)), h5py.File(path, "r", locking=False) as file:
        return [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]


def _readable(where: str) -> AbstractContextManager[None]:
    return one_line_errors(f"{where} is not readable as HDF5", fix="copy or save the file again")
