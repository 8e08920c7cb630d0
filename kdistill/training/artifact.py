"""A network as an artifact: trained from a dataset, saved, judged as saved, and put in its place."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.console import Reporter
from kdistill.data import Dataset, Split
from kdistill.data.augmentation import Views
from kdistill.data.keys import sortable, validation_rows
from kdistill.errors import KdistillError
from kdistill.networks import built_in as models
from kdistill.networks import loading, saved_models
from kdistill.networks.sources import ModelSource
from kdistill.settings import Objective, Training
from kdistill.soft_targets import AlignedSoftTargets
from kdistill.training import history
from kdistill.training import loop as training
from kdistill.training.feed import Examples
from kdistill.training.tensorboard import Board
from kdistill.workspace.unfinished import CHECKPOINT, continues

Compiled = dict[tuple[Any, ...], training.Trainers]  # by architecture


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train on, their `row_keys` where they are known already, and what a teacher said of them.

    `source` is what the rows are called, where they come from elsewhere; None if they are training rows of the dataset,
    some or all. `views` is what the teacher saw of them, and the network is to see. With `permuted`, each row is told
    what was said of another one of its label: see `AlignedSoftTargets.permuted`.
    """

    rows: Split
    keys: NDArray[np.uint8] | None = None
    teacher: AlignedSoftTargets | None = None
    source: str | None = None
    views: Views | None = None
    permuted: bool = False

    def chosen(self, mask: NDArray[np.bool_]) -> TrainingRows:
        """The rows that a mask (rows,) chooses."""
        keys = None if self.keys is None else self.keys[mask]
        teacher = self.teacher and self.teacher.chosen(mask)
        return replace(self, rows=self.rows.chosen(mask), keys=keys, teacher=teacher)


def make(
    artifact: workspace.Artifact,
    identity: workspace.Manifest,
    *,
    dataset: Dataset,
    model: ModelSource,
    settings: Training,
    objective: Objective,
    reporter: Reporter,
    lesson: TrainingRows | None = None,
    results: dict[str, Any] | None = None,
    show_layers: bool = False,
    events: Path | None = None,
    compiled: Compiled | None = None,
) -> workspace.Manifest:
    """Train a network, and put what comes of it where the artifact is.

    Args:
        artifact: a teacher or a student.
        identity: what it is made from.
        dataset: its training rows are trained on, less a validation part; its test rows are for reporting.
        model: the network to train.
        settings: how to train.
        objective: what to minimise.
        reporter: hears of it.
        lesson: the rows to train on and what a teacher said of them; the dataset's training rows alone by default.
        results: more for the manifest.
        show_layers: whether to print the network's layers.
        events: where TensorBoard's event files go, if any are wanted.
        compiled: the trainers that earlier calls compiled, to be reused by networks of the same architecture. Networks
            from the user's own code and files are always compiled anew, since their graphs may differ from call to call.

    Returns:
        The manifest as written.

    Raises:
        KdistillError: if the settings don't fit the data, or the loss is not finite.
    """
    start = time.perf_counter()
    role, lesson = artifact.kind, lesson or TrainingRows(dataset.train)
    examples, held_out, held_out_name = _parts(dataset, lesson, settings, reporter)
    if settings.batch_size > len(examples):
        raise KdistillError(
            f"the batch size is {settings.batch_size}, more than the {len(examples):,} training rows: "
            f"--batch-size {len(examples)}"
        )
    reporter.say(
        f"{role} {artifact.name}: {model.name} on {lesson.source or dataset.name}, {len(examples):,} rows of "
        f"{'x'.join(map(str, dataset.input_shape))} {dataset.input_dtype} in {dataset.classes} classes; "
        f"{held_out_name} on {len(held_out):,}{f' of {dataset.name}' if lesson.source else ''}"
    )
    reporter.say(f"minimises {objective}")

    def build() -> Any:
        network = models.build(
            model.name,
            dataset.input_shape,
            dataset.classes,
            role=role,
            seed=settings.seed,
            precision=settings.precision,
            input_dtype=dataset.input_dtype,
            weights=model.weights,
            dropout=settings.dropout,
            max_norm=settings.max_norm,
        )
        if show_layers:
            reporter.table("layers", ("layer", "output", "parameters"), models.table(network))
        return network

    trainers = None
    if compiled is not None and model.file is None:
        architecture = (role, model.name, dataset.input_shape, dataset.input_dtype, dataset.classes)
        trainers = compiled.setdefault(architecture, {})
    with artifact.writing(keep=CHECKPOINT) as staging:
        checkpoint = training.Checkpoint(staging.path / CHECKPOINT, identity)
        if not checkpoint.path.exists() and _lacks_epochs(artifact, identity):
            shutil.copyfile(artifact.path / CHECKPOINT, checkpoint.path)
        network, progress = training.train(
            build,
            examples,
            held_out,
            held_out_name=held_out_name,
            objective=objective,
            settings=settings,
            role=role,
            checkpoint=checkpoint,
            reporter=reporter,
            trainers=trainers,
            **({"watch": Board(events).show} if events else {}),
        )
        if problem := saved_models.save(network, staging.path):
            reporter.warn(problem)
        names = history.columns(held_out_name, student=role == "student")
        history.write(staging.path / "history.csv", progress.rows, names)
        saved = staging.path / loading.SAVED_MODEL
        errors, rows = loading.test_errors(saved_models.SavedNetwork.load(saved), dataset), len(dataset.test)
        found = {
            **(results or {}),
            "model": model.name,
            "objective": str(objective),
            "epochs_run": progress.epoch,
            "best_epoch": progress.best_epoch or progress.epoch,
            "training_rows": len(examples),
            "labelled_rows": examples.labelled,
            "held_out": held_out_name,
            "held_out_rows": len(held_out),
            "test_rows": rows,
            "test_errors": errors,
            "test_accuracy": 1 - errors / rows,
            "parameters": network.count_params(),
            **dataset.description,
            "saved_model_bytes": workspace.size(saved),
        }
        manifest = staging.commit(identity, results=found, seconds=time.perf_counter() - start)
    stopped = f", weights of epoch {progress.best_epoch}" if progress.best else ""
    reporter.say(
        f"wrote {artifact.path}: {errors:,} errors of {rows:,} test rows ({errors / rows:.2%}) after {progress.epoch} "
        f"epoch{'s' * (progress.epoch != 1)}{stopped}; {manifest.seconds:.1f} s"
    )
    return manifest


