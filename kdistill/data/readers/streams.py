"""Rows of a `tf.data.Dataset`: a first pass counts them and reads their labels, later passes read the inputs."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import Part, as_strings
from kdistill.data.rows import BLOCK_ROWS, Rows, check_values, native_dtype
from kdistill.errors import KdistillError, first_line, one_line_errors


def parts(datasets: Mapping[str, Any], place: str) -> tuple[Part, Part | None]:
    """Return the training rows and, if there is a second dataset, the test rows.

    Args:
        datasets: one or two `tf.data.Dataset`s by the name of their part. They are unbatched, consist of (input, label)
            pairs or of inputs only, and yield the same rows in the same order in each pass.
        place: what messages call the source of the datasets.

    Raises:
        KdistillError: if a dataset has other elements, never ends, is empty, or fails.
    """
    train, *test = [_part(dataset, f"{place}: {name}", name) for name, dataset in datasets.items()]
    return train, test[0] if test else None


def _part(dataset: Any, where: str, name: str) -> Part:
    from kdistill.backend import tf

    elements = dataset.element_spec
    pair = elements if isinstance(elements, tuple) else (elements,)
    if len(pair) not in (1, 2) or not all(isinstance(spec, tf.TensorSpec) for spec in pair):
        raise KdistillError(
            f"{where} yields {_describe(elements)} (expected dense tensors: (input, label) pairs, or only inputs)"
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise KdistillError(f"{where} never ends: remove .repeat(), or end it with .take(ROWS)")
    if len(pair) == 2 and not (pair[1].shape.rank in (0, None) or (pair[1].shape.rank == 1 and pair[1].shape[0])):
        raise KdistillError(
            f"{where} yields labels of shape {pair[1].shape} (expected a label, or a fixed number of them, per row): call "
            ".unbatch() on a batched dataset"
        )
    return _first_pass(dataset, where, name)


def _first_pass(dataset: Any, where: str, name: str) -> Part:
    checksums, all_labels = [], []
    row_shape, dtype = None, np.dtype(np.uint8)
    for inputs, labels in _blocks(dataset, BLOCK_ROWS, where):
        if row_shape is None:
            row_shape, dtype = inputs.shape[1:], inputs.dtype
        if inputs.shape[1:] != row_shape:
            raise KdistillError(
                f"{where} yields rows of shape {row_shape} and of shape {inputs.shape[1:]} (expected one shape)"
            )
        checksums.append(_checksums(inputs, labels))
        if labels is not None:
            all_labels.append(labels)
    if row_shape is None:
        raise KdistillError(f"{where} is empty (expected at least one row)")
    rows = StreamRows(dataset, row_shape, native_dtype(dtype), np.concatenate(checksums), where)
    return Part(rows, np.concatenate(all_labels) if all_labels else None, name, f"labels in {name}")


class StreamRows(Rows):
    """Rows of a `tf.data.Dataset`. Each pass is compared with the first one, by a checksum of each row."""

    seekable = False

    def __init__(
        self, dataset: Any, row_shape: tuple[int, ...], dtype: np.dtype[Any], checksums: NDArray[np.uint32], where: str
    ) -> None:
        self._dataset, self._checksums, self._where = dataset, checksums, where
        self.shape, self.dtype = (len(checksums), *row_shape), dtype

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        start = 0
        for inputs, labels in _blocks(self._dataset, rows, self._where):
            expected = self._checksums[start : start + len(inputs)]
            if len(expected) < len(inputs):
                raise self._changed(f"more rows than the {len(self):,}")
            if (differs := _checksums(inputs, labels) != expected).any():
                raise self._changed(f"a row {start + int(np.argmax(differs))} that differs from the one")
            yield check_values(inputs, start, self._where)
            start += len(inputs)
        if start < len(self):
            raise self._changed(f"{start:,} rows instead of the {len(self):,}")

    def _changed(self, difference: str) -> KdistillError:
        return KdistillError(
            f"{self._where} yields {difference} of the first pass: it must yield the same rows in the same order each "
            "time; remove random augmentation, and use .shuffle(..., reshuffle_each_iteration=False)"
        )


def _blocks(dataset: Any, rows: int, where: str) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    """Yield blocks of inputs and labels in one pass; None if there are no labels."""
    with one_line_errors(f"{where} can't be read", describe=_describe_error):
        for block in dataset.batch(rows).prefetch(1).as_numpy_iterator():
            inputs, *labels = block if isinstance(block, tuple) else (block,)
            if labels and labels[0].dtype.hasobject:  # TensorFlow's strings
                labels = [as_strings(labels[0].reshape(-1), f"labels in {where}")]
            yield inputs, labels[0] if labels else None


def _describe_error(error: BaseException) -> str:
    """Describe an error, with the line of the Python function that failed inside TensorFlow."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    return first_line(error) + (f" ({':'.join(lines[-1])})" if lines else "")


def _describe(elements: Any) -> str:
    if isinstance(elements, dict):
        return f"a dictionary of {', '.join(map(str, list(elements)[:5]))}"
    if isinstance(elements, tuple):
        return f"({', '.join(map(_describe, elements))})"
    return type(elements).__name__.removesuffix("Spec")


def _checksums(inputs: NDArray[Any], labels: NDArray[Any] | None) -> NDArray[np.uint32]:
    """Return a CRC-32 of each row and its label."""
    checksums = [zlib.crc32(_bytes(row)) for row in inputs]
    if labels is not None:
        checksums = [zlib.crc32(_bytes(label), checksum) for label, checksum in zip(labels, checksums, strict=True)]
    return np.array(checksums, np.uint32)


def _bytes(value: Any) -> bytes:
    """Return the bytes of an array, a text or a list of texts."""
    if isinstance(value, str | bytes):
        return value.encode() if isinstance(value, str) else value
    return repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
