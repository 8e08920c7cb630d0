"""The workspace: where artifacts lie, what each came from, and how one takes another's place.

Everything here is the standard library's, so that an up-to-date stage answers at once. An artifact is a directory (a
network) or a file (soft targets, pictures). It is made in `.NAME.partial` beside its place, by the process that holds
`.NAME.lock`, and takes its place in one rename: whatever happens before that, what stood there stands.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import errno
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdistill.errors import KdistillError
from kdistill.settings import (
    NAME,
    CorrectBias,
    Export,
    Plot,
    Soften,
    Sweep,
    Training,
    TrainStudent,
    TrainTeacher,
    short,
    written,
)

FORMAT = 1
LIBRARIES = ("tensorflow", "keras", "numpy", "h5py", "ai_edge_litert", "tf2onnx", "onnxruntime")
NAMED_BY_OPTION = (  # inputs; options of the same names give them
    "dataset",
    "transfer_set",
    "weights",
    "teacher",
    "logits",
    "soft_targets",
    "other_soft_targets",
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # NumPy and HDF5 don't say which file was too large
LOOSE = ("plots", "sweep")  # directories in which other things stand too
TRAINING = asdict(Training())
DEFAULTS: dict[str, dict[str, Any]] = {  # of each command's options; a student's alpha, T and network are always said
    "teacher": {**TRAINING, "dataset": [TrainTeacher.dataset], "model": TrainTeacher.model},
    "soft targets": {
        "teacher": [TrainTeacher.name],
        "mean": Soften.mean,
        "teacher_output": Soften.teacher_output,
        "teacher_input": Soften.teacher_input,
        "dtype": Soften.dtype,
        "seed": 0,
        "batch_size": Soften.batch_size,
        "rows_seed": Soften.selection.seed,
    },
    "student": {
        **TRAINING,
        "dataset": [TrainTeacher.dataset],
        "soft_targets": [TrainStudent.soft_targets],
        "rows_seed": TrainStudent.selection.seed,
    },
    "sweep": {
        **TRAINING,
        "dataset": [TrainTeacher.dataset],
        "soft_targets": [TrainStudent.soft_targets],
        "temperature": written(Sweep.temperatures),
        "alpha": written(Sweep.alphas),
        "loss": written(Sweep.losses),
        "seeds": written(Sweep.seeds),
        "rows_seed": TrainStudent.selection.seed,
    },
    "plots": {"formats": list(Plot.formats), "soft_targets": [Plot.soft_targets]},
}
COUNTS = {  # what later stages read of `results`, all whole numbers
    "teacher": ("test_errors", "test_rows", "parameters"),
    "student": ("test_errors", "test_rows", "parameters"),
    "soft targets": ("rows", "classes", "labelled", "correct"),
    "export": ("test_errors", "original_test_errors", "test_rows", "bytes", "original_bytes", "threads", "batch_rows"),
}


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a directory's names and bytes.

    Returns:
        `"sha256:"` and 64 hexadecimal digits.

    Raises:
        OSError: if it can't be read.
    """
    whole = hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            name = file.relative_to(path).as_posix().encode()
            whole.update(b"%d:%s%s" % (len(name), name, digest(file).encode()))
    else:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                whole.update(block)
    return f"sha256:{whole.hexdigest()}"


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


