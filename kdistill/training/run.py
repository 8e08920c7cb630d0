"""Training runs: a network is trained, saved, evaluated as it was saved, and put in its place as an artifact."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
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
from kdistill.training.checkpoint import Checkpoint, Progress
from kdistill.training.loop import Trainers, train
from kdistill.training.replicas import LOST, connect
from kdistill.training.trackers import open_trackers
from kdistill.training.training_rows import TrainingRows, hold_out
from kdistill.training.workers import Workers
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
    tracking: Tracking = Tracking(),
    compiled: Compiled | None = None,
    width: int | None = None,
    workers: Workers = Workers(),
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
        workers: that share the training. Only the first one writes the artifact.

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
    replicas = connect(workers, settings, objective, identity, reporter)
    reporter.say(
        f"Training {artifact}: {model.name} on {rows.source or dataset.name}, {len(rows):,} rows of "
        f"{dataset.row_type}, {task.count(outputs)}; "
        f"{len(held_out):,} {held_out.split.name} rows{f' of {dataset.name}' if rows.source else ''}; on {replicas}"
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
    trackers = open_trackers(tracking, artifact, identity, reporter) if replicas.chief else []

    def track(rows: Sequence[history.Row]) -> None:
        for tracker in trackers:
            tracker.update(rows)

    def train_in(directory: Path) -> tuple[Any, Progress]:
        return train(
            build,
            rows,
            held_out,
            objective=objective,
            settings=settings,
            role=role,
            checkpoint=Checkpoint(directory / CHECKPOINT, identity),
            reporter=reporter,
            trainers=trainers,
            on_epoch=track,
            replicas=replicas,
        )

    if not replicas.chief:
        with replicas.lost_workers_reported():
            train_in(artifact.partial)
            replicas.wait()  # until the chief has written the network
        return artifact.require()
    with replicas.lost_workers_reported(), artifact.writing() as staging:
        _copy_checkpoint(artifact, identity, staging.path / CHECKPOINT)
        network, progress = train_in(staging.path)
        network = without_projection(network)
        if warning := saved_models.save(network, staging.path, task.output):
            reporter.warn(warning)
        history.write(staging.path / "history.csv", progress.rows)
        results = {
            **(results or {}),
            "model": model.name,
            "objective": objective.formula(task.name),
            "training_rows": len(rows),
            "labeled_rows": rows.split.labeled_rows,
            "held_out": held_out.split.name,
            "held_out_rows": len(held_out),
            "replicas": replicas.count,
            "parameters": network.count_params(),
            **_measure(staging.path / SAVED_MODEL, progress, dataset, held_out),
            **dataset.description,
        }
        manifest = staging.commit(identity, results=results, seconds=time.perf_counter() - start)
    with contextlib.suppress(*LOST):  # the network is written
        replicas.wait()
    for tracker in trackers:
        tracker.finish(manifest)
    weights = f", weights of epoch {progress.best_epoch}" if progress.best else ""
    reporter.say(
        f"Wrote {artifact.path}: {manifest.results['summary']} after "
        f"{progress.epoch} epoch{'s' * (progress.epoch != 1)}{weights} in {manifest.seconds:.1f} s"
    )
    return manifest


def _measure(saved: Path, progress: Progress, dataset: Dataset, held_out: TrainingRows) -> dict[str, Any]:
    """Return the results that depend on the trained network, which is measured as it was saved."""
    task, network = dataset.task, saved_models.SavedNetwork.load(saved)
    best_epoch = progress.best_epoch or progress.epoch
    measures = measure_split(network.logits, dataset.test, task, "test")
    if held_out.split.name == "validation":
        measures |= measure_split(network.logits, held_out.split, task, "validation")
        measures.setdefault(f"validation_{task.metric}", progress.rows[best_epoch - 1][f"validation_{task.metric}"])
    return {
        "epochs_run": progress.epoch,
        "best_epoch": best_epoch,
        **measures,
        "summary": _summary(task, measures),
        "saved_model_bytes": size(saved),
    }


def _summary(task: Task, measures: dict[str, Any]) -> str:
    """Return how good a network is, on test rows if they can be measured without the teacher, else on validation rows."""
    splits = [split for split in ("test", "validation") if f"{split}_{task.headline.measure}" in measures]
    split = splits[0] if splits else "test"
    return task.describe(unprefixed(measures, split), measures[f"{split}_rows"], split)


def _output_sizes(dataset: Dataset, rows: TrainingRows, width: int | None) -> tuple[int, int | None]:
    """Return the number of outputs of a network, and the width of its projection if it needs one.

    Raises:
        KdistillError: if only a teacher defines the outputs, and the rows lack its logits.
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


def _copy_checkpoint(artifact: Artifact, identity: Manifest, to: Path) -> None:
    """Copy the checkpoint of an intact artifact that differs from an identity only in having fewer epochs."""
    if not to.exists():
        with contextlib.suppress(KdistillError):  # the artifact is missing or damaged
            manifest = artifact.require()
            if manifest.differences(identity) and continues(manifest, identity):
                shutil.copyfile(artifact.path / CHECKPOINT, to)
