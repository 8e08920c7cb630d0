"""Sections of a report that all tasks have: data, networks, sweeps, learning curves and lineage."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdistill import data
from kdistill.console import Table
from kdistill.evaluation import sweeps
from kdistill.evaluation.sweeps import Summary
from kdistill.settings import Export
from kdistill.stages import sweep_report
from kdistill.stages.evaluate import short_count
from kdistill.stages.export import formatted
from kdistill.stages.plot import curve
from kdistill.stages.report.html import (
    Content,
    Html,
    Section,
    capitalized,
    command,
    element,
    image,
    missing,
    paragraphs,
    table,
)
from kdistill.stages.report.task_report import Material
from kdistill.stages.status import describe
from kdistill.tasks import Column, Task
from kdistill.workspace import Artifact, Manifest


def figure(content: bytes, media_type: str, alt: str, caption: str) -> Html:
    """Return a picture that scrolls sideways on a narrow screen, with its caption."""
    picture = element(
        "div", image(content, media_type, alt), class_="wide", tabindex="0", role="region", aria_label=caption
    )
    return element("figure", picture, element("figcaption", capitalized(caption)), class_="chart")


def describe_data(material: Material, *facts: tuple[str, Content]) -> Section:
    """Return the section about the data.

    Args:
        material: what the report is made from.
        *facts: more terms and their descriptions.
    """
    dataset, trained = material.dataset, material.subject.manifest.results
    rows = [
        ("Dataset", dataset.name),
        ("Digest", element("code", material.digest)),
        ("Rows", f"{len(dataset.train):,} for training and {len(dataset.test):,} for testing"),
        ("Inputs", f"{dataset.row_type} per row"),
        *facts,
    ]
    if trained.get("held_out") == "validation":
        what = f"{trained['training_rows']:,} rows to train {material.subject.network}, {trained['held_out_rows']:,} to validate"
        rows.append(("Training", what))
    elif "training_rows" in trained:
        rows.append(("Training", f"{trained['training_rows']:,} rows to train {material.subject.network}"))
    terms = element("dl", ((element("dt", term), element("dd", what)) for term, what in rows), class_="facts")
    return Section("data", "Data", terms)


def networks(material: Material) -> Section:
    """Return the section with all measurements, and the speed and size of exports."""
    exports = material.of_kind("export")
    content: list[Content] = [map(table, material.result.tables())]
    if exports:
        content.append(table(_speed(material, exports)))
    else:
        name = material.subject.network.name
        content.append(
            missing("No export yet, which measures speed and size", material.command("export", network=name))
        )
    return Section("networks", "All networks", content)


def _speed(material: Material, exports: Mapping[Artifact, Manifest]) -> Table:
    task = material.dataset.task
    rows: dict[str, tuple[str, ...]] = {}
    for artifact, manifest in exports.items():
        results, network = manifest.results, manifest.inputs_of("student", "teacher")[0].name
        saved = f"{network}, SavedModel"
        rows.setdefault(saved, _export_row(task, saved, results, "original_"))
        settings = Export.named(artifact.name) or Export()
        how = settings.format + (f" {settings.quantize}" if settings.quantize != "none" else "")
        closeness = formatted(task.closeness, results.get("closeness"))
        rows[artifact.name] = _export_row(task, f"{network}, {how}", results, "", closeness)
    threads = sorted({manifest.results["threads"] for manifest in exports.values()})
    run_by = f"{' or '.join(map(str, threads))} thread{'s' * (threads != [1])}"
    return Table(
        f"exported networks, {len(material.dataset.test):,} test rows",
        ("network", task.headline.label, task.closeness.head, "size", "ms/row"),
        list(rows.values()),
        f"{task.closeness.head}: how close the outputs are to those of its SavedModel\n"
        f"ms/row: median of calls with one row when it was exported; CPU, {run_by}",
    )


def _export_row(task: Task, name: str, results: Mapping[str, Any], prefix: str, closeness: str = "") -> tuple[str, ...]:
    return (
        name,
        formatted(task.headline, results.get(f"{prefix}test_{task.headline.measure}")),
        closeness,
        f"{short_count(results[f'{prefix}bytes'])}B",
        f"{results[f'{prefix}latency_ms']:.3f}",
    )


def summaries(material: Material) -> dict[Artifact, list[Summary]]:
    """Return the summaries of each sweep."""
    found = material.of_kind("sweep")
    return {sweep: sweeps.summarize(sweeps.read(sweep.path / "table.csv", sweep.remedy)) for sweep in found}


def gain_over_seeds(material: Material, sweep: Artifact, found: Sequence[Summary]) -> str | None:
    """Return the gain of a sweep's chosen setting over hard labels in a sentence; None without an interval."""
    chosen = next(summary for summary in found if summary.chosen and summary.kind == sweeps.DISTILLED)
    difference, headline = chosen.difference, material.dataset.task.headline
    if difference is None or difference.low is None or difference.high is None:
        return None
    values = difference.mean, difference.low, difference.high
    mean, low, high = (headline.mean_format(value, signed=True) for value in values)
    verdict = "the interval contains 0, so it may be chance" if difference.low <= 0 <= difference.high else ""
    better = f"{'lower' if headline.lower_is_better else 'higher'} is better"
    return (
        f"In {sweep}, over {difference.n} seeds, {data.short_name(chosen.model)} at {chosen} differs from hard labels by "
        f"{mean} {headline.label} (95% interval {low} to {high}; {'; '.join(filter(None, [better, verdict]))})."
    )


