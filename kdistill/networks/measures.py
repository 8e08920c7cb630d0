"""The measures of a network on some rows, as manifests record them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from kdistill.data import Split
from kdistill.data.rows import BLOCK_ROWS
from kdistill.tasks import Task
from kdistill.tasks.task import Floats


def measure_split(outputs: Callable[[NDArray[Any]], Floats], split: Split, task: Task, prefix: str) -> dict[str, Any]:
    """Return the measures of a network on some rows, with one block of inputs in memory at a time.

    Args:
        outputs: returns the outputs (rows, outputs) for inputs (rows, ...).
        split: the rows.
        task: what the outputs are.
        prefix: of the names, e.g. `test`.

    Returns:
        The measures by name, e.g. `test_errors`, and the number of rows.
    """
    measures = task.measure(map(outputs, split.blocks(BLOCK_ROWS)), split.labels)
    return {f"{prefix}_rows": len(split), **{f"{prefix}_{name}": value for name, value in measures.items()}}


def unprefixed(results: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the measures that `measure_split` recorded with a prefix, by their name without it."""
    return {name.removeprefix(f"{prefix}_"): value for name, value in results.items() if name.startswith(f"{prefix}_")}
