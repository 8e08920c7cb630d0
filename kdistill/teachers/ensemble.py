"""Teachers that are networks: one, or several whose outputs are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data import Split
from kdistill.data.keys import row_keys
from kdistill.evaluation import metrics
from kdistill.soft_targets.storage import check_usable
from kdistill.teachers.outputs import Floats, ZeroCount, centered, to_logits

if TYPE_CHECKING:
    from kdistill.data.augmentation import Views
    from kdistill.networks.saved_models import SavedNetwork


@dataclass(frozen=True)
class Ensemble:
    """One or several loaded networks, whose outputs are averaged.

    Attributes:
        members: the networks.
        probabilities: for each member, whether it gives probabilities instead of logits.
        mean: `arithmetic` averages the probabilities at `temperature` (Hinton, Vinyals and Dean 2015, section 5), so that
            the logits are T times the log of the mean; `geometric` averages the logits.
        temperature: T of the arithmetic mean.
        outputs: the number of outputs per row.
        views: the views of each row that the networks see; None for each row as it is.
    """

    members: Sequence[SavedNetwork]
    probabilities: Sequence[bool]
    mean: str
    temperature: float
    outputs: int
    views: Views | None = None
    zeros: ZeroCount = field(default_factory=ZeroCount)

    def blocks(self, split: Split, rows: int, skip: int = 0) -> Iterator[tuple[NDArray[Any], Floats]]:
        """Yield inputs and logits of a transfer set in blocks of `rows` rows, after `skip` blocks.

        The inputs are not augmented. The logits are (rows, classes), or (rows, views, classes) if there are views.
        """
        for number, inputs in enumerate(islice(split.blocks(rows), skip, None), skip):
            start = number * rows
            if self.views is None:
                yield inputs, self.logits(inputs, start)
            else:
                keys, render = row_keys(inputs), self.views.render
                views = (render(inputs, keys, view) for view in range(self.views.count or 1))
                yield inputs, np.stack([self.logits(augmented, start) for augmented in views], axis=1)

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int | None, dataset: str) -> None:
        """Refuse data that does not fit a member, as `SavedNetwork.check` does."""
        for member in self.members:
            member.check(input_shape, input_dtype, classes, dataset)

    def logits(self, inputs: NDArray[Any], first_row: int = 0) -> Floats:
        """Return the averaged logits (rows, classes) of inputs (rows, ...).

        Raises:
            KdistillError: if a member's outputs are not usable; the message counts rows from `first_row`.
        """
        each = []
        for member, gives_probabilities in zip(self.members, self.probabilities, strict=True):
            outputs = member.logits(inputs)
            check_usable(outputs, member.path, range(first_row, first_row + len(inputs)))
            each.append(to_logits(outputs, self.zeros, member.path) if gives_probabilities else outputs)
        if len(each) == 1:
            return each[0]
        if self.mean == "geometric":
            return np.asarray(np.mean(each, axis=0, dtype=np.float64), np.float32)
        log_probabilities = np.stack([metrics.log_softmax(logits, self.temperature) for logits in each])
        peak = log_probabilities.max(axis=0)
        return centered(self.temperature * (peak + np.log(np.exp(log_probabilities - peak).mean(axis=0))))
