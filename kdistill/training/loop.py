"""The training loop of teachers and students.

It is built on the `strategy.run` of `tf.distribute`, with Keras's layers, optimizers and schedules. Many steps are one
call, so that little time is spent outside the network. The order of the rows is a pure function of seed, role and epoch,
and after each epoch a checkpoint has everything that the next one depends on, so a resumed run gives the same bits.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import deterministic, keras
from kdistill.console import Reporter, five_digits
from kdistill.errors import KdistillError
from kdistill.networks.build import role_seed
from kdistill.settings import Objective, Training
from kdistill.training import history
from kdistill.training.checkpoint import Checkpoint, Progress, value_of
from kdistill.training.feed import Feed
from kdistill.training.optimizers import make_optimizer
from kdistill.training.replicas import Replicas, open_replicas
from kdistill.training.steps import EVALUATION_ROWS, Trainer, compilation_key
from kdistill.training.training_rows import TrainingRows

Trainers = dict[Hashable, Trainer]  # of one architecture, by `compilation_key`


def train(
    build: Callable[[], keras.Model],
    rows: TrainingRows,
    held_out: TrainingRows,
    *,
    objective: Objective,
    settings: Training,
    role: str,
    checkpoint: Checkpoint,
    reporter: Reporter,
    on_epoch: Callable[[Sequence[history.Row]], None] = lambda _: None,
    trainers: Trainers | None = None,
    replicas: Replicas | None = None,
) -> tuple[keras.Model, Progress]:
    """Train a network to the last epoch or until early stopping, from its checkpoint if there is one that fits.

    With early stopping, the network gets the weights of the epoch with the lowest validation loss.

    Args:
        build: makes the network, in the scope of the strategy.
        rows: rows to train on.
        held_out: rows to evaluate on after each epoch, named `validation` or `test`.
        objective: what to minimize.
        settings: how to train.
        role: `teacher` or `student`; part of the seed.
        checkpoint: read, and written after each epoch, by the chief only.
        reporter: prints a line per epoch.
        on_epoch: called with the history before the first epoch and after each one.
        trainers: trainers of the same architecture. One that fits is reused and gives the same bits; a new one is added.
        replicas: that share each batch. Default: those of this process.

    Returns:
        The trained network and the progress.

    Raises:
        KdistillError: if the loss is not finite, or the network fails.
    """
    deterministic()
    replicas = replicas or open_replicas(settings.devices)
    steps = math.ceil(len(rows) / settings.batch_size)
    with replicas.strategy.scope():
        model = build()
        optimizer = make_optimizer(settings, steps)
        optimizer.build(model.trainable_variables)
    trainers = {} if trainers is None else trainers
    key = compilation_key(rows, objective, settings, settings.epochs * steps)
    if trainer := trainers.get(key):
        _assign(trainer.variables, [*model.variables, *optimizer.variables])
    else:
        trainer = trainers[key] = Trainer(model, optimizer, rows, objective, settings, replicas)
    with replicas.open_from_chief(checkpoint.path) as file:
        progress = checkpoint.read(file, trainer.variables, reporter, replicas.count)
    on_epoch(progress.rows)
    feed = Feed(rows, settings.batch_size, settings.memory << 20)
    held_out_feed = Feed(held_out, EVALUATION_ROWS, settings.memory << 20)
    reporter.say(f"Reading training rows: {feed}")
    name = held_out.split.name
    metric = rows.task.metric
    columns = history.columns(name, student=role == "student", metric=metric)
    with reporter.steps(role, settings.epochs * steps) as bar:
        bar.advance(progress.epoch * steps)
        while progress.epoch < settings.epochs and not _stops_early(progress, settings):
            start, epoch = time.perf_counter(), progress.epoch + 1
            means = _train_epoch(trainer, feed, objective, settings, role, epoch, bar.advance)
            replicas.synchronize(trainer.model.non_trainable_variables)
            with _averaged_weights(trainer, settings):
                loss, value = trainer.evaluate(held_out_feed)
                if settings.early_stopping and loss < progress.lowest(f"{name}_loss"):
                    progress.best, progress.best_epoch = [value_of(each) for each in trainer.model.variables], epoch
            row = means | {
                "epoch": epoch,
                f"{name}_loss": loss,
                f"{name}_{metric}": value,
                "learning_rate": float(value_of(trainer.optimizer.learning_rate)),
                "seconds": time.perf_counter() - start,
            }
            progress.rows.append({column: row[column] for column in columns})
            if replicas.chief:
                checkpoint.write(progress, trainer.variables, replicas.count)
            on_epoch(progress.rows)
            bar.note(*_epoch_lines(row, settings.epochs, name, metric))
    if progress.best:
        _assign(trainer.model.variables, progress.best)
    elif settings.ema:
        trainer.optimizer.finalize_variable_values(trainer.model.trainable_variables)
    return trainer.model, progress


@contextlib.contextmanager
def _averaged_weights(trainer: Trainer, settings: Training) -> Iterator[None]:
    """Give the network the moving averages of its weights within the block, if `--ema` is set."""
    weights = trainer.model.trainable_variables if settings.ema else []
    current = [value_of(each) for each in weights]
    if weights:
        trainer.optimizer.finalize_variable_values(weights)
    yield
    _assign(weights, current)


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _stops_early(progress: Progress, settings: Training) -> bool:
    return settings.early_stopping is not None and progress.epoch - progress.best_epoch >= settings.early_stopping


def _train_epoch(
    trainer: Trainer,
    feed: Feed,
    objective: Objective,
    settings: Training,
    role: str,
    epoch: int,
    advance: Callable[[int], None],
) -> dict[str, float]:
    """Train for one epoch, and return the means of the losses and the metric; NaN where no row has a value."""
    random = np.random.default_rng([role_seed(settings.seed, role), epoch])
    dropout_seed = int(random.spawn(1)[0].integers(1 << 31))
    sums: NDArray[np.float64] = np.zeros(4)
    step = 0
    for buffer, order in feed.shuffled(random, epoch):
        for batches in trainer.calls(order):
            sums += trainer.train(buffer, batches, (dropout_seed, step), objective)
            if not np.isfinite(sums).all():
                raise KdistillError(
                    f"the loss is not finite in epoch {epoch} with --optimizer {settings.optimizer} --learning-rate "
                    f"{settings.learning_rate:g}: lower the rate, e.g. --learning-rate {settings.learning_rate / 10:g}"
                )
            step += len(batches)
            advance(len(batches))
    loss, hard, soft, metric = sums.tolist()
    rows, task = len(feed.rows), feed.rows.task
    labeled = feed.rows.split.labeled_rows or math.nan
    return {
        "train_loss": loss / rows,
        f"train_{task.metric}": metric / (labeled if task.needs_labels else rows),
        "hard_loss": hard / labeled if task.needs_labels else math.nan,
        "soft_loss": soft / rows if feed.rows.teacher else math.nan,
    }


def _epoch_lines(row: Mapping[str, float], epochs: int, held_out_name: str, metric: str) -> tuple[str, str]:
    """Return the line to print for an epoch, and a short one to show beside the progress bar. NaN is left out."""

    def values(split: str, label: str, separator: str) -> str:
        pairs = (
            (f"{label}loss", row[f"{split}_loss"]),
            (f"{label}{metric.replace('_', ' ')}", row[f"{split}_{metric}"]),
        )
        return separator.join(f"{name} {_number(value)}" for name, value in pairs if not math.isnan(value))

    epoch = f"{row['epoch']:>{len(str(epochs))}}/{epochs}"
    train, held_out = values("train", "", "  "), values(held_out_name, f"{held_out_name} ", "  ")
    line = "  ".join(filter(None, [f"epoch {epoch}", train, held_out, f"{row['seconds']:.1f} s"]))
    short = values("train", "", " ").replace("accuracy", "acc")
    held_out_short = " ".join(
        _number(value) for name in ("loss", metric) if not math.isnan(value := row[f"{held_out_name}_{name}"])
    )
    return line, f"{epoch} {short} | {held_out_name} {held_out_short}" if held_out_short else f"{epoch} {short}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else five_digits(value)
