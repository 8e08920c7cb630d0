"""The loop that teachers and students share.

Built on `tf.distribute`'s `strategy.run` with Keras's layers, optimizers and schedules. The rows lie on the device as
they lie in the file, an epoch's order is a pure function of seed, role and epoch, and many steps are one call, so that
little but the network's own arithmetic is left to wait for. After each epoch everything that the next one depends on
is on disk.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import deterministic, keras, tf
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.networks import user_defined as own_networks
from kdistill.networks.built_in import role_seed
from kdistill.networks.saved_models import scaled
from kdistill.settings import Objective, Training
from kdistill.training import dropout, history, losses
from kdistill.training.feed import Buffer, Examples, Feed
from kdistill.workspace import Manifest, flush, threads
from kdistill.workspace.unfinished import continues

STEPS_A_CALL = 200  # few enough that Ctrl-C is heard within a second or two, many enough to cost nothing
EVALUATION_ROWS = 1000
NOT_DECAYED = ("bias", "gamma", "beta")  # biases, and what normalisation scales and shifts by
XLA_FRIENDLY_LAYERS = (  # on a CPU; measured
    *("Functional", "Sequential", "InputLayer", "Flatten", "Reshape", "Dense", "Activation", "ReLU", "Relu"),
    *("LeakyReLU", "PReLU", "BatchNormalization", "LayerNormalization", "Rescaling", "Add", "Concatenate"),
)


@dataclass
class Progress:
    """How far a run is: what an epoch leaves for the next, and for whoever takes it up again."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best: list[NDArray[Any]] | None = None
    best_epoch: int = 0
    threads: int = 0  # that the epochs were computed with, where they were read from a checkpoint

    @property
    def epoch(self) -> int:
        return len(self.rows)

    def lowest(self, held_out: str) -> float:
        """The lowest loss so far on the rows held out."""
        return min((row[f"{held_out}_loss"] for row in self.rows), default=math.inf)


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds a run's `Progress`, all variables of network and optimizer, and the run's identity."""

    path: Path
    identity: Manifest

    def write(self, progress: Progress, variables: Sequence[Any]) -> None:
        """Put it in its place whole."""
        head = {
            "rows": progress.rows,
            "best_epoch": progress.best_epoch,
            "identity": self.identity.to_json(),
            "threads": threads(),
        }
        arrays: dict[str, Any] = {f"variable_{i}": _array(variable) for i, variable in enumerate(variables)}
        arrays |= {f"best_{i}": value for i, value in enumerate(progress.best or [])}
        beside = self.path.with_suffix(".new")
        with beside.open("wb") as stream:
            np.savez(stream, allow_pickle=False, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
        flush(beside)
        os.replace(beside, self.path)

    def read(self, variables: Sequence[Any], reporter: Reporter) -> Progress:
        """Take a run up: sets the variables, and says so; from the start if there is nothing here that fits."""
        if not self.path.exists():
            return Progress()
        progress = self._read(variables)
        if progress is None:
            reporter.say("starts over: the run that was stopped here had other settings, or left nothing whole")
            return Progress()
        reporter.say(f"goes on after epoch {progress.epoch}")
        if progress.threads not in (0, threads()):
            reporter.warn(
                f"epochs 1 to {progress.epoch} were computed with {progress.threads} threads, and the rest will be with "
                f"{threads()}: the result may differ in its last bits from an uninterrupted run"
            )
        return progress

    def _read(self, variables: Sequence[Any]) -> Progress | None:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                values = [_like(variable, arrays[f"variable_{i}"]) for i, variable in enumerate(variables)]
                count = sum(name.startswith("best_") for name in arrays.files)
                best = [_like(variables[i], arrays[f"best_{i}"]) for i in range(count)] or None
            written = Manifest.from_json(head["identity"], str(self.path), "", finished=False)
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, KdistillError):
            return None
        if not continues(written, self.identity) or len(head["rows"]) > self.identity.settings["epochs"]:
            return None
        if any(tuple(variable.shape) != value.shape for variable, value in zip(variables, values, strict=True)):
            return None
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return Progress(head["rows"], best, head["best_epoch"], head.get("threads", 0))


def _array(variable: keras.Variable) -> NDArray[Any]:
    return np.asarray(variable.numpy())


def _like(variable: keras.Variable, array: NDArray[Any]) -> NDArray[Any]:
    """An array as it was written: NumPy's files don't know bfloat16, whose bytes come back without a type."""
    return array.view(_array(variable).dtype) if array.dtype.kind == "V" else array


def train(
    build: Callable[[], keras.Model],
    examples: Examples,
    held_out: Examples,
    *,
    held_out_name: str,
    objective: Objective,
    settings: Training,
    role: str,
    checkpoint: Checkpoint,
    reporter: Reporter,
    watch: Callable[[Sequence[history.Row]], None] = lambda _: None,
    trainers: Trainers | None = None,
) -> tuple[keras.Model, Progress]:
    """Train a network to the last epoch, or until early stopping; goes on from the checkpoint if one fits.

    With early stopping the weights are those of the epoch with the lowest validation loss.

    Args:
        build: makes the network; called under the strategy's scope.
        examples: the rows to train on.
        held_out: the rows by which each epoch is judged.
        held_out_name: what those are called in the history, `validation` or `test`.
        objective: what is minimised.
        settings: how.
        role: `teacher` or `student`; part of the seed.
        checkpoint: where each epoch's state is kept.
        reporter: hears of each epoch.
        watch: sees the history as it is taken up, and after each epoch.
        trainers: those compiled before for networks of the same architecture. One that fits is reused, with the same
            bits as a new one would give; a new one is added.

    Returns:
        The trained network, and the history.

    Raises:
        KdistillError: if the loss is not finite.
    """
    deterministic()
    strategy = tf.distribute.get_strategy()
    steps = math.ceil(len(examples) / settings.batch_size)
    with strategy.scope():
        model = build()
        optimizer = _optimizer(settings, steps)
        optimizer.build(model.trainable_variables)
    trainer = _trainer(strategy, model, optimizer, examples, objective, settings, steps, trainers)
    model, optimizer, variables = trainer.model, trainer.optimizer, trainer.variables
    progress = checkpoint.read(variables, reporter)
    watch(progress.rows)
    feed = Feed(examples, settings.batch_size, settings.memory << 20)
    reporter.say(f"training rows: {feed}")
    held_out_feed = Feed(held_out, EVALUATION_ROWS, settings.memory << 20)
    numbers = tf.constant([objective.alpha, objective.temperature or 1.0], tf.float32)
    names = history.columns(held_out_name, student=role == "student")
    labelled = examples.labelled

    with reporter.steps(role, settings.epochs * steps) as bar:
        bar.advance(progress.epoch * steps)
        while progress.epoch < settings.epochs and not _stops(settings, progress):
            start = time.perf_counter()
            epoch = progress.epoch + 1
            sums = np.zeros(4)
            call_rows = STEPS_A_CALL * settings.batch_size
            random = np.random.default_rng([role_seed(settings.seed, role), epoch])
            draws = int(random.spawn(1)[0].integers(1 << 31))  # of dropout
            step = 0
            for buffer, order in feed.shuffled(random, epoch):
                for first in range(0, len(order), call_rows):
                    rows = tf.constant(order[first : first + call_rows], tf.int32)
                    with _failing_in_one_line():
                        sums += trainer.run_steps(buffer, rows, tf.constant([draws, step], tf.int32), numbers).numpy()
                    if not np.isfinite(sums).all():
                        raise KdistillError(
                            f"the loss is not finite in epoch {epoch}, with optimizer {settings.optimizer} and learning "
                            f"rate {settings.learning_rate:g}: try --learning-rate {settings.learning_rate / 10:g}"
                        )
                    taken = min(STEPS_A_CALL, math.ceil((len(order) - first) / settings.batch_size))
                    step += taken
                    bar.advance(taken)
            loss, soft = sums[0] / len(examples), sums[2] / len(examples)
            hard, right = (sums[1] / labelled, sums[3] / labelled) if labelled else (math.nan, math.nan)
            with _failing_in_one_line():
                held_loss, held_accuracy = trainer.evaluate(held_out_feed)
            row = {
                "epoch": epoch,
                "train_loss": loss,
                "train_accuracy": right,
                f"{held_out_name}_loss": held_loss,
                f"{held_out_name}_accuracy": held_accuracy,
                "hard_loss": hard,
                "soft_loss": soft if examples.teacher else math.nan,
                "learning_rate": float(optimizer.learning_rate),
                "seconds": time.perf_counter() - start,
            }
            if settings.early_stopping and held_loss < progress.lowest(held_out_name):
                progress.best, progress.best_epoch = [_array(variable) for variable in model.variables], epoch
            progress.rows.append({name: row[name] for name in names})
            checkpoint.write(progress, variables)
            watch(progress.rows)
            bar.note(*_epoch_lines(row, settings.epochs, held_out_name))
    if progress.best:
        for variable, value in zip(model.variables, progress.best, strict=True):
            variable.assign(value)
    return model, progress


@contextlib.contextmanager
def _failing_in_one_line() -> Iterator[None]:
    """A network that can't compute with the rows, or be compiled: of TensorFlow's many lines the one that says why."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        text = str(error)
        unknown_to_xla = re.search(r"XLA_\w+_JIT: (\w+) \(", text)
        lines = [line.strip() for line in re.sub(r"{{\w+ .*?}}", "", text.partition("[[")[0]).splitlines()]
        why = f"it knows no {unknown_to_xla[1]}" if unknown_to_xla else [line for line in lines if line][-1]
        if "tf2xla" in text:
            raise KdistillError(f"XLA can't compile this network, {why}: --xla off") from error
        raise KdistillError(f"the network fails on these rows: {why}") from error


