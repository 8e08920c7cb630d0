"""Group: `soften` and `sweep` by two workers of Ray, with one core each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from measuring import BATCH_ROWS, Row, Setup, SkippedError, Work, kdistill, medians, two_cores
from softening import soften, write_arrays

from kdistill.workspace import Workspace

COPIES = 5  # of the training rows of MNIST
SWEEP = [
    "--soft-targets",
    "few",
    "--model",
    "mlp-100",
    "--temperature",
    "4,20",
    "--seeds",
    "0,1,2,3",
    "--epochs",
    3,
    "--batch-size",
    BATCH_ROWS,
]
STUDENTS = 12  # that these options describe


def measure_ray(setup: Setup) -> Iterator[Row]:
    """`soften` by two workers against a process with one core, and `sweep` by two against a process with both cores.

    The seconds are those of manifests: with the start of Ray and of its workers, and without the start of the command.
    The first row leaves the start out: it is the time for many rows minus the time for few.
    """
    if find_spec("ray") is None:
        raise SkippedError("Ray is not installed (pip install 'kdistill[ray]')")
    cores = two_cores()
    ray = ["--ray", "local", "--ray-cpus", (os.cpu_count() or 2) // 2]  # as many workers as cores
    one, both = partial(kdistill, cores=cores[:1]), partial(kdistill, cores=cores)
    workers = partial(both, TF_NUM_INTRAOP_THREADS="1")
    workspace, rows = setup.scratch / "ray", len(setup.rows()[0])
    few, many = (repeated(setup, copies) for copies in (1, COPIES))
    kdistill("train-teacher", "--workspace", workspace, "--dataset", setup.dataset(1280), "--epochs", 1)
    works = {}
    for name, data in (("few", few), ("many", many)):
        works[name] = soften(workspace, name, "--dataset", data, run=one)
        works[f"{name}, Ray"] = soften(workspace, f"{name}-ray", "--dataset", data, *ray, run=workers)
    times = medians(setup.runs, works)
    title = (
        f"`soften --ray local`, cnn, two workers with one core each / one process: {rows * (COPIES - 1):,} more rows"
    )
    yield Row(title, times["many, Ray"] - times["few, Ray"], times["many"] - times["few"], 0.588)
    yield Row(f"the same with the start of Ray, {rows * COPIES:,} rows", times["many, Ray"], times["many"])

    sides = {
        "Ray": sweep(workspace, "ray", *ray, run=workers),
        "both": sweep(workspace, "both", run=both),
    }
    times = medians(setup.runs, sides)
    title = f"`sweep --ray local`, {STUDENTS} students, two workers with one core each / one process with both cores"
    yield Row(title, times["Ray"], times["both"], 0.9)


def repeated(setup: Setup, copies: int) -> Path:
    """Write a dataset with the training rows of MNIST several times."""
    (x_train, y_train), (x_test, y_test) = setup.rows(), setup.rows("test")
    train = np.concatenate([x_train] * copies), np.concatenate([y_train] * copies)
    test = x_test[:BATCH_ROWS], y_test[:BATCH_ROWS]
    return write_arrays(setup.scratch / f"mnist-{copies}-times", *train, *test)


def sweep(workspace: Path, name: str, *options: object, run: partial[None]) -> Work:
    """Return the work of a sweep, as its manifest records it."""

    def work() -> float:
        run("sweep", "--workspace", workspace, "--name", name, "--force", *SWEEP, *options)
        return Workspace(workspace).sweep(name).require().seconds

    return work
