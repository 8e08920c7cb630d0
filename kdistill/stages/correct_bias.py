"""`kdistill correct-bias`: shift a student's output biases so that it predicts classes as often as they should occur."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdistill import data, tasks
from kdistill.console import Reporter
from kdistill.data.keys import sortable
from kdistill.data.rows import BLOCK_ROWS
from kdistill.errors import KdistillError, UsageError
from kdistill.networks import bias_shifts
from kdistill.settings import CorrectBias
from kdistill.stages import common
from kdistill.stages.result import Result
from kdistill.workspace import Artifact, Input, Manifest, Workspace, commands, size

if TYPE_CHECKING:
    from kdistill.networks.saved_models import SavedNetwork

MAX_LOGITS = 1 << 27  # 512 MiB of float32
MAX_ROWS = 1 << 22
SHOWN_CLASSES = 20


class CorrectBiasResult(Result):
    """A corrected student, with the number of predictions of each class before and after."""

    def as_json(self) -> dict[str, object]:
        """Return the names of both students, the counts per class, and the test errors before and after."""
        results = self.manifest.results
        names = ("inputs", "classes", "test_rows", "student_test_errors", "test_errors")
        return {
            "student": self.manifest.require_input("student").name,
            "corrected": self.artifact.name,
            "path": str(self.artifact.path),
            "frequencies": self.manifest.settings["frequencies"],
            **{name: results[name] for name in names},
        }

    def show(self, reporter: Reporter) -> None:
        """Print a row per class, and the test errors before and after."""
        results = self.manifest.results
        classes = results["classes"]
        shown = sorted(classes, key=lambda row: -abs(row["shift"]))[:SHOWN_CLASSES]
        rows = [
            (row["name"], f"{row['wanted']:,}", f"{row['before']:,}", f"{row['after']:,}", f"{row['shift']:+.3f}")
            for row in classes
            if row in shown
        ]
        only = f"; only the {len(shown)} largest shifts of {len(classes):,}" if len(shown) < len(classes) else ""
        reporter.table(
            f"{self.manifest.require_input('student').name}: predictions on {results['inputs']:,} inputs",
            ("class", "wanted", "before", "after", "shift"),
            rows,
            note=f"shift: added to the output bias of the class, in logits{only}",
        )
        if unmatched := sum(max(0, row["wanted"] - row["after"]) for row in classes):
            reporter.say(
                f"{unmatched:,} of {results['inputs']:,} predictions could not be matched: rows are equal or too close"
            )
        reporter.say(
            f"test split, {results['test_rows']:,} rows: {results['student_test_errors']:,} errors before, "
            f"{results['test_errors']:,} after"
        )


def run(
    workspace: Workspace,
    settings: CorrectBias = CorrectBias(),
    *,
    force: bool = False,
    reporter: Reporter = Reporter(),
) -> CorrectBiasResult:
    """Write a student with shifted output biases, so that it predicts each class as often as it should occur.

    Predictions are counted on the inputs of the training rows, or on other inputs. Test labels are not used.

    Reads: `students/NAME/`, its dataset, and perhaps other inputs.
    Writes: `students/NAME-corrected/`, or under the name in the settings.

    Raises:
        KdistillError: If there is no such student, Keras cannot load it, or the inputs do not fit it.
    """
    (student,) = common.find_networks(workspace, settings.student, "correct-bias", option="student", teachers=False)
    trained, source = common.open_network(workspace, student, settings.dataset, reporter)
    if corrected := trained.input("student"):
        remedy = commands.command(workspace.root, "correct-bias", student=corrected.name)
        raise KdistillError(f"{student} is a corrected student: correct the one that it was made from, {remedy}")
    pool = data.resolve(settings.inputs, option="inputs", cache=workspace.cache) if settings.inputs else None
    artifact = workspace.corrected(settings)
    _refuse_trained(artifact)
    identity = Manifest(
        kind="student",
        settings={**trained.settings, "frequencies": settings.frequencies},
        inputs=(
            Input("dataset", source.name, source.digest()),
            Input("student", student.name, trained.outputs["saved_model"]),
            *([Input("inputs", pool.name, pool.digest())] if pool else []),
        ),
    )
    reason = common.reason_to_run(artifact, identity, force=force, reporter=reporter)
    if reason is None:
        return CorrectBiasResult(artifact, artifact.require())
    if not tasks.get(trained.results["task"]).categorical:
        raise KdistillError(f"correct-bias does not apply to {student}: its task is {trained.results['task']}")
    if not (student.path / "model.keras").exists():
        raise KdistillError(
            f"{student} has no model.keras, since Keras cannot save it, so its biases cannot be shifted: train a student "
            "whose --model has only layers of Keras"
        )
    dataset = source.load()
    frequencies = _frequencies(settings, dataset)
    rows = _choose_rows(dataset, pool, reporter)
    common.announce_rerun(artifact, reason, reporter)

    from kdistill.networks import saved_models
    from kdistill.networks.loading import SAVED_MODEL
    from kdistill.networks.measures import measure_split, unprefixed
    from kdistill.networks.shifted_network import load_shifted

    start = time.perf_counter()
    with artifact.writing() as staging:
        original = common.load_checked_network(student, trained, dataset)
        reporter.say(
            f"Correcting {student} on {len(rows):,} inputs of {pool.name if pool else dataset.name}, class frequencies: "
            f"{settings.frequencies}"
        )
        logits = _compute_logits(original, rows, dataset.classes, reporter)
        wanted = bias_shifts.target_counts(frequencies, len(logits))
        shifts = bias_shifts.matching_shifts(logits, wanted).astype(np.float32)
        network = load_shifted(student.path / "model.keras", shifts)
        if warning := saved_models.save(network, staging.path):
            reporter.warn(warning)
        saved = staging.path / SAVED_MODEL
        measures = measure_split(saved_models.SavedNetwork.load(saved).logits, dataset.test, dataset.task, "test")
        columns = {
            "name": dataset.class_names,
            "wanted": wanted.tolist(),
            "before": bias_shifts.prediction_counts(logits, np.zeros_like(shifts)).tolist(),
            "after": bias_shifts.prediction_counts(logits, shifts).tolist(),
            "shift": shifts.tolist(),
        }
        results = {
            **trained.results,
            **dataset.description,
            **measures,
            "summary": dataset.task.describe(unprefixed(measures, "test"), len(dataset.test)),
            "parameters": network.count_params(),
            "saved_model_bytes": size(saved),
            "student_test_errors": trained.results["test_errors"],
            "inputs": len(logits),
            "classes": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        }
        manifest = staging.commit(identity, results=results, seconds=time.perf_counter() - start)
    reporter.say(f"Wrote {artifact.path} in {manifest.seconds:.1f} s")
    return CorrectBiasResult(artifact, manifest)


def _refuse_trained(artifact: Artifact) -> None:
    """Raise an error if the name of the corrected student is that of a trained one."""
    try:
        manifest = artifact.manifest()
    except KdistillError:  # A damaged student is replaced.
        return
    if manifest and manifest.input("student") is None:
        raise KdistillError(f"{artifact} is a trained student, which is never replaced: pass another --name")


def _frequencies(settings: CorrectBias, dataset: data.Dataset) -> NDArray[np.float64]:
    """Return how often each class should be predicted, (classes,), with any sum."""
    if settings.frequencies == "training":
        return np.bincount(dataset.train.labels, minlength=dataset.classes).astype(np.float64)
    if settings.frequencies == "uniform":
        return np.ones(dataset.classes)
    numbers = np.array(settings.numbers())
    if len(numbers) != dataset.classes:
        raise UsageError(
            f"--frequencies has {len(numbers)} number{'s' * (len(numbers) != 1)}, but {dataset.name} has "
            f"{dataset.classes} classes: pass one number per class"
        )
    return numbers


def _choose_rows(dataset: data.Dataset, pool: data.Source | None, reporter: Reporter) -> data.Split:
    """Return the rows on which predictions are counted. Their labels are not used."""
    rows = pool.load_transfer_set(dataset) if pool else dataset.train
    if pool:
        common.announce_data(reporter, rows)
        if test_rows := int(np.isin(sortable(rows.keys()), sortable(dataset.test.keys())).sum()):
            reporter.warn(
                f"{test_rows:,} of the {len(rows):,} inputs of {pool.name} are test rows of {dataset.name}: their labels "
                "are not used, but the test errors include rows that the correction has seen"
            )
    limit = min(MAX_ROWS, max(1, MAX_LOGITS // dataset.classes))
    if len(rows) <= limit:
        return rows
    reporter.say(f"Using {limit:,} of the {len(rows):,} inputs, the same ones in every run")
    return common.sample_rows(rows, limit)


def _compute_logits(network: SavedNetwork, rows: data.Split, classes: int, reporter: Reporter) -> NDArray[np.float32]:
    """Return the logits of all rows, (rows, classes)."""
    logits = np.empty((len(rows), classes), np.float32)
    start = 0
    with reporter.steps("correct", len(rows)) as bar:
        for block in rows.blocks(BLOCK_ROWS):
            logits[start : start + len(block)] = network.logits(block)
            start += len(block)
            bar.advance(len(block))
    if not np.isfinite(logits).all():
        raise KdistillError(f"{network.path} returns logits that are NaN or infinite for {rows.name} rows")
    return logits