def _stops(settings: Training, progress: Progress) -> bool:
    return settings.early_stopping is not None and progress.epoch - progress.best_epoch >= settings.early_stopping


def _epoch_lines(row: Mapping[str, float], epochs: int, held: str) -> tuple[str, str]:
    """An epoch in a line of its own, and in one short enough to stand beside a bar."""
    epoch = f"{row['epoch']:>{len(str(epochs))}}/{epochs}"
    loss, accuracy, held_loss, held_accuracy = (
        f"{row[name]:.4f}" for name in ("train_loss", "train_accuracy", f"{held}_loss", f"{held}_accuracy")
    )
    known = not math.isnan(row["train_accuracy"])
    long, short = (f"{name} {accuracy}{gap}" if known else "" for name, gap in (("accuracy", "  "), ("acc", " ")))
    line = (
        f"epoch {epoch}  loss {loss}  {long}{held} loss {held_loss}  {held} accuracy {held_accuracy}  "
        f"{row['seconds']:.1f} s"
    )
    return line, f"{epoch} loss {loss} {short}| {held} {held_loss} {held_accuracy}"


def _optimizer(settings: Training, steps: int) -> keras.optimizers.Optimizer:
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, settings.epochs * steps)
    kinds: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
        "adam": lambda: keras.optimizers.Adam(rate),
        "adamw": lambda: keras.optimizers.AdamW(rate),
        "rmsprop": lambda: keras.optimizers.RMSprop(rate),
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.9),
    }
    optimizer = kinds[settings.optimizer]()
    if settings.weight_decay is not None:
        optimizer.weight_decay = settings.weight_decay
        optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "mixed_float16" else optimizer


