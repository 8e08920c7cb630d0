"""Dark knowledge: rows beside their soft targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kdistill.console import printable
from kdistill.evaluation import metrics
from kdistill.evaluation.figures.style import CLASS_NAME, NAVY, ORANGE, STYLE, shorten, title_of


@dataclass(frozen=True)
class Example:
    """One row and its soft targets.

    Attributes:
        image: (height, width[, channels]), or None if the row is not an image.
        label: a class number, or None.
        logits: of the teacher, (classes,).
        lines: text that describes a row that is not an image.
    """

    image: NDArray[Any] | None
    label: int | None
    logits: NDArray[np.floating[Any]]
    lines: Sequence[str] = ()


def dark_knowledge(
    examples: Sequence[Example], class_names: Sequence[str], temperature: float, title: str, top: int = 10
) -> Figure:
    """Draw inputs beside bars of their soft targets at T = 1 and at the file's T, the label's bar in orange.

    With more than `top` classes, each input has the bars of its most likely classes.
    """
    with mpl.rc_context(STYLE):
        class_names = [shorten(printable(name), CLASS_NAME) for name in class_names]
        orders = [most_likely(example.logits, top) for example in examples]
        longest = max((len(class_names[place]) for order in orders for place in order), default=0)
        crowded = longest * max(map(len, orders), default=0) > 24
        columns = min(2, len(examples))
        rows = -(-len(examples) // columns)
        height = 1.45 + (0.068 * longest if crowded else 0.0)
        figure = Figure(figsize=(10 if columns > 1 else 6, height * rows + 0.9), layout="constrained")
        input_width = 0.8 if all(example.image is not None for example in examples) else 1.5
        grid = figure.subplots(rows, 3 * columns, width_ratios=[input_width, 1.6, 1.6] * columns, squeeze=False)
        for axes in grid.flat[3 * len(examples) :]:
            axes.axis("off")
        for number, (example, order) in enumerate(zip(examples, orders, strict=True)):
            picture, *bars = grid.flat[3 * number : 3 * number + 3]
            _show_input(picture, example, class_names)
            for axes, scale in zip(bars, (1.0, temperature), strict=True):
                probabilities = metrics.softmax(example.logits, scale)[order]
                colors = [ORANGE if place == example.label else NAVY for place in order]
                axes.bar(range(len(order)), probabilities, color=colors, width=0.78)
                axes.set_xticks(range(len(order)), [class_names[place] for place in order])
                axes.tick_params(axis="x", labelsize=8, length=0, rotation=90 if crowded else 0)
                axes.tick_params(axis="y", labelsize=8)
                axes.set_ylim(0, 1.02 if scale == 1.0 else max(probabilities.max() * 1.1, 1e-6))
                axes.yaxis.set_major_locator(MaxNLocator(3))
                axes.grid(axis="x", visible=False)
                if number < columns:
                    axes.set_title(f"T = {scale:g}", fontsize=11)
        title_of(figure, title)
        return figure


def most_likely(logits: NDArray[Any], top: int) -> NDArray[np.intp]:
    """Return all classes in order, or the `top` most likely ones, the most likely first."""
    return np.arange(len(logits)) if len(logits) <= top else np.argsort(-logits, kind="stable")[:top]


def _show_input(axes: Any, example: Example, class_names: Sequence[str]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    name = "" if example.label is None else shorten(class_names[example.label], 12)
    label = f"label:{' ' if len(name) <= 8 else chr(10)}{name}" if name else "no label"
    axes.set_xlabel(label, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if example.image is not None:
        axes.imshow(np.squeeze(example.image), cmap="gray_r")
    else:
        lines = "\n".join(shorten(printable(line), 24) for line in example.lines)
        axes.text(0.5, 0.5, lines, transform=axes.transAxes, ha="center", va="center", fontsize=8, linespacing=1.35)
