"""Group: `soften` and `sweep` by two workers of a Ray cluster, on the cores that one process has otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from measuring import Row, Setup, SkippedError, Work, epoch, kdistill, medians, run_here, two_cores

COPIES = 5  # of MNIST's training rows
SWEEP = "--model mlp-100 --temperature 4,20 --seeds 0,1,2,3 --epochs 3 --batch-size 128"  # 12 students


def measure_ray(setup: Setup) -> Iterator[Row]:
    """`soften` by two workers with one core each, against one core; `sweep` by the same, against both cores.

    A worker has one thread. The rows of `soften` that are timed are those of a large transfer set, less the time that a
    small one takes. So the start of Ray and of its workers does not count, nor what one process does at its start.
    """
    if find_spec("ray") is None:
        raise SkippedError("Ray is not installed (pip install 'kdistill[ray]')")
    cores = two_cores()
    workspace = setup.scratch / "ray"
    few, many = (write_copies(setup, copies) for copies in (1, COPIES))
    run_here("train-teacher", "--workspace", workspace, "--dataset", setup.dataset(1280), "--epochs", 1)
    ...
