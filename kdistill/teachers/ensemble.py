"""Teachers that answer for any rows: one, or several whose outputs are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kdistill.soft_targets.storage import check_usable
from kdistill.tasks import Task
from kdistill.teachers.outputs import Floats, ZeroCount, to_logits

if TYPE_CHECKING:
    from kdistill.data.augmentation import Views


class Member(Protocol):
    """A loaded teacher: a network or a function. As a text, it is its path or name.

    Attributes:
        parallel: whether several threads can ask it at the same time, and gain from that.
    """

    parallel: ClassVar[bool]

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int | None, dataset: str) -> None:
        """Refuse rows or classes that do not fit."""

    def logits(self, inputs: NDArray[Any]) -> Floats:
        """Return logits or probabilities (rows, classes) of inputs (rows, ...)."""


class RowBlock(NamedTuple):
    """A block of a transfer set: its number, the number of its first row, its inputs (rows, ...) and keys (rows, 16)."""

    number: int
    first_row: int
    inputs: NDArray[Any]
    keys: NDArray[np.uint8]


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

    @property
    def parallel(self) -> bool:
        """Whether several threads can ask for logits at the same time. Zeros are counted by one thread only."""
        return all(member.parallel for member in self.members) and not any(self.probabilities)

    def of_blocks(self, rows: int) -> Callable[[RowBlock], Floats]:  # noqa: ARG002 - as `PrecomputedLogits`
        """Return a function that returns the logits of a block: (rows, classes), or (rows, views, classes) with views.

        Args:
            rows: of each block but the last.
        """
        return self._of_block

    def _of_block(self, block: RowBlock) -> Floats:
        if self.views is None:
            return self.logits(block.inputs, block.first_row)
        views = (self.views.render(block.inputs, block.keys, view) for view in range(self.views.count or 1))
        return np.stack([self.logits(augmented, block.first_row) for augmented in views], axis=1)

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
