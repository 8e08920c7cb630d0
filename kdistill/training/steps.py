"""Trainers: a network and its optimizer, with compiled functions that train and evaluate it."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import keras, tf
from kdistill.errors import KdistillError
from kdistill.networks import compilation
from kdistill.networks.layers import multiply_adds
from kdistill.networks.saved_models import scale_inputs
from kdistill.settings import Objective, Training
from kdistill.training import losses, max_pooling
from kdistill.training.dropout import DropoutMasks
from kdistill.training.feed import Buffer, Feed
from kdistill.training.losses.classification import expand_top_k
from kdistill.training.replicas import Replicas
from kdistill.training.training_rows import TrainingRows
from kdistill.training.xla import suits_cpu, uses_xla
from kdistill.workspace import threads

EVALUATION_ROWS = 1000  # rows per call of the network
STEPS_PER_CALL = 200
CPU_MULTIPLY_ADDS = 2e10  # per call and thread; they take about a second, after which Ctrl-C takes effect
GPU_MULTIPLY_ADDS = 1e13  # per call
DRAWN_BYTES = 16 << 20  # of dropout and views that are drawn before a call


class Trainer:
    """A network and its optimizer, with compiled functions that train and evaluate it.

    Alpha, temperature and seeds are arguments of the compiled functions, so a sweep compiles once per architecture.

    Args:
        model: the network.
        optimizer: its optimizer, which is built.
        rows: how their logits are stored, and how views are made, is compiled in.
        objective: all but alpha and temperature is compiled in.
        settings: XLA is used as they say.
        replicas: that share each batch. The network and the optimizer are made in the scope of their strategy.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        rows: TrainingRows,
        objective: Objective,
        settings: Training,
        replicas: Replicas,
    ) -> None:
        self.model, self.optimizer, self._replicas = model, optimizer, replicas
        self._objective, self._views = objective, rows.views
        self._task, self._scale = rows.task, rows.scale
        self._storage = rows.teacher.storage if rows.teacher else None
        self._masks = DropoutMasks(model)
        self._row_bytes = self._masks.width + (4 * math.prod(rows.split.inputs.shape[1:]) if self._views else 0)
        self._row_work = multiply_adds(model)
        self._batch_size, self._may_fall_back = settings.batch_size, settings.xla == "auto"
        self._compile(use_xla=uses_xla(model, settings.xla, replicas.count))

    def _compile(self, *, use_xla: bool) -> None:
        """Make the functions that train and evaluate. TensorFlow compiles them when they are first called.

        XLA compiles many steps as one program, which on a GPU takes a fraction of the time of a program per step. It gets a
        program per step if several replicas share each batch, and on a CPU for convolutions, which are slow in a larger one.
        On a CPU, TensorFlow draws what is random before such a program, since XLA is slow at that. It also takes the step with
        the rest of the rows of an epoch, for which XLA would compile another program. On a GPU, XLA does, since TensorFlow lacks
        some deterministic operations.
        """
        gpu, draws = self._replicas.kind == "GPU", bool(self._masks.layers or self._views)
        loop = use_xla and self._replicas.count == 1 and (gpu or suits_cpu(self.model))
        self._xla, self._xla_on_gpu, self._draws_first = use_xla, loop and gpu, loop and draws and not gpu
        function = partial(tf.function, autograph=False)
        step = function(self._take_step, jit_compile=True) if use_xla and not loop else self._take_step
        self._program = function(partial(self._take_steps, step), jit_compile=loop or None)
        self._steps = function(self._draw_and_take_steps) if self._draws_first else self._program
        self._rest_step = function(partial(self._take_steps, self._take_step)) if use_xla and not gpu else self._steps
        self._evaluation = function(self._evaluate, jit_compile=self._xla_on_gpu or None)

    @property
    def variables(self) -> list[Any]:
        """All variables of the network and the optimizer."""
        return [*self.model.variables, *self.optimizer.variables]

    def calls(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield the batches of each call of `train`, (steps, rows), in an order of positions. All workers get the same."""
        rows = self._batch_size
        drawn = DRAWN_BYTES // (rows * self._row_bytes) if self._draws_first else STEPS_PER_CALL
        worked = self._steps_per_call(3 * rows)  # backward takes twice as long as forward
        return _calls(order, rows, max(1, min(drawn, worked)))

    def _steps_per_call(self, rows: int) -> int:
        """Return how many steps to take per call, if the network takes a number of rows forward in each of them.

        It is the same in all workers, whatever the number of their threads: collective operations are numbered per call.
        """
        of_cpu = CPU_MULTIPLY_ADDS * (threads() if self._replicas.workers.count == 1 else 1)
        most = GPU_MULTIPLY_ADDS if self._replicas.kind == "GPU" else of_cpu
        return max(1, min(STEPS_PER_CALL, int(most / max(1, self._row_work * rows))))

    def train(
        self, buffer: Buffer, batches: NDArray[np.int64], seed: tuple[int, int], objective: Objective
    ) -> NDArray[np.float64]:
        """Take a step per batch.

        Args:
            buffer: the rows.
            batches: (steps, rows) positions in the buffer.
            seed: the seed of dropout, and the number of the first step in the epoch.
            objective: alpha and temperature are used.

        Returns:
            (4,): the sums over the rows of the loss, its hard part and its soft part, and the metric of the task.

        Raises:
            KdistillError: if the network cannot be compiled or fails on the rows.
        """
        numbers = tf.constant([objective.alpha, objective.temperature or 1.0], tf.float32)
        arguments = tf.constant(seed, tf.int32), numbers
        with _one_line_errors():
            try:
                steps = self._steps if batches.shape[1] == self._batch_size else self._rest_step
                return _call(steps, buffer, batches, *arguments)
            except compilation.REFUSALS as error:
                if not (self._xla and self._may_fall_back and compilation.refused(error)):
                    raise
                self._compile(use_xla=False)
                return _call(self._steps, buffer, batches, *arguments)
            finally:
                self._may_fall_back = False

    def evaluate(self, feed: Feed) -> tuple[float, ...]:
        """Return the means of the loss and of the metric of the task on the rows of a feed: the chief's, in all workers.

        The loss is the hard part of the objective, or the soft part if the task lacks a hard part. Both are NaN if the task
        needs a teacher to measure them and the rows lack its logits.

        Raises:
            KdistillError: if the network cannot be compiled or fails on the rows.
        """
        if not (self._task.needs_labels or feed.rows.teacher):
            return math.nan, math.nan
        per_call = self._steps_per_call(EVALUATION_ROWS)
        with _one_line_errors():
            sums = [
                _call(self._evaluation, buffer, blocks)
                for buffer in feed.in_order()
                for blocks in _calls(np.arange(len(buffer.labels)), EVALUATION_ROWS, per_call)
            ]
        loss, metric = np.sum(sums, axis=0) / len(feed.rows)
        return self._replicas.numbers_from_chief(loss, metric)

    def _draw_and_take_steps(self, buffer: Buffer, batches: Any, seed: Any, numbers: Any) -> Any:
        """Do as `_take_steps`, but first draw the dropout of all steps, and make the views of their rows."""
        steps, rows = tf.unstack(tf.shape(batches))
        dropout = tf.map_fn(lambda step: self._draw(rows, seed, step), tf.range(steps), fn_output_signature=tf.uint8)
        if self._views:
            in_order = buffer.at(tf.reshape(batches, [-1]))
            views = self._views.apply(in_order.inputs, *in_order.transforms)
            buffer = in_order._replace(inputs=views, transforms=())
            batches = tf.reshape(tf.range(steps * rows), (steps, rows))
        return self._program(buffer, batches, seed, numbers, dropout)

    def _take_steps(
        self, step: Callable[..., Any], buffer: Buffer, batches: Any, seed: Any, numbers: Any, *drawn: Any
    ) -> Any:
        """Return the sums of several steps, each with its own dropout, which may be drawn already; (4,) float64."""

        def sums_of_step(number: Any) -> Any:
            batch = batches[number]
            dropout = drawn[0][number] if drawn else self._draw(tf.shape(batch)[0], seed, number)
            return self._replicas.run(step, partial(self._arguments, buffer, batch, dropout, numbers))

        return _sums_over(tf.shape(batches)[0], sums_of_step, 4)

    def _draw(self, rows: Any, seed: Any, step: Any) -> Any:
        """Return the random bytes of a step, for the whole batch on any number of replicas."""
        return self._masks.draw(rows, tf.stack([seed[0], seed[1] + step]))

    def _arguments(self, buffer: Buffer, batch: Any, dropout: Any, numbers: Any, replica: int) -> tuple[Any, ...]:
        """Return the arguments of `_take_step` for one replica's part of a batch of positions, (rows,)."""
        padding: tuple[Any, ...] = ()
        if part := self._replicas.part(replica, tf.shape(batch)[0]):
            padding = (part.weights, tf.cast(tf.shape(batch)[0], tf.float32))
            batch, dropout = tf.gather(batch, part.positions), tf.gather(dropout, part.positions)
        inputs, labels, soft, transforms, weights = buffer.at(batch)
        if self._views and transforms:
            inputs = self._views.apply(inputs, *transforms, xla=self._xla_on_gpu)
        return inputs, labels, soft, weights, padding, dropout, numbers

    def _take_step(
        self,
        inputs: Any,
        labels: Any,
        soft: tuple[Any, ...],
        weights: tuple[Any, ...],
        padding: tuple[Any, ...],
        dropout: Any,
        numbers: Any,
    ) -> Any:
        """Take a step of one replica with its part of a batch, and return the sums over the part, (4,) float32.

        Args:
            inputs: of the rows of the part, (size, ...).
            labels: (size, ...).
            soft: as in a buffer.
            weights: as in a buffer.
            padding: (size,) 0 for rows that do not count and 1 for others, and the number of rows of the whole batch; empty if
                the part is the whole batch.
            dropout: the random bytes, (size, units).
            numbers: alpha and the temperature.
        """
        alpha, temperature = numbers[0], numbers[1]
        pooling = max_pooling.as_slices(self.model) if self._xla else contextlib.nullcontext()
        with tf.GradientTape() as tape, self._masks.applied(dropout), pooling:
            outputs = tf.cast(self.model(scale_inputs(inputs), training=True), tf.float32)
            hard_part = self._hard_part(labels, outputs)
            if self._storage:
                teacher_outputs = self._teacher_outputs(soft)
                soft_part = self._soft_part(labels, teacher_outputs, outputs, temperature)
                loss = losses.weighted(hard_part, soft_part, alpha=alpha)
            else:
                teacher_outputs, soft_part, loss = None, tf.zeros_like(hard_part), hard_part
            for weight in (*weights, *padding[:1]):
                loss, hard_part, soft_part = (weight * each for each in (loss, hard_part, soft_part))
            mean = tf.reduce_sum(loss) / padding[1] if padding else tf.reduce_mean(loss)
            regularization = (tf.cast(each, tf.float32) / self._replicas.count for each in self.model.losses)
            scaled_loss = self.optimizer.scale_loss(tf.add_n([mean, *regularization]))
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(scaled_loss, variables), variables)
        metric = self._metric(labels, teacher_outputs, outputs)
        if padding:
            metric *= padding[0]
        return tf.stack([tf.reduce_sum(each) for each in (loss, hard_part, soft_part, metric)])

    def _evaluate(self, buffer: Buffer, blocks: Any) -> Any:
        """Return the sums of the losses and of the metric over blocks of positions, (2,) float64."""

        def sums_of_block(number: Any) -> Any:
            inputs, labels, soft, *_ = buffer.at(blocks[number])
            outputs = tf.cast(self.model(scale_inputs(inputs), training=False), tf.float32)
            teacher_outputs = None if self._task.needs_labels else self._teacher_outputs(soft)
            if teacher_outputs is None:
                loss = losses.hard_part(
                    self._task.name, Objective(alpha=1.0), self._scaled(labels), self._scaled(outputs)
                )
            else:
                loss = self._soft_part(labels, teacher_outputs, outputs, 1.0)
            metric = self._metric(labels, teacher_outputs, outputs)
            return [tf.reduce_sum(loss), tf.reduce_sum(metric)]

        return _sums_over(tf.shape(blocks)[0], sums_of_block, 2)

    def _scaled(self, values: Any) -> Any:
        return values if self._scale is None else values / self._scale

    def _hard_part(self, labels: Any, outputs: Any) -> Any:
        return losses.hard_part(self._task.name, self._objective, self._scaled(labels), self._scaled(outputs))

    def _soft_part(self, labels: Any, teacher_outputs: Any, outputs: Any, temperature: Any) -> Any:
        both = self._scaled(teacher_outputs), self._scaled(outputs)
        return losses.soft_part(self._task.name, self._objective, labels, *both, temperature=temperature)

    def _metric(self, labels: Any, teacher_outputs: Any, outputs: Any) -> Any:
        """Return the metric of the task, (rows,): against the labels, or the teacher if the task needs no labels."""
        reference = labels if self._task.needs_labels else teacher_outputs
        return getattr(losses.losses_of(self._task.name), self._task.metric)(reference, outputs)

    def _teacher_outputs(self, soft: tuple[Any, ...]) -> Any:
        """Return the teacher's outputs, (rows, outputs) float32, from the tensors of a buffer."""
        assert self._storage is not None
        values = tf.cast(soft[0], tf.float32)
        if self._storage.top_k is None:
            return values
        classes, rest = self._storage.classes, self._storage.rest_offset
        return expand_top_k(values, soft[1], classes=classes, rest=rest, scatter=not self._xla_on_gpu)


