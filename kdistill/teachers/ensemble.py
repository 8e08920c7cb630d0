"""Teachers that answer for any rows: one, or several whose outputs are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdistill.data import Split
from kdistill.data.keys import row_keys
from kdistill.data.rows import NumberedBlocks
from kdistill.soft_targets.storage import check_usable
from kdistill.tasks import Task
from kdistill.teachers.outputs import Floats, ZeroCount, to_logits

if TYPE_CHECKING:
    from kdistill.data.augmentation import Views


class Member(Protocol):
    """A loaded teacher: a network or a function. As a text, it is its path or name."""

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int | None, dataset: str) -> None:
        """Refuse rows or classes that do not fit."""

    def logits(self, inputs: NDArray[Any]) -> Floats:
        """Return logits or probabilities (rows, classes) of inputs (rows, ...)."""


@dataclass(frozen=True)
class Ensemble:
    """One or several loaded teachers, whose outputs are averaged.

    Attributes:
        members: the teachers.
        probabilities: for each member, whether it gives probabilities instead of logits.
        mean: `arithmetic` averages the probabilities at `temperature` (Hinton, Vinyals and Dean 2015, section 5), so that
            the logits are T times the log of the mean; `geometric` averages the logits. Outputs that are not logits are
            averaged as they are.
        temperature: T of the arithmetic mean.
        batch_size: the most rows that a member gets in one call.
        outputs: the number of outputs per row.
        task: what the outputs are.
        views: the views of each row that the teachers see; None for each row as it is.
    """

    members: Sequence[Member]
    probabilities: Sequence[bool]
    mean: str
    temperature: float
    batch_size: int
    outputs: int
    task: Task
    views: Views | None = None
    zeros: ZeroCount = field(default_factory=ZeroCount)

    def numbered(self, split: Split, rows: int) -> Callable[[int], tuple[NDArray[Any], Floats]]:
        """Return a function of a number, which returns inputs and logits of this block of `rows` rows of a transfer set.

        The inputs are not augmented. The logits are (rows, classes), or (rows, views, classes) if there are views.
        """
        blocks = NumberedBlocks(split.inputs, rows)

        def block(number: int) -> tuple[NDArray[Any], Floats]:
            inputs, start = blocks[number], number * rows
            if self.views is None:
                return inputs, self.logits(inputs, start)
            keys, render = row_keys(inputs), self.views.render
            views = (render(inputs, keys, view) for view in range(self.views.count or 1))
            return inputs, np.stack([self.logits(augmented, start) for augmented in views], axis=1)

        return block

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int | None, dataset: str) -> None:
        """Refuse data that does not fit a member."""
        for member in self.members:
            member.check(input_shape, input_dtype, classes, dataset)

    def logits(self, inputs: NDArray[Any], first_row: int = 0) -> Floats:
        """Return the averaged logits (rows, classes) of inputs (rows, ...).

        Raises:
            KdistillError: if a member's outputs are not usable; the message counts rows from `first_row`.
        """
        each = []
        for member, gives_probabilities in zip(self.members, self.probabilities, strict=True):
            outputs = usable_outputs(member, inputs, self.batch_size, first_row)
            each.append(to_logits(outputs, self.zeros, member, self.task) if gives_probabilities else outputs)
        if len(each) == 1:
            return each[0]
        if self.mean == "geometric":
            return np.asarray(np.mean(each, axis=0, dtype=np.float64), np.float32)
        return self.task.average(each, self.temperature)


def usable_outputs(member: Member, inputs: NDArray[Any], batch_size: int, first_row: int = 0) -> Floats:
    """Return what a teacher returns for inputs (rows, ...), called with `batch_size` rows at a time: (rows, classes).

    Raises:
        KdistillError: if the outputs are not usable; the message counts rows from `first_row`.
    """
    starts = range(0, len(inputs), batch_size)
    outputs = np.concatenate([member.logits(inputs[start : start + batch_size]) for start in starts])
    check_usable(outputs, member, range(first_row, first_row + len(inputs)))
    return outputs