@dataclass(frozen=True)
class Input:
    """What an artifact was made from: a name for people, a digest for the truth."""

    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact came from and what it is.

    `kind`, `settings` and the digests of `inputs` are its identity: where they are equal, making it again would make
    the same thing. The rest is for the record.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Input]
    outputs: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str, remedy: str, *, finished: bool = True) -> Manifest:
        """Read what `to_json` wrote, of a finished artifact or of one that is being made.

        Raises:
            KdistillError: if it is no such thing, or of a newer format.
        """
        try:
            fields = json.loads(text)
            standing = fields["format"]
            if isinstance(standing, int) and standing > FORMAT:
                raise KdistillError(
                    f"{where} has format {standing}, and this kdistill reads up to {FORMAT}: upgrade kdistill"
                )
            manifest = cls(**{**fields, "inputs": {role: Input(**made) for role, made in fields["inputs"].items()}})
            texts = [manifest.kind, manifest.created, *manifest.outputs.values()]
            texts += [value for made in manifest.inputs.values() for value in (made.name, made.digest)]
            if not all(isinstance(text, str) for text in texts) or not isinstance(standing, int):
                raise TypeError
            dict(manifest.settings), dict(manifest.results), float(manifest.seconds)
            counts = COUNTS.get(manifest.kind, ()) if finished else ()
            if not all(isinstance(manifest.results[count], int) for count in counts):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise KdistillError(f"{where} is no manifest that kdistill wrote: {remedy}") from None
        return manifest

    def made_from(self, *kinds: str) -> dict[str, Input]:
        """The inputs of some kinds, by role: a kind, which `teacher` and `teacher 2` have in common, and a number."""
        return {role: made for role, made in self.inputs.items() if role.split()[0] in kinds}

    def differences(self, other: Manifest) -> list[str]:
        """What stands between this manifest and another of the same identity, in words."""
        found = []
        if (self.kind, self.format) != (other.kind, other.format):
            found.append(f"{self.kind} of format {self.format} -> {other.kind} of format {other.format}")
        for key in [*self.settings, *(key for key in other.settings if key not in self.settings)]:
            old, new = self.settings.get(key), other.settings.get(key)
            if old != new:
                found.append(f"{key.replace('_', ' ')} {_plain(old)} -> {_plain(new)}")
        for role in [*self.inputs, *(role for role in other.inputs if role not in self.inputs)]:
            before, after = self.inputs.get(role), other.inputs.get(role)
            if before is None or after is None or before.digest != after.digest:
                names = [made.name if made else "none" for made in (before, after)]
                changed = "changed" if names[0] == names[1] else " -> ".join(names)
                found.append(f"{role.replace('_', ' ')} {changed}")
        return found


def _option(key: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_option("format" if key == "formats" else key, one) for one in value)
    if value is True:
        return f"--{key.replace('_', '-')}"
    return f"--{key.replace('_', '-')} {shlex.quote(short(value))}"


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


def _versions() -> dict[str, str]:
    from kdistill import __version__

    modules = {name: sys.modules.get(name) for name in LIBRARIES}
    loaded = {name: str(module.__version__) for name, module in modules.items() if module is not None}
    return {"kdistill": __version__, "python": platform.python_version(), **loaded}


