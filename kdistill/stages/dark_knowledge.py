"""The picture of soft targets: which rows it shows, and how their inputs are shown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.data.preprocessing import TablePreprocessing
from kdistill.data.rows import BLOCK_ROWS
from kdistill.evaluation import metrics
from kdistill.soft_targets import (
    AlignedSoftTargets,
    SoftTargets,
    align,
    teacher_names,
    transfer_set,
    transfer_sources,
)
from kdistill.tasks import NO_LABEL
from kdistill.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdistill.evaluation.figures import Example

MAX_ROWS = 8
CLEAR = 0.5, 0.98  # range of the largest probability at T = 1 for which dark knowledge shows well
SHOWN_COLUMNS = 5
SHOWN_VALUES = 40


def dark_knowledge(workspace: Workspace, soft: SoftTargets) -> Figure:
    """Draw the inputs of some rows, with their probabilities at T = 1 and at the temperature of the file."""
    from kdistill.evaluation import figures

    sources = [source.name for source in transfer_sources(soft.manifest)]
    sources = sources or [soft.manifest.require_input("dataset").name]
    title = (
        f"{' + '.join(map(data.short_name, sources))}: probabilities of "
        f"{' + '.join(map(data.short_name, teacher_names(soft.manifest)))}, the label's bar in orange. One row per class: "
        f"where possible, a correct one with {CLEAR[0]:.0%} to {CLEAR[1]:.0%} confidence, and the one with the largest gap "
        "between the second and the third class."
    )
    dataset = data.resolve(soft.manifest.require_input("dataset").name, cache=workspace.cache).load()
    return figures.dark_knowledge(examples_of(workspace, soft, dataset), dataset.class_names, soft.temperature, title)


def examples_of(workspace: Workspace, soft: SoftTargets, dataset: data.Dataset) -> list[Example]:
    """Return the rows to draw, sorted by class."""
    rows = transfer_set(soft.manifest, dataset, workspace.cache)
    return select_examples(soft, rows, table_columns(dataset.preprocessing))


def table_columns(preprocessing: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of a table's inputs; empty for other data."""
    table = TablePreprocessing.from_json(preprocessing)
    return table.columns if table else ()


def select_examples(soft: SoftTargets, rows: data.Split, columns: Sequence[str] = ()) -> list[Example]:
    """Return the rows to draw, sorted by class.

    Args:
        soft: The soft targets.
        rows: All rows of the soft targets.
        columns: The names of the inputs of a table; empty for other data.
    """
    from kdistill.evaluation.figures import Example

    aligned = align(soft, rows.keys(), rows.labels, "rows of its transfer set")
    mask = np.zeros(len(rows), bool)
    mask[select_rows(aligned, rows.labels)] = True
    inputs, labels, logits = rows.select(mask).read(), rows.labels[mask], aligned.at(mask).dense()
    images = are_images(inputs)
    return [
        Example(
            inputs[row] if images else None,
            None if labels[row] == NO_LABEL else int(labels[row]),
            logits[row],
            () if images else describe_input(inputs[row], columns),
        )
        for row in np.argsort(np.where(labels == NO_LABEL, logits.argmax(axis=1), labels), kind="stable")
    ]


def are_images(inputs: NDArray[Any]) -> bool:
    """Return whether inputs (rows, ...) are images: gray ones, or with 1, 3 or 4 channels."""
    return inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4))


def describe_input(values: NDArray[Any], columns: Sequence[str]) -> list[str]:
    """Describe an input that is not an image in a few lines.

    Args:
        values: The inputs of one row, of any shape, or a text. Those of a table are standardized.
        columns: The names of the inputs of a table; empty for other data.

    Returns:
        The values of a table's row that deviate most, with their columns; else the first values.
    """
    if isinstance(values, str):
        return textwrap.wrap(values, 22, max_lines=5, placeholder=" …")
    if columns:
        from kdistill.evaluation.figures import shorten

        largest = np.argsort(-np.abs(values), kind="stable")[:SHOWN_COLUMNS]
        return [f"{shorten(columns[column], 14)} {values[column]:+.1f} sd" for column in largest]
    flat = values.ravel()
    if np.issubdtype(flat.dtype, np.integer):
        flat = np.trim_zeros(flat)  # removes the padding of token ids
    shown = flat[:SHOWN_VALUES].tolist()
    text = " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in shown)
    return textwrap.wrap(text + " …" * (flat.size > SHOWN_VALUES), 22, max_lines=5, placeholder=" …")


def select_rows(aligned: AlignedSoftTargets, labels: NDArray[np.int64]) -> list[int]:
    """Return one row for each predicted class, for at most `MAX_ROWS` classes.

    Rows are ranked by three criteria, in this order:

    1. The teacher is correct, or the row has no label. Other rows are used only if all rows are misclassified.
    2. The prediction is clear but not certain: its probability at T = 1 is in `CLEAR`, and at least twice the second.
    3. For clear rows, the ratio of the second to the third probability, where the third counts as at least 1%. For other
       rows, how near the largest probability is to the middle of `CLEAR`.
    """
    best: dict[int, tuple[bool, bool, float, int]] = {}  # by class: correct, clear, score and row
    for start in range(0, len(labels), BLOCK_ROWS):
        logits = aligned.at(np.arange(start, min(start + BLOCK_ROWS, len(aligned)))).dense()
        probabilities = np.exp(metrics.log_softmax(logits))
        if probabilities.shape[1] < 3:
            probabilities = np.pad(probabilities, ((0, 0), (0, 1)))
        third, second, first = np.sort(np.partition(probabilities, (-3, -2, -1), axis=1)[:, -3:], axis=1).T
        predicted = logits.argmax(axis=1)
        block_labels = labels[start : start + len(logits)]
        correct = (predicted == block_labels) | (block_labels == NO_LABEL)
        clear = (first >= CLEAR[0]) & (first <= CLEAR[1]) & (first >= 2 * second)
        score = np.where(clear, second / np.maximum(third, 0.01), -np.abs(first - sum(CLEAR) / 2))
        order = np.lexsort((-np.arange(len(predicted)), score, clear, correct))  # the best row is last
        for label in np.unique(predicted).tolist():
            row = int(order[predicted[order] == label][-1])
            rank = bool(correct[row]), bool(clear[row]), float(score[row])
            if label not in best or rank > best[label][:3]:
                best[label] = *rank, start + row
    ranked = sorted(best.values(), reverse=True)
    correct_rows = [rank for rank in ranked if rank[0]]
    return [row for *_, row in (correct_rows or ranked)[:MAX_ROWS]]
