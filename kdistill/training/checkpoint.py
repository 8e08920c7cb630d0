"""Checkpoints: one file with everything that the next epoch depends on."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.workspace import Manifest, flush, threads
from kdistill.workspace.unfinished import continues

UNREADABLE = (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, KdistillError)


@dataclass
class Progress:
    """Progress of a training run.

    Attributes:
        rows: the history, one row per epoch.
        best: values of the network's variables in the best epoch; None without early stopping.
        best_epoch: the epoch with the lowest validation loss; 0 without early stopping.
        threads: number of threads that computed the epochs of a resumed run; 0 if unknown.
        replicas: number of replicas that computed them.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best: list[NDArray[Any]] | None = None
    best_epoch: int = 0
    threads: int = 0
    replicas: int = 1

    @property
    def epoch(self) -> int:
        """The number of the last epoch; 0 before the first."""
        return len(self.rows)

    def lowest(self, column: str) -> float:
        """Return the lowest value of a column so far; infinity before the first epoch."""
        return min((row[column] for row in self.rows), default=math.inf)


@dataclass(frozen=True)
class Checkpoint:
    """File with the progress and the identity of a run, and all variables of its network and optimizer."""

    path: Path
    identity: Manifest

    def write(self, progress: Progress, variables: Sequence[Any], replicas: int) -> None:
        """Replace the file in one step."""
        head = {
            "rows": progress.rows,
            "best_epoch": progress.best_epoch,
            "identity": self.identity.to_json(),
            "threads": threads(),
            "replicas": replicas,
        }
        arrays = {f"variable_{i}": value_of(variable) for i, variable in enumerate(variables)}
        arrays |= {f"best_{i}": value for i, value in enumerate(progress.best or [])}
        new = self.path.with_suffix(".new")
        with new.open("wb") as stream:
            np.savez(stream, allow_pickle=False, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
        flush(new)
        os.replace(new, self.path)

    def read(self, file: BinaryIO | None, variables: Sequence[Any], reporter: Reporter, replicas: int) -> Progress:
        """Set the variables and return the progress, or start over if there is no checkpoint that fits.

        Args:
            file: the content of the checkpoint; None if there is none.
            variables: of the network and the optimizer.
            reporter: prints what happens.
            replicas: number of replicas of this run.
        """
        if file is None:
            return Progress()
        try:
            progress, arrays = self._load(file, variables)
        except KdistillError as error:
            reporter.say(f"Starting over: {error}")
            return Progress()
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        reporter.say(f"Resuming from epoch {progress.epoch}")
        for name, before, now in (("threads", progress.threads, threads()), ("replicas", progress.replicas, replicas)):
            if before not in (0, now):
                reporter.warn(
                    f"epochs 1 to {progress.epoch} were computed with {before} {name}, the next ones with {now}: the last bits "
                    "may differ from those of an uninterrupted run"
                )
        return progress

    def _load(self, stream: BinaryIO, variables: Sequence[Any]) -> tuple[Progress, list[NDArray[Any]]]:
        """Return the progress and the values of the variables.

        Raises:
            KdistillError: if the file is damaged or its run had other settings, inputs or shapes.
        """
        try:
            with np.load(stream, allow_pickle=False) as file:
                head = json.loads(file["head"].tobytes())
                arrays = [_typed(file[f"variable_{i}"], variable) for i, variable in enumerate(variables)]
                count = sum(name.startswith("best_") for name in file.files)
                best = [_typed(file[f"best_{i}"], variables[i]) for i in range(count)] or None
            written = Manifest.from_json(head["identity"], str(self.path), str, finished=False)
            progress = Progress(head["rows"], best, head["best_epoch"], head.get("threads", 0), head.get("replicas", 1))
        except UNREADABLE:
            raise KdistillError(f"{self.path.name} is damaged") from None
        if not continues(written, self.identity):
            raise KdistillError("; ".join(written.differences(self.identity)))
        shapes = [tuple(variable.shape) for variable in variables]
        if progress.epoch > self.identity.settings["epochs"] or shapes != [array.shape for array in arrays]:
            raise KdistillError(f"{self.path.name} belongs to another network")
        return progress, arrays


def value_of(variable: Any) -> NDArray[Any]:
    """Return the values of a Keras variable."""
    return np.asarray(variable.numpy())


def _typed(array: NDArray[Any], variable: Any) -> NDArray[Any]:
    """Return an array with the type of a variable. NumPy's files don't know bfloat16, and return bytes."""
    return array.view(value_of(variable).dtype) if array.dtype.kind == "V" else array
