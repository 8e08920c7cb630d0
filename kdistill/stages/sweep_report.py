"""How the summaries of a sweep are shown: as tables, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from kdistill import data
from kdistill.console import NumberFormat, Table
from kdistill.evaluation import sweeps
from kdistill.evaluation.intervals import Estimate
from kdistill.evaluation.sweeps import Summary
from kdistill.settings import Sweep
from kdistill.tasks import Headline

CONTROLS = (sweeps.SCALED, sweeps.SMOOTHED, sweeps.PERMUTED, sweeps.OTHER)

DIGITS = NumberFormat(".3f"), NumberFormat(".3f")  # of NLL and ECE


def tables(summaries: Sequence[Summary], headline: Headline) -> Iterator[Table]:
    """Yield a table with a row per setting, and for each model one that compares its best setting with the controls."""
    grid = [summary for summary in summaries if summary.kind not in CONTROLS]
    models = list(dict.fromkeys(summary.model for summary in grid))
    validated = any(summary.validation for summary in grid)
    rows = []
    for summary in grid:
        name = f"{data.short_name(summary.model)}, {summary}" if len(models) > 1 else str(summary)
        validation = [_measure(summary.validation, headline) + (" *" if summary.best else "  ")] if validated else []
        rows.append((name, *validation, _measure(summary.test, headline), _difference(summary.difference, headline)))
    seeds = next((summary.test.n for summary in grid if summary.test), 1)
    note = "in brackets: 95% interval of the mean difference to the hard-label student of the same seed\n" * (seeds > 1)
    if validated:
        note += f"* {_best(headline)}" + " of its model" * (len(models) > 1)
    else:
        note += "no setting is marked as best without validation rows: add --validation-fraction 0.1"
    yield Table(
        f"{headline.label}, "
        + (f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed, so no intervals"),
        ("student", *(["validation  "] if validated else []), "test", "test, difference to hard labels"),
        rows,
        note=note,
    )
    for model in models:
        yield from _controls([summary for summary in summaries if summary.model == model], headline)


def _controls(summaries: Sequence[Summary], headline: Headline) -> Iterator[Table]:
    """Yield a table of a model's chosen setting, its hard-label students and its controls, if it has any."""
    order = (sweeps.DISTILLED, sweeps.HARD, *CONTROLS)
    compared = [summary for summary in summaries if summary.chosen or summary.kind != sweeps.DISTILLED]
    compared.sort(key=lambda summary: order.index(summary.kind))
    kinds = {summary.kind for summary in compared}
    if kinds.isdisjoint(CONTROLS):
        return
    chosen = compared[0]
    columns = {
        "student": [f"distilled, {summary}" if summary.chosen else str(summary) for summary in compared],
        f"test {headline.label}": [_measure(summary.test, headline) for summary in compared],
        "difference to hard labels": [
            "" if summary.kind == sweeps.SCALED else _difference(summary.difference, headline) for summary in compared
        ],
        "NLL": [mean(summary.nll, *DIGITS) for summary in compared],
        "ECE": [mean(summary.ece, *DIGITS) for summary in compared],
        "agree": [f"{summary.agreement.mean:.1%}" if summary.agreement else "" for summary in compared],
    }
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    why = _best(headline) if chosen.validation else "the first setting"
    notes = []
    if "NLL" in columns:
        notes = [
            "NLL, ECE, agree: on test rows; agree: with the teacher",
            "scaled: logits divided by the T with the lowest NLL on validation rows"
            if sweeps.SCALED in kinds
            else "temperature scaling of the hard-label student needs --validation-fraction",
        ]
    title = f"controls of {data.short_name(chosen.model)}, {chosen} ({why})"
    yield Table(title, tuple(columns), list(zip(*columns.values(), strict=True)), note="\n".join(notes))


def _best(headline: Headline) -> str:
    """Return why a setting is the best."""
    return f"{'lowest' if headline.lower_is_better else 'highest'} {headline.label} on validation rows"


def mean(estimate: Estimate | None, number_format: NumberFormat, mean_format: NumberFormat) -> str:
    """Return a mean and its standard deviation, or the value of a single seed; an empty text for None."""
    if estimate is None:
        return ""
    if estimate.sd is None:
        return number_format(estimate.mean)
    return f"{mean_format(estimate.mean)} ± {mean_format(estimate.sd)}"


def interval(estimate: Estimate | None, number_format: NumberFormat, *, signed: bool = False) -> str:
    """Return a mean and its interval in brackets if there is one; an empty text for None."""
    if estimate is None:
        return ""
    number = partial(number_format, signed=signed)
    ends = [number(end) for end in (estimate.low, estimate.high) if end is not None]
    return number(estimate.mean) + (f" [{', '.join(ends)}]" if ends else "")


def _measure(estimate: Estimate | None, headline: Headline) -> str:
    return mean(estimate, headline.number_format, headline.mean_format)


def _difference(estimate: Estimate | None, headline: Headline) -> str:
    alone = estimate is not None and estimate.low is None
    return interval(estimate, headline.number_format if alone else headline.mean_format, signed=True)


def draw(summaries: Sequence[Summary], settings: Sweep, headline: Headline, path: Path, title: str) -> None:
    """Save a picture: a heat map per model and loss if both T and alpha vary, else the measure over the one that varies."""
    from kdistill.evaluation import figures

    grids: dict[tuple[str, str | None], list[Summary]] = {}
    for summary in summaries:
        if summary.kind == sweeps.DISTILLED:
            grids.setdefault((summary.model, summary.loss), []).append(summary)
    names = {
        (model, loss): data.short_name(model) + (f", {loss}" if len(settings.losses) > 1 else "")
        for model, loss in grids
    }
    if len(settings.temperatures) > 1 and len(settings.alphas) > 1:
        maps = [
            figures.HeatMap(
                names[key],
                [f"{cell.temperature:g}" if cell.temperature is not None else "none" for cell in grid],
                [f"{cell.alpha:g}" for cell in grid],
                [cell.difference.mean if cell.difference else 0.0 for cell in grid],
                [cell.best for cell in grid],
            )
            for key, grid in grids.items()
        ]
        picture = figures.heat_maps(
            maps,
            f"{title}; difference to hard labels",
            lower_is_better=headline.lower_is_better,
            number_format=headline.mean_format,
        )
        figures.save(picture, path)
        return
    hard = {summary.model: summary.test for summary in summaries if summary.kind == sweeps.HARD and summary.test}
    over_temperature = any(point.temperature is not None for grid in grids.values() for point in grid)
    axis = "T" if over_temperature and len(settings.alphas) == 1 else "alpha"
    lines = [
        figures.Line(
            names[model, loss],
            [point.alpha if axis == "alpha" else point.temperature for point in grid],
            [point.test.mean if point.test else math.nan for point in grid],
            [(point.test.sd or 0.0) if point.test else 0.0 for point in grid],
            hard[model].mean if model in hard and loss == next(iter(settings.losses), None) else None,
            (hard[model].sd or 0.0) if model in hard else 0.0,
        )
        for (model, loss), grid in grids.items()
    ]
    spread = "; bars and bands: one standard deviation" if len(settings.seeds) > 1 else ""
    figures.save(figures.errors_over(axis, lines, headline.label, f"{title}; dashed: hard labels{spread}"), path)
