"""Sections of a report for every kind of outcome: data, networks, sweeps, learning curves and lineage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdistill import data
from kdistill.console import Table
from kdistill.evaluation import sweeps
from kdistill.evaluation.sweeps import Summary
from kdistill.settings import Export
from kdistill.stages import sweep_report
from kdistill.stages.evaluate import EvaluateResult, short_count
from kdistill.stages.plot import curve
from kdistill.stages.report.html import Content, Html, Section, command, element, image, missing, paragraphs, table
from kdistill.stages.report.subject import Subject
from kdistill.stages.status import describe
from kdistill.workspace import Artifact, Manifest, Workspace, commands
from kdistill.workspace.staleness import Staleness


@dataclass(frozen=True)
class Material:
    """What a report is made from.

    Attributes:
        workspace: where the artifacts are.
        subject: the networks that are compared.
        artifacts: all artifacts that were made from the dataset, upstream first, with their manifests.
        dataset: the dataset.
        digest: of the dataset.
        result: the measurements of all networks.
        look: at the staleness of the artifacts.
    """

    workspace: Workspace
    subject: Subject
    artifacts: Mapping[Artifact, Manifest]
    dataset: data.Dataset
    digest: str
    result: EvaluateResult
    look: Staleness

    def of_kind(self, *kinds: str) -> dict[Artifact, Manifest]:
        """Return the artifacts of some kinds with their manifests."""
        return {artifact: manifest for artifact, manifest in self.artifacts.items() if artifact.kind in kinds}

    def command(self, name: str, **values: Any) -> str:
        """Return a command line on the workspace."""
        return commands.command(self.workspace.root, name, **values)

    def next_command(self) -> str:
        """Return the next command on the way to a distilled student."""
        for soft, manifest in self.of_kind("soft targets").items():
            return commands.after_soften(self.workspace.root, soft.name, manifest.results)
        for teacher in self.of_kind("teacher"):
            return commands.after_teacher(self.workspace.root, teacher.name)
        return self.command("train-teacher", dataset=self.dataset.name)


def figure(content: bytes, media_type: str, alt: str, caption: str) -> Html:
    """Return a picture that scrolls sideways on a narrow screen, with its caption."""
    picture = element(
        "div", image(content, media_type, alt), class_="wide", tabindex="0", role="region", aria_label=caption
    )
    return element("figure", picture, element("figcaption", caption), class_="chart")


def describe_data(material: Material, *facts: tuple[str, Content]) -> Section:
    """Return the section about the data.

    Args:
        material: what the report is made from.
        *facts: more terms and their descriptions.
    """
    dataset, trained = material.dataset, material.subject.manifest.results
    shape = " x ".join(map(str, dataset.input_shape)) or "1"
    rows = [
        ("Dataset", dataset.name),
        ("Digest", element("code", material.digest)),
        ("Rows", f"{len(dataset.train):,} for training and {len(dataset.test):,} for testing"),
        ("Inputs", f"{shape} numbers of type {dataset.input_dtype} per row"),
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
    content: list[Content] = [table(material.result.table())]
    if exports:
        content.append(table(_speed(exports)))
    else:
        name = material.subject.network.name
        content.append(
            missing("No export yet, which measures speed and size", material.command("export", network=name))
        )
    return Section("networks", "All networks", content)


def _speed(exports: Mapping[Artifact, Manifest]) -> Table:
    rows: dict[str, tuple[str, ...]] = {}
    for artifact, manifest in exports.items():
        results, network = manifest.results, manifest.inputs_of("student", "teacher")[0].name
        saved = f"{network}, SavedModel"
        rows.setdefault(saved, _export_row(saved, results, "original_", ""))
        settings = Export.named(artifact.name) or Export()
        how = settings.format + (f" {settings.quantize}" if settings.quantize != "none" else "")
        rows[artifact.name] = _export_row(f"{network}, {how}", results, "", f"{results['agreement']:.2%}")
    threads = sorted({manifest.results["threads"] for manifest in exports.values()})
    run_by = f"{' or '.join(map(str, threads))} thread{'s' * (threads != [1])}"
    return Table(
        f"exported networks, {next(iter(exports.values())).results['test_rows']:,} test rows",
        ("network", "errors", "agree", "size", "ms/row"),
        list(rows.values()),
        "agree: rows for which it predicts the same class as its SavedModel\n"
        f"ms/row: median of calls with one row when it was exported; CPU, {run_by}",
    )


def _export_row(name: str, results: Mapping[str, Any], prefix: str, agreement: str) -> tuple[str, ...]:
    return (
        name,
        f"{results[f'{prefix}test_errors']:,}",
        agreement,
        f"{short_count(results[f'{prefix}bytes'])}B",
        f"{results[f'{prefix}latency_ms']:.3f}",
    )


def summaries(material: Material) -> dict[Artifact, list[Summary]]:
    """Return the summaries of each sweep."""
    found = material.of_kind("sweep")
    return {sweep: sweeps.summarize(sweeps.read(sweep.path / "table.csv", sweep.remedy)) for sweep in found}


def chosen(found: Sequence[Summary]) -> Summary:
    """Return the summary of a sweep that has the controls of its first model."""
    return next(summary for summary in found if summary.chosen and summary.kind == sweeps.DISTILLED)


def describe_sweeps(material: Material, found: Mapping[Artifact, Sequence[Summary]]) -> Iterator[Content]:
    """Yield the tables and the picture of each sweep, and what is missing."""
    manifest = material.subject.manifest
    for sweep, its in found.items():
        yield element("h3", f"Sweep {sweep.name!r}")
        yield map(table, sweep_report.tables(its))
        picture = sweep.path / "errors.png"
        if picture.exists():
            alt = f"Test errors of the settings of {sweep}; the numbers are in the table above."
            yield figure(picture.read_bytes(), "image/png", alt, f"Test errors of {sweep}")
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
    drawn = [curve(network) for network in dict.fromkeys(networks) if (network.path / "history.csv").exists()]
    if not drawn:
        return Section("curves", "Learning curves", paragraphs("Only the biases of this network were changed, so there are no epochs."))
    last = "; ".join(
        f"{each.name}: {each.held_out_accuracy[-1]:.2%} of {each.held_out} rows correct after {len(each.epochs)} epochs"
        for each in drawn
    )
    picture = figures.encode(figures.learning_curves(drawn, ""), "svg")
    caption = "Accuracy and cross-entropy with the labels after each epoch"
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
