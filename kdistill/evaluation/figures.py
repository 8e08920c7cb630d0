"""Figures, drawn with Matplotlib from histories and arrays. Reads no files.

The background is white and the ink dark, so that a figure looks the same on a light page, a dark page and paper.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from kdistill.console import printable
from kdistill.evaluation import metrics

NAVY, ORANGE = "#1f2a6b", "#e8710a"
TEACHERS = (NAVY, "#4b74c9", "#7a5bb5", "#2b8a9e")
STUDENTS = (ORANGE, "#b8321f", "#2f8f4e", "#d6489b", "#8c6d1f", "#6b6b6b")
DASHES = (0, (3, 1.6))
MARKERS = (None, "o", "s", "^", "D", "v")  # tell networks of the same color apart
NAME, CLASS_NAME = 28, 20  # longest name of a network and of a class, in characters
FAR_APART = 3  # errors that differ by more than this factor get a logarithmic axis

STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e8",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "savefig.dpi": 160,
    "svg.fonttype": "path",
    "svg.hashsalt": "kdistill",  # the same figure gives the same bytes
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names of classes and networks may have dollar signs
    "text.usetex": False,
}


@dataclass(frozen=True)
class Curve:
    """The history of one network.

    Attributes:
        name: of the network.
        role: `teacher` or `student`.
        held_out: the rows that each epoch is evaluated on, `validation` or `test`.
        metric: the name of the metric. An accuracy is from 0 to 1.
        epochs: their numbers; the other lists have a value per epoch.
        train_metric: on training rows.
        held_out_metric: on held-out rows.
        train_loss: the loss of the hard labels, for students too, so that they can be compared.
        held_out_loss: the same on held-out rows.
    """

    name: str
    role: str
    held_out: str
    metric: str
    epochs: Sequence[float]
    train_metric: Sequence[float]
    held_out_metric: Sequence[float]
    train_loss: Sequence[float]
    held_out_loss: Sequence[float]


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


def learning_curves(curves: Sequence[Curve], title: str, loss_title: str) -> Figure:
    """Draw metric and loss over epochs side by side, training rows dashed and held-out rows solid."""
    with mpl.rc_context(STYLE):
        below = len(curves) <= 2  # the legend is one row; otherwise it is at the right
        tallest = 22  # most legend entries in a column
        entries = min(len(curves) + 2, tallest)
        figure = Figure(figsize=(10 if below else 12, max(4.4, 0.27 * entries + 0.9)), layout="constrained")
        metric, loss = figure.subplots(1, 2)
        turns = {"teacher": 0, "student": 0}
        colors = {"teacher": TEACHERS, "student": STUDENTS}
        legend: list[Line2D] = []
        for curve in curves:
            again, turn = divmod(turns[curve.role], len(colors[curve.role]))
            turns[curve.role] += 1
            color = colors[curve.role][turn]
            marker = "o" if len(curve.epochs) == 1 else MARKERS[again % len(MARKERS)]
            every = max(1, len(curve.epochs) // 8)
            look: dict[str, Any] = {"color": color, "marker": marker, "markevery": every, "markersize": 5}
            name = printable(curve.name)
            label = name if curve.role in name else f"{name} ({curve.role})"
            short = shorten(name, NAME)
            legend.append(Line2D([], [], color=color, marker=marker, markersize=5, label=label.replace(name, short, 1)))
            for axes, train, held in (
                (metric, curve.train_metric, curve.held_out_metric),
                (loss, curve.train_loss, curve.held_out_loss),
            ):
                if not np.isnan(train).all():  # no training row has a label
                    hollow: dict[str, Any] = {"markerfacecolor": "white"} if len(curve.epochs) == 1 else {}
                    dashed: dict[str, Any] = {"linestyle": DASHES, "alpha": 0.75, "linewidth": 1.6, **look, **hollow}
                    axes.plot(curve.epochs, train, label=f"{label}, training", **dashed)
                if not np.isnan(held).all():  # no teacher to compare with
                    axes.plot(curve.epochs, held, label=f"{label}, {curve.held_out}", **look)
        _label_metric(metric, curves)
        loss.set(title=loss_title, xlabel="epoch", yscale="log")
        loss.yaxis.set_major_formatter("{x:g}")
        loss.grid(which="minor", linewidth=0.4)
        low, high = loss.get_ylim()
        decades = np.log10(high / low)
        loss.yaxis.set_minor_formatter("{x:g}" if decades < 1 else "")  # a short axis may lack ticks at powers of 10
        for axes in (metric, loss):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(x=0.02)
        alone = all(len(curve.epochs) == 1 for curve in curves)
        if alone:
            for axes in (metric, loss):
                axes.set_xticks([1])
        grey: dict[str, Any] = {"color": "#555555", "marker": "o" if alone else None, "markersize": 5}
        held_out = " or ".join(dict.fromkeys(curve.held_out for curve in curves))
        legend.append(Line2D([], [], label=f"{held_out} rows", **grey))
        unfilled: dict[str, Any] = {"markerfacecolor": "white"} if alone else {}
        legend.append(Line2D([], [], linestyle=DASHES, linewidth=1.6, label="training rows", **grey, **unfilled))
        where = "outside lower center" if below else "outside right upper"
        columns = len(legend) if below else -(-len(legend) // tallest)
        figure.legend(handles=legend, loc=where, ncols=columns, fontsize=10)
        title_of(figure, title, 1.0 if below else 0.6)
        return figure


def _label_metric(axes: Any, curves: Sequence[Curve]) -> None:
    """Set the title of the metric's axes, and their range and format if it is an accuracy."""
    name = curves[0].metric
    axes.set(title=f"{name[0].upper()}{name[1:]}", xlabel="epoch")
    if name.endswith("accuracy"):
        _focus(axes, [curve.held_out_metric for curve in curves] + [curve.train_metric for curve in curves])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.10g}%"))


def _focus(axes: Any, series: Sequence[Sequence[float]]) -> None:
    """Limit the accuracy axis to where the curves are after the first tenth of the epochs, within 0 to 100%."""
    late = np.concatenate([np.asarray(values, float)[len(values) // 10 :] for values in series])
    low, high = float(np.nanmin(late)), float(np.nanmax(np.concatenate([np.asarray(one, float) for one in series])))
    margin = max(0.08 * (high - low), 0.002)
    axes.set_ylim(max(low - margin, -margin / 2), min(high + margin, 1.0 + margin / 2))


def shorten(text: str, length: int) -> str:
    """Return a text of at most `length` characters; the middle of a longer one becomes an ellipsis.

    Names of networks often differ only at their end.
    """
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def title_of(figure: Figure, title: str, share: float = 1.0) -> None:
    """Set a figure's title, wrapped to a fraction of its width."""
    width = int(11.5 * figure.get_figwidth() * share)
    lines = textwrap.wrap(printable(title), width, max_lines=4, placeholder=" …")
    figure.suptitle("\n".join(lines), x=0.008, ha="left", fontsize=11, color="#555555")


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


def heat_maps(maps: Sequence[HeatMap], title: str, *, lower_is_better: bool = True, form: str = "{:+.1f}") -> Figure:
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
                axes.text(x, y, form.format(value), ha="center", va="center", fontsize=10, color=ink)
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


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's extension. The same figure gives the same bytes."""
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[path.suffix[1:]]
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the font draws boxes for characters that it lacks
        figure.savefig(path, metadata=undated, facecolor="white")
