"""Interrupted work: what it was to become, how far it is, and whether it can be resumed.

Nothing here needs TensorFlow, so that `status` and a refused command answer at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdistill.errors import KdistillError
from kdistill.workspace import resume_log
from kdistill.workspace.artifact import Artifact
from kdistill.workspace.kinds import BLOCKS, CHECKPOINT, SWEEP
from kdistill.workspace.manifest import Manifest
from kdistill.workspace.staleness import Staleness

WORTH_KEEPING = 60.0  # seconds of work that are not discarded without --force
UNREADABLE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, RecursionError, RuntimeError),
    *(ArithmeticError, zipfile.BadZipFile, zlib.error, KdistillError),
)


@dataclass(frozen=True)
class Unfinished:
    """Interrupted work on an artifact.

    Attributes:
        identity: what it was to become.
        unit: `epochs`, `rows` or `students`.
        done: how many are done.
        total: of how many; None if that is not known.
        seconds: of work that would be lost.
    """

    identity: Manifest
    unit: str
    done: int
    total: int | None
    seconds: float

    def __str__(self) -> str:
        return progress(self.done, self.total, self.unit, self.seconds)


def continues(recorded: Manifest, wanted: Manifest) -> bool:
    """Return whether work on one identity can be resumed as work on another.

    They are the same, or the other has more epochs and no epoch depends on their number.
    """
    if not recorded.differences(wanted):
        return True
    before, after = recorded.settings, wanted.settings
    if after.get("schedule") != "constant" or before.get("epochs", math.inf) > after["epochs"]:
        return False
    return not replace(recorded, settings={**before, "epochs": after["epochs"]}).differences(wanted)


def find(artifact: Artifact) -> Unfinished | None:
    """Return the interrupted work on an artifact; None if there is none that can be read and is not finished."""
    file = _resumed_from(artifact)
    work = _read(artifact, file) if file else None
    if work is None:
        return None
    manifest = _manifest(artifact)
    finished = manifest and not work.identity.differences(manifest)
    return None if manifest and finished and not artifact.damage(manifest) else work


def protect(artifact: Artifact, wanted: Manifest, staleness: Staleness) -> None:
    """Refuse to make an artifact if that would discard more than a minute of work on something else.

    Raises:
        KdistillError: with the command that resumes that work, if its inputs have not changed.
    """
    work = find(artifact)
    if work is None or work.seconds < WORTH_KEEPING or continues(work.identity, wanted) or artifact.writer():
        return
    differences = "; ".join(work.identity.differences(wanted))
    resumable = not staleness.reasons(work.identity, upstream=False)
    raise KdistillError(
        f"{artifact}: this would discard interrupted work, {work} ({differences}): pass --force to discard it"
        + (f", or resume it: {artifact.command_for(work.identity)}" if resumable else "; its inputs have changed since")
    )


def tidy(artifact: Artifact, identity: Manifest) -> None:
    """Remove what stopped runs left beside an artifact that is up to date with an identity.

    Work that was to become something else stays, and so does what can't be read.
    """
    if artifact.partial.is_symlink() or not artifact.partial.is_dir():
        return
    if file := _resumed_from(artifact):
        work = _read(artifact, file)
        if work is None or work.identity.differences(identity):
            return
    with contextlib.suppress(KdistillError), artifact.writing():  # a live writer tidies up for itself
        pass


def write_sweep(directory: Path, identity: Manifest, done: int, total: int) -> None:
    """Record how many students of a sweep are done."""
    new = directory / f"{SWEEP}.new"
    new.write_text(json.dumps({"identity": identity.to_json(), "done": done, "total": total}), encoding="utf-8")
    os.replace(new, directory / SWEEP)


def _resumed_from(artifact: Artifact) -> Path | None:
    """Return the file that work on an artifact can be resumed from.

    None if the directory is the previous artifact, which a killed run left after it was replaced.
    """
    partial = artifact.partial
    if partial.is_symlink():
        return None
    with contextlib.suppress(OSError):
        replaced, current = ((place / "manifest.json").stat() for place in (partial, artifact.path))
        if replaced.st_mtime_ns <= current.st_mtime_ns:
            return None
    path = partial / (artifact.record.resumed_from or "")
    return path if path.is_file() and not path.is_symlink() else None


def _read(artifact: Artifact, file: Path) -> Unfinished | None:
    try:
        if file.name == CHECKPOINT:
            return _from_checkpoint(artifact, file)
        if file.name == BLOCKS:
            log = resume_log.read_progress(file)
            return Unfinished(log.identity, "rows", log.rows, log.total, log.seconds)
        head = json.loads(file.read_bytes())
        identity = Manifest.from_json(head["identity"], str(file), str, kind=artifact.kind, finished=False)
        return Unfinished(identity, "students", int(head["done"]), int(head["total"]), 0.0)
    except UNREADABLE:
        return None


def _from_checkpoint(artifact: Artifact, file: Path) -> Unfinished:
    head = checkpoint_head(file)
    identity = Manifest.from_json(head["identity"], str(file), str, kind=artifact.kind, finished=False)
    epochs, manifest = head["rows"], _manifest(artifact)
    extended = manifest and manifest.differences(identity) and continues(manifest, identity)
    kept = manifest.results["epochs_run"] if manifest and extended else 0  # these are in the artifact too
    seconds = sum(float(epoch["seconds"]) for epoch in epochs[kept:])
    return Unfinished(identity, "epochs", len(epochs), int(identity.settings["epochs"]), seconds)


def checkpoint_head(file: Path) -> dict[str, Any]:
    """Return what a checkpoint holds besides variables: `rows` of the history, `best_epoch` and `identity`."""
    import numpy as np

    with np.load(file, allow_pickle=False) as arrays:
        head: dict[str, Any] = json.loads(arrays["head"].tobytes())
    return head


def _manifest(artifact: Artifact) -> Manifest | None:
    with contextlib.suppress(KdistillError, OSError):
        return artifact.manifest()
    return None


def progress(done: int, total: int | None, unit: str, seconds: float) -> str:
    """Return progress in words: `3 of 30 epochs, 2 min of work`."""
    of_total = "" if total is None else f" of {total:,}"
    return f"{done:,}{of_total} {unit}" + (f", {_duration(seconds)} of work" if seconds else "")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