def uses_xla(model: keras.Model, xla: str) -> bool:
    """What `--xla auto` means: on a CPU, for networks of nothing but layers that gain by it, and none in bfloat16.

    There XLA takes some three times as long for convolutions, and for dropout that it draws itself, and twice for dense
    layers in bfloat16; of an embedding it reads beyond the table without a word. On a GPU it is on, but for layers
    that it can't always compile: those that prepare or augment inputs, and, deterministically, max pooling.
    """
    if xla != "auto":
        return xla == "on"
    operations = list(own_networks.operations_in(model))
    if tf.config.list_logical_devices("GPU"):
        return not any(
            ".preprocessing." in type(each).__module__ or "MaxPool" in type(each).__name__ for each in operations
        )
    return all(
        (type(each).__name__ in XLA_FRIENDLY_LAYERS or dropout.drawn_here(each))
        and getattr(each, "compute_dtype", "") != "bfloat16"
        for each in operations
    )


@dataclass(frozen=True, eq=False)
class Trainer:
    """A network and its optimizer, with the compiled functions that train and evaluate it.

    Alpha, temperature and seeds are inputs of these functions, so that a sweep compiles once for each architecture.

    Attributes:
        model: the network.
        optimizer: its optimizer, which has been built.
        run_steps: takes a buffer, row numbers (n,) in it, a seed (2,) int32 and (alpha, temperature); takes a step per
            batch, and returns the sums over the rows of loss, hard loss and soft loss, and the number of rows classified
            correctly, (4,) float64. The seed's second number is that of the first step.
        loss_sums: takes inputs (rows, ...) and labels (rows,); returns the sum of the hard losses and the number of rows
            classified correctly, (2,) float64.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    run_steps: Callable[[Buffer, Any, Any, Any], Any]
    loss_sums: Callable[[Any, Any], Any]

    @property
    def variables(self) -> list[Any]:
        """All variables of the network and the optimizer."""
        return [*self.model.variables, *self.optimizer.variables]

    def restart(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Take over the values of a new network of the same architecture and of its optimizer."""
        for variable, initial in zip(self.variables, [*model.variables, *optimizer.variables], strict=True):
            variable.assign(initial)

    def evaluate(self, feed: Feed) -> tuple[float, float]:
        """The mean hard loss and the accuracy on the rows of a feed."""
        total = np.sum([self.loss_sums(buffer.inputs, buffer.labels).numpy() for buffer in feed.in_order()], axis=0)
        loss, right = total / len(feed.examples)
        return float(loss), float(right)


Trainers = dict[tuple[Any, ...], Trainer]  # of networks of one architecture, by what else their functions depend on


