"""The engine on Ray: each item is a task, which Ray runs on any machine of the cluster, and again if that one fails.

Tasks and not actors, because a task whose worker died runs on the next free one, also on machines that joined later. A
worker prepares for the work once, and keeps that for its next tasks.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kdistill.cluster import ray_training
from kdistill.cluster.engine import Engine, Note, Work
from kdistill.cluster.ray_calls import THREADS, one_line_cluster_errors, pack, prepared, value
from kdistill.console import Reporter
from kdistill.errors import KdistillError, UsageError, first_line, one_line_errors
from kdistill.settings import Cluster

LOCAL = "local"
RETRIES = 5  # of an item whose worker died; one that needs too much memory would kill every worker
ITEMS_PER_WORKER = 2  # one in work and one waiting, so that no worker is idle
LOOK_SECONDS = 1.0  # between two looks at the number of workers
CONNECT_SECONDS = 10.0


class RayEngine(Engine):
    """Works on a Ray cluster.

    Raises:
        KdistillError: if Ray is not installed.
    """

    def __init__(self, settings: Cluster) -> None:
        if importlib.util.find_spec("ray") is None:
            raise KdistillError(f"--ray {settings.ray} needs Ray: pip install 'kdistill[ray]'")
        self._address, self._cpus, self._gpus = str(settings.ray), settings.ray_cpus, settings.ray_gpus
        self._workers, self._next_look = -1, 0.0
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leaves memory for a worker on the same GPU

    @property
    def threads(self) -> int:
        given = os.environ.get(THREADS, "")
        return int(given) if given.isdecimal() and int(given) else self._cpus

    def __enter__(self) -> Engine:
        """Start Ray, or join a cluster.

        Raises:
            KdistillError: if that fails.
            UsageError: if a worker needs more CPUs or GPUs than this machine has, and Ray was started here.
        """
        import ray

        options: dict[str, Any] = {"address": self._address, "log_to_driver": False, "logging_level": "CRITICAL"}
        fix = "check the address, or start a cluster: ray start --head"
        if self._address == LOCAL:
            fix = "if the machine is busy, run the same command again"
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Older versions of Ray have no authentication, so do not listen to other machines.
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        self._started = not ray.is_initialized()  # otherwise by the program that called kdistill, which also stops it
        if self._started:
            with one_line_errors(f"--ray {self._address}", fix=fix, describe=_describe):
                _check_connection(self._address)
                ray.init(**options)
            ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 - it would print on standard output
        resources = ray.cluster_resources()
        if self._gpus is None:
            self._gpus = 1 if resources.get("GPU") else 0
        try:
            self._check_room(1)
        except UsageError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self._started:
            ray.shutdown()

    def map(self, work: Work, items: Iterable[Any], note: Note) -> Iterator[Any]:
        return (result for _, result in self._results(work, items, note, in_order=True))

    def run(self, work: Work, items: Iterable[Any], note: Note) -> Iterator[tuple[int, Any]]:
        return self._results(work, items, note, in_order=False)

    def train(self, work: Work, workers: int, directory: Path, reporter: Reporter) -> Any:
        self._check_room(workers)

        def on_wait() -> None:
            room, needs = self._count_workers()[0], f"--ray-cpus {self._cpus} and --ray-gpus {self._gpus:g} each"
            reporter.say(f"Ray: waiting for room for {workers} workers with {needs} (the cluster has room for {room})")

        return ray_training.train(work, workers, directory, reporter, self._needed, self.threads, on_wait)

    def _check_room(self, workers: int) -> None:
        """Check that this machine has room for a number of workers, if Ray was started here. A cluster can grow.

        Raises:
            UsageError: if it has not.
        """
        import ray

        if self._address == LOCAL and self._count_workers()[0] < workers:
            found = " and ".join(f"{ray.cluster_resources().get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
            asked = f"--ray-cpus {self._cpus} --ray-gpus {self._gpus:g}" + f" for {workers} workers" * (workers > 1)
            raise UsageError(f"{asked} is more than this machine has ({found})")

    def _results(self, work: Work, items: Iterable[Any], note: Note, *, in_order: bool) -> Iterator[tuple[int, Any]]:
        import ray

        task = ray.remote(_work).options(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=RETRIES)
        packed = pack(work)
        numbered, pending = enumerate(items), dict[Any, int]()
        while True:
            self._look(note)
            room = max(1, self._workers) * ITEMS_PER_WORKER - len(pending)
            for number, item in islice(numbered, max(0, room)):
                pending[task.remote(packed, os.getcwd(), self.threads, item)] = number
            if not pending:
                return
            done = self._wait([next(iter(pending))] if in_order else list(pending), note)
            yield pending.pop(done), value(done)

    def _wait(self, results: Sequence[Any], note: Note) -> Any:
        """Return the first of some results that is there."""
        import ray

        while True:
            with one_line_cluster_errors():
                done, _ = ray.wait(results, num_returns=1, timeout=LOOK_SECONDS)
            if done:
                return done[0]
            self._look(note)

    def _look(self, note: Note) -> None:
        """Count the workers once in a while, and note when there are more or fewer."""
        if time.monotonic() < self._next_look:
            return
        before, (self._workers, machines) = self._workers, self._count_workers()
        self._next_look = time.monotonic() + LOOK_SECONDS
        if self._workers != before:
            workers = f"{self._workers} worker{'s' * (self._workers != 1)}"
            where = f"on {machines} machine{'s' * (machines != 1)}"
            if not machines:
                where = f"(waiting for a machine with --ray-cpus {self._cpus} and --ray-gpus {self._gpus:g})"
            note(f"Ray: {workers} {where}", workers)

    @property
    def _needed(self) -> dict[str, float]:
        """What each worker needs, by Ray's names."""
        return {name: amount for name, amount in (("CPU", self._cpus), ("GPU", self._gpus)) if amount}

    def _count_workers(self) -> tuple[int, int]:
        """Return how many workers the cluster has room for, and on how many machines."""
        import ray

        with one_line_cluster_errors():
            resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needed = self._needed.items()
        rooms = [int(min(each.get(name, 0) // amount for name, amount in needed)) for each in resources]
        return sum(rooms), sum(room > 0 for room in rooms)


def _check_connection(address: str) -> None:
    """Connect to the address of a cluster. Ray itself waits for minutes (2.60).

    Raises:
        OSError: if that fails.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _describe(error: BaseException) -> str:
    return first_line(error).rstrip(".")


def _work(packed: bytes, directory: str, threads: int, item: Any) -> Any:
    """Work on an item, in a worker."""
    return prepared(packed, directory, threads)(item)
