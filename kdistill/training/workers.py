"""The processes that share one training, as `TF_CONFIG` or Slurm describe them. Uses the standard library only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdistill.console import Reporter, SilentReporter
from kdistill.errors import KdistillError

SLURM_PORT = 8888  # of the first worker on each machine


@dataclass(frozen=True)
class Workers:
    """The workers of this run and the place of this process among them.

    Attributes:
        cluster: the addresses `HOST:PORT` by job, `chief` or `worker`.
        job: of this process.
        index: of this process in its job.
    """

    cluster: Mapping[str, tuple[str, ...]]
    job: str = "worker"
    index: int = 0

    @classmethod
    def here(cls) -> Workers:
        """Return the workers that the environment describes; without `TF_CONFIG` and Slurm, this process alone.

        An empty cluster in `TF_CONFIG`, i.e. `{}`, is this process alone too, also under Slurm.

        Raises:
            KdistillError: if `TF_CONFIG` cannot be understood, or gives this process no part in the training.
        """
        if (text := os.environ.get("TF_CONFIG")) is not None:
            return _from_tf_config(text)
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return _from_slurm(os.environ)
        return cls({})

    @property
    def count(self) -> int:
        """The number of workers."""
        return max(1, sum(map(len, self.cluster.values())))

    @property
    def chief(self) -> bool:
        """Whether this process writes the results: the task of the job `chief`, or else the first worker."""
        return self.index == 0 and (self.job == "chief" or "chief" not in self.cluster)

    def reporter(self, reporter: Reporter) -> Reporter:
        """Return the reporter of this process. Workers other than the chief print a single line."""
        if self.chief:
            return reporter
        reporter.say(f"{self.job.title()} {self.index} of {self.count} workers: the chief reports the progress")
        return SilentReporter()

    def refuse(self, command: str) -> None:
        """Refuse a command that one process runs.

        Raises:
            KdistillError: if there are several workers.
        """
        if self.count > 1:
            raise KdistillError(
                f"{command} runs in one process, but TF_CONFIG or Slurm names {self.count} workers, which only train-teacher "
                "and train-student use: set TF_CONFIG={}, and run it once"
            )


def _from_tf_config(text: str) -> Workers:
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        addresses = {job: tuple(cluster[job]) for job in ("chief", "worker") if cluster.get(job)}
        if sum(map(len, addresses.values())) < 2:
            return Workers({})
        job, index = task["type"], int(task["index"])
        if not 0 <= index < len(addresses[job]):
            raise ValueError
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise KdistillError(
            f"TF_CONFIG is {text[:300]!r} (expected JSON with the addresses of the workers under cluster, and with a chief or "
            "worker among them under task)"
        ) from error
    return Workers(addresses, job, index)


def _from_slurm(variables: Mapping[str, str]) -> Workers:
    """Return a worker per task of the job step, in the order of Slurm's ranks.

    Own code, since `SlurmClusterResolver` (TensorFlow 2.21) fails without GPUs, and orders n10 before n9.
    """
    try:
        hosts = _host_names(variables["SLURM_STEP_NODELIST"])
        tasks = [
            int(count)
            for part in variables["SLURM_STEP_TASKS_PER_NODE"].split(",")
            for count in [part.partition("(")[0]] * int(re.sub(r".*\(x|\)", "", part) if "(" in part else 1)
        ]
        addresses = [
            f"{host}:{SLURM_PORT + number}" for host, count in zip(hosts, tasks, strict=True) for number in range(count)
        ]
        rank = int(variables["SLURM_PROCID"])
        addresses[rank]  # exists
    except (KeyError, ValueError, IndexError) as error:
        raise KdistillError(
            f"the variables of Slurm do not describe this job step ({error}): start the command with srun, or set TF_CONFIG"
        ) from error
    return Workers({"worker": tuple(addresses)}, "worker", rank)


def _host_names(node_list: str) -> list[str]:
    """Return the hosts of Slurm's notation, e.g. of `gpu[01-02,7],login`."""
    hosts = []
    for prefix, ranges in re.findall(r"([^,\[\]]+)(?:\[([^\]]+)\])?", node_list):
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1) if first else ()
            hosts += [f"{prefix}{number:0{len(first)}}" for number in numbers] or [prefix]
    return hosts