def all_measures(material: Material, sweep: Artifact) -> Iterator[Table]:
    """Yield for each model of a sweep all measures over its seeds: of hard labels, and of the chosen setting."""
    rows, task = sweeps.read(sweep.path / "table.csv", sweep.remedy), material.dataset.task
    students = {row.student: material.workspace.student(f"{sweep.name}/{row.student}").manifest() for row in rows}
    found: dict[Column, list[Summary]] = {}
    for column in task.columns:
        values = {name: its.results.get(f"test_{column.measure}") if its else None for name, its in students.items()}
        found[column] = sweeps.summarize([replace(row, test=values[row.student]) for row in rows])
    for model in dict.fromkeys(row.model for row in rows):
        lines, title = [], ""
        for column, its in found.items():
            hard = next((one for one in its if (one.model, one.kind) == (model, sweeps.HARD)), None)
            distilled = next(one for one in its if one.model == model and one.chosen)
            if hard and hard.test and distilled.test and distilled.difference:
                is_headline = column.measure == task.headline.measure
                mean_format = task.headline.mean_format if is_headline else column.number_format
                both = (sweep_report.mean(one.test, column.number_format, mean_format) for one in (hard, distilled))
                difference = sweep_report.interval(distilled.difference, mean_format, signed=True)
                lines.append((column.head, *both, difference))
                title = f"all measures of {data.short_name(model)}, {distilled}, on test rows: {distilled.test.n} seeds"
        if lines:
            yield Table(title, ("measure", "hard labels", "distilled", "difference"), lines)


def describe_sweeps(material: Material, found: Mapping[Artifact, Sequence[Summary]]) -> Iterator[Content]:
    """Yield the tables and the picture of each sweep, and what is missing."""
    manifest = material.subject.manifest
    for sweep, its in found.items():
        yield element("h3", f"Sweep {sweep.name!r}")
        yield map(table, sweep_report.tables(its, material.dataset.task.headline))
        yield map(table, all_measures(material, sweep))
        picture = sweep.path / "errors.png"
        if picture.exists():
            caption = f"{material.dataset.task.headline.label} of {sweep} on test rows"
            alt = f"Settings of {sweep}; the numbers are in the table above."
            yield figure(picture.read_bytes(), "image/png", alt, caption)
        if not any(summary.kind in sweep_report.CONTROLS for summary in its):
            line = f"{sweep.command_for(material.artifacts[sweep])} --controls"
            yield missing("No controls yet, which test why distillation helps", line)
    if not found and material.of_kind("soft targets"):
        line = material.command("sweep", model=[manifest.settings["model"]], validation_fraction=0.1, controls=True)
        yield missing("No sweep yet, so there are no intervals over seeds and no controls", line)


def learning_curves(material: Material) -> Section:
    """Return the section with the learning curves of the compared networks and the teachers."""
    from kdistill.evaluation import figures

    networks = [*material.of_kind("teacher"), *material.subject.compared]
    task = material.dataset.task
    drawn = [curve(network, task) for network in dict.fromkeys(networks) if (network.path / "history.csv").exists()]
    if not drawn:
        return Section(
            "curves",
            "Learning curves",
            paragraphs("Only the biases of this network were changed, so there are no epochs."),
        )
    last = "; ".join(
        f"{each.name}: {each.metric} {each.held_out_metric[-1]:.4g} on {each.held_out} rows after {len(each.epochs)} epochs"
        for each in drawn
    )
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "curves.svg"
        figures.save(figures.learning_curves(drawn, "", task.loss_title), file)
        picture = file.read_bytes()
    caption = f"Loss and {task.metric.replace('_', ' ')} after each epoch"
    return Section("curves", "Learning curves", figure(picture, "image/svg+xml", f"{caption}. {last}.", caption))


def lineage(material: Material) -> Section:
    """Return the section with each step from the data to the exports, its digest and its command."""
    steps = []
    for artifact, manifest in material.artifacts.items():
        status = describe(material.look, artifact)
        steps.append(
            element(
                "li",
                element("h3", f"{artifact.kind.capitalize()} ", element("code", artifact.name)),
                paragraphs(f"{status.summary}. Made in {manifest.seconds:,.1f} s."),
                element(
                    "p", f"From {', '.join(f'{each.role} {each.name}' for each in manifest.inputs)}", class_="note"
                ),
                element("p", "Digest ", element("code", status.digest), class_="note") if status.digest else None,
                element("pre", command(status.command)),
                paragraphs(*(f"Stale: {reason}" for reason in status.reasons), class_="missing"),
            )
        )
    versions: dict[str, set[str]] = {}
    for manifest in material.artifacts.values():
        for library, version in manifest.versions.items():
            versions.setdefault(library, set()).add(version)
    used = ", ".join(f"{library} {' and '.join(sorted(found))}" for library, found in sorted(versions.items()))
    return Section(
        "lineage",
        "Lineage",
        [
            paragraphs(
                "Each step, and the command that repeats it. On the same machine, the same command gives the same bits."
            ),
            element("ol", steps, class_="steps"),
            paragraphs(f"Made with {used}.", class_="note"),
        ],
    )
