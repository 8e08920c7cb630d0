"""Storage of logits: all classes or the top k, in single or half precision, for one or several views of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import tasks
from kdistill.errors import KdistillError
from kdistill.settings import CLASSIFICATION

Floats = NDArray[np.floating[Any]]
Columns = dict[str, tuple[tuple[int, ...], str]]  # shape and type of one row, by dataset

LARGEST_LOGIT = 1e15  # Training squares logits in float32 and sums the squares, which overflows far beyond this.
UNUSABLE = f"NaN, infinite or beyond {LARGEST_LOGIT:g}"


def check_usable(
    logits: Floats, source: object, row_numbers: range | NDArray[np.int64], problem: str = UNUSABLE
) -> None:
    """Refuse logits (rows, ...) with NaN, infinity or a value beyond `LARGEST_LOGIT`.

    Raises:
        KdistillError: with the source, the number of the first such row, and the problem.
    """
    usable = np.abs(logits.astype(np.float32, copy=False)) <= LARGEST_LOGIT  # False for NaN
    if not usable.all():
        row = int(np.argmin(usable.reshape(len(usable), -1).all(axis=1)))
        raise KdistillError(f"{source}: the logits of row {row_numbers[row]} are {problem}")


@dataclass(frozen=True)
class LogitStorage:
    """How the logits of a row are stored.

    Attributes:
        classes: number of outputs of the teacher: classes, or numbers of a regression or a vector.
        temperature: T at which the rest, i.e. all classes but the top k, keeps its probability.
        dtype: `float32` or `float16`.
        top_k: number of classes with a logit each, besides one logit for the rest; None for all classes.
        views: number of views of each row; None for the row as it is.
        task: a key of `settings.TASKS`.
        with_soft_targets: whether the file also has the soft targets, if the task has any.
    """

    classes: int
    temperature: float
    dtype: str = "float32"
    top_k: int | None = None
    views: int | None = None
    task: str = CLASSIFICATION
    with_soft_targets: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any], classes: int, task: str) -> LogitStorage:
        """Return the storage that settings of soften describe, as a manifest records them."""
        with_soft_targets = not settings.get("no_soft_targets", False)
        recorded = (settings["temperature"], settings["dtype"], settings["top_k"], settings.get("views"))
        return cls(classes, *recorded, task, with_soft_targets)

    @property
    def columns(self) -> Columns:
        """The arrays that hold the logits."""
        logits = "<f2" if self.dtype == "float16" else "<f4"
        views = () if self.views is None else (self.views,)
        if self.top_k is None:
            return {"logits": ((*views, self.classes), logits)}
        top_classes = "<u2" if self.classes <= 1 << 16 else "<u4"
        return {"logits": ((*views, self.top_k + 1), logits), "top_classes": ((*views, self.top_k), top_classes)}

    @property
    def datasets(self) -> Columns:
        """All datasets of a soft-target file."""
        columns = dict(self.columns)
        if self.with_soft_targets and self.soft_targets(np.zeros((0, self.classes))) is not None:
            columns["soft_targets"] = columns["logits"]
        return {**columns, "labels": tasks.get(self.task).label_type(self.classes), "row_keys": ((16,), "u1")}

    def soft_targets(self, logits: Floats, temperature: float | None = None) -> Floats | None:
        """Return the soft targets of logits (..., classes) at T, by default the temperature; None without any."""
        return tasks.get(self.task).activation(logits, self.temperature if temperature is None else temperature)

    @property
    def one_view(self) -> LogitStorage:
        """The storage of a single view."""
        return replace(self, views=None)

    @property
    def rest_offset(self) -> float:
        """T * log(classes - k): the logit of the rest minus the logit of each class in it."""
        return 0.0 if self.top_k is None else self.temperature * float(np.log(self.classes - self.top_k))

    @property
    def row_bytes(self) -> int:
        return sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for shape, dtype in self.columns.values())

    def store(self, logits: NDArray[np.float32]) -> Logits:
        """Convert logits (rows, classes) or (rows, views, classes); values beyond the range of `dtype` become infinite."""
        top = None
        if self.top_k is not None:
            logits, top = _top_k(logits, self.top_k, self.temperature)
            top = top.astype(self.columns["top_classes"][1])
        with np.errstate(over="ignore"):
            return Logits(self, logits.astype(self.columns["logits"][1]), top)

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Logits:
        """Return the logits that some arrays hold, by dataset."""
        return Logits(self, arrays["logits"], arrays.get("top_classes"))


def _top_k(logits: NDArray[np.float32], k: int, temperature: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k largest logits, in descending order, and that of the rest, (..., k + 1), and the k classes."""
    top = np.argpartition(-logits, k, axis=-1)[..., :k]
    largest = np.take_along_axis(logits, top, axis=-1)
    order = np.argsort(-largest, axis=-1, kind="stable")
    top, largest = np.take_along_axis(top, order, axis=-1), np.take_along_axis(largest, order, axis=-1)
    others = logits.astype(np.float64)
    np.put_along_axis(others, top, -np.inf, axis=-1)
    peak = others.max(axis=-1, keepdims=True)
    rest = peak + temperature * np.log(np.exp((others - peak) / temperature).sum(axis=-1, keepdims=True))
    return np.concatenate([largest, rest], axis=-1).astype(np.float32), top


@dataclass(frozen=True)
class Logits:
    """Stored logits of some rows: `values` (rows, ...) and, of the top k, `top_classes` (rows, ..., k)."""

    storage: LogitStorage
    values: Floats
    top_classes: NDArray[np.integer[Any]] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return len(self) * self.storage.row_bytes

    def check(self, source: str, first_row: int) -> None:
        """Refuse logits as `check_usable` does; `first_row` is the number of the first row, for the message."""
        half = self.storage.dtype == "float16"
        problem = "beyond the range of float16: pass --dtype float32" if half else UNUSABLE
        check_usable(self.values, source, range(first_row, first_row + len(self)), problem)

    def at(self, rows: NDArray[Any] | slice, view: int = 0) -> Logits:
        """Select rows by number, mask or slice, in one view."""
        index = rows if self.storage.views is None else (rows, view)
        top = None if self.top_classes is None else self.top_classes[index]
        return Logits(self.storage.one_view, self.values[index], top)

    def predictions(self) -> NDArray[Any]:
        """Return what the teacher predicts from view 0, (rows, ...), e.g. the class with the largest logit."""
        logits = self.at(slice(None))
        if logits.top_classes is None:
            return tasks.get(self.storage.task).predict(logits.values)
        largest = logits.values[:, : self.storage.top_k].argmax(axis=1)
        return np.take_along_axis(logits.top_classes, largest[:, None], axis=1)[:, 0].astype(np.int64)

    def dense(self) -> NDArray[np.float32]:
        """Return one logit per class, (rows, classes) or (rows, views, classes); the classes of the rest have equal ones."""
        values = self.values.astype(np.float32)
        if self.top_classes is None:
            return values
        logits = np.repeat(values[..., -1:] - np.float32(self.storage.rest_offset), self.storage.classes, axis=-1)
        np.put_along_axis(logits, self.top_classes.astype(np.int64), values[..., :-1], axis=-1)
        return logits

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by dataset; the inverse of `LogitStorage.from_arrays`."""
        arrays: dict[str, NDArray[Any]] = {"logits": self.values}
        return arrays if self.top_classes is None else {**arrays, "top_classes": self.top_classes}
