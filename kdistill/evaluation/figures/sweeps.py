"""Figures of sweeps: a measure over T and alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from kdistill.console import NumberFormat, printable
from kdistill.evaluation.figures.style import (
    DASHES,
    MARKERS,
    NAME,
    NAVY,
    ORANGE,
    STUDENTS,
    STYLE,
    TEACHERS,
    shorten,
    title_of,
)

FAR_APART = 3  # errors that differ by more than this factor get a logarithmic axis


@dataclass(frozen=True)
class Line:
    """One model's test errors over T or alpha.

    Attributes:
        name: of the model.
        places: values of T or alpha; None for a loss without T.
        means: of the errors, per place.
        deviations: standard deviations, per place.
        hard: mean errors of the hard-label students; None if another line of the model shows it.
        hard_deviation: standard deviation of these.
    """

    name: str
    places: Sequence[float | None]
    means: Sequence[float]
    deviations: Sequence[float]
    hard: float | None
    hard_deviation: float = 0.0


@dataclass(frozen=True)
class HeatMap:
    """One model's mean differences in test errors to its hard-label students, a value per T and alpha."""

    name: str
    temperatures: Sequence[str]
    alphas: Sequence[str]
    differences: Sequence[float]
    best: Sequence[bool]


def errors_over(what: str, lines: Sequence[Line], label: str, title: str) -> Figure:
    """Draw a measure on test rows over T or alpha.

    Each model has a line with bars of one standard deviation. Hard labels are dashed, with a band of one standard
    deviation.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2 if len(lines) <= 4 else 10, 4.4), layout="constrained")
        axes = figure.subplots()
        known = sorted({place for line in lines for place in line.places if place is not None})
        spread = len(known) > 1 and known[0] > 0 and what == "T"
        edges: list[float] = []
        for number, line in enumerate(lines):
            color = (*STUDENTS, *TEACHERS)[number % (len(STUDENTS) + len(TEACHERS))]
            if None in line.places:  # one value for every T
                axes.axhline(
                    line.means[0], color=color, linewidth=1.6, label=f"{shorten(printable(line.name), NAME)} (no T)"
                )
                axes.axhspan(
                    line.means[0] - line.deviations[0],
                    line.means[0] + line.deviations[0],
                    color=color,
                    alpha=0.12,
                    lw=0,
                )
            else:
                shift = 1.02 ** (number - (len(lines) - 1) / 2) if spread else 1.0  # bars side by side
                axes.errorbar(
                    [place * shift for place in line.places if place is not None],
                    line.means,
                    line.deviations,
                    color=color,
                    marker=MARKERS[number // (len(STUDENTS) + len(TEACHERS)) % len(MARKERS)] or "o",
                    markersize=5,
                    capsize=3,
                    elinewidth=1.2,
                    label=shorten(printable(line.name), NAME),
                )
            if line.hard is not None:
                axes.axhline(line.hard, color=color, linestyle=DASHES, linewidth=1.4, alpha=0.8)
                band = line.hard - line.hard_deviation, line.hard + line.hard_deviation
                axes.axhspan(*band, color=color, alpha=0.12, lw=0)
                edges.extend(band)
        if spread:
            axes.set_xscale("log")
        axes.set_xticks(known, [f"{place:g}" for place in known])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=what, ylabel=f"test {label}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=label == "errors"))
        hard = [line.hard for line in lines if line.hard is not None]
        axes.update_datalim([(known[0], one) for one in edges] if known else [])
        axes.autoscale_view(scalex=False)
        every = [*hard, *(mean for line in lines for mean in line.means)]
        if min(every) > 0 and max(every) > FAR_APART * min(every):  # large differences would hide small ones
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        if len(lines) <= 4:
            axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
        else:  # it would hide data
            figure.legend(loc="outside right upper", fontsize=10)
        title_of(figure, title, 1.0 if len(lines) <= 4 else 0.6)
        return figure


def heat_maps(
    maps: Sequence[HeatMap],
    title: str,
    *,
    lower_is_better: bool = True,
    number_format: NumberFormat = NumberFormat(".1f"),
) -> Figure:
    """Draw mean differences in a measure on test rows over T and alpha, a map per model.

    Blue is better than with hard labels, orange is worse. A model's best setting has a frame.
    """
    with mpl.rc_context(STYLE):
        columns = min(2, len(maps))
        rows = -(-len(maps) // columns)
        shapes = [(list(dict.fromkeys(one.temperatures)), list(dict.fromkeys(one.alphas))) for one in maps]
        width, height = max(len(shape[0]) for shape in shapes), max(len(shape[1]) for shape in shapes)
        size = columns * (0.85 * width + 1.2) + 0.9, rows * (0.5 * height + 1.3) + 0.5
        figure = Figure(figsize=(max(size[0], 5.5), max(size[1], 3.0)), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        reach = max([abs(value) for one in maps for value in one.differences if np.isfinite(value)] + [1e-9])
        colors = LinearSegmentedColormap.from_list(
            "better to worse", [NAVY, "#f4f4f6", ORANGE][:: 1 if lower_is_better else -1]
        )
        for axes in grid.flat[len(maps) :]:
            axes.axis("off")
        for axes, one, (temperatures, alphas) in zip(grid.flat, maps, shapes, strict=False):
            values = np.full((len(alphas), len(temperatures)), np.nan)
            for temperature, alpha, value, best in zip(
                one.temperatures, one.alphas, one.differences, one.best, strict=True
            ):
                x, y = temperatures.index(temperature), alphas.index(alpha)
                values[y, x] = value
                ink = "white" if (value if lower_is_better else -value) < -0.5 * reach else "black"
                axes.text(x, y, number_format(value, signed=True), ha="center", va="center", fontsize=10, color=ink)
                if best:
                    axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, linewidth=2.2))
            drawn = axes.imshow(values, cmap=colors, vmin=-reach, vmax=reach, aspect="auto")
            axes.set_xticks(range(len(temperatures)), temperatures)
            axes.set_yticks(range(len(alphas)), alphas)
            axes.tick_params(length=0)
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.set(title=printable(one.name), xlabel="T", ylabel="alpha")
        figure.colorbar(drawn, ax=grid, shrink=0.8, pad=0.02).outline.set_visible(False)
        title_of(figure, title)
        return figure