@dataclass(frozen=True)
class Artifact:
    """One thing of the workspace: a directory with a `manifest.json`, or a file that carries its own.

    `command` makes it; with `complete` there is no option to add, as where its name says them all.
    """

    kind: str
    name: str
    path: Path
    command: str
    complete: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    @property
    def partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def command_for(self, manifest: Manifest) -> str:
        """The command that makes what a manifest describes, with every option that is not a default."""
        if self.complete:
            return self.command
        if "student" in manifest.inputs:  # its biases were corrected
            return self._correction(manifest)
        options: dict[str, Any] = {}
        for role, made in manifest.inputs.items():
            if (option := role.split()[0]) in NAMED_BY_OPTION and (self.kind != "plots" or option == "soft_targets"):
                options.setdefault(option, []).append(made.name)
        from_workspace = self.kind == "soft targets" and NAME.fullmatch(options.get("teacher", ["/"])[0])
        if from_workspace or "soft_targets" in options:  # these are recorded upstream
            options.pop("dataset", None)
        if "soft_targets" in options:
            options.pop("transfer_set", None)
        options |= manifest.settings
        defaults = DEFAULTS[self.kind]
        given = {key: value for key, value in options.items() if value is not None and value != defaults.get(key)}
        return " ".join([self.command, *(_option(key, value) for key, value in given.items())])

    def _correction(self, manifest: Manifest) -> str:
        """The command that makes a corrected student."""
        made_from, pool = manifest.inputs["student"].name, manifest.inputs.get("inputs")
        settings = CorrectBias(
            student=made_from,
            name=self.name,
            frequencies=manifest.settings.get("frequencies", CorrectBias.frequencies),
            inputs=pool.name if pool else None,
        )
        return Workspace(self.path.parent.parent).corrected(settings).command

    def manifest(self) -> Manifest | None:
        """The manifest of a directory, None where nothing stands.

        Raises:
            KdistillError: if what stands there is no artifact of kdistill's.
        """
        try:
            text = self.manifest_path.read_bytes()
        except FileNotFoundError:
            if self.path.exists() and self.kind not in LOOSE:
                raise KdistillError(f"{self.path} has no manifest.json: remove it, then {self.command}") from None
            return None
        except NotADirectoryError:
            raise KdistillError(f"{self.path} is a file where a directory is meant: remove it") from None
        return Manifest.from_json(text, str(self.manifest_path), f"{self.command} --force")

    def require(self) -> Manifest:
        """The manifest of a directory that must be there and whole.

        Raises:
            KdistillError: naming the command that makes it.
        """
        manifest = self.manifest()
        if manifest is None:
            raise KdistillError(f"there is no {self} in {self.path.parent.parent}: {self.command}")
        if broken := self.broken(manifest):
            raise KdistillError(f"{self}: {broken}: {self.command_for(manifest)} --force")
        return manifest

    def broken(self, manifest: Manifest) -> str | None:
        """Which output is not what the manifest says, in words; None if all are."""
        for name, recorded in manifest.outputs.items():
            path = self.path / name
            if not path.exists():
                return f"{name} is missing"
            if digest(path) != recorded:
                return f"{name} is not what was written"
        return None

    def out_of_date(self, wanted: Manifest) -> str | None:
        """Why a directory must be made (again), in words; None if it is up to date."""
        try:
            standing = self.manifest()
        except KdistillError as error:
            if not self.manifest_path.exists():
                raise
            return str(error)
        if standing is None:
            return "not there yet"
        return "; ".join(standing.differences(wanted)) or self.broken(standing)

    def sweep(self) -> None:
        """Remove what a run left that was killed between putting the new in its place and tidying up."""
        if self._left_behind():
            with contextlib.suppress(KdistillError), self.writing():  # a live writer sweeps for itself
                pass

    def _left_behind(self) -> bool:
        """Whether beside the artifact is what stood here before, or the log of the file that stands here now.

        A log that is newer than the file is half-finished work, to be gone on with.
        """
        if (self.partial / "manifest.json").exists():
            return True
        try:
            logged = [item.stat().st_mtime_ns for item in self.partial.iterdir()]
            return self.path.is_file() and max(logged, default=0) <= self.path.stat().st_mtime_ns
        except OSError:  # there is nothing, or a live writer sweeps just now
            return False

    @contextlib.contextmanager
    def writing(self, keep: str = "") -> Iterator[Staging]:
        """The right to write this artifact, and the place to do it in; nothing changes before the staging commits.

        Args:
            keep: the name of the file by which the same command takes up half-finished work; it outlives an
                interruption or an error, and what else a dead run left is removed.

        Raises:
            KdistillError: if another process is writing it.
        """
        made = _make_directories(self.path.parent)
        try:
            with _lock(self.path.with_name(f".{self.path.name}.lock"), self):
                _remove_all_but(self.partial, keep)
                self.partial.mkdir(exist_ok=True)
                try:
                    yield Staging(self, self.partial)
                except BaseException as error:
                    _remove_all_but(self.partial, keep)
                    if isinstance(error, OSError) and error.errno in FULL and not error.filename:
                        error.filename = str(self.path)
                    raise
                else:
                    _remove_all_but(self.partial, "")
        finally:
            for directory in made:  # what this run made and left empty
                with contextlib.suppress(OSError):
                    directory.rmdir()


