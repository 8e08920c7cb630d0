"""Logits as they are stored: those of all classes or of the largest, in single or half precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError
from kdistill.workspace.resume_log import Block

Floats = NDArray[np.floating[Any]]

LARGEST = 1e15  # training squares logits in float32 and sums the squares; those of larger logits could overflow


def unusable_row(logits: Floats) -> int | None:
    """Return the first row of logits (rows, ...) that holds NaN or a value beyond `LARGEST`; None if there is none."""
    usable = np.abs(logits.astype(np.float32, copy=False)) <= LARGEST  # false for NaN
    return None if usable.all() else int(np.argmin(usable.reshape(len(usable), -1).all(axis=1)))


def unusable(row: int) -> str:
    """Return what is wrong with a row that `unusable_row` found, for messages."""
    return f"the logits of row {row} are NaN, infinite or beyond {LARGEST:g}"


@dataclass(frozen=True)
class LogitStorage:
    """How logits are stored: of all classes, or of the `top_k` largest and one for the rest.

    `temperature` is the T at which the rest keeps its mass; `dtype` is float32 or float16; `views`, how many of each row
    there are, None where there is but the row as it is.
    """

    classes: int
    temperature: float
    dtype: str = "float32"
    top_k: int | None = None
    views: int | None = None

    @property
    def columns(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of what is stored of a row's logits."""
        logits = "<f2" if self.dtype == "float16" else "<f4"
        views = () if self.views is None else (self.views,)
        if self.top_k is None:
            return {"logits": ((*views, self.classes), logits)}
        names = "<u2" if self.classes <= 1 << 16 else "<u4"
        return {"logits": ((*views, self.top_k + 1), logits), "top_classes": ((*views, self.top_k), names)}

    @property
    def one_view(self) -> LogitStorage:
        """The form of what is stored of one view."""
        return replace(self, views=None)

    @property
    def datasets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of everything that a file has of a row."""
        return {
            **self.columns,
            "soft_targets": self.columns["logits"],
            "labels": ((), "<i8"),
            "row_keys": ((16,), "u1"),
        }

    @property
    def rest_offset(self) -> float:
        """What is taken off the rest's logit to give that of each of its classes, among which its mass is shared."""
        return 0.0 if self.top_k is None else self.temperature * float(np.log(self.classes - self.top_k))

    @property
    def row_bytes(self) -> int:
        return sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for shape, dtype in self.columns.values())

    def store(self, logits: NDArray[np.float32]) -> Logits:
        """Logits (rows, classes), or (rows, views, classes), in this form; infinite where the type can't hold them."""
        if self.views is not None:
            flat, shapes = self.one_view.store(logits.reshape(-1, self.classes)), self.columns
            values, names = flat.values.reshape(-1, *shapes["logits"][0]), flat.top_classes
            return Logits(self, values, None if names is None else names.reshape(-1, *shapes["top_classes"][0]))
        top = None
        if self.top_k is not None:
            top = np.argpartition(-logits, self.top_k, axis=1)[:, : self.top_k]
            largest = np.take_along_axis(logits, top, axis=1)
            order = np.argsort(-largest, axis=1, kind="stable")
            top, largest = np.take_along_axis(top, order, axis=1), np.take_along_axis(largest, order, axis=1)
            others = logits.astype(np.float64)
            np.put_along_axis(others, top, -np.inf, axis=1)
            peak = others.max(axis=1, keepdims=True)
            mass = np.exp((others - peak) / self.temperature).sum(axis=1, keepdims=True)
            logits = np.concatenate([largest, peak + self.temperature * np.log(mass)], axis=1).astype(np.float32)
        with np.errstate(over="ignore"):
            values = logits.astype(self.columns["logits"][1])
        return Logits(self, values, None if top is None else top.astype(self.columns["top_classes"][1]))


@dataclass(frozen=True)
class Logits:
    """Logits of some rows as they are stored: `values` (rows, ...), and `top_classes` (rows, k) of a form that has them."""

    storage: LogitStorage
    values: Floats
    top_classes: NDArray[np.unsignedinteger[Any]] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return len(self) * self.storage.row_bytes

    def check(self, start: int, where: str) -> None:
        """Refuse what no student could be trained on.

        Args:
            start: the number of the first row.
            where: what the logits come from, for messages.

        Raises:
            KdistillError: naming the first row that holds NaN, infinity, or a logit beyond `LARGEST`.
        """
        if (row := unusable_row(self.values)) is not None:
            half = f"the logits of row {start + row} are more than float16 can hold: --dtype float32"
            raise KdistillError(f"{where}: {half if self.storage.dtype == 'float16' else unusable(start + row)}")

    def at(self, rows: NDArray[Any], view: int = 0) -> Logits:
        """Some of the rows, by number or mask, and of one view."""
        of_view = self.view(view)
        top = None if of_view.top_classes is None else of_view.top_classes[rows]
        return Logits(of_view.storage, of_view.values[rows], top)

    def view(self, number: int) -> Logits:
        """Those of one view; the only one, where there are no others."""
        if self.storage.views is None:
            return self
        top = None if self.top_classes is None else self.top_classes[:, number]
        return Logits(self.storage.one_view, self.values[:, number], top)

    def most_likely(self) -> NDArray[np.int64]:
        """The class with the largest logit, (rows,); of the rows as they are."""
        if self.storage.views is not None:
            return self.view(0).most_likely()
        largest = self.values[:, : self.storage.top_k].argmax(axis=1)
        if self.top_classes is None:
            return np.asarray(largest, np.int64)
        return np.take_along_axis(self.top_classes, largest[:, None], axis=1)[:, 0].astype(np.int64)

    def dense(self) -> NDArray[np.float32]:
        """One logit a class, (rows, classes), or (rows, views, classes)."""
        values = self.values.astype(np.float32)
        if self.top_classes is None:
            return values
        whole = np.repeat(values[..., -1:] - np.float32(self.storage.rest_offset), self.storage.classes, axis=-1)
        np.put_along_axis(whole, self.top_classes.astype(np.int64), values[..., :-1], axis=-1)
        return whole

    def arrays(self) -> Block:
        """What is stored of them, by dataset."""
        top = {} if self.top_classes is None else {"top_classes": self.top_classes}
        return {"logits": self.values, **top}
