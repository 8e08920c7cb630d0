"""Training runs: a network is trained, saved, evaluated as it was saved, and put in its place as an artifact."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import Any

from kdistill.console import Reporter
from kdistill.data import Dataset
from kdistill.errors import KdistillError
from kdistill.networks import saved_models
from kdistill.networks.build import build_network, without_projection
from kdistill.networks.layers import layer_table
from kdistill.networks.loading import SAVED_MODEL
from kdistill.networks.measures import measure_split, unprefixed
from kdistill.networks.sources import ModelSource
from kdistill.settings import Objective, Tracking, Training
from kdistill.tasks import Task
from kdistill.training import history
from kdistill.training.checkpoint import Checkpoint
from kdistill.training.loop import Trainers, train
from kdistill.training.trackers import open_trackers
from kdistill.training.training_rows import TrainingRows, hold_out
from kdistill.workspace import Artifact, Manifest, size
from kdistill.workspace.kinds import CHECKPOINT
from kdistill.workspace.unfinished import continues

Compiled = dict[tuple[Any, ...], Trainers]  # by architecture


def train_network(
    artifact: Artifact,
    identity: Manifest,
    *,
    dataset: Dataset,
    model: ModelSource,
    settings: Training,
    objective: Objective,
    reporter: Reporter,
    rows: TrainingRows | None = None,
    results: dict[str, Any] | None = None,
    show_layers: bool = False,
    tracking: Tracking = Tracking(),  # noqa: B008 - it is frozen
    compiled: Compiled | None = None,
    width: int | None = None,
) -> Manifest:
    """Train a network and write it as an artifact.

    Args:
        artifact: a teacher or a student.
        identity: its settings and inputs.
        dataset: validation rows are cut from its training rows; test errors are counted on its test rows.
        model: the network to train.
        settings: how to train.
        objective: what to minimize.
        reporter: prints the progress.
        rows: rows to train on, with soft targets; by default the dataset's training rows.
        results: additional results for the manifest.
        show_layers: whether to print the layers of the network.
        tracking: where the history is written, besides `history.csv`.
        compiled: trainers to reuse and to add to. Networks from the user's code and files are compiled in each call,
            because their graphs may differ.
        width: of a student's vectors, for the task `embedding`. If the teacher's have another width, a linear layer projects
            them while the student is trained.

    Returns:
        The manifest as written.

    Raises:
        KdistillError: if the settings don't fit the data, or the loss is not finite.
    """
    start = time.perf_counter()
    role = artifact.kind
    task = dataset.task
    rows, held_out = hold_out(rows or TrainingRows.of(dataset, dataset.train), dataset, settings, reporter)
    if settings.batch_size > len(rows):
        raise KdistillError(
            f"--batch-size {settings.batch_size} is more than the {len(rows):,} training rows: use --batch-size "
            f"{len(rows)}"
        )
    outputs, projection = _output_sizes(dataset, rows, width)
    objective = objective.for_task(task.name)
    reporter.say(
        f"Training {artifact}: {model.name} on {rows.source or dataset.name}, {len(rows):,} rows of "
        f"{dataset.row_type}, {task.count(outputs)}; "
        f"{len(held_out):,} {held_out.split.name} rows{f' of {dataset.name}' if rows.source else ''}"
    )
    penalty = f", with an L2 penalty of {settings.l2 / 2:g} * sum(kernels^2)" if settings.l2 else ""
    reporter.say(f"Minimizing {objective.formula(task.name)}{penalty}")

    texts = rows.split.inputs if dataset.input_dtype == "string" else None

    def build() -> Any:
        network = build_network(
            model.name,
            dataset.input_shape,
            outputs,
            role=role,
            seed=settings.seed,
            precision=settings.precision,
            input_dtype=dataset.input_dtype,
            weights=model.weights,
            dropout=settings.dropout,
            max_norm=settings.max_norm,
            l2=settings.l2,
            rescaling=dataset.rescaling,
            projection=projection,
            texts=texts,
        )
        if show_layers:
            reporter.table("layers", ("layer", "output", "parameters"), layer_table(network))
        return network

    architecture = (role, model.name, dataset.input_shape, dataset.input_dtype, outputs, projection)
    reusable = model.file is None and texts is None  # each student has its own vocabulary
    trainers = compiled.setdefault(architecture, {}) if compiled is not None and reusable else None
    trackers = open_trackers(tracking, artifact, identity, reporter)

    def track(rows: Sequence[history.Row]) -> None:
        for tracker in trackers:
            tracker.update(rows)

    with artifact.writing() as staging:
        checkpoint = Checkpoint(staging.path / CHECKPOINT, identity)
        if not checkpoint.path.exists() and _needs_only_more_epochs(artifact, identity):
            shutil.copyfile(artifact.path / CHECKPOINT, checkpoint.path)
        network, progress = train(
            build,
            rows,
            held_out,
            objective=objective,
            settings=settings,
            role=role,
            checkpoint=checkpoint,
            reporter=reporter,
            trainers=trainers,
            on_epoch=track,
        )
        network = without_projection(network)
        if warning := saved_models.save(network, staging.path, task.output):
            reporter.warn(warning)
        history.write(staging.path / "history.csv", progress.rows)
        saved = staging.path / SAVED_MODEL
        best_epoch = progress.best_epoch or progress.epoch
        saved_network = saved_models.SavedNetwork.load(saved)
        measures = measure_split(saved_network.logits, dataset.test, task, "test")
        if held_out.split.name == "validation":
            measures |= measure_split(saved_network.logits, held_out.split, task, "validation")
            measures.setdefault(f"validation_{task.metric}", progress.rows[best_epoch - 1][f"validation_{task.metric}"])
        results = {
            **(results or {}),
            "model": model.name,
            "objective": objective.formula(task.name),
            "epochs_run": progress.epoch,
            "best_epoch": best_epoch,
            "training_rows": len(rows),
            "labeled_rows": rows.split.labeled_rows,
            "held_out": held_out.split.name,
            "held_out_rows": len(held_out),
            **measures,
            "summary": _summary(task, measures),
            "parameters": network.count_params(),
            **dataset.description,
            "saved_model_bytes": size(saved),
        }
        manifest = staging.commit(identity, results=results, seconds=time.perf_counter() - start)
    for tracker in trackers:
        tracker.finish(manifest)
    weights = f", weights of epoch {progress.best_epoch}" if progress.best else ""
    reporter.say(
        f"Wrote {artifact.path}: {manifest.results['summary']} after "
        f"{progress.epoch} epoch{'s' * (progress.epoch != 1)}{weights} in {manifest.seconds:.1f} s"
    )
    return manifest


def _summary(task: Task, measures: dict[str, Any]) -> str:
    """Return how good a network is, on test rows if they can be measured without the teacher, else on validation rows."""
    splits = [split for split in ("test", "validation") if f"{split}_{task.headline.measure}" in measures]
    split = splits[0] if splits else "test"
    return task.describe(unprefixed(measures, split), measures[f"{split}_rows"], split)


def _output_sizes(dataset: Dataset, rows: TrainingRows, width: int | None) -> tuple[int, int | None]:
    """Return the number of outputs of a network, and the width of its projection if it needs one.

    Raises:
        KdistillError: if only a teacher defines the outputs, and the rows have none.
    """
    if dataset.outputs is not None:
        return dataset.outputs, None
    if rows.teacher is None:
        raise KdistillError(
            f"the task {dataset.task.name} has no labels to learn from: bring a teacher that returns vectors, kdistill soften "
            f"--dataset {dataset.name} --teacher TEACHER, and train a student from its soft targets"
        )
    of_teacher = rows.teacher.storage.classes
    return width or of_teacher, of_teacher if width not in (None, of_teacher) else None


def _needs_only_more_epochs(artifact: Artifact, identity: Manifest) -> bool:
    """Return whether the artifact is intact and differs from an identity only in having fewer epochs."""
    try:
        manifest = artifact.require()
    except KdistillError:
        return False
    return bool(manifest.differences(identity)) and continues(manifest, identity)
