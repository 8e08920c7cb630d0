"""Python functions as teachers: this is how a teacher of another framework, or a remote one, takes part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.data import user_code
from kdistill.errors import KdistillError


@dataclass(frozen=True)
class FunctionTeacher:
    """A function of a batch of rows, (rows, ...), as they are in the dataset. It returns (rows, outputs).

    Attributes:
        name: `module:function`.
        source: the source file of the module.
        function: returns outputs, e.g. logits or probabilities, as floats that NumPy can convert to an array.
        outputs: the number of columns that it must return; None if any will do.
    """

    name: str
    source: Path
    function: Callable[[NDArray[Any]], Any]
    outputs: int | None
    parallel: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.name

    @classmethod
    def load(cls, name: str, source: Path, outputs: int | None) -> FunctionTeacher:
        """Import a function.

        Raises:
            KdistillError: if the import fails, or the module lacks the function.
        """
        return cls(name, source, user_code.load_function(name, source), outputs)

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int | None, dataset: str) -> None:
        """Check nothing: the function says itself which rows it takes."""

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the function's outputs for a block of inputs (rows, ...), (rows, outputs).

        The function gets a copy, which it may change.

        Raises:
            KdistillError: if the function fails, or returns anything else.
        """
        with user_code.one_line_failures(self.name, self.source):
            value = self.function(inputs.copy())
            array = np.asarray(value)
        width = self.outputs or (array.shape[-1] if array.ndim == 2 else "any")
        expected = len(inputs), width
        if array.dtype.kind != "f" or array.shape != expected:
            kind = "None" if value is None else type(value).__name__
            described = f"{kind} of shape {array.shape} and type {array.dtype}" if value is not None else kind
            raise KdistillError(
                f"{self.name} returned {described} for {len(inputs)} rows (expected floats of shape ({len(inputs)}, {width}))"
            )
        with np.errstate(over="ignore"):  # Infinite logits are refused.
            return array.astype(np.float32)
