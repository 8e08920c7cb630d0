"""What all formats of networks have in common: one input, a chosen output of logits, and perhaps a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError


def check_one_input(path: Path, inputs: Sequence[Any]) -> None:
    """Refuse a network with several inputs, or none."""
    if len(inputs) != 1:
        raise KdistillError(f"{path} has {len(inputs)} inputs (expected one)")


def choose(option: str, names: list[str], name: str | None, path: Path) -> str:
    """Return the name if it is one of the names, or the only one of the names if the name is None.

    Raises:
        KdistillError: with the option and the names.
    """
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        problem = f"has several {option}s" if name is None else f"has no {option} {name!r}"
        raise KdistillError(f"{path} {problem}; pass --{option} with one of {', '.join(sorted(names))}")
    return name


def fits(shape: Sequence[int | None], actual: Sequence[int]) -> bool:
    """Return whether rows of an actual shape fit a shape with None for unknown sizes."""
    return len(shape) == len(actual) and all(size in (None, known) for size, known in zip(shape, actual, strict=True))


def in_batches(call: Callable[[NDArray[Any]], NDArray[Any]], inputs: NDArray[Any], batch: int | None) -> NDArray[Any]:
    """Return the outputs of inputs (rows, ...); a network with a fixed batch size gets padded batches of that size."""
    if batch is None or len(inputs) == batch:
        return call(inputs)
    blocks = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    return np.concatenate([call(_pad(block, batch))[: len(block)] for block in blocks])


def _pad(inputs: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.pad(inputs, [(0, rows - len(inputs)), *[(0, 0)] * (inputs.ndim - 1)])


def check_output(output: NDArray[Any], inputs: NDArray[Any], path: Path) -> None:
    """Refuse an output that is not (rows, classes)."""
    if output.ndim != 2 or len(output) != len(inputs):
        raise KdistillError(
            f"{path} outputs {output.shape} for {len(inputs)} rows (expected (rows, classes): a logit per class)"
        )


def check_outputs(outputs: int | None, needed: int | None, path: Path, dataset: str) -> None:
    """Refuse a network with another number of outputs than a dataset needs. Either is None if it is not known."""
    if None not in (outputs, needed) and outputs != needed:
        raise KdistillError(f"{path} has {outputs} outputs, but {dataset} needs {needed}")
