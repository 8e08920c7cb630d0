"""Group: `soften` in this process. It is also measured by other groups."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from measuring import BATCH_ROWS, Row, Setup, Work, as_floats, medians, python, run_here, timed

from kdistill.workspace import Workspace

SOFTEN_ROWS = 1000

# Run kdistill and print the peak of its memory in KiB. On Linux, ru_maxrss starts at the size of the parent process, so
# VmHWM is read instead.
PEAK_MEMORY = """
import resource, sys
from pathlib import Path
from kdistill.cli import app
app(sys.argv[1:], standalone_mode=False)
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
print(*peaks or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024])
"""


def measure_soften(setup: Setup) -> Iterator[Row]:
    """`soften` against calls of the same SavedModel, and its peak memory with three times the rows.

    The calls have their inputs in memory and do not write the logits. In the second row, the reference also loads the
    SavedModel and scales the inputs, as `soften` must.
    """
    workspace = setup.scratch / "soften"
    options = ["--dataset", setup.dataset(), "--batch-size", BATCH_ROWS, "--epochs", 1]
    run_here("train-teacher", "--workspace", workspace, *options)
    whole = timed(lambda: run_here("soften", "--workspace", workspace, "--force"))
    path, inputs = workspace / "teachers/teacher/saved_model", setup.rows()[0]

    def load_and_call() -> None:
        saved_model_calls(path, inputs)()

    works = {"soften": whole, "calls": saved_model_calls(path, inputs), "loading": timed(load_and_call)}
    times = medians(setup.runs, works)
    yield Row("`soften`, cnn, 60,000 rows / calls of the SavedModel", times["soften"], times["calls"], 1.25)
    yield Row("the same / loading the SavedModel, scaling and calls", times["soften"], times["loading"], 1.05)
    few, many = (peak_memory(setup, workspace, rows) for rows in (20_000, 60_000))
    yield Row("peak memory of `soften`, 60,000 rows / 20,000", many, few, 1.05, "MiB")


def saved_model_calls(path: Path, inputs: np.ndarray) -> Work:
    """Return the work of calling a SavedModel block after block."""
    from kdistill.backend import tf

    floats = as_floats(inputs)
    loaded = tf.saved_model.load(str(path))

    def calls() -> object:
        call = loaded.signatures["serving_default"]
        starts = range(0, len(floats), SOFTEN_ROWS)
        blocks = [call(inputs=tf.constant(floats[start : start + SOFTEN_ROWS])) for start in starts]
        return np.concatenate([block["logits"].numpy() for block in blocks])

    return timed(calls)


def peak_memory(setup: Setup, workspace: Path, rows: int) -> float:
    """Return the median of the peaks, in MiB, of processes that soften the first rows of MNIST."""
    options = ["--dataset", setup.dataset(rows), "--name", f"rows-{rows}", "--force", "--quiet"]
    command = ["soften", "--workspace", workspace, *options]
    return statistics.median(int(python("-c", PEAK_MEMORY, *command)) / 1024 for _ in range(setup.runs))


def soften(workspace: Path, name: str, *options: object, run: Callable[..., None] = run_here) -> Work:
    """Return the work of `soften`, as the manifest of the soft targets records it."""

    def work() -> float:
        run("soften", "--workspace", workspace, "--name", name, "--force", *options)
        return Workspace(workspace).soft_targets(name).require().seconds

    return work


def write_arrays(directory: Path, *arrays: np.ndarray) -> Path:
    """Write a dataset of `.npy` files: training inputs, training labels, test inputs and test labels."""
    directory.mkdir()
    for name, values in zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True):
        np.save(directory / f"{name}.npy", values)
    return directory