def _lacks_epochs(artifact: workspace.Artifact, identity: workspace.Manifest) -> bool:
    """Whether what stands is whole, and all that it takes are more epochs."""
    try:
        standing = artifact.manifest()
    except KdistillError:
        return False
    return bool(
        standing
        and standing.differences(identity)
        and continues(standing, identity)
        and artifact.broken(standing) is None
    )


def held_out_rows(keys: NDArray[np.uint8], settings: Training) -> NDArray[np.bool_]:
    """Which training rows, by their keys (rows, 16), are for validation; (rows,) bool.

    Raises:
        KdistillError: if that leaves none on one side.
    """
    out = validation_rows(keys, settings.validation_fraction, settings.seed)
    if not 0 < out.sum() < len(out):
        raise KdistillError(
            f"--validation-fraction {settings.validation_fraction:g} holds out {out.sum()} of {len(out)} rows: "
            "it needs to leave some on either side"
        )
    return out


def _parts(
    dataset: Dataset, lesson: TrainingRows, settings: Training, reporter: Reporter
) -> tuple[Examples, Examples, str]:
    """The rows to train on, those to judge by, and what the latter are called.

    Validation rows are cut from all of the dataset's training rows, and left out of those to train on. Of a transfer
    set from elsewhere, rows that are test rows of the dataset are left out too.
    """
    rows, keys, own = lesson.rows, lesson.keys, lesson.source is None
    held_out, held_out_name = dataset.test, "test"
    forbidden = [] if own else [dataset.test.keys()]
    if settings.validation_fraction:
        ours = keys if rows is dataset.train and keys is not None else dataset.train.keys()
        keys = ours if rows is dataset.train else keys
        out = held_out_rows(ours, settings)
        held_out, held_out_name = dataset.train.chosen(out), "validation"
        forbidden.append(ours[out])
    keep = np.ones(len(rows), bool)
    if forbidden:
        keep = ~np.isin(sortable(rows.keys() if keys is None else keys), sortable(np.concatenate(forbidden)))
    if not (own or keep.all()):
        held = "test" if held_out_name == "test" else f"{held_out_name} or test"
        reporter.say(f"leaves out {int((~keep).sum()):,} rows that are {held} rows of {dataset.name}")
    if not keep.any():
        raise KdistillError(f"no row is left to train on: all are test or validation rows of {dataset.name}")
    taught = lesson.chosen(keep)
    teacher = taught.teacher
    if teacher and taught.permuted:
        teacher = teacher.permuted(taught.rows.labels, settings.seed)
    views = Views(settings.augment, settings.seed) if settings.augment else lesson.views
    keys = (taught.rows.keys() if taught.keys is None else taught.keys) if views else None
    examples = Examples(taught.rows.inputs, taught.rows.labels, teacher, views, keys)
    return examples, Examples(held_out.inputs, held_out.labels), held_out_name
