"""How the summaries of a sweep are shown: as tables, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kdistill import data
from kdistill.console import Table
from kdistill.evaluation import sweeps
from kdistill.evaluation.intervals import Estimate
from kdistill.evaluation.sweeps import Summary
from kdistill.settings import Sweep

CONTROLS = (sweeps.SCALED, sweeps.SMOOTHED, sweeps.PERMUTED, sweeps.OTHER)


def tables(summaries: Sequence[Summary]) -> Iterator[Table]:
    """Yield a table with a row per setting, and for each model one that compares its best setting with the controls."""
    grid = [summary for summary in summaries if summary.kind not in CONTROLS]
    models = list(dict.fromkeys(summary.model for summary in grid))
    validated = any(summary.validation_errors for summary in grid)
    rows = []
    for summary in grid:
        name = f"{data.short_name(summary.model)}, {summary}" if len(models) > 1 else str(summary)
        validation = [_mean(summary.validation_errors) + (" *" if summary.best else "  ")] if validated else []
        rows.append((name, *validation, _mean(summary.test_errors), _difference(summary.difference)))
    seeds = grid[0].test_errors.n
    note = "in brackets: 95% interval of the mean difference to the hard-label student of the same seed\n" * (seeds > 1)
    if validated:
        note += "* fewest validation errors" + " of its model" * (len(models) > 1)
    else:
        note += "no setting is marked as best without validation rows: add --validation-fraction 0.1"
    yield Table(
        "errors, " + (f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed, so no intervals"),
        ("student", *(["validation  "] if validated else []), "test", "test, difference to hard labels"),
        rows,
        note=note,
    )
    for model in models:
        yield from _controls([summary for summary in summaries if summary.model == model])


def _controls(summaries: Sequence[Summary]) -> Iterator[Table]:
    """Yield a table of a model's chosen setting, its hard-label students and its controls, if it has any."""
    order = (sweeps.DISTILLED, sweeps.HARD, *CONTROLS)
    compared = [summary for summary in summaries if summary.chosen or summary.kind != sweeps.DISTILLED]
    compared.sort(key=lambda summary: order.index(summary.kind))
    kinds = {summary.kind for summary in compared}
    if kinds.isdisjoint(CONTROLS):
        return
    chosen = compared[0]
    rows = [
        (
            f"distilled, {summary}" if summary.chosen else str(summary),
            _mean(summary.test_errors),
            "" if summary.kind == sweeps.SCALED else _difference(summary.difference),
            _mean(summary.nll, 3),
            _mean(summary.ece, 3),
            f"{summary.agreement.mean:.1%}" if summary.agreement else "",
        )
        for summary in compared
    ]
    why = "fewest validation errors" if chosen.validation_errors else "the first setting"
    yield Table(
        f"controls of {data.short_name(chosen.model)}, {chosen} ({why})",
        ("student", "test errors", "difference to hard labels", "NLL", "ECE", "agree"),
        rows,
        note="NLL, ECE, agree: on test rows; agree: with the teacher\n"
        + (
            "scaled: logits divided by the T with the lowest NLL on validation rows"
            if sweeps.SCALED in kinds
            else "temperature scaling of the hard-label student needs --validation-fraction"
        ),
    )


def _mean(estimate: Estimate | None, digits: int = 1) -> str:
    if estimate is None:
        return ""
    if estimate.sd is None:
        return f"{estimate.mean:,.{digits if digits > 1 else 0}f}"
    return f"{estimate.mean:,.{digits}f} ± {estimate.sd:.{digits}f}"


def _difference(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.low is None:
        return f"{estimate.mean:+,.0f}"
    return f"{estimate.mean:+,.1f} [{estimate.low:+,.1f}, {estimate.high:+,.1f}]"


def draw(summaries: Sequence[Summary], settings: Sweep, path: Path, title: str) -> None:
    """Save a picture: a heat map per model and loss if both T and alpha vary, else errors over the one that varies."""
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
        figures.save(figures.heat_maps(maps, f"{title}; difference to hard labels"), path)
        return
    hard = {summary.model: summary.test_errors for summary in summaries if summary.kind == sweeps.HARD}
    axis = "alpha" if len(settings.alphas) > 1 else "T"
    lines = [
        figures.Line(
            names[model, loss],
            [point.alpha if axis == "alpha" else point.temperature for point in grid],
            [point.test_errors.mean for point in grid],
            [point.test_errors.sd or 0.0 for point in grid],
            hard[model].mean if loss == settings.losses[0] else None,
            hard[model].sd or 0.0,
        )
        for (model, loss), grid in grids.items()
    ]
    spread = "; bars and bands: one standard deviation" if len(settings.seeds) > 1 else ""
    figures.save(figures.errors_over(axis, lines, f"{title}; dashed: hard labels{spread}"), path)