def compilation_key(rows: TrainingRows, objective: Objective, settings: Training, total_steps: int) -> Hashable:
    """Return everything, apart from the architecture, that is compiled into a trainer or fixed in its optimizer."""
    storage = rows.teacher.storage if rows.teacher else None
    return (
        replace(settings, seed=0, epochs=1, memory=1),
        total_steps if settings.schedule != "constant" else None,
        (objective.loss, objective.standardize_logits, objective.label_smoothing),
        (storage.top_k, storage.classes, storage.rest_offset, storage.dtype) if storage else None,
        rows.weights is None,
        (rows.task.name, None if rows.scale is None else rows.scale.tobytes()),
        rows.views.augment if rows.views else None,
    )


def _sums_over(count: Any, sums_of: Callable[[Any], Any], size: int) -> Any:
    """Return the sums of what a function returns for the numbers below `count`, (size,) float64.

    The loop has a single condition, so that XLA knows how often it runs. If not, a GPU waits for the host in each round.
    """
    start = tf.constant(0), tf.zeros(size, tf.float64)
    return tf.while_loop(
        lambda number, _: number < count,
        lambda number, sums: (number + 1, sums + tf.cast(sums_of(number), tf.float64)),
        start,
    )[1]


def _calls(order: NDArray[np.int64], batch_size: int, most: int) -> Iterator[NDArray[np.int64]]:
    """Yield an order as batches, (batches, rows), and then the rest, (1, fewer rows), if there is one.

    Each call gets at most `most` batches. All get the same number, since XLA compiles each number of them, unless this takes
    twice as many calls.
    """
    full = len(order) // batch_size
    batches, rest = order[: full * batch_size].reshape(full, batch_size), order[full * batch_size :]
    if full:
        calls = math.ceil(full / most)
        yield from np.array_split(batches, next((more for more in range(calls, 2 * calls) if full % more == 0), calls))
    if rest.size:
        yield rest[None]


def _call(function: Any, buffer: Buffer, positions: NDArray[np.int64], *arguments: Any) -> NDArray[np.float64]:
    """Call a function, which is traced once for any number of rows and of positions."""
    rows = tf.nest.map_structure(lambda each: tf.TensorSpec([None, *each.shape[1:]], each.dtype), buffer)
    traced = function.get_concrete_function(rows, tf.TensorSpec([None, None], tf.int32), *arguments)
    return np.asarray(traced(buffer, tf.constant(positions, tf.int32), *arguments))


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Raise a KdistillError with the line of a TensorFlow error that names the cause."""
    try:
        yield
    except compilation.REFUSALS as error:
        text = str(error)
        unknown_to_xla = re.search(r"XLA_\w+_JIT: (\w+) \(", text)
        lines = [line.strip() for line in re.sub(r"{{\w+ .*?}}", "", text.partition("[[")[0]).splitlines()]
        cause = f"unsupported operation {unknown_to_xla[1]}" if unknown_to_xla else [line for line in lines if line][-1]
        if compilation.refused(error):
            raise KdistillError(f"XLA cannot compile this network ({cause}): use --xla off") from error
        raise KdistillError(f"the network fails on these rows: {cause}") from error
