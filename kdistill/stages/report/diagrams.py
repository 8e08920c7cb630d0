"""Diagrams of test rows, as SVG: their colors follow the color scheme of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdistill.evaluation import metrics
from kdistill.stages.report.html import Html, element, join
from kdistill.stages.report.task_report import Compared

Values = NDArray[np.floating[Any]]

PLOT = 200  # width and height of the frame, in the units of its coordinates
BINS = 25  # in each direction
UNITS = (1e9, "G"), (1e6, "M"), (1e3, "k")  # of the numbers at an axis
OUTSIDE = 0.002  # fraction of the values at each end that may be outside the axes


class Axis(NamedTuple):
    """An axis: what it shows, its ends, and the format of its numbers; by default, it depends on their distance."""

    label: str
    low: float
    high: float
    form: str = ""

    @classmethod
    def of(cls, label: str, *values: Values) -> Axis:
        """Return an axis for almost all of some values."""
        low, high = np.nanquantile(np.concatenate([each.ravel() for each in values]), (OUTSIDE, 1 - OUTSIDE))
        margin = 0.04 * float(high - low) or 0.5 * abs(float(low)) or 0.5
        return cls(label, float(low) - margin, float(high) + margin)

    def place(self, value: float) -> float:
        """Return where a value is, from 0 to `PLOT`."""
        return round(PLOT * (value - self.low) / (self.high - self.low), 1)

    def ticks(self) -> Iterable[tuple[float, str]]:
        """Yield the places and the texts of two to five round numbers."""
        reach = self.high - self.low
        step = float(10.0 ** math.floor(math.log10(reach / 2)))
        step *= next(factor for factor in (5, 2, 1) if reach / (factor * step) >= 2)
        unit, letter = next((unit for unit in UNITS if step >= unit[0]), (1.0, ""))
        form = self.form or f"{{:,.{max(0, -math.floor(math.log10(step / unit)))}f}}{letter}"
        for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            yield self.place(step * number), form.format(step * number / unit)

    def bins(self, values: Values) -> NDArray[np.int64]:
        """Return the number of each value's bin; values outside are in the first or the last one."""
        places = np.floor(BINS * (values.astype(np.float64) - self.low) / (self.high - self.low))
        return np.clip(places, 0, BINS - 1).astype(np.int64)


def diagram(compared: Compared, x: Axis, y: Axis, marks: Iterable[Html], alt: str, caption: str) -> Html:
    """Return the diagram of a network with its axes and its caption.

    Args:
        compared: the network.
        x: the axis below.
        y: the axis at the left.
        marks: what is drawn, y downwards from 0 at the upper end to `PLOT`.
        alt: what the diagram shows, without the name of the network.
        caption: its most important numbers.
    """
    ticks = [
        *(element("text", text, x=place, y=PLOT + 18, text_anchor="middle") for place, text in x.ticks()),
        *(element("text", text, x=-8, y=round(PLOT - place + 4, 1), text_anchor="end") for place, text in y.ticks()),
    ]
    name = compared.measurement.name
    return element(
        "figure",
        element(
            "svg",
            element("rect", width=PLOT, height=PLOT, class_="frame"),
            join(marks),
            join(ticks),
            element("text", x.label, x=PLOT / 2, y=PLOT + 36, text_anchor="middle"),
            element("text", y.label, x=-PLOT / 2, y=-40, text_anchor="middle", transform="rotate(-90)"),
            viewBox=f"-54 -20 {PLOT + 76} {PLOT + 64}",
            role="img",
            aria_label=f"{name}: {alt}.",
            class_=compared.role,
        ),
        element("figcaption", f"{compared.title} ({name}): {caption}"),
    )


def _dot(x: float, y: float, radius: float) -> Html:
    return element("circle", cx=x, cy=round(PLOT - y, 1), r=round(radius, 1), class_="bin")


def _diagonal() -> Html:
    return element("line", x1=0, y1=PLOT, x2=PLOT, y2=0, class_="diagonal")


def reliability(
    compared: Compared,
    probabilities: Values,
    outcomes: NDArray[np.bool_],
    labels: tuple[str, str],
    caption: str,
) -> Html:
    """Return a reliability diagram.

    Args:
        compared: the network.
        probabilities: what it predicts, (decisions,).
        outcomes: whether that is true, (decisions,).
        labels: of the axes, for the probability and for how often it is true.
        caption: the most important numbers.
    """
    x, y = (Axis(label, 0.0, 1.0, "{:.0%}") for label in labels)
    marks, described = [_diagonal()], []
    for rows, probability, frequency in zip(*metrics.reliability(probabilities, outcomes), strict=True):
        if rows:
            right, up, diagonal = x.place(probability), y.place(frequency), y.place(probability)
            marks.append(element("line", x1=right, x2=right, y1=PLOT - diagonal, y2=PLOT - up, class_="gap"))
            marks.append(_dot(right, up, 3 + 15 * math.sqrt(rows / len(outcomes))))
            described.append(f"{rows:,}: {labels[0]} {100 * probability:.0f}%, {labels[1]} {100 * frequency:.0f}%")
    return diagram(compared, x, y, marks, f"reliability diagram. {'; '.join(described)}", caption)


def against(compared: Compared, true: Values, predicted: Values, ends: Axis, caption: str) -> Html:
    """Return predicted over true numbers, (rows,) both, as a dot per bin of rows. Both axes have the same ends."""
    places, counts = np.unique(BINS * ends.bins(true) + ends.bins(predicted), return_counts=True)
    width = PLOT / BINS
    dots = (
        _dot(width * (x + 0.5), width * (y + 0.5), 0.9 + 3.1 * math.sqrt(count / counts.max()))
        for x, y, count in zip(*np.divmod(places, BINS), counts, strict=True)
    )
    return diagram(
        compared,
        ends._replace(label=f"true {ends.label}"),
        ends._replace(label="predicted"),
        [_diagonal(), *dots],
        f"predicted over true {ends.label} of {len(true):,} rows. {caption}",
        caption,
    )


def histograms(compared: Sequence[Compared], values: Sequence[Values], x: Axis, captions: Sequence[str]) -> list[Html]:
    """Return the distributions of a number per row, (rows,) for each network, with the same axes."""
    counts = [np.bincount(x.bins(each), minlength=BINS) for each in values]
    y = Axis("rows", 0.0, 1.05 * max(int(each.max()) for each in counts))
    width = PLOT / BINS
    zero = x.place(0.0)
    drawn = []
    for each, its, caption in zip(compared, counts, captions, strict=True):
        bars = [
            element(
                "rect",
                x=round(width * place, 1),
                y=round(PLOT - y.place(count), 1),
                width=width,
                height=y.place(count),
                class_="bin",
            )
            for place, count in enumerate(its)
            if count
        ]
        if 0 < zero < PLOT:
            bars.append(element("line", x1=zero, x2=zero, y1=0, y2=PLOT, class_="diagonal"))
        drawn.append(
            diagram(each, x, y, bars, f"distribution of {x.label} over {its.sum():,} rows. {caption}", caption)
        )
    return drawn
