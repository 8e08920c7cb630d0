"""`kdistill report`: find what to report, measure it, and write the file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from kdistill.console import Reporter
from kdistill.settings import Report
from kdistill.stages.common import announce_rerun, reason_to_run, warn_if_stale
from kdistill.stages.evaluate import measure_networks
from kdistill.stages.inputs import recorded_dataset, staleness
from kdistill.stages.report import subject
from kdistill.stages.report.task_report import Material, TaskReport
from kdistill.stages.result import Result
from kdistill.workspace import Artifact, Input, Manifest, Workspace, size

FILE = "report.html"


def run(
    workspace: Workspace, settings: Report = Report(), *, force: bool = False, reporter: Reporter = Reporter()
) -> Result:
    """Write a report on a student, and on everything that was made from its dataset.

    Reads: all teachers, soft targets, students, sweeps and exports of the dataset, and the dataset.
    Writes: `report/report.html`.

    Raises:
        KdistillError: If there is no network, one is damaged, or the dataset has changed.
    """
    about = subject.find(workspace, settings.student)
    source = recorded_dataset(about.manifest.require_input("dataset"), settings.data, about.network)
    digest = source.digest()
    artifacts = _made_from(workspace, digest)
    for network in about.compared:  # students of a sweep are not listed otherwise
        artifacts.setdefault(network, network.require("saved_model"))
    look = staleness(workspace, {digest} if settings.dataset else ())
    for artifact, manifest in artifacts.items():
        warn_if_stale(look, artifact, manifest, reporter)
    identity = Manifest(
        kind="report",
        settings={"student": None if about.default else about.network.name},
        inputs=(Input("dataset", source.name, digest), *_inputs(artifacts)),
    )
    artifact = workspace.report
    reason = reason_to_run(artifact, identity, force=force, reporter=reporter)
    if reason is None:
        return Result(artifact, artifact.require())
    announce_rerun(artifact, reason, reporter)

    from kdistill.stages.report import page

    start = time.perf_counter()
    dataset = source.load()
    report = page.REPORTS.get(dataset.task.name, TaskReport)(about)
    networks = {each: manifest for each, manifest in artifacts.items() if each.kind in ("teacher", "student")}
    result = measure_networks(workspace, networks, dataset, reporter, report)
    listed = {each: manifest for each, manifest in artifacts.items() if "/" not in each.name}
    material = Material(workspace, about, listed, dataset, digest, result, look)
    with artifact.writing() as staging:
        (staging.path / FILE).write_text(page.render(material, report), encoding="utf-8")
        manifest = staging.commit(identity, results={}, seconds=time.perf_counter() - start)
    path = artifact.path / FILE
    reporter.say(f"Wrote {path}: {size(path) / 1e6:.1f} MB in {manifest.seconds:.1f} s")
    return Result(artifact, manifest)


def _made_from(workspace: Workspace, digest: str) -> dict[Artifact, Manifest]:
    """Return the artifacts of a dataset with their manifests, upstream first."""
    manifests = {artifact: artifact.manifest() for artifact in workspace.artifacts()}
    return {
        artifact: manifest
        for artifact, manifest in manifests.items()
        if manifest and not artifact.record.single and manifest.require_input("dataset").digest == digest
    }


def _inputs(artifacts: dict[Artifact, Manifest]) -> Iterable[Input]:
    """Yield what the report's manifest records of the artifacts."""
    count: Counter[str] = Counter()
    for artifact, manifest in artifacts.items():
        kind = artifact.kind.replace(" ", "_")
        count[kind] += 1
        yield Input(kind, artifact.name, artifact.digest(manifest) or "", count[kind])
