"""Training runs: a network is trained, saved, evaluated as it was saved, and put in its place as an artifact."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from kdistill.console import Reporter
from kdistill.data import Dataset
from kdistill.errors import KdistillError
from kdistill.networks import saved_models
from kdistill.networks.build import build_network
from kdistill.networks.layers import layer_table
from kdistill.networks.loading import SAVED_MODEL, count_test_errors
from kdistill.networks.sources import ModelSource
from kdistill.settings import Objective, Training
from kdistill.training import history
from kdistill.training.checkpoint import Checkpoint
from kdistill.training.loop import Trainers, train
from kdistill.training.tensorboard import EventFiles
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
    events: Path | None = None,
    compiled: Compiled | None = None,
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
        events: directory for TensorBoard's event files; None to write none.
        compiled: trainers to reuse and to add to. Networks from the user's code and files are compiled in each call,
            because their graphs may differ.

    Returns:
        The manifest as written.

    Raises:
        KdistillError: if the settings don't fit the data, or the loss is not finite.
    """
    start = time.perf_counter()
    role = artifact.kind
    rows, held_out = hold_out(rows or TrainingRows(dataset.train), dataset, settings, reporter)
    if settings.batch_size > len(rows):
        raise KdistillError(
            f"--batch-size {settings.batch_size} is more than the {len(rows):,} training rows: use --batch-size "
            f"{len(rows)}"
        )
    reporter.say(
        f"Training {artifact}: {model.name} on {rows.source or dataset.name}, {len(rows):,} rows of "
        f"{'x'.join(map(str, dataset.input_shape))} {dataset.input_dtype}, {dataset.classes} classes; "
        f"{len(held_out):,} {held_out.split.name} rows{f' of {dataset.name}' if rows.source else ''}"
    )
    penalty = f", with an L2 penalty of {settings.l2 / 2:g} * sum(kernels^2)" if settings.l2 else ""
    reporter.say(f"Minimizing {objective}{penalty}")

    def build() -> Any:
        network = build_network(
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
            l2=settings.l2,
        )
        if show_layers:
            reporter.table("layers", ("layer", "output", "parameters"), layer_table(network))
        return network

    architecture = (role, model.name, dataset.input_shape, dataset.input_dtype, dataset.classes)
    trainers = compiled.setdefault(architecture, {}) if compiled is not None and model.file is None else None
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
            **({"on_epoch": EventFiles(events).update} if events else {}),
        )
        if warning := saved_models.save(network, staging.path):
            reporter.warn(warning)
        history.write(staging.path / "history.csv", progress.rows)
        saved = staging.path / SAVED_MODEL
        errors = count_test_errors(saved_models.SavedNetwork.load(saved), dataset)
        test_rows = len(dataset.test)
        results = {
            **(results or {}),
            "model": model.name,
            "objective": str(objective),
            "epochs_run": progress.epoch,
            "best_epoch": progress.best_epoch or progress.epoch,
            "training_rows": len(rows),
            "labeled_rows": rows.split.labeled_rows,
            "held_out": held_out.split.name,
            "held_out_rows": len(held_out),
            "test_rows": test_rows,
            "test_errors": errors,
            "test_accuracy": 1 - errors / test_rows,
            "parameters": network.count_params(),
            **dataset.description,
            "saved_model_bytes": size(saved),
        }
        manifest = staging.commit(identity, results=results, seconds=time.perf_counter() - start)
    weights = f", weights of epoch {progress.best_epoch}" if progress.best else ""
    reporter.say(
        f"Wrote {artifact.path}: {errors:,} of {test_rows:,} test rows wrong ({errors / test_rows:.2%}) after "
        f"{progress.epoch} epoch{'s' * (progress.epoch != 1)}{weights} in {manifest.seconds:.1f} s"
    )
    return manifest


def _needs_only_more_epochs(artifact: Artifact, identity: Manifest) -> bool:
    """Return whether the artifact is intact and differs from an identity only in having fewer epochs."""
    try:
        manifest = artifact.require()
    except KdistillError:
        return False
    return bool(manifest.differences(identity)) and continues(manifest, identity)
