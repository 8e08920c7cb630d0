"""Figures of a teacher's outputs, for tasks without dark knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdistill.console import printable
from kdistill.evaluation.figures.style import CLASS_NAME, NAVY, ORANGE, STUDENTS, STYLE, TEACHERS, shorten, title_of

COLORS = (*TEACHERS, *STUDENTS)
MOST_POINTS = 5000  # rows in a figure, evenly spaced
MOST_CLASSES = 40


def average_precisions(precisions: NDArray[np.floating[Any]], names: Sequence[str], title: str) -> Figure:
    """Draw a bar per class, the best first; classes without a positive row (NaN) are left out."""
    order = np.argsort(-precisions, kind="stable")
    order = order[~np.isnan(precisions[order])][:MOST_CLASSES]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, max(2.6, 0.27 * len(order) + 1.3)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(order)), precisions[order], color=NAVY, height=0.7)
        axes.set_yticks(range(len(order)), [shorten(printable(names[number]), CLASS_NAME) for number in order])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="average precision", xlim=(0, 1))
        title_of(figure, title)
        return figure


def predicted_against_true(
    predicted: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]], names: Sequence[str], title: str
) -> Figure:
    """Draw predicted over true numbers, (rows, numbers) both, a plot per number; on the line both are equal."""
    shown = min(4, labels.shape[1])
    rows = _evenly_spaced(len(labels))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * shown if shown > 1 else 5.4, 4.8), layout="constrained")
        for number, axes in enumerate(figure.subplots(1, shown, squeeze=False).flat):
            true, guess = labels[rows, number], predicted[rows, number]
            known = ~np.isnan(true)
            axes.plot(true[known], guess[known], ".", color=NAVY, markersize=3, alpha=0.35, rasterized=True)
            both = np.concatenate([true[known], guess[known]])
            ends = [both.min(), both.max()]
            axes.plot(ends, ends, color=ORANGE, linewidth=1.4)
            axes.set(title=shorten(printable(names[number]), CLASS_NAME), xlabel="true", ylabel="predicted")
        title_of(figure, title)
        return figure


def vectors(
    points: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], names: Sequence[str], title: str
) -> Figure:
    """Draw vectors (rows, width) by their first two principal components, in a color per class (below 0: none)."""
    rows = _evenly_spaced(len(points))
    centered = points[rows].astype(np.float64) - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    plane = centered @ directions[:2].T
    if plane.shape[1] < 2:
        plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        axes = figure.subplots()
        for label in np.unique(labels[rows])[: len(COLORS)]:
            part = plane[labels[rows] == label]
            name = shorten(printable(names[label]), CLASS_NAME) if label >= 0 else "no label"
            color = COLORS[label] if label >= 0 else "#9a9aa2"
            axes.plot(part[:, 0], part[:, 1], ".", color=color, markersize=4, alpha=0.6, label=name, rasterized=True)
        axes.set(xlabel="first principal component", ylabel="second principal component")
        if labels.max(initial=-1) >= 0:
            figure.legend(loc="outside right upper", fontsize=10, markerscale=2)
        title_of(figure, title)
        return figure


def _evenly_spaced(rows: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, rows - 1, min(rows, MOST_POINTS)).astype(np.int64))