def _remove_all_but(directory: Path, keep: str) -> None:
    """Remove a directory, or, if one file in it is to be kept and is there, what else is in it."""
    if not directory.exists():  # nothing was left, or it has taken the artifact's place
        return
    for item in directory.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != keep:
            item.unlink()
    with contextlib.suppress(OSError):  # not empty: the file is kept
        directory.rmdir()


def _make_directories(path: Path) -> list[Path]:
    """Makes a directory and its parents; returns those it made, the innermost first."""
    made = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return made


@contextlib.contextmanager
def _lock(path: Path, artifact: Artifact) -> Iterator[None]:
    """A lock that dies with its process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(path, descriptor):
                break
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise KdistillError(f"{artifact} is being written by {holder}: wait for it, or stop it") from None
        os.close(descriptor)  # its last holder removed the file between our open and our lock
    try:
        started = dt.datetime.now().astimezone().strftime("%H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} since {started}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds a lock, which its holder writes there just after taking it."""
    for _ in range(50):
        if holder := os.pread(descriptor, 200, 0):
            return holder.decode(errors="replace")
        time.sleep(0.01)
    return "another process"


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Staging:
    """Where an artifact is made."""

    artifact: Artifact
    path: Path

    def commit(self, manifest: Manifest, *, results: Mapping[str, Any], seconds: float) -> Manifest:
        """Put the directory made here in the artifact's place, with its manifest.

        Returns:
            The manifest as written.
        """
        outputs = {item.name: digest(item) for item in sorted(self.path.iterdir())}
        manifest = recorded(manifest, outputs=outputs, results=results, seconds=seconds)
        (self.path / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
        flush(self.path)
        exchange(self.path, self.artifact.path)
        return manifest

    def commit_file(self, file: Path) -> None:
        """Put one file made here, which carries its own manifest, in the artifact's place."""
        flush(file)
        os.replace(file, self.artifact.path)
        flush(self.artifact.path.parent, inside=False)

    def commit_loose(self, manifest: Manifest, *, results: Mapping[str, Any], seconds: float) -> Manifest:
        """Put the files made here into the artifact's directory, each in one rename, leaving what else is there."""
        outputs = {item.name: digest(item) for item in sorted(self.path.iterdir())}
        manifest = recorded(manifest, outputs=outputs, results=results, seconds=seconds)
        (self.path / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
        flush(self.path)
        self.artifact.path.mkdir(exist_ok=True)
        for name in [*outputs, "manifest.json"]:
            os.replace(self.path / name, self.artifact.path / name)
        flush(self.artifact.path, inside=False)
        return manifest


def recorded(manifest: Manifest, *, outputs: Mapping[str, str], results: Mapping[str, Any], seconds: float) -> Manifest:
    """The manifest to be written beside what was made: its identity, and what came of it."""
    return Manifest(
        kind=manifest.kind,
        settings=manifest.settings,
        inputs=manifest.inputs,
        outputs=outputs,
        results=results,
        versions=_versions(),
        created=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
    )


def flush(path: Path, *, inside: bool = True) -> None:
    """Force a file, or a directory and (unless told otherwise) all inside it, onto the disk."""
    if inside and path.is_dir():
        for item in path.iterdir():
            flush(item)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(new: Path, place: Path) -> None:
    """Put `new` where `place` is, in one step; what stood there ends up at `new`, or nowhere if nothing did."""
    if not place.exists():
        os.rename(new, place)
    elif not _swap(new, place):  # a file system that cannot exchange two names: the old one is aside for an instant
        aside = place.with_name(f".{place.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(place, aside)
        os.rename(new, place)
        os.rename(aside, new)
    flush(place.parent, inside=False)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names atomically: renameat2(2) on Linux, renamex_np(2) on macOS."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    swap = 2
    if hasattr(library, "renameat2"):
        here = -100  # AT_FDCWD
        return bool(library.renameat2(here, names[0], here, names[1], swap) == 0)
    if hasattr(library, "renamex_np"):
        return bool(library.renamex_np(*names, swap) == 0)
    return False


@dataclass(frozen=True, init=False)
class Workspace:
    """The directory that the stages share; it need not be there yet.

    Raises:
        KdistillError: if the path is a file.
    """

    root: Path

    def __init__(self, root: str | os.PathLike[str] = "workspace") -> None:
        object.__setattr__(self, "root", Path(root))
        if self.root.exists() and not self.root.is_dir():
            raise KdistillError(f"--workspace {self.root} is a file: it needs a directory, or the name of a new one")

    def teacher(self, name: str) -> Artifact:
        return Artifact("teacher", name, self.root / "teachers" / name, self._command("train-teacher", name, "teacher"))

    def student(self, name: str) -> Artifact:
        return Artifact("student", name, self.root / "students" / name, self._command("train-student", name, "student"))

    def corrected(self, settings: CorrectBias) -> Artifact:
        """A student whose biases are corrected, which stands among the others."""
        options = {"student": settings.student, "frequencies": settings.frequencies, "inputs": settings.inputs}
        given = [_option(key, value) for key, value in options.items() if value != getattr(CorrectBias, key)]
        default = CorrectBias(student=settings.student).corrected
        command = " ".join([self._command("correct-bias", settings.corrected, default), *given])
        return replace(self.student(settings.corrected), command=command)

    def soft_targets(self, name: str) -> Artifact:
        command = self._command("soften", name, "soft-targets")
        return Artifact("soft targets", name, self.root / "soft-targets" / f"{name}.h5", command)

    def export(self, settings: Export) -> Artifact:
        options = {"network": settings.network, "format": settings.format, "quantize": settings.quantize}
        given = [_option(key, value) for key, value in options.items() if value != getattr(Export, key)]
        command = " ".join([self.command("export"), *given])
        return Artifact("export", settings.name, self.root / "exports" / settings.name, command, complete=True)

    def sweep(self, name: str) -> Artifact:
        return Artifact("sweep", name, self.root / "sweeps" / name, self._command("sweep", name, Sweep.name))

    def sweep_student(self, sweep: str, name: str) -> Artifact:
        whole = self.sweep(sweep)
        return Artifact("student", name, whole.path / "students" / name, whole.command, complete=True)

    @cached_property
    def plots(self) -> Artifact:
        return Artifact("plots", "plots", self.root / "plots", self._command("plot", "plots", "plots"))

    def events(self, network: Artifact) -> Path:
        """Where TensorBoard's event files of a network go; they are no part of it."""
        return self.root / "tensorboard" / network.path.relative_to(self.root)

    def command(self, command: str) -> str:
        """A command on this workspace."""
        return self._command(command, "", "")

    def _command(self, command: str, name: str, default: str) -> str:
        place = "" if self.root == Path("workspace") else f" --workspace {shlex.quote(str(self.root))}"
        return f"kdistill {command}{place}" + ("" if name == default else f" --name {name}")

    def teachers(self) -> list[Artifact]:
        return [self.teacher(name) for name in self._names("teachers")]

    def students(self) -> list[Artifact]:
        return [self.student(name) for name in self._names("students")]

    def soft_target_files(self) -> list[Artifact]:
        return [self.soft_targets(name.removesuffix(".h5")) for name in self._names("soft-targets", ".h5")]

    def exports(self) -> list[Artifact]:
        return [self.export(settings) for name in self._names("exports") if (settings := Export.named(name))]

    def sweeps(self) -> list[Artifact]:
        """Those that have come to their end."""
        found = [self.sweep(name) for name in self._names("sweeps")]
        return [sweep for sweep in found if sweep.manifest_path.exists()]

    def sweep_students(self, sweep: str) -> list[Artifact]:
        return [self.sweep_student(sweep, name) for name in self._names(f"sweeps/{sweep}/students")]

    def _names(self, directory: str, suffix: str = "") -> list[str]:
        place = self.root / directory
        if not place.is_dir():
            return []
        return sorted(
            item.name
            for item in place.iterdir()
            if item.name[0] != "." and (item.name.endswith(suffix) if suffix else item.is_dir())
        )
