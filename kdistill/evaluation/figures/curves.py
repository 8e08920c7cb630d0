"""Learning curves, drawn from the histories of networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kdistill.console import printable
from kdistill.evaluation.figures.style import DASHES, MARKERS, NAME, STUDENTS, STYLE, TEACHERS, shorten, title_of


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
