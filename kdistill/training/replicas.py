"""Replicas: the devices of this machine, or of several workers, that share each batch of a training.

The same command means the same training on any number of replicas. Each gets a part of every batch, and the losses of all
parts are divided by the number of rows in the whole batch, because Keras's optimizers add the gradients of replicas.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import tf
from kdistill.console import Reporter, interrupts
from kdistill.errors import KdistillError, UsageError, first_line
from kdistill.settings import ALL_DEVICES, LOSSES, Objective, Training
from kdistill.training.workers import LostWorkerError, Workers
from kdistill.workspace import Manifest

LOST = (  # what a collective operation raises if a worker is gone
    *(tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError, tf.errors.DeadlineExceededError),
    *(tf.errors.FailedPreconditionError, tf.errors.CancelledError),
)
PACK_BYTES = 2 << 20  # of gradients per message between CPUs, which takes a quarter less time than one message for all


class Part(NamedTuple):
    """The part of a batch that one replica computes.

    Attributes:
        positions: (size,) int32, of its rows in the batch. All parts have the same size, so the last row may be repeated.
        weights: (size,) float32, 0 for repeated rows and 1 for others.
    """

    positions: Any
    weights: Any


@dataclass(frozen=True, eq=False)
class Replicas:
    """The replicas of a training.

    Attributes:
        strategy: that runs steps on them.
        workers: the processes that they belong to.
        kind: of the devices, `GPU` or `CPU`.
    """

    strategy: tf.distribute.Strategy
    workers: Workers
    kind: str

    def __str__(self) -> str:
        """Return e.g. `2 GPUs` or `2 workers with 4 GPUs each`."""
        devices = self.count // self.workers.count
        each = f"{devices} {self.kind}{'s' * (devices > 1)}"
        if self.workers.count == 1:
            return each
        return f"{self.workers.count} workers" + (f" with {each} each" if (self.kind, devices) != ("CPU", 1) else "")

    @property
    def count(self) -> int:
        """The number of replicas."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def chief(self) -> bool:
        """Whether this process writes."""
        return self.workers.chief

    def run(self, step: Callable[..., Any], arguments: Callable[[int], tuple[Any, ...]]) -> Any:
        """Run a step on each replica, with the arguments made for its number, and return the sums of what the steps return."""
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: arguments(context.replica_id_in_sync_group)
        )
        return self.strategy.reduce("SUM", self.strategy.run(step, args=values), axis=None)

    def part(self, number: int, rows: Any) -> Part | None:
        """Return the part of a batch that a replica computes; None if it computes the whole batch.

        Args:
            number: of the replica, from 0.
            rows: number of rows in the batch.
        """
        if self.count == 1:
            return None
        size = -(-rows // self.count)
        positions = number * size + tf.range(size)
        return Part(tf.minimum(positions, rows - 1), tf.cast(positions < rows, tf.float32))

    def from_chief(self, content: bytes) -> bytes:
        """Return the bytes that the chief has, in all workers. All of them must call this."""
        if self.workers.count == 1:
            return content
        size = int(self._sum(np.array([len(content) if self.chief else 0]))[0])
        words: NDArray[np.int64] = np.zeros(-(-size // 8), np.int64)  # integers, whose sum with 0 has the same bits
        if self.chief:
            words.view(np.uint8)[:size] = np.frombuffer(content, np.uint8)
        return self._sum(words).tobytes()[:size] if size else b""

    def numbers_from_chief(self, *numbers: float) -> tuple[float, ...]:
        """Return the numbers that the chief has, in all workers."""
        return tuple(np.frombuffer(self.from_chief(np.array(numbers, np.float64).tobytes())).tolist())

    @contextlib.contextmanager
    def open_from_chief(self, path: Path) -> Iterator[BinaryIO | None]:
        """Open a file of the chief for reading, in all workers; None if it does not exist."""
        if self.workers.count == 1:
            with path.open("rb") if path.exists() else contextlib.nullcontext() as file:
                yield file
        else:
            content = self.from_chief(path.read_bytes() if self.chief and path.exists() else b"")
            yield io.BytesIO(content) if content else None

    def synchronize(self, variables: Sequence[Any]) -> None:
        """Give all replicas the first one's values of variables that each replica updates, e.g. batch normalization's."""
        if self.count == 1:
            return
        for variable in variables:
            value = np.asarray(variable.numpy())
            variable.assign(np.frombuffer(self.from_chief(value.tobytes()), value.dtype).reshape(value.shape))

    def wait(self) -> None:
        """Wait until all workers call this."""
        if self.workers.count > 1:
            self._sum(np.zeros(1, np.int64))

    def check(self, identity: Manifest) -> None:
        """Check that all workers make the same network, which also waits for all of them.

        Raises:
            KdistillError: in all workers, if one of them has other settings or inputs.
        """
        if self.workers.count == 1:
            return
        inputs = [(each.role, each.digest) for each in identity.inputs]
        content = json.dumps([identity.kind, identity.settings, inputs], sort_keys=True).encode()
        mine = hashlib.sha256(content).digest()
        if self._sum(np.array([int(self.from_chief(mine) != mine)]))[0]:
            raise KdistillError(
                "the workers have different settings or inputs: run the same command with the same data on all of them"
            )

    @contextlib.contextmanager
    def lost_workers_reported(self) -> Iterator[None]:
        """Raise a LostWorkerError if another worker is gone."""
        try:
            yield
        except LOST as error:
            if self.workers.count == 1:
                raise
            raise LostWorkerError(
                f"lost a worker ({_cause(error)}): run the same command on all workers again, which resumes the training"
            ) from error

    def _sum(self, array: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sum of the arrays of all workers."""
        devices = self.count // self.workers.count  # only the first device of each worker adds its array
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(array if context.replica_id_in_sync_group % devices == 0 else 0 * array)
        )
        return np.asarray(self.strategy.reduce("SUM", values, axis=None))


def connect(
    workers: Workers, settings: Training, objective: Objective, identity: Manifest, reporter: Reporter
) -> Replicas:
    """Return the replicas of a training, after all workers have started.

    Args:
        workers: that share the training.
        settings: how to train.
        objective: what to minimize.
        identity: of the network that is trained.
        reporter: prints that workers are awaited.

    Raises:
        UsageError: if the settings do not fit the number of replicas.
        KdistillError: if TensorFlow cannot connect the workers, or they make different networks.
    """
    if workers.count > 1:
        reporter.say(f"Waiting for all {workers.count} workers")
    replicas = open_replicas(settings.devices, workers)
    if settings.batch_size < replicas.count:
        raise UsageError(
            f"--batch-size {settings.batch_size} has less than a row for each of {replicas}: use --batch-size {replicas.count} "
            "or more"
        )
    single = "--devices 1" if workers.count == 1 else "a single worker"
    if replicas.count > 1 and objective.loss and LOSSES[objective.loss].whole_batch:
        raise UsageError(
            f"--loss {objective.loss} depends on all rows of a batch, so {replicas} cannot share them: use {single}"
        )
    if replicas.count > 1 and settings.xla == "on" and replicas.kind == "CPU":
        raise UsageError(f"--xla on does not work with {replicas}: use --xla off, or {single}")
    with replicas.lost_workers_reported():
        replicas.check(identity)
    return replicas


@cache
def open_replicas(devices: str = ALL_DEVICES, workers: Workers = Workers()) -> Replicas:
    """Return the replicas of a training. Several workers are connected first, once per process.

    Args:
        devices: `all`, or the number of devices of this process.
        workers: that share the training.

    Raises:
        UsageError: if there are fewer devices.
        KdistillError: if TensorFlow cannot connect the workers.
    """
    gpus = tf.config.list_physical_devices("GPU")
    kind = "GPU" if gpus else "CPU"
    if workers.count > 1:
        return Replicas(_multi_worker(workers, gpus[: _count(devices, len(gpus) or 1)]), workers, kind)
    logical = tf.config.list_logical_devices(kind)  # several of a CPU if a test configures them
    names = [device.name for device in logical[: _count(devices, len(logical))]]
    if len(names) == 1:
        return Replicas(tf.distribute.get_strategy(), workers, kind)
    return Replicas(
        tf.distribute.MirroredStrategy(names, None if gpus else tf.distribute.ReductionToOneDevice()), workers, kind
    )


def _count(devices: str, available: int) -> int:
    count = available if devices == ALL_DEVICES else int(devices)
    if count > available:
        raise UsageError(f"--devices {devices} is more than the {available} of this machine: use --devices {available}")
    return count


def _multi_worker(workers: Workers, gpus: Sequence[Any]) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(workers.addresses)}),
        task_type="worker",
        task_id=workers.index,
        num_accelerators={"GPU": len(gpus)},
        rpc_layer="grpc",
    )
    try:
        tf.config.set_visible_devices(gpus, "GPU")
        with interrupts.fatal():  # it waits for the other workers
            options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=0 if gpus else PACK_BYTES)
            return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except (RuntimeError, tf.errors.OpError) as error:
        raise KdistillError(
            f"TensorFlow cannot connect the workers ({_cause(error)}): check the addresses in TF_CONFIG, and train in a new "
            "process that has not used TensorFlow before"
        ) from error


def _cause(error: BaseException) -> str:
    """Return the cause that an error of TensorFlow names."""
    aborted = re.search(r"aborted by: (.*)", str(error))
    return aborted[1] if aborted else first_line(error)
