"""Artifacts: reading their manifests, and replacing one whole by another.

An artifact is a directory with a `manifest.json` (a network) or a file that carries its own (soft targets). It is made in
`.NAME.partial` next to its place by the process that holds `.NAME.lock`, and takes its place in one rename. Until then,
what was there stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdistill.errors import KdistillError
from kdistill.workspace import commands, hdf5_manifest, lock
from kdistill.workspace.files import (
    digest,
    exchange,
    flush,
    is_directory,
    link_in,
    make_directories,
    refuse_links,
    remove_contents,
)
from kdistill.workspace.kinds import KINDS, Kind
from kdistill.workspace.manifest import Manifest
from kdistill.workspace.schema import Input

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # NumPy and HDF5 do not say which file was too large


class MissingArtifactError(KdistillError):
    """A stage needs an artifact that does not exist.

    Attributes:
        artifacts: the artifact, or those that the name could mean.
    """

    def __init__(self, message: str, *artifacts: Artifact) -> None:
        super().__init__(message)
        self.artifacts = artifacts


class WouldWrite(Exception):  # noqa: N818 - not an error
    """Ends a stage in a dry run, where it would write its artifact or leave it as it is.

    Attributes:
        artifact: what the stage writes.
        reason: why it must be written; None if it is up to date.
        inputs: what it is made from, as far as that is known.
    """

    def __init__(self, artifact: Artifact, reason: str | None, inputs: Sequence[Input] = ()) -> None:
        super().__init__(str(artifact))
        self.artifact, self.reason, self.inputs = artifact, reason, inputs


@dataclass(frozen=True)
class Artifact:
    """One artifact of a workspace.

    Attributes:
        kind: a name of `kinds.KINDS`.
        name: of the artifact; the students of a sweep are SWEEP/STUDENT outside of it.
        root: the workspace.
        place: its path in the workspace.
        whole: the artifact that it is a part of.
        dry_run: whether nothing is written.
    """

    kind: str
    name: str
    root: Path
    place: str
    whole: Artifact | None = None
    dry_run: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    @property
    def record(self) -> Kind:
        """The record of its kind."""
        return KINDS[self.kind]

    @property
    def path(self) -> Path:
        return self.root / self.place

    @property
    def partial(self) -> Path:
        """The directory where it is made."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def manifest_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json") if self.record.beside else self.path / "manifest.json"

    @property
    def command(self) -> str:
        """The command that makes an artifact of this name, with the defaults of all other options."""
        return self.whole.command if self.whole else commands.default(self)

    def command_for(self, manifest: Manifest) -> str:
        """Return the command that makes what a manifest describes, with every option that is not a default."""
        if self.whole:
            return self.whole.command_for(self.whole.recovered())
        return commands.rebuilt(self, manifest)

    @property
    def remedy(self) -> str:
        """The command that makes a damaged artifact again as it was, as far as its manifest can be read.

        A sweep makes what is damaged of it again without `--force`, which would train all its students again.
        """
        link = link_in(self.root, self.path)
        remove = f"rm {shlex.quote(str(link))} && " if link else ""
        return f"{remove}{self.command_for(self.recovered())}{self.force}"

    @property
    def force(self) -> str:
        return " --force" if self.record.repaired_by_force and not self.whole else ""

    def _text(self) -> str | bytes:
        """Return the text of the manifest.

        Raises:
            OSError: if it can't be read.
        """
        return hdf5_manifest.read(self.path) if self.record.suffix else self.manifest_path.read_bytes()

    def recovered(self) -> Manifest:
        """Return what the manifest still records of how the artifact was made, however damaged it is."""
        text: str | bytes = ""
        with contextlib.suppress(OSError):
            if not (self.path if self.record.suffix else self.manifest_path).is_symlink():
                text = self._text()
        return Manifest.recovered(text, self.kind)

    def refuse_links(self) -> None:
        """Refuse an artifact that is a symbolic link or is behind one.

        Raises:
            KdistillError: naming the link.
        """
        refuse_links(self.root, self.path)

    def manifest(self) -> Manifest | None:
        """Return the manifest, or None if there is no artifact.

        Raises:
            KdistillError: if what is there is damaged or no artifact of kdistill's.
        """
        if self.record.suffix:
            return self._file_manifest()
        refuse_links(self.root, self.manifest_path)
        try:
            text = self._text()
        except FileNotFoundError:
            if self.path.exists() and not self.record.shared:
                raise KdistillError(f"{self.path} has no manifest.json: remove it, then {self.command}") from None
            return None
        except NotADirectoryError:
            raise KdistillError(f"{self.path} is a file (expected a directory): remove it") from None
        return Manifest.from_json(text, str(self.manifest_path), lambda: self.remedy, kind=self.kind)

    def _file_manifest(self) -> Manifest | None:
        self.refuse_links()
        if not self.path.exists():
            return None
        try:
            text = self._text()
        except PermissionError:
            raise
        except OSError:
            raise KdistillError(f"{self.path} is damaged or not a file of {self.kind}: {self.remedy}") from None
        return Manifest.from_json(text, str(self.path), lambda: self.remedy, kind=self.kind)

    def require(self, *outputs: str) -> Manifest:
        """Return the manifest of an artifact that must be there and undamaged.

        Args:
            *outputs: the outputs to check; all by default.

        Raises:
            KdistillError: naming the command that makes it.
        """
        manifest = self.manifest()
        if manifest is None:
            raise MissingArtifactError(f"there is no {self} in {self.root}: {self.command}", self)
        if damage := self.damage(manifest, *outputs):
            raise KdistillError(f"{self}: {damage}: {self.command_for(manifest)}{self.force}")
        return manifest

    def damage(self, manifest: Manifest, *outputs: str) -> str | None:
        """Return which output differs from the manifest, or which part is missing, in words; None if nothing is wrong.

        Args:
            manifest: of a directory. Files check themselves when they are read.
            *outputs: the outputs to check; by default all, and that the parts exist.
        """
        if self.record.suffix:
            return None
        for name, recorded in manifest.outputs.items():
            if outputs and name not in outputs:
                continue
            path = self.manifest_path.parent / name
            if not path.exists():
                return f"{name} is missing"
            if digest(path) != recorded:
                return f"{name} has changed since it was written"
        parts = self.record.parts
        for name in manifest.results.get(parts, ()) if not outputs else ():
            if not (self.path / parts / name / "manifest.json").exists():
                return f"{parts}/{name} is missing"
        return None

    def digest(self, manifest: Manifest) -> str | None:
        """Return the digest that artifacts made from this one record: of its main output, or of its only one."""
        names = [self.record.output] if self.record.output else list(manifest.outputs)
        return manifest.outputs.get(names[0]) if len(names) == 1 else None

    def out_of_date(self, identity: Manifest) -> str | None:
        """Return why the artifact must be made (again), in words; None if it is up to date.

        Raises:
            KdistillError: if kdistill did not make what is in its place.
        """
        self.refuse_links()
        try:
            manifest = self.manifest()
        except KdistillError as error:
            if self.path.is_dir() if self.record.suffix else not self.manifest_path.exists():
                raise
            return str(error)
        if manifest is None:
            return "it does not exist"
        return "; ".join(manifest.differences(identity)) or self.damage(manifest)

    def writer(self) -> str | None:
        """Return which process is writing this artifact, in words; None if no process is."""
        return lock.holder(self._lock_path)

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Staging]:
        """Hold the right to write this artifact, and yield where to do so. Nothing changes until the staging commits.

        The file that the work is resumed from survives an interruption; everything else that a dead run
        left is removed.

        Raises:
            KdistillError: if another process is writing it, or kdistill did not make what is in its place or beside it.
            WouldWrite: in a dry run.
        """
        self.refuse_links()
        if self.dry_run:
            raise WouldWrite(self, "--force" if self.path.exists() else "it does not exist")
        keep = self.record.resumed_from or ""
        made = make_directories(self.path.parent)
        try:
            with lock.hold(self._lock_path, str(self)):
                if os.path.lexists(self.partial) and not is_directory(self.partial):
                    raise KdistillError(
                        f"{self.partial} is not a directory of kdistill: remove it, rm {shlex.quote(str(self.partial))}"
                    )
                remove_contents(self.partial, keep)
                self.partial.mkdir(exist_ok=True)
                try:
                    yield Staging(self, self.partial)
                except BaseException as error:
                    remove_contents(self.partial, keep)
                    if isinstance(error, OSError) and error.errno in FULL and not error.filename:
                        error.filename = str(self.path)
                    raise
                else:
                    remove_contents(self.partial)
        finally:
            for directory in made:  # that this run made and left empty
                with contextlib.suppress(OSError):
                    directory.rmdir()


