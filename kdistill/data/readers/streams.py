"""A `tf.data.Dataset` as rows: read in passes, of which the first counts the rows and takes their labels."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.reader import Part, as_texts, explain_label_matrix
from kdistill.data.rows import BLOCK_ROWS, Rows, check_values, native
from kdistill.errors import KdistillError


def part(dataset: Any, where: str, name: str) -> Part:
    """A `tf.data.Dataset` of unbatched (input, label), or of inputs alone.

    Args:
        dataset: it must give the same rows in the same order each time it is gone through.
        where: what gives it, for messages.
        name: which part it is, for messages.

    Raises:
        KdistillError: if it is something else, in one line.
    """
    from kdistill.backend import tf

    where = f"{where}: {name}"
    elements = dataset.element_spec
    pair = elements if isinstance(elements, tuple) else (elements,)
    if len(pair) not in (1, 2) or not all(isinstance(one, tf.TensorSpec) for one in pair):
        raise KdistillError(
            f"{where} gives {_described(elements)}: it needs (input, label), or inputs alone, each a dense tensor"
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise KdistillError(f"{where} never ends: leave out .repeat(), or end it with .take(ROWS)")
    if len(pair) == 2 and pair[1].shape.rank not in (0, None) and pair[1].shape.as_list() != [1]:
        fix = "batched rows are separated by .unbatch()"
        if pair[1].shape.is_fully_defined():
            first = [labels for _, labels in _passes(dataset.take(BLOCK_ROWS), BLOCK_ROWS, where) if labels is not None]
            fix = explain_label_matrix(first[0], "tf.argmax(label)") if first else "it has no rows"
        raise KdistillError(f"{where} gives labels of shape {pair[1].shape}, and a label is one number: {fix}")
    return _first_pass(dataset, labelled=len(pair) == 2, where=where, name=name)


def _first_pass(dataset: Any, *, labelled: bool, where: str, name: str) -> Part:
    shape: tuple[int, ...] | None = None
    dtype = np.dtype(np.uint8)
    sums, labels = [], []
    for inputs, some_labels in _passes(dataset, BLOCK_ROWS, where):
        if shape is None:
            shape, dtype = inputs.shape[1:], inputs.dtype
        if inputs.shape[1:] != shape:
            raise KdistillError(f"{where} gives rows of shape {shape} and of {inputs.shape[1:]}: they must be alike")
        sums.append(_sums(inputs, some_labels))
        if some_labels is not None:
            labels.append(some_labels.reshape(-1))
    if shape is None:
        raise KdistillError(f"{where} has no rows")
    rows = StreamRows(dataset, (sum(map(len, sums)), *shape), native(dtype), np.concatenate(sums), where)
    return Part(rows, np.concatenate(labels) if labelled else None, name, f"labels in {name}")


class StreamRows(Rows):
    """The rows of a `tf.data.Dataset`; each pass is checked against the first."""

    seekable = False

    def __init__(
        self, dataset: Any, shape: tuple[int, ...], dtype: np.dtype[Any], sums: NDArray[np.uint32], where: str
    ) -> None:
        self._dataset, self._sums, self._where = dataset, sums, where
        self.shape, self.dtype = shape, dtype

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        raise NotImplementedError

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        start = 0
        for inputs, labels in _passes(self._dataset, rows, self._where):
            expected = self._sums[start : start + len(inputs)]
            if len(expected) < len(inputs):
                raise self._changed(f"more than the {len(self):,} rows")
            if (differs := _sums(inputs, labels) != expected).any():
                raise self._changed(f"another row {start + int(np.argmax(differs))} than that")
            yield check_values(inputs, start, self._where)
            start += len(inputs)
        if start < len(self):
            raise self._changed(f"{start:,} rows instead of the {len(self):,}")

    def _changed(self, what: str) -> KdistillError:
        return KdistillError(
            f"{self._where} gives {what} of the first time: it must give the same rows in the same order each time, so "
            "no random augmentation, and .shuffle(..., reshuffle_each_iteration=False)"
        )


def _passes(dataset: Any, rows: int, where: str) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    """One pass in blocks of inputs and labels; None for labels that there are none of."""
    with _one_line(where):
        for block in dataset.batch(rows).prefetch(1).as_numpy_iterator():
            inputs, *labels = block if isinstance(block, tuple) else (block,)
            if labels and labels[0].dtype.hasobject:  # TensorFlow's texts
                labels = [as_texts(labels[0].reshape(-1), f"labels in {where}")]
            yield inputs, labels[0] if labels else None


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Whatever goes wrong in reading a `tf.data.Dataset`, in one line."""
    from kdistill.backend import tf

    try:
        yield
    except tf.errors.OpError as error:
        said = re.sub(r"^(\{\{.*?\}\} ?)+|\[Op:.*", "", error.message.splitlines()[0]).strip()
        lines = re.findall(r'File "([^"]+)", line (\d+)', error.message)  # of a Python function inside
        place = f" ({':'.join(lines[-1])})" if lines else ""
        raise KdistillError(f"{where} can't be read: {said or type(error).__name__}{place}") from None


def _described(elements: Any) -> str:
    """What a `tf.data.Dataset` gives, in few words."""
    if isinstance(elements, dict):
        return f"a dictionary of {', '.join(map(str, list(elements)[:5]))}"
    if isinstance(elements, tuple):
        return f"({', '.join(_described(one) for one in elements)})"
    return f"{type(elements).__name__.removesuffix('Spec')}"


def _sums(inputs: NDArray[Any], labels: NDArray[Any] | None) -> NDArray[np.uint32]:
    """A CRC-32 of each row and its label."""
    of = [zlib.crc32(row.tobytes()) for row in np.ascontiguousarray(inputs)]
    if labels is not None:
        as_bytes = (label.encode() if isinstance(label, str) else label.tobytes() for label in labels)
        of = [zlib.crc32(label, row) for label, row in zip(as_bytes, of, strict=True)]
    return np.array(of, np.uint32)
