"""Measure how many rows per second the driver of `soften --ray` takes, when its workers compute nothing.

    python tests/programs/driver.py --classes 1000 --rows 200000

A worker returns the same block of logits again and again. The driver receives the blocks, appends them to the log, and writes the
soft-target file from it, as `soften` does. Prints a table, with the rate of `dd` for comparison.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kdistill import cluster, soft_targets
from kdistill.cluster import Work
from kdistill.console import SilentReporter
from kdistill.console.native_stderr import silence_native_stderr
from kdistill.settings import Cluster
from kdistill.soft_targets import LogitStorage
from kdistill.stages import block_log
from kdistill.workspace import Input, Manifest
from kdistill.workspace.resume_log import Block

STORAGES = {
    "float32": {"dtype": "float32"},
    "float32, `--no-soft-targets`": {"dtype": "float32", "with_soft_targets": False},
    "`--dtype float16 --no-soft-targets`": {"dtype": "float16", "with_soft_targets": False},
    "`--top-k 10 --dtype float16 --no-soft-targets`": {"dtype": "float16", "top_k": 10, "with_soft_targets": False},
}


def same_block(storage: LogitStorage, rows: int) -> Callable[[int], Block]:
    """Return a function that returns the same block for any number."""
    logits = np.random.default_rng(0).normal(size=(rows, storage.classes)).astype(np.float32)
    block = {"row_keys": np.zeros((rows, 16), np.uint8), **storage.store(logits).arrays()}
    return lambda _: block


def measure(
    storage: LogitStorage, engine: cluster.Engine, rows: int, batch_size: int, place: Path
) -> tuple[float, ...]:
    """Return the seconds until all blocks are in the log, those for the file, and the size of the file in bytes."""
    inputs = Input("dataset", "none", ""), Input("teacher", "none", "", 1)
    identity = Manifest(kind="soft targets", settings={"temperature": 1.0}, inputs=inputs)
    columns = {"row_keys": ((16,), "u1"), **storage.columns}
    from driver import same_block as prepare  # under a name that workers can import

    work = Work(None, prepare, (storage, batch_size))  # type: ignore[arg-type] - workers do it
    how = {"title": "", "rows": rows, "batch_size": batch_size, "reporter": SilentReporter()}
    with block_log.open_log(place, identity, columns, rows) as log:
        start = time.perf_counter()
        block_log.fill(log, engine, work, lambda block: block, **how)  # type: ignore[arg-type]
        filled = time.perf_counter()
        file = place / "soft-targets.h5"
        labels = np.zeros(rows, np.int64)
        soft_targets.write(file, log, identity, labels, storage, start_time=start, teacher={}, threads=1)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        written = time.perf_counter()
    size = file.stat().st_size
    file.unlink()
    log.path.unlink()
    return filled - start, written - filled, size


def dd(place: Path, size: int) -> float:
    """Return the seconds in which `dd` writes a file of a size in bytes to the disk."""
    file = place / "dd"
    start = time.perf_counter()
    command = ["dd", "if=/dev/zero", f"of={file}", "bs=1M", f"count={size >> 20}", "conv=fsync"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    file.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=1000, help="rows per block")
    parser.add_argument("--place", type=Path, help="directory on the disk to measure (default: a temporary one)")
    options = parser.parse_args()
    silence_native_stderr()
    print("| stored | bytes per row | rows/s into the log | MB/s | rows/s into the file | MB/s | `dd`, MB/s |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.place) as scratch, cluster.engine(Cluster(ray="local")) as engine:
        storages = {name: LogitStorage(options.classes, 1.0, **how) for name, how in STORAGES.items()}  # type: ignore[arg-type]
        for storage in storages.values():  # the first blocks wait for the workers to start
            measure(storage, engine, options.batch_size * 4, options.batch_size, Path(scratch))
        for name, storage in storages.items():
            log, file, size = measure(storage, engine, options.rows, options.batch_size, Path(scratch))
            row = storage.row_bytes + 16
            rates = [options.rows / log, options.rows * row / 1e6 / log, options.rows / file, size / 1e6 / file]
            cells = [*rates, size / 1e6 / dd(Path(scratch), size)]
            print(f"| {name} | {row:,} | {' | '.join(f'{cell:,.0f}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
