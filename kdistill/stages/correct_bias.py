"""`kdistill correct-bias`: adjust the output biases of a student to the expected frequencies of the classes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.console import Reporter
from kdistill.data.keys import sortable
from kdistill.data.readers import BLOCK_ROWS
from kdistill.errors import KdistillError, UsageError
from kdistill.networks import bias
from kdistill.settings import CorrectBias
from kdistill.stages import announce, up_to_date
from kdistill.stages.result import Result
from kdistill.workspace import Artifact, Input, Manifest, Workspace, size
from kdistill.workspace import staleness as freshness

if TYPE_CHECKING:
    from kdistill.networks.saved_models import SavedNetwork

MOST_LOGITS, MOST_ROWS = 1 << 27, 1 << 22  # 512 MiB of float32; some rows stand for all where there are more
SHOWN = 20  # classes in the table


class CorrectBiasResult(Result):
    """A corrected student, with how often each class is predicted before and after."""

    def as_json(self) -> dict[str, object]:
        return as_json(self.artifact, self.manifest)

    def show(self, reporter: Reporter) -> None:
        show(self.manifest, reporter)


def run(
    workspace: Workspace,
    settings: CorrectBias = CorrectBias(),
    *,
    force: bool = False,
    reporter: Reporter = Reporter(),
) -> CorrectBiasResult:
    """Write a student with shifted output biases, so that each class is predicted as often as it should be.

    How often that is comes from the class frequencies of the training rows, or from the user; how often it is
    predicted, from the inputs of the training rows, or others. No label of a test row has a part in it.

    Reads: `students/NAME/`, the dataset it was trained on, perhaps other inputs.
    Writes: `students/NAME-corrected/`, or as it is to be called.

    Raises:
        KdistillError: if there is no such student, Keras can't load it, or the inputs don't fit it.
    """
    student = _student(workspace, settings.student)
    trained = student.require()
    if "student" in trained.inputs:
        origin = trained.inputs["student"].name
        remedy = workspace.corrected(CorrectBias(student=origin)).command
        raise KdistillError(f"{student} is corrected already, from student {origin!r}: correct that one, {remedy}")
    source = freshness.source(trained.inputs["dataset"], settings.dataset, student)
    at_hand = {trained.inputs["dataset"].digest} if settings.dataset else ()
    for change in freshness.stale(workspace, trained, at_hand):
        reporter.warn(f"{student} is stale, {change}: {student.command_for(trained)}")
    pool = data.resolve(settings.inputs, option="inputs", cache=workspace.cache) if settings.inputs else None
    artifact = workspace.corrected(settings)
    _refuse_trained(artifact)
    identity = Manifest(
        kind="student",
        settings={**trained.settings, "frequencies": settings.frequencies},
        inputs={
            "dataset": source.identity(),
            "student": Input(student.name, trained.outputs["saved_model"]),
            **({"inputs": pool.identity()} if pool else {}),
        },
    )
    reason = artifact.out_of_date(identity)
    if up_to_date(artifact, identity, reason, force=force, reporter=reporter):
        return CorrectBiasResult(artifact, artifact.require())
    if not (student.path / "model.keras").exists():
        raise KdistillError(
            f"{student} has no model.keras, as Keras can't save it, so its biases can't be shifted: train a student "
            "whose --model has layers of Keras's alone"
        )
    dataset = source.load()
    frequencies = _frequencies(settings, dataset)
    rows = _rows(dataset, pool, reporter)
    announce(artifact, reason, reporter)

    from kdistill.networks import loading as networks
    from kdistill.networks import saved_models
    from kdistill.networks import shifted as shifted_networks

    start = time.perf_counter()
    with artifact.writing() as staging:
        original = _loaded(student, trained, dataset)
        reporter.say(
            f"corrects {student} on {len(rows):,} inputs of {pool.name if pool else dataset.name}, class frequencies: "
            f"{settings.frequencies}"
        )
        logits = _logits(original, rows, dataset.classes, reporter)
        wanted = bias.whole_counts(frequencies, len(logits))
        shifts = bias.matching_shifts(logits, wanted).astype(np.float32)
        network = shifted_networks.load(student.path / "model.keras", shifts)
        if problem := saved_models.save(network, staging.path):
            reporter.warn(problem)
        saved = staging.path / networks.SAVED_MODEL
        errors, tests = networks.test_errors(saved_models.SavedNetwork.load(saved), dataset), len(dataset.test)
        counts = bias.predicted(logits, np.zeros_like(shifts)), bias.predicted(logits, shifts)
        columns = (dataset.class_names, wanted.tolist(), *(count.tolist() for count in counts), shifts.tolist())
        results = {
            **trained.results,
            **dataset.description,
            "test_rows": tests,
            "test_errors": errors,
            "test_accuracy": 1 - errors / tests,
            "parameters": network.count_params(),
            "saved_model_bytes": size(saved),
            "student_test_errors": trained.results["test_errors"],
            "inputs": len(logits),
            "classes": [
                dict(zip(("name", "wanted", "before", "after", "shift"), one, strict=True))
                for one in zip(*columns, strict=True)
            ],
        }
        manifest = staging.commit(identity, results=results, seconds=time.perf_counter() - start)
    reporter.say(f"wrote {artifact.path}; {manifest.seconds:.1f} s")
    return CorrectBiasResult(artifact, manifest)


def _student(workspace: Workspace, name: str) -> Artifact:
    """The student of this name."""
    standing = workspace.students()
    if not standing:
        raise KdistillError(f"{workspace.root} has no student to correct: {workspace.student(name).command}")
    for student in standing:
        if student.name == name:
            return student
    teachers = ", which is a teacher," if name in [teacher.name for teacher in workspace.teachers()] else ""
    known = ", ".join(student.name for student in standing)
    remedy = workspace.corrected(CorrectBias(student=standing[0].name)).command
    raise KdistillError(f"there is no student {name!r}{teachers} in {workspace.root}, only {known}: {remedy}")


def _refuse_trained(artifact: Artifact) -> None:
    """Leave a trained student that has the name of the corrected one where it is."""
    try:
        standing = artifact.manifest()
    except KdistillError:  # what can't be read is made again
        return
    if standing and "student" not in standing.inputs:
        raise KdistillError(f"{artifact} was trained, and would be lost: choose another --name")


def _frequencies(settings: CorrectBias, dataset: data.Dataset) -> NDArray[np.float64]:
    """How often each class should be predicted, (classes,), of some sum."""
    if settings.frequencies == "training":
        return np.bincount(dataset.train.labels, minlength=dataset.classes).astype(np.float64)
    if settings.frequencies == "uniform":
        return np.ones(dataset.classes)
    given = np.array(settings.numbers())
    if len(given) != dataset.classes:
        raise UsageError(
            f"--frequencies has {len(given)} number{'s' * (len(given) != 1)}, and {dataset.name} has "
            f"{dataset.classes} classes: it needs one for each"
        )
    return given


def _rows(dataset: data.Dataset, pool: data.Source | None, reporter: Reporter) -> data.Split:
    """The rows whose inputs are looked at; their labels, if they have any, are not."""
    if pool is None:
        rows = dataset.train
    else:
        rows = pool.transfer_set(dataset)
        for warning in rows.warnings:
            reporter.warn(warning)
        tests = int(np.isin(sortable(rows.keys()), sortable(dataset.test.keys())).sum())
        if tests:
            reporter.warn(
                f"{tests:,} of the {len(rows):,} inputs of {pool.name} are test rows of {dataset.name}: without labels "
                "they are fair, but the test errors are then of inputs that the correction has seen"
            )
    most = min(MOST_ROWS, max(1, MOST_LOGITS // dataset.classes))
    if len(rows) <= most:
        return rows
    reporter.say(f"takes {most:,} of the {len(rows):,} inputs, always the same ones, for all")
    chosen = np.zeros(len(rows), np.bool_)
    chosen[np.random.default_rng(0).permutation(len(rows))[:most]] = True
    return rows.chosen(chosen)


def _loaded(student: Artifact, trained: Manifest, dataset: data.Dataset) -> SavedNetwork:
    from kdistill.networks import loading as networks

    loaded, network = networks.load(student)
    if loaded != trained:
        raise KdistillError(f"{student} was made anew just now: run this again")
    network.check(dataset.input_shape, dataset.input_dtype, dataset.classes, dataset.name)
    return network


def _logits(network: SavedNetwork, rows: data.Split, classes: int, reporter: Reporter) -> NDArray[np.float32]:
    """What a network says of all rows, (rows, classes)."""
    logits = np.empty((len(rows), classes), np.float32)
    start = 0
    with reporter.steps("correct", len(rows)) as bar:
        for block in rows.blocks(BLOCK_ROWS):
            logits[start : start + len(block)] = network.logits(block)
            start += len(block)
            bar.advance(len(block))
    if not np.isfinite(logits).all():
        raise KdistillError(f"{network.path} gives logits that are NaN or infinite, in {rows.name} rows")
    return logits


def oracle(workspace: Workspace, settings: CorrectBias, manifest: Manifest) -> dict[str, Any] | None:
    """What the paper did: the one number, added to the biases of some classes, that leaves the fewest test errors.

    Which classes: those above the widest gap between the correction's shifts, so that where one class was lacking it is
    that one, and where all but two were, it is all others. Test labels choose the number, so it is for comparing alone,
    and nothing is written.

    Returns:
        `classes` (their names), `shift`, `test_errors` and what this is, or None where no class is to be told apart.
    """
    student = workspace.student(settings.student)
    classes = bias.raised(np.array([one["shift"] for one in manifest.results["classes"]]))
    if not classes.any():
        return None
    dataset = freshness.source(manifest.inputs["dataset"], settings.dataset, student).load()
    network = _loaded(student, student.require(), dataset)
    labels = np.split(dataset.test.labels, range(BLOCK_ROWS, len(dataset.test), BLOCK_ROWS))
    said = (network.logits(block) for block in dataset.test.blocks(BLOCK_ROWS))
    tuned = bias.tuned(zip(said, labels, strict=True), classes)
    names = [one["name"] for one, raised in zip(manifest.results["classes"], classes, strict=True) if raised]
    return {"what": ORACLE, "classes": names, "shift": tuned.shift, "test_errors": tuned.errors}


ORACLE = "test-tuned, for comparison with the paper only; not written"


def show(manifest: Manifest, reporter: Reporter, tuned: dict[str, Any] | None = None) -> None:
    """Print what was predicted how often, a class a row, and the errors before and after."""
    results, made_from = manifest.results, manifest.inputs["student"].name
    classes = results["classes"]
    furthest = sorted(classes, key=lambda one: -abs(one["shift"]))[:SHOWN]
    left_out = f"; the {SHOWN} classes of {len(classes):,} that are shifted most" if len(classes) > SHOWN else ""
    rows = [
        (
            one["name"],
            f"{one['wanted']:,}",
            f"{one['before']:,}",
            f"{one['after']:,}",
            f"{one['shift']:+.3f}",
        )
        for one in classes
        if one in furthest
    ]
    reporter.table(
        f"{made_from}: predictions on {results['inputs']:,} inputs",
        ("class", "wanted", "before", "after", "shift"),
        rows,
        note=f"shift: added to the class's output bias, in logits{left_out}",
    )
    if off := sum(max(0, one["wanted"] - one["after"]) for one in classes):
        reporter.say(f"{off:,} of {results['inputs']:,} predictions could not be matched: rows are equal or too close")
    reporter.say(
        f"test split, {results['test_rows']:,} rows: {results['student_test_errors']:,} errors before, "
        f"{results['test_errors']:,} after"
    )
    if tuned:
        reporter.say(
            f"{tuned['shift']:+.3f} on {', '.join(tuned['classes'])}: {tuned['test_errors']:,} errors ({tuned['what']})"
        )


def as_json(artifact: Artifact, manifest: Manifest, tuned: dict[str, Any] | None = None) -> dict[str, object]:
    """The same as a plain object."""
    results = manifest.results
    names = ("inputs", "classes", "test_rows", "student_test_errors", "test_errors")
    return {
        "student": manifest.inputs["student"].name,
        "corrected": artifact.name,
        "path": str(artifact.path),
        "frequencies": manifest.settings["frequencies"],
        **{name: results[name] for name in names},
        **({"oracle": tuned} if tuned else {}),
    }