def _trainer(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    examples: Examples,
    objective: Objective,
    settings: Training,
    steps: int,
    trainers: Trainers | None,
) -> Trainer:
    """A trainer with the values of a new network: one that was compiled for another student, where one fits."""
    form = examples.teacher.form if examples.teacher else None
    key = (
        replace(settings, seed=0, epochs=1, memory=1),
        settings.epochs * steps if settings.schedule != "constant" else None,
        (objective.loss, objective.standardize_logits, objective.label_smoothing),
        (form.top_k, form.classes, form.rest, form.dtype) if form else None,
        examples.views.augment if examples.views else None,
    )
    if trainers is not None and (trainer := trainers.get(key)):
        trainer.restart(model, optimizer)
        return trainer
    run_steps = _step_runner(strategy, model, optimizer, examples, objective, settings)
    trainer = Trainer(model, optimizer, run_steps, _loss_sums(model))
    if trainers is not None:
        trainers[key] = trainer
    return trainer


def _step_runner(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    examples: Examples,
    objective: Objective,
    settings: Training,
) -> Callable[[Buffer, Any, Any, Any], Any]:
    """The function `Trainer.run_steps`; each step draws its own dropout."""
    form = examples.teacher.form if examples.teacher else None
    views = examples.views
    masks = dropout.Masks(model)

    def step(batch_inputs: Any, batch_labels: Any, batch_soft: tuple[Any, ...], drawn: Any, numbers: Any) -> Any:
        alpha, temperature = numbers[0], numbers[1]
        with tf.GradientTape() as tape, masks.given(drawn):
            logits = tf.cast(model(scaled(batch_inputs), training=True), tf.float32)
            hard = losses.hard_loss(batch_labels, logits, label_smoothing=objective.label_smoothing or 0.0)
            if form:
                said = tf.cast(batch_soft[0], tf.float32)
                if form.top_k is not None:
                    said = losses.expand_top_k(said, batch_soft[1], classes=form.classes, rest=form.rest)
                soft = losses.soft_part(objective, batch_labels, said, logits, temperature=temperature)
                loss = losses.weighted(hard, soft, alpha=alpha)
            else:
                soft, loss = tf.zeros_like(hard), hard
            batch_loss = tf.add_n([tf.reduce_mean(loss), *(tf.cast(each, tf.float32) for each in model.losses)])
            to_minimise = optimizer.scale_loss(batch_loss)
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(to_minimise, weights), weights)
        right = tf.cast(tf.argmax(logits, axis=1, output_type=tf.int32) == batch_labels, tf.float32)
        return tf.stack([tf.reduce_sum(value) for value in (loss, hard, soft, right)])

    compiled = tf.function(step, jit_compile=True) if uses_xla(model, settings.xla) else step

    def run(buffer: Buffer, order: Any, seed: Any, numbers: Any) -> Any:
        rows = tf.shape(order)[0]
        sums = tf.zeros(4, tf.float64)
        for first in tf.range(0, rows, settings.batch_size):
            batch = order[first : tf.minimum(rows, first + settings.batch_size)]
            inputs, labels, *soft = (tf.gather(each, batch) for each in (buffer.inputs, buffer.labels, *buffer.soft))
            if views:
                inputs = views.apply(inputs, tf.gather(buffer.transforms[0], batch))
            drawn = masks.draw(tf.shape(batch)[0], tf.stack([seed[0], seed[1] + first // settings.batch_size]))
            of_replicas = strategy.run(compiled, args=(inputs, labels, tuple(soft), drawn, numbers))
            sums += tf.cast(strategy.reduce("SUM", of_replicas, axis=None), tf.float64)
        return sums

    runner: Callable[[Buffer, Any, Any, Any], Any] = tf.function(run, reduce_retracing=True)
    return runner


def _loss_sums(model: keras.Model) -> Callable[[Any, Any], Any]:
    """The function `Trainer.loss_sums`."""

    def sums(inputs: Any, labels: Any) -> Any:
        total = tf.zeros(2, tf.float64)
        rows = tf.shape(labels)[0]
        for first in tf.range(0, rows, EVALUATION_ROWS):
            block = slice(first, tf.minimum(rows, first + EVALUATION_ROWS))
            logits = tf.cast(model(scaled(inputs[block]), training=False), tf.float32)
            right = tf.argmax(logits, axis=1, output_type=tf.int32) == labels[block]
            hard = losses.hard_loss(labels[block], logits)
            total += tf.cast([tf.reduce_sum(hard), tf.reduce_sum(tf.cast(right, tf.float32))], tf.float64)
        return total

    compiled: Callable[[Any, Any], Any] = tf.function(sums, reduce_retracing=True)
    return compiled