@dataclass(frozen=True)
class Staging:
    """The directory where an artifact is made."""

    artifact: Artifact
    path: Path

    def commit(self, identity: Manifest, *, results: Mapping[str, Any], seconds: float) -> Manifest:
        """Put the files made here in the artifact's place, with their manifest.

        A directory is replaced whole. If it is shared with other files, each file made here is replaced in one rename.

        Returns:
            The manifest as written.
        """
        outputs = {item.name: digest(item) for item in sorted(self.path.iterdir())}
        manifest = identity.with_results(outputs=outputs, results=results, seconds=seconds)
        (self.path / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
        flush(self.path)
        if not self.artifact.record.shared:
            exchange(self.path, self.artifact.path)
            return manifest
        self.artifact.path.mkdir(exist_ok=True)
        for name in [*outputs, "manifest.json"]:
            os.replace(self.path / name, self.artifact.path / name)
        flush(self.artifact.path, inside=False)
        return manifest

    def commit_file(self, file: Path, beside: Manifest | None = None) -> None:
        """Put one file made here in the artifact's place.

        Args:
            file: the file.
            beside: the manifest to put beside it, unless the file carries its own.
        """
        manifest = self.path / self.artifact.manifest_path.name
        if beside:
            manifest.write_text(beside.to_json(), encoding="utf-8")
            flush(manifest)
        flush(file)
        os.replace(file, self.artifact.path)
        if beside:
            os.replace(manifest, self.artifact.manifest_path)
        flush(self.artifact.path.parent, inside=False)
