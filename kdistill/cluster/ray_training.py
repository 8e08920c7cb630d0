"""One training on Ray: an actor for each worker. All of them start together and end together.

Actors and not tasks, because they exchange gradients at each step, so a lost one cannot simply run again. All end then, and
the same command resumes from the checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdistill.cluster.engine import ClusterError, Work
from kdistill.cluster.ray_calls import one_line_cluster_errors, pack, prepared, value
from kdistill.console import Reporter, SilentReporter
from kdistill.console.relay import Message, Relay, play
from kdistill.training.workers import LostWorkerError, Workers
from kdistill.workspace.files import make_directories

LOOK_SECONDS = 0.2  # between two looks at the messages of the first worker
GRACE_SECONDS = 10.0  # to wait for the error of a worker that the others have lost


def train(
    work: Work,
    count: int,
    directory: Path,
    reporter: Reporter,
    resources: Mapping[str, float],
    threads: int,
    on_wait: Callable[[], None],
) -> Any:
    """Do one training on several workers, as `Engine.train`.

    Args:
        work: as there.
        count: the number of workers.
        directory: that the first worker writes to.
        reporter: prints what the first worker reports.
        resources: of each worker, by Ray's names.
        threads: that each worker uses per operation.
        on_wait: called once if the cluster has no room for all workers now.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    with one_line_cluster_errors():
        group = placement_group([dict(resources)] * count, strategy="PACK")  # few machines: workers talk at each step

    def start(kind: type, index: int, cpus: float, gpus: float) -> Any:
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        return ray.remote(kind).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=place).remote()

    try:
        _wait_for_room(group, on_wait)
        workers = [start(_Worker, index, resources["CPU"], resources.get("GPU", 0)) for index in range(count)]
        with _marker(directory) as marker:
            arguments = pack(work), os.getcwd(), threads, marker
            prepared_workers = [each.prepare.remote(*arguments) for each in workers]
            play(_until_done(prepared_workers), reporter)
        addresses = tuple(map(value, prepared_workers))
        machines = len({address.rpartition(":")[0] for address in addresses})
        reporter.say(f"Ray: {count} worker{'s' * (count > 1)} on {machines} machine{'s' * (machines > 1)}")
        mailbox = start(_Mailbox, 0, 0, 0)
        results = [each.train.remote(addresses, index, mailbox) for index, each in enumerate(workers)]
        play(_until_done(results, mailbox), reporter)
        return value(results[0])
    finally:
        with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
            remove_placement_group(group)  # which kills its actors


def _wait_for_room(group: Any, on_wait: Callable[[], None]) -> None:
    with one_line_cluster_errors():
        if group.wait(1):
            return
    on_wait()
    with one_line_cluster_errors():
        while not group.wait(1):
            pass


@contextlib.contextmanager
def _marker(directory: Path) -> Iterator[Path]:
    """Make a temporary file in a directory. A worker that sees the file sees the directory of this machine."""
    made = make_directories(directory)
    descriptor, name = tempfile.mkstemp(prefix=".shared-", dir=directory)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        os.unlink(name)
        for each in made:
            with contextlib.suppress(OSError):  # something else was written to it
                each.rmdir()


def _until_done(calls: Sequence[Any], mailbox: Any = None) -> Iterator[Message]:
    """Yield the messages that arrive until all calls, one to each worker, have returned.

    Raises:
        ClusterError: if a worker was lost.
        Exception: what a worker raised.
    """
    import ray

    pending = list(calls)
    while pending:
        with one_line_cluster_errors():
            done, pending = ray.wait(pending, timeout=LOOK_SECONDS)
            messages = ray.get(mailbox.take.remote()) if mailbox else ()
        yield from messages
        if done and (error := _error(done[0], calls)):
            raise _cause(error, pending, calls)


def _error(call: Any, calls: Sequence[Any]) -> Exception | None:
    """Return what a call that has ended raised."""
    import ray

    try:
        value(call)
    except Exception as error:  # noqa: BLE001 - the work can raise errors of any type
        if isinstance(error.__cause__, ray.exceptions.RayActorError):
            return _lost(f"worker {calls.index(call) + 1} of {len(calls)}")
        return error
    return None


def _cause(error: Exception, pending: Sequence[Any], calls: Sequence[Any]) -> Exception:
    """Return the error of the worker that the other ones have lost, if it ends soon."""
    import ray

    while isinstance(error, LostWorkerError):
        done, pending = ray.wait(pending, timeout=GRACE_SECONDS) if pending else ([], [])
        if not done:
            return _lost("a worker")
        error = _error(done[0], calls) or error
    return error


def _lost(worker: str) -> ClusterError:
    return ClusterError(f"{worker} was killed or is out of reach: run the same command again to resume")


class _Worker:
    """A worker of a training, in its own process."""

    def prepare(self, packed: bytes, directory: str, threads: int, marker: Path) -> str:
        """Open all inputs, and return an address where the other workers can reach this one."""
        if not marker.exists():
            raise ClusterError(
                f"the worker on {platform.node()} does not see the workspace {marker.parent}: pass a --workspace on a disk "
                "that all machines share"
            )
        import ray

        self._train = prepared(packed, directory, threads)
        self._port = socket.socket()  # kept until it is used, so that each worker has another one
        self._port.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{self._port.getsockname()[1]}"

    def train(self, addresses: tuple[str, ...], index: int, mailbox: Any) -> Any:
        import ray

        self._port.close()
        reporter = SilentReporter() if index else Relay(lambda message: ray.get(mailbox.put.remote(message)))
        return self._train((Workers(addresses, index), reporter))


class _Mailbox:
    """The messages of the first worker that were not printed yet."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def put(self, message: Message) -> None:
        self._messages.append(message)

    def take(self) -> list[Message]:
        taken, self._messages = self._messages, []
        return taken
