"""What all uses of Ray share: errors in one line, and the preparation of a worker."""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from kdistill.cluster.engine import ClusterError, Work
from kdistill.errors import KdistillError, first_line

THREADS = "TF_NUM_INTRAOP_THREADS"
VERSION: str = sys.modules["kdistill"].__version__


def value(result: Any) -> Any:
    """Return the value of a result that is there.

    Raises:
        ClusterError: if every worker that worked on it died.
        Exception: what the work raised.
    """
    import ray

    try:
        with one_line_cluster_errors():
            return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else ClusterError(first_line(error))) from error


@contextlib.contextmanager
def one_line_cluster_errors() -> Iterator[None]:
    """Raise errors of Ray itself as one line. Those of the work pass."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ClusterError(
            f"the Ray cluster failed: {first_line(error)} Run the same command again to resume"
        ) from error


def pack(work: Work) -> bytes:
    """Return what a worker needs to prepare for work, and the version of kdistill that it must have."""
    return pickle.dumps((VERSION, pickle.dumps((work.prepare, work.arguments))))


@lru_cache(maxsize=1)
def prepared(packed: bytes, directory: str, threads: int) -> Callable[[Any], Any]:
    """Prepare a worker: same version, same directory, same number of threads, same inputs.

    Raises:
        ClusterError: if the version or the inputs are others.
    """
    version, prepare = pickle.loads(packed)  # noqa: S301 - from the process that the cluster works for
    if version != VERSION:
        raise ClusterError(
            f"the worker on {platform.node()} has kdistill {VERSION} (expected {version}, as where you run the command): "
            f"pip install kdistill=={version}"
        )
    os.environ[THREADS] = str(threads)  # TensorFlow is not loaded yet
    if os.path.isdir(directory):
        os.chdir(directory)
    function, arguments = pickle.loads(prepare)  # noqa: S301
    try:
        return function(*arguments)  # type: ignore[no-any-return]
    except ClusterError:
        raise
    except KdistillError as error:
        raise ClusterError(f"the worker on {platform.node()}: {error}") from error
