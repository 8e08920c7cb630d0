"""`kdistill verify`: every artifact read again and checked against its manifest."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isclose
from typing import Any

import numpy as np

from kdistill import data, teachers
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.networks import exports
from kdistill.networks.measures import measure_split
from kdistill.settings import Verify
from kdistill.soft_targets import SoftTargets, align, transfer_set
from kdistill.stages.inputs import recorded_dataset
from kdistill.training import history
from kdistill.workspace import KINDS, Artifact, Manifest, Workspace, commands, threads

SAMPLED_ROWS = 256
TOLERANCE = {"float32": 1e-3, "float16": 2e-3}  # of logits, whose last bits depend on the batch

Check = Callable[[Artifact, Manifest, "str | None"], Iterator[str]]


@dataclass(frozen=True)
class Finding:
    """Something that differs from a manifest: which artifact, what, and the command that repairs it."""

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
        for finding in self.findings:
            remedy = "" if "kdistill " in finding.problem else f": {finding.command}"
            reporter.say(f"{finding.artifact}: {finding.problem}{remedy}")
        count = len(self.findings)
        reporter.say(f"Checked {self.checked} artifacts: {count or 'no'} problem{'s' * (count != 1)} found")


def run(workspace: Workspace, settings: Verify = Verify(), *, reporter: Reporter = Reporter()) -> VerifyResult:
    """Check every artifact by the function that the record of its kind names.

    Reads: everything in the workspace, and the datasets that it was made from.
    Writes: nothing.

    Raises:
        KdistillError: if there is no artifact, or no dataset where `--dataset` says.
    """
    artifacts = workspace.artifacts(sweep_students=True)
    if not artifacts:
        raise KdistillError(
            f"{workspace.root} has no artifacts to verify: {commands.command(workspace.root, 'train-teacher')}"
        )
    given = data.resolve(settings.data, option="dataset").name if settings.data else None
    findings = []
    with reporter.steps("verify", len(artifacts)) as bar:
        for artifact in artifacts:
            problems = list(_problems(artifact, given))
            command = artifact.remedy if problems else ""
            findings += [Finding(str(artifact), str(artifact.path), problem, command) for problem in problems]
            bar.advance()
    return VerifyResult(findings, len(artifacts))


def _problems(artifact: Artifact, given: str | None) -> Iterator[str]:
    try:
        manifest = artifact.manifest()
        if manifest is None:
            return
        if damage := artifact.damage(manifest):
            yield damage
            return
        yield from _check(artifact.kind)(artifact, manifest, given)
    except (KdistillError, OSError) as error:
        yield str(error)


def _check(kind: str) -> Check:
    module, function = KINDS[kind].verify.split(":")
    check: Check = getattr(importlib.import_module(module), function)
    return check


def _dataset(artifact: Artifact, manifest: Manifest, given: str | None) -> data.Dataset:
    """Load the dataset that an artifact was made from: the given one if it is that, or the one at the recorded place.

    Raises:
        KdistillError: if it is gone or has changed, so that nothing can be checked against it.
    """
    made_from = manifest.require_input("dataset")
    if given is not None:
        with contextlib.suppress(KdistillError):
            return recorded_dataset(made_from, given, artifact).load()
    source = data.resolve(made_from.name, cache=Workspace(artifact.root).cache)
    if source.digest() != made_from.digest:
        raise KdistillError(f"the dataset {made_from.name} has changed, so nothing can be checked against it")
    return source.load()


def check_files(artifact: Artifact, manifest: Manifest, given: str | None) -> Iterator[str]:  # noqa: ARG001
    """Check nothing more: the digests of the files have been compared."""
    yield from ()


def check_network(artifact: Artifact, manifest: Manifest, given: str | None) -> Iterator[str]:
    """Check that the history can be read, and that the network has the recorded measures on the test rows."""
    from kdistill.networks.saved_models import SavedNetwork

    if "history.csv" in manifest.outputs:
        history.read(artifact.path / "history.csv", artifact.remedy)
    network = SavedNetwork.load(artifact.path / "saved_model")
    dataset = _dataset(artifact, manifest, given)
    network.check(dataset.input_shape, dataset.input_dtype, dataset.outputs, dataset.name)
    yield from _differences("saved_model", measure_split(network.logits, dataset.test, dataset.task, "test"), manifest)


def _differences(file: str, measures: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """Yield the first measure that differs from the recorded one: counts exactly, others beyond rounding."""
    for name, value in measures.items():
        recorded = manifest.results.get(name)
        same = (
            value == recorded if isinstance(value, int) else isclose(value, recorded or 0.0, rel_tol=1e-4, abs_tol=1e-6)
        )
        if not same:
            yield f"{file}: {name.replace('_', ' ')} is {value:,.6g} (recorded: {recorded})"
            return


def check_export(artifact: Artifact, manifest: Manifest, given: str | None) -> Iterator[str]:
    """Check that the runtime accepts the file, and that it has the recorded measures on the test rows.

    Nothing is checked if the runtime is not installed.
    """
    file_format = manifest.settings["format"]
    if exports.missing_packages(file_format):
        return
    dataset = _dataset(artifact, manifest, given)
    try:
        runtime = exports.FORMATS[file_format].run(artifact.path / f"model.{file_format}", threads())
        measures = measure_split(
            lambda block: runtime(exports.runtime_inputs(block)), dataset.test, dataset.task, "test"
        )
    except Exception as error:  # noqa: BLE001 - each runtime raises different errors
        yield f"its runtime refuses it: {exports.error_line(error)}"
        return
    yield from _differences(f"model.{file_format}", measures, manifest)


def check_soft_targets(artifact: Artifact, manifest: Manifest, given: str | None) -> Iterator[str]:
    """Check checksums, digest and accuracy, that the rows are the transfer set's, and a sample of the teacher's logits."""
    workspace = Workspace(artifact.root)
    soft = SoftTargets.open(artifact)
    assert soft is not None
    soft.check()
    rows = transfer_set(manifest, _dataset(artifact, manifest, given), workspace.cache)
    aligned = align(soft, rows.keys(), rows.labels, "rows of its transfer set")
    ensemble = teachers.reload_ensemble(workspace, manifest)
    if ensemble is None:
        return
    sample = np.zeros(len(rows), bool)
    sample[np.random.default_rng(0).permutation(len(rows))[:SAMPLED_ROWS]] = True
    sampled = rows.select(sample)
    inputs, keys = sampled.read(), sampled.keys()
    for view in sorted({0, (soft.storage.views or 1) - 1}):
        logits = ensemble.logits(soft.views.render(inputs, keys, view) if soft.views else inputs)
        stored = aligned.at(sample, view).values.astype(np.float32)
        difference = float(np.abs(soft.storage.one_view.store(logits).values.astype(np.float32) - stored).max())
        if difference > TOLERANCE[soft.storage.dtype] * max(1.0, float(np.abs(logits).max())):
            where = f"view {view} of " if soft.views else ""
            yield (
                f"logits differ from those of {soft.teacher} by up to {difference:.3g} on {where}{sample.sum()} sampled rows"
            )
