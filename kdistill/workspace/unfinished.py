"""Work that was stopped before its artifact was finished: what it is, how far it came, and what becomes of it.

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
from kdistill.workspace import Artifact, Manifest, Workspace, resume_log

CHECKPOINT = "checkpoint.npz"  # of a network in training
BLOCKS = "blocks.log"  # of a soft-target file
SWEEP = "sweep.json"  # of a sweep, whose finished students are artifacts of their own
WORTH_KEEPING = 60.0  # seconds of work that nothing discards without --force
UNREADABLE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, RecursionError, RuntimeError),
    *(ArithmeticError, zipfile.BadZipFile, zlib.error, KdistillError),
)


@dataclass(frozen=True)
class Unfinished:
    """Half-finished work: what it was to become, and how much of it is done.

    `unit` is `epochs`, `rows` or `students`. `seconds` is the work that would have to be done again without it.
    """

    identity: Manifest
    unit: str
    done: int
    total: int | None
    seconds: float

    def __str__(self) -> str:
        return how_far(self.done, self.total, self.unit, self.seconds)

    def command(self, artifact: Artifact) -> str:
        """The command that resumes it."""
        return artifact.command_for(self.identity)


def continues(written: Manifest, wanted: Manifest) -> bool:
    """Whether work of one identity goes on as the other: the same, or more epochs where no epoch depends on it."""
    if not written.differences(wanted):
        return True
    before, after = written.settings, wanted.settings
    if after.get("schedule") != "constant" or before.get("epochs", math.inf) > after["epochs"]:
        return False
    return not replace(written, settings={**before, "epochs": after["epochs"]}).differences(wanted)


def find(artifact: Artifact) -> Unfinished | None:
    """What was stopped of an artifact, None if there is nothing that can be resumed and is not finished already."""
    left = _read(artifact, kept) if (kept := _kept(artifact)) else None
    if left is None:
        return None
    standing = _standing(artifact)
    finished = standing and not left.identity.differences(standing)
    return None if standing and finished and not (artifact.path.is_dir() and artifact.broken(standing)) else left


def protect(artifact: Artifact, wanted: Manifest) -> None:
    """Refuse to make an artifact where that would discard more than a minute of work on something else.

    Raises:
        KdistillError: with the command that resumes that work, if its inputs are as they were.
    """
    left = find(artifact)
    if left is None or left.seconds < WORTH_KEEPING or continues(left.identity, wanted) or artifact.writer():
        return
    from kdistill.workspace.staleness import Look

    differences = "; ".join(left.identity.differences(wanted))
    resumable = not Look(Workspace(artifact.root)).stale(left.identity, upstream=False)
    raise KdistillError(
        f"{artifact}: this would discard interrupted work, {left} ({differences}): --force discards it"
        + (f", and this resumes it: {left.command(artifact)}" if resumable else "; its inputs have changed since")
    )


def tidy(artifact: Artifact, identity: Manifest) -> None:
    """Remove what stopped runs left beside an artifact that is up to date with an identity.

    That is what it replaced, and work that was to become the same again. Work that was to become something else stays,
    and so does what can't be read.
    """
    if artifact.partial.is_symlink() or not artifact.partial.is_dir():
        return
    if kept := _kept(artifact):
        left = _read(artifact, kept)
        if left is None or left.identity.differences(identity):
            return
    with contextlib.suppress(KdistillError), artifact.writing():  # a live writer tidies up for itself
        pass


def write_sweep(directory: Path, identity: Manifest, done: int, total: int) -> None:
    """Record how far a sweep came."""
    beside = directory / f"{SWEEP}.new"
    beside.write_text(json.dumps({"identity": identity.to_json(), "done": done, "total": total}), encoding="utf-8")
    os.replace(beside, directory / SWEEP)


def _kept(artifact: Artifact) -> Path | None:
    """The file by which work on an artifact can be resumed.

    None in a directory that is the artifact that stood here before, which a killed run left after it was replaced.
    """
    partial = artifact.partial
    if partial.is_symlink():
        return None
    with contextlib.suppress(OSError):
        replaced, standing = ((place / "manifest.json").stat() for place in (partial, artifact.path))
        if replaced.st_mtime_ns <= standing.st_mtime_ns:
            return None
    paths = (partial / name for name in (CHECKPOINT, BLOCKS, SWEEP))
    return next((path for path in paths if path.is_file() and not path.is_symlink()), None)


def _read(artifact: Artifact, kept: Path) -> Unfinished | None:
    """What a file says that work can be resumed by, None if it can't be read."""
    try:
        if kept.name == CHECKPOINT:
            return _of_checkpoint(artifact, kept)
        if kept.name == SWEEP:
            head = json.loads(kept.read_bytes())
            identity = Manifest.from_json(head["identity"], str(kept), "", kind=artifact.kind, finished=False)
            return Unfinished(identity, "students", int(head["done"]), int(head["total"]), 0.0)
        log = resume_log.read_progress(kept)
        return Unfinished(log.identity, "rows", log.rows, log.total, log.seconds)
    except UNREADABLE:
        return None


def _of_checkpoint(artifact: Artifact, path: Path) -> Unfinished:
    head = checkpoint_head(path)
    identity = Manifest.from_json(head["identity"], str(path), "", kind=artifact.kind, finished=False)
    rows, standing = head["rows"], _standing(artifact)
    added_to = standing and standing.differences(identity) and continues(standing, identity)
    also_standing = standing.results["epochs_run"] if standing and added_to else 0
    seconds = sum(float(row["seconds"]) for row in rows[also_standing:])
    return Unfinished(identity, "epochs", len(rows), int(identity.settings["epochs"]), seconds)


def checkpoint_head(path: Path) -> dict[str, Any]:
    """What a checkpoint says but for its variables: `rows` of the history, `best_epoch` and `identity`."""
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        head: dict[str, Any] = json.loads(arrays["head"].tobytes())
    return head


def _standing(artifact: Artifact) -> Manifest | None:
    """The manifest of what stands, None if there is none that can be read."""
    from kdistill.workspace.staleness import manifest_of

    try:
        return manifest_of(artifact)
    except (KdistillError, OSError):
        return None


def how_far(done: int, total: int | None, unit: str, seconds: float) -> str:
    """Progress in words: how much of how many, and the work that it took."""
    of = "" if total is None else f" of {total:,}"
    return f"{done:,}{of} {unit}" + (f", {_duration(seconds)} of work" if seconds else "")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
