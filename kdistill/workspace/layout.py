"""The workspace: where artifacts are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from kdistill.errors import KdistillError
from kdistill.settings import NAME, CorrectBias, Export, Settings
from kdistill.workspace.artifact import Artifact
from kdistill.workspace.files import refuse_links
from kdistill.workspace.kinds import (
    EXPORT,
    KINDS,
    PLOTS,
    PREDICTIONS,
    REPORT,
    SOFT_TARGETS,
    STUDENT,
    SWEEPS,
    TEACHER,
    Kind,
)


@dataclass(frozen=True, init=False)
class Workspace:
    """The directory that the stages share. It need not exist yet.

    In a dry run, a stage raises `WouldWrite` instead of writing an artifact.

    Raises:
        KdistillError: if the path is a file.
    """

    root: Path
    dry_run: bool

    def __init__(self, root: str | os.PathLike[str] = "workspace", *, dry_run: bool = False) -> None:
        object.__setattr__(self, "root", Path(root))
        object.__setattr__(self, "dry_run", dry_run)
        if self.root.exists() and not self.root.is_dir():
            raise KdistillError(f"--workspace {self.root} is a file (expected a directory, or the name of a new one)")

    def _artifact(self, kind: Kind, name: str) -> Artifact:
        return Artifact(kind.name, name, self.root, f"{kind.directory}/{name}{kind.suffix}", dry_run=self.dry_run)

    def teacher(self, name: str) -> Artifact:
        return self._artifact(TEACHER, name)

    def student(self, name: str) -> Artifact:
        """Return a student, or the student of a sweep if the name is SWEEP/STUDENT."""
        if "/" in name:
            return replace(self.sweep_student(*name.split("/", 1)), name=name)
        return self._artifact(STUDENT, name)

    def soft_targets(self, name: str) -> Artifact:
        return self._artifact(SOFT_TARGETS, name)

    def sweep(self, name: str) -> Artifact:
        return self._artifact(SWEEPS, name)

    def sweep_student(self, sweep: str, name: str) -> Artifact:
        whole = self.sweep(sweep)
        place = f"{whole.place}/{STUDENT.directory}/{name}"
        return Artifact(STUDENT.name, name, self.root, place, whole, self.dry_run)

    def export(self, settings: Export) -> Artifact:
        return self._artifact(EXPORT, settings.name)

    def corrected(self, settings: CorrectBias) -> Artifact:
        """Return the student that correct-bias makes."""
        return self.student(settings.corrected)

    @cached_property
    def plots(self) -> Artifact:
        return self.artifact(PLOTS.name, PLOTS.name)

    @cached_property
    def report(self) -> Artifact:
        return self.artifact(REPORT.name, REPORT.name)

    def artifact(self, kind: str, name: str) -> Artifact:
        """Return the artifact of a kind and name, as inputs record them."""
        if kind == STUDENT.name:
            return self.student(name)
        if KINDS[kind].single:
            return Artifact(kind, name, self.root, KINDS[kind].directory, dry_run=self.dry_run)
        return self._artifact(KINDS[kind], name)

    def predictions(self, output: str) -> Artifact:
        """Return the file that predict writes, which can be anywhere."""
        place = str(Path(output).expanduser().absolute())
        return Artifact(PREDICTIONS.name, output, self.root, place, dry_run=self.dry_run)

    def made_by(self, command: str, settings: Settings) -> Artifact:
        """Return the artifact that a command makes."""
        kind = next(kind for kind in KINDS.values() if command in (maker.command for maker in kind.makers))
        if kind.single:
            return self.artifact(kind.name, kind.name)
        return self._artifact(kind, getattr(settings, "corrected", None) or getattr(settings, "name"))  # noqa: B009

    @property
    def cache(self) -> Path:
        """The directory of decoded rows; see `data.row_cache`."""
        return self.root / "cache"

    def events(self, network: Artifact) -> Path:
        """Return the directory of a network's TensorBoard event files, which are not part of it.

        Raises:
            KdistillError: if the way there goes through a symbolic link.
        """
        directory = self.root / "tensorboard" / network.place
        refuse_links(self.root, directory)
        return directory

    def artifacts(self, *kinds: str, sweep_students: bool = False) -> list[Artifact]:
        """Return the artifacts of some kinds, or of all, upstream first.

        Args:
            *kinds: names of `kinds.KINDS`.
            sweep_students: whether the students of each sweep follow it.
        """
        found: list[Artifact] = []
        for kind in (KINDS[name] for name in kinds or KINDS):
            for artifact in self._found(kind) if kind.directory else ():
                found.append(artifact)
                if sweep_students and kind is SWEEPS:
                    found += self.sweep_students(artifact.name)
        return found

    def _found(self, kind: Kind) -> Iterator[Artifact]:
        if kind.single:
            single = self.artifact(kind.name, kind.name)
            yield from [single] if single.manifest_path.exists() else []
            return
        for file in self._names(kind.directory, kind.suffix):
            name = file.removesuffix(kind.suffix)
            artifact = self._artifact(kind, name)
            unfinished = kind.shared and not artifact.manifest_path.exists() and not artifact.path.is_symlink()
            if not unfinished and kind.naming_options(name) is not None:
                yield artifact

    def sweep_students(self, sweep: str) -> list[Artifact]:
        directory = f"{SWEEPS.directory}/{sweep}/{STUDENT.directory}"
        return [self.sweep_student(sweep, name) for name in self._names(directory)]

    def interrupted(self) -> list[Artifact]:
        """Return the artifacts that a run has begun to make and not put in their place yet."""
        found = [
            self._artifact(kind, name.removesuffix(kind.suffix))
            for kind in KINDS.values()
            if kind.resumed_from and kind.directory
            for name in self._partial(kind.directory)
        ]
        sweeps = self._partial(SWEEPS.directory)
        for sweep in self._names(SWEEPS.directory):
            if sweep not in sweeps:  # otherwise the sweep is resumed
                names = self._partial(f"{SWEEPS.directory}/{sweep}/{STUDENT.directory}")
                found += [self.sweep_student(sweep, name) for name in names]
        return found

    def _partial(self, directory: str) -> list[str]:
        names = sorted(item.name for item in (self.root / directory).glob(".*.partial"))
        return [name for item in names if NAME.fullmatch(name := item.removeprefix(".").removesuffix(".partial"))]

    def _names(self, directory: str, suffix: str = "") -> list[str]:
        place = self.root / directory
        if not place.is_dir():
            return []
        return sorted(
            item.name
            for item in place.iterdir()  # links too: an artifact that is one is refused by name
            if item.name[0] != "." and (item.name.endswith(suffix) if suffix else item.is_dir() or item.is_symlink())
        )
