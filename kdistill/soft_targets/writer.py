"""Writing a soft-target file from the resume log of `soften`; `kdistill.soft_targets.file` describes the format."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdistill import tasks
from kdistill.data.read_ahead import read_ahead
from kdistill.errors import KdistillError
from kdistill.soft_targets.file import Content
from kdistill.soft_targets.storage import LogitStorage
from kdistill.soft_targets.transfer_sets import teacher_names
from kdistill.tasks import is_labeled
from kdistill.workspace import FORMAT, Manifest, hdf5_manifest
from kdistill.workspace.resume_log import Block, BlockLog

CHUNK_BYTES = 1 << 20


def write(
    path: Path,
    log: BlockLog,
    identity: Manifest,
    labels: NDArray[Any],
    storage: LogitStorage,
    *,
    start_time: float,
    teacher: Mapping[str, Any],
    threads: int | None = None,
) -> Manifest:
    """Write a soft-target file, with two blocks of the log in memory at a time, and return its manifest.

    Args:
        path: the new file.
        log: the row keys, and the logits as `storage` stores them.
        identity: what the file is made from.
        labels: (rows, ...) of the transfer set.
        storage: how logits are stored.
        start_time: when the work began, by `time.perf_counter`.
        teacher: facts about the teacher for the manifest.
        threads: that TensorFlow used per operation, for the manifest; by default as in this process.

    Raises:
        KdistillError: if the log does not have one row per label, or its logits are not usable.
    """
    if log.rows != len(labels):
        raise KdistillError(
            f"{log.path} has {log.rows:,} rows (expected {len(labels):,}, as the transfer set); run the same command again"
        )
    names = teacher_names(identity)
    content = Content(tasks.get(storage.task))
    with OutputFile(path) as output, h5py.File(output, "w", libver="latest") as file:
        datasets = {
            name: create_dataset(file, name, (log.rows, *shape), dtype)
            for name, (shape, dtype) in storage.datasets.items()
        }
        start = 0
        for block in read_ahead(_blocks(log, labels, storage, " + ".join(names), content)):
            end = start + len(block["row_keys"])
            for name, values in block.items():
                datasets[name][start:end] = values
            start = end
        labeled = int(is_labeled(labels).sum())
        results: dict[str, Any] = {
            "task": storage.task,
            "rows": log.rows,
            "classes": storage.classes,
            "outputs": tasks.get(storage.task).count(storage.classes),
            "labeled": labeled,
            "score": int(content.score) if content.score.is_integer() else content.score,
        }
        outputs = {"content": content.digest()}
        seconds = time.perf_counter() - start_time
        results["teacher"] = teacher
        manifest = identity.with_results(outputs=outputs, results=results, seconds=seconds)
        manifest = replace(manifest, threads=threads or manifest.threads)
        attributes: dict[str, Any] = {
            "kdistill_format": FORMAT,
            "temperature": storage.temperature,
            "task": storage.task,
            "classes": storage.classes,
            "teacher": ", ".join(names),
            "dataset": identity.require_input("dataset").name,
            "score": content.score / labeled if labeled else float("nan"),
            "digest": content.digest(),
            hdf5_manifest.ATTRIBUTE: manifest.to_json(),
        }
        for name, value in attributes.items():
            file.attrs[name] = _fixed_length(value) if isinstance(value, str) else value
    return manifest


def _blocks(
    log: BlockLog, labels: NDArray[Any], storage: LogitStorage, teachers: str, content: Content
) -> Iterator[Block]:
    """Yield the rows of each dataset in blocks, and add them to the content of the file."""
    start, with_soft_targets = 0, "soft_targets" in storage.datasets
    for block in log.blocks():
        end = start + len(block["row_keys"])
        logits = storage.from_arrays(block)
        logits.check(teachers, start)
        block["labels"] = labels[start:end]
        if with_soft_targets:
            soft = np.asarray(storage.soft_targets(logits.values))
            block["soft_targets"] = soft.astype(logits.values.dtype)
        content.add(block, logits)
        yield block
        start = end


def create_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """Create a dataset with checksums, in chunks of at most `CHUNK_BYTES` unless a row is larger.

    A chunk holds a single view, since one view is read at a time. HDF5 stores every chunk in full, so the number of rows
    per chunk is chosen such that the last chunk is full or nearly so.
    """
    one_view = (*(1 for _ in shape[1:-1]), *shape[-1:]) if len(shape) > 1 else ()
    most_rows = max(1, CHUNK_BYTES // (np.dtype(dtype).itemsize * math.prod(one_view)))
    rows = math.ceil(shape[0] / math.ceil(shape[0] / most_rows))
    return file.create_dataset(name, shape, dtype, chunks=(rows, *one_view), fletcher32=True)


def _fixed_length(text: str) -> NDArray[Any]:
    """Return text of fixed length, which HDF5 keeps in its checksummed header and not in an unchecked heap."""
    contents = text.encode()
    return np.array(contents, h5py.string_dtype("utf-8", len(contents)))


class OutputFile(io.FileIO):
    """A new file that raises the first write error, e.g. of a full disk, when it is closed.

    HDF5 (1.14.6, with h5py 3.14.0) hangs when it closes a file whose last blocks cannot be written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, block: Any) -> int:
        try:
            remaining = memoryview(block)
            while remaining:
                remaining = remaining[super().write(remaining) :]
        except OSError as error:
            self.error = self.error or error
        return len(block)

    def close(self) -> None:
        super().close()
        if self.error:
            raise self.error
