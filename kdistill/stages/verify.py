"""`kdistill verify`: every artifact read again and checked against what was recorded of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from kdistill import data, teachers
from kdistill.console import Reporter
from kdistill.data.readers import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.networks import exports
from kdistill.settings import Verify
from kdistill.soft_targets import SoftTargets, transfer_set
from kdistill.training import history
from kdistill.workspace import Artifact, Manifest, Workspace, threads
from kdistill.workspace import staleness as freshness

SAMPLED_ROWS = 256
TOLERANCE = {"float32": 1e-3, "float16": 2e-3}  # of logits, whose last bits depend on the batch they were computed in


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was recorded: which artifact, what, and the command that mends it."""

    artifact: str
    path: str
    problem: str
    command: str


@dataclass(frozen=True)
class VerifyResult:
    """What differs from the manifests, and how many artifacts were checked."""

    findings: Sequence[Finding]
    checked: int

    @property
    def exit_status(self) -> int:
        """1 if anything differs."""
        return 1 if self.findings else 0

    def as_json(self) -> list[dict[str, str]]:
        """Return a plain object per finding."""
        return [asdict(finding) for finding in self.findings]

    def show(self, reporter: Reporter) -> None:
        """Print a line per finding, and how many artifacts were checked."""
        show(self.findings, self.checked, reporter)


def run(workspace: Workspace, settings: Verify = Verify(), *, reporter: Reporter = Reporter()) -> VerifyResult:
    """Check every artifact; those that were made from the dataset that is given, wherever it was then, against that.

    Reads: everything in the workspace, and the datasets it came from.
    Writes: nothing.

    Returns:
        What was found, and how many artifacts were checked.
    """
    artifacts = [
        *workspace.teachers(),
        *workspace.soft_target_files(),
        *workspace.students(),
        *workspace.exports(),
    ]
    for sweep in workspace.sweeps():
        artifacts += [sweep, *workspace.sweep_students(sweep.name)]
    if workspace.plots.manifest_path.exists():
        artifacts.append(workspace.plots)
    if not artifacts:
        raise KdistillError(f"{workspace.root} has nothing to verify: {workspace.teacher('teacher').command}")
    given = data.resolve(settings.data, option="dataset").name if settings.data else None
    findings = []
    with reporter.steps("verify", len(artifacts)) as bar:
        for artifact in artifacts:
            problems = list(_problems(workspace, artifact, given))
            command = freshness.remedy(artifact) if problems else ""
            findings += [Finding(str(artifact), str(artifact.path), problem, command) for problem in problems]
            bar.advance()
    return VerifyResult(findings, len(artifacts))


def _problems(workspace: Workspace, artifact: Artifact, given: str | None) -> Iterator[str]:
    try:
        manifest = freshness.manifest_of(artifact)
        if manifest is None:
            return
        if artifact.kind == "soft targets":
            yield from _soft_targets(workspace, artifact, given)
        elif broken := artifact.broken(manifest):
            yield broken
        elif artifact.kind in ("teacher", "student"):
            yield from _network(artifact, manifest, given)
        elif artifact.kind == "export":
            yield from _export(artifact, manifest, given)
    except (KdistillError, OSError) as error:
        yield str(error)


def _dataset(artifact: Artifact, manifest: Manifest, given: str | None) -> data.Dataset:
    """The dataset that an artifact was made from: the one that is given, if it is that, or the one at its old place.

    Raises:
        KdistillError: if it is gone or has changed, so that nothing can be checked against it.
    """
    made_from = manifest.inputs["dataset"]
    if given is not None:
        with contextlib.suppress(KdistillError):
            return freshness.source(made_from, given, artifact).load()
    source = data.resolve(made_from.name, cache=Workspace(artifact.root).cache)
    if source.identity().digest != made_from.digest:
        raise KdistillError(f"the dataset {made_from.name} has changed, and what was made from it can't be checked")
    return source.load()


def _network(artifact: Artifact, manifest: Manifest, given: str | None) -> Iterator[str]:
    """Its history can be read, and it makes as many test errors as were recorded."""
    from kdistill.networks.loading import test_errors
    from kdistill.networks.saved_models import SavedNetwork

    if "history.csv" in manifest.outputs:
        history.read(artifact.path / "history.csv", artifact.remedy)
    network = SavedNetwork.load(artifact.path / "saved_model")
    dataset = _dataset(artifact, manifest, given)
    network.check(dataset.input_shape, dataset.input_dtype, dataset.classes, dataset.name)
    errors = test_errors(network, dataset)
    recorded = manifest.results["test_errors"]
    if errors != recorded:
        yield f"saved_model makes {errors:,} test errors, and {recorded:,} were recorded"


def _export(artifact: Artifact, manifest: Manifest, given: str | None) -> Iterator[str]:
    """Its runtime, where it is installed, takes it, and it makes as many test errors as were recorded."""
    file_format = manifest.settings["format"]
    if exports.missing(file_format):
        return
    dataset = _dataset(artifact, manifest, given)
    try:
        runtime = exports.FORMATS[file_format].run(artifact.path / f"model.{file_format}", threads())
        blocks = [runtime(exports.fed(block)) for block in dataset.test.blocks(BLOCK_ROWS)]
    except Exception as error:  # noqa: BLE001 - runtimes have no kind of error of their own
        yield f"its runtime refuses it: {exports.reason(error)}"
        return
    errors = metrics.errors(np.concatenate(blocks), dataset.test.labels)
    recorded = manifest.results["test_errors"]
    if errors != recorded:
        yield f"model.{file_format} makes {errors:,} test errors, and {recorded:,} were recorded"


def _soft_targets(workspace: Workspace, artifact: Artifact, given: str | None) -> Iterator[str]:
    """Checksums, digest and accuracy hold, its rows are the transfer set's, and its logits are its teachers'."""
    soft = SoftTargets.open(artifact)
    assert soft is not None
    soft.check()
    rows = transfer_set(soft.manifest, _dataset(artifact, soft.manifest, given), workspace.cache)
    places = soft.join(rows.keys(), rows.labels, "rows that it speaks of")
    panel = teachers.reload(workspace, soft.manifest)
    if panel is None:
        return
    sample = np.zeros(len(rows), bool)
    sample[np.random.default_rng(0).permutation(len(rows))[:SAMPLED_ROWS]] = True
    chosen = rows.chosen(sample)
    inputs, keys = chosen.read(), chosen.keys()
    for view in sorted({0, (soft.form.views or 1) - 1}):
        said = panel.logits(soft.views.seen(inputs, keys, view) if soft.views else inputs)
        stored = soft.take(places[sample], view).values.astype(np.float32)
        worst = float(np.abs(soft.form.of_a_view.store(said).values.astype(np.float32) - stored).max())
        tolerance = TOLERANCE[soft.form.dtype] * max(1.0, float(np.abs(said).max()))
        if worst > tolerance:
            of = f"view {view} of " if soft.views else ""
            yield f"logits differ from those of {soft.teacher} by up to {worst:.3g} on {of}{sample.sum()} sampled rows"


def show(findings: Sequence[Finding], checked: int, reporter: Reporter) -> None:
    """Print a line a finding, and how many artifacts were checked."""
    for finding in findings:
        remedy = "" if "kdistill " in finding.problem else f": {finding.command}"
        reporter.say(f"{finding.artifact}: {finding.problem}{remedy}")
    reporter.say(f"checked {checked} artifacts: {len(findings) or 'no'} problem{'s' * (len(findings) != 1)} found")
