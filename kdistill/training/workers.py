"""The processes that share one training, as `TF_CONFIG` or Slurm describe them. Uses the standard library only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdistill.console import Reporter, SilentReporter
from kdistill.errors import KdistillError, UsageError

SLURM_PORT = 8888  # of the first worker on each machine


class LostWorkerError(KdistillError):
    """Another worker is gone, so this one can't go on."""


@dataclass(frozen=True)
class Workers:
    """The workers of a training and the place of this process among them.

    Attributes:
        addresses: `HOST:PORT` of each; empty for a single process. The first worker is the chief.
        index: of this process.
    """

    addresses: tuple[str, ...] = ()
    index: int = 0

    @classmethod
    def here(cls) -> Workers:
        """Return the workers that the environment describes; without `TF_CONFIG` and Slurm, a single process.

        `TF_CONFIG={}` means a single process, under Slurm too.

        Raises:
            KdistillError: if `TF_CONFIG` cannot be understood, or gives this process no part in the training.
        """
        if (text := os.environ.get("TF_CONFIG")) is not None:
            return _from_tf_config(text)
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return _from_slurm(os.environ)
        return cls()

    @property
    def count(self) -> int:
        """The number of workers."""
        return len(self.addresses) or 1

    @property
    def chief(self) -> bool:
        """Whether this process writes the results."""
        return self.index == 0

    def reporter(self, reporter: Reporter) -> Reporter:
        """Return the reporter of this process. Workers other than the chief print a single line."""
        if self.chief:
            return reporter
        reporter.say(f"Worker {self.index + 1} of {self.count}: the first one reports the progress")
        return SilentReporter()

    def refuse(self, command: str) -> None:
        """Refuse a command that is started once.

        Raises:
            UsageError: if there are several workers.
        """
        if self.count > 1:
            raise UsageError(
                f"{command} is started once, but TF_CONFIG or Slurm names {self.count} workers, which only train-teacher "
                "and train-student without --ray use: set TF_CONFIG={}, and run it once"
            )


def _from_tf_config(text: str) -> Workers:
    """Return the task of the job `chief`, if there is one, and those of the job `worker`."""
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        tasks = [(job, index) for job in ("chief", "worker") for index in range(len(cluster.get(job, ())))]
        if len(tasks) < 2:
            return Workers()
        addresses = tuple(str(cluster[job][index]) for job, index in tasks)
        return Workers(addresses, tasks.index((task["type"], int(task["index"]))))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise KdistillError(
            f"TF_CONFIG is {text[:300]!r} (expected JSON with the addresses of the workers under cluster, and one of them under "
            "task)"
        ) from error


def _from_slurm(variables: Mapping[str, str]) -> Workers:
    """Return a worker per task of the job step, in the order of Slurm's ranks.

    Own code, since `SlurmClusterResolver` (TensorFlow 2.21) fails without GPUs, and orders n10 before n9.
    """
    try:
        hosts = _host_names(variables["SLURM_STEP_NODELIST"])
        counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", variables["SLURM_STEP_TASKS_PER_NODE"])  # e.g. 2(x3),1
        tasks = [int(count) for count, times in counts for _ in range(int(times or 1))]
        addresses = [
            f"{host}:{SLURM_PORT + task}" for host, count in zip(hosts, tasks, strict=True) for task in range(count)
        ]
        rank = int(variables["SLURM_PROCID"])
        return Workers(tuple(addresses), range(len(addresses))[rank])
    except (KeyError, ValueError, IndexError) as error:
        raise KdistillError(
            f"the variables of Slurm do not describe this job step ({error}): start the command with srun, or set TF_CONFIG"
        ) from error


def _host_names(node_list: str) -> list[str]:
    """Return the hosts of Slurm's notation, e.g. of `gpu[01-02,7],login`."""
    hosts = []
    for prefix, ranges in re.findall(r"([^,\[\]]+)(?:\[([^\]]+)\])?", node_list):
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1) if first else ()
            hosts += [f"{prefix}{number:0{len(first)}}" for number in numbers] or [prefix]
    return hosts
