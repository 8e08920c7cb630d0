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
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdistill.errors import KdistillError
from kdistill.settings import NAME, CorrectBias, Export, Sweep
from kdistill.workspace import commands, schema

FORMAT = 1
LIBRARIES = ("tensorflow", "keras", "numpy", "h5py", "ai_edge_litert", "tf2onnx", "onnxruntime")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # NumPy and HDF5 don't say which file was too large
HELD_BY = "process "  # how what a lock file says begins
LOOSE = ("plots", "sweep")  # directories in which other things stand too


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
    threads: int = 0  # that TensorFlow computed with; 0 in manifests written before this was recorded
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(
        cls, text: str | bytes, where: str, remedy: str, *, kind: str | None = None, finished: bool = True
    ) -> Manifest:
        """Read what `to_json` wrote, and check all that later code reads of it.

        Args:
            text: the manifest.
            where: the file, for messages.
            remedy: the command that makes it again, for messages.
            kind: of the artifact; any if not given.
            finished: whether the artifact is finished, or is being made.

        Raises:
            KdistillError: if it is not a manifest of this kind, or of a newer format.
        """
        try:
            fields = json.loads(text)
            standing = fields["format"]
            if isinstance(standing, int) and standing > FORMAT:
                raise KdistillError(
                    f"{where} has format {standing}, and this kdistill reads up to {FORMAT}: upgrade kdistill"
                )
            wrong = next(schema.problems(fields, finished=finished), "")
            if not wrong and kind not in (None, fields["kind"]):
                wrong = f"kind {fields['kind']!r}"
            if wrong:
                raise ValueError(f"wrong or missing: {wrong}")
            return cls(**{**fields, "inputs": {role: Input(**made) for role, made in fields["inputs"].items()}})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = f" ({error})" if type(error) is ValueError else ""
            raise KdistillError(f"{where} is not a manifest that kdistill wrote{why}: {remedy}") from None

    @classmethod
    def recovered(cls, text: str | bytes, kind: str) -> Manifest:
        """What a damaged manifest still says of how its artifact was made: settings and inputs that can be read."""
        try:
            fields = json.loads(text)
            settings, inputs = (
                part if isinstance(part := fields.get(name), dict) else {} for name in ("settings", "inputs")
            )
        except (ValueError, AttributeError, RecursionError):
            settings, inputs = {}, {}
        return cls(
            kind=kind,
            settings={key: value for key, value in settings.items() if schema.sound_setting(kind, key, value)},
            inputs={role: Input(**made) for role, made in inputs.items() if schema.sound_input(role, made)},
        )

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

    `command` makes it, with its name as the only option, or with all options where the name says them. `whole` is the
    artifact that it is a part of.
    """

    kind: str
    name: str
    root: Path
    place: str
    command: str
    whole: Artifact | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    @property
    def path(self) -> Path:
        return self.root / self.place

    @property
    def partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def command_for(self, manifest: Manifest) -> str:
        """The command that makes what a manifest describes, with every option that is not a default."""
        return commands.rebuilt(self, manifest)

    @property
    def remedy(self) -> str:
        """The command that makes a damaged directory again as it was, as far as its manifest can be read."""
        return commands.remedy(self, self.recovered())

    def recovered(self) -> Manifest:
        """What the manifest of a directory says of how it was made, however damaged it is."""
        try:
            text = b"" if self.manifest_path.is_symlink() else self.manifest_path.read_bytes()
        except OSError:
            text = b""
        return Manifest.recovered(text, self.kind)

    def refuse_links(self) -> None:
        """Refuse an artifact that is a symbolic link or lies behind one.

        Raises:
            KdistillError: naming the link.
        """
        refuse_links(self.root, self.path)

    def manifest(self) -> Manifest | None:
        """The manifest of a directory, None where nothing stands.

        Raises:
            KdistillError: if what stands there is no artifact of kdistill's.
        """
        refuse_links(self.root, self.manifest_path)
        try:
            text = self.manifest_path.read_bytes()
        except FileNotFoundError:
            if self.path.exists() and self.kind not in LOOSE:
                raise KdistillError(f"{self.path} has no manifest.json: remove it, then {self.command}") from None
            return None
        except NotADirectoryError:
            raise KdistillError(f"{self.path} is a file where a directory is meant: remove it") from None
        return Manifest.from_json(text, str(self.manifest_path), self.remedy, kind=self.kind)

    def require(self, *outputs: str) -> Manifest:
        """The manifest of a directory that must be there and whole.

        Args:
            *outputs: the outputs to check; all of them by default.

        Raises:
            KdistillError: naming the command that makes it.
        """
        manifest = self.manifest()
        if manifest is None:
            raise KdistillError(f"there is no {self} in {self.root}: {self.command}")
        if broken := self.broken(manifest, *outputs):
            raise KdistillError(f"{self}: {broken}: {commands.remedy(self, manifest)}")
        return manifest

    def broken(self, manifest: Manifest, *outputs: str) -> str | None:
        """Which output is not what the manifest says, in words; None if all of them, or all that are named, are."""
        for name, recorded in manifest.outputs.items():
            if outputs and name not in outputs:
                continue
            path = self.path / name
            if not path.exists():
                return f"{name} is missing"
            if digest(path) != recorded:
                return f"{name} is not what was written"
        return None

    def out_of_date(self, wanted: Manifest) -> str | None:
        """Why a directory must be made (again), in words; None if it is up to date.

        Raises:
            KdistillError: if something stands in its place that kdistill did not make.
        """
        self.refuse_links()
        try:
            standing = self.manifest()
        except KdistillError as error:
            if not self.manifest_path.exists():
                raise
            return str(error)
        if standing is None:
            return "not there yet"
        return "; ".join(standing.differences(wanted)) or self.broken(standing)

    def writer(self) -> str | None:
        """Who is writing this artifact now, None if nobody is."""
        try:
            descriptor = os.open(self._lock_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(descriptor)
        else:
            return None
        finally:
            os.close(descriptor)

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    @contextlib.contextmanager
    def writing(self, keep: str = "") -> Iterator[Staging]:
        """The right to write this artifact, and the place to do it in; nothing changes before the staging commits.

        Args:
            keep: the name of the file by which the same command takes up half-finished work; it outlives an
                interruption or an error, and what else a dead run left is removed.

        Raises:
            KdistillError: if another process is writing it, or kdistill did not make what is in its place or beside it.
        """
        self.refuse_links()
        made = _make_directories(self.path.parent)
        try:
            with _lock(self._lock_path, self):
                if os.path.lexists(self.partial) and not _is_directory(self.partial):
                    raise KdistillError(
                        f"{self.partial} is not a directory that kdistill made: rm {shlex.quote(str(self.partial))}"
                    )
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


def refuse_links(root: Path, path: Path) -> None:
    """Refuse a path inside a workspace that leads out of it through a symbolic link; the root itself may be one.

    Raises:
        KdistillError: naming the link.
    """
    if link := link_in(root, path):
        raise KdistillError(
            f"{link} is a symbolic link, and kdistill follows none inside a workspace: rm {shlex.quote(str(link))}"
        )


def link_in(root: Path, path: Path) -> Path | None:
    """The first symbolic link on the way from a workspace to a path inside it."""
    places = (*reversed(path.parents), path)
    return next((one for one in places if one != root and one.is_relative_to(root) and one.is_symlink()), None)


def _is_directory(path: Path) -> bool:
    """Whether a path is a directory itself, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _remove_all_but(directory: Path, keep: str) -> None:
    """Remove a directory, or, if one file in it is to be kept and is there, what else is in it.

    Links in it are removed, and never followed.
    """
    if not _is_directory(directory):  # nothing was left, or it has taken the artifact's place
        return
    with os.scandir(directory) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item)
            elif item.name != keep or not item.is_file(follow_symlinks=False):
                os.unlink(item)
            elif item.stat(follow_symlinks=False).st_nlink > 1:  # it would be written to under its other name too
                _unshare(Path(item))
    with contextlib.suppress(OSError):  # not empty: the file is kept
        directory.rmdir()


def _unshare(file: Path) -> None:
    """Put a copy in the place of a file that has another name elsewhere."""
    copy = file.with_name(f"{file.name}.copy")
    shutil.copyfile(file, copy)
    os.replace(copy, file)


def _make_directories(path: Path) -> list[Path]:
    """Makes a directory and its parents; returns those it made, the innermost first."""
    made = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return made


@contextlib.contextmanager
def _lock(path: Path, artifact: Artifact) -> Iterator[None]:
    """A lock that dies with its process."""
    tries = 3  # who only asks for the writer holds the lock for an instant too
    while True:
        descriptor = _open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(path, descriptor):
                break
        except BlockingIOError:
            if tries := tries - 1:
                os.close(descriptor)
                time.sleep(0.01)
                continue
            holder = _holder(descriptor)
            os.close(descriptor)
            raise KdistillError(f"{artifact} is being written by {holder}: wait for it, or stop it") from None
        os.close(descriptor)  # its last holder removed the file between our open and our lock
    try:
        started = dt.datetime.now().astimezone().strftime("%H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{HELD_BY}{os.getpid()} since {started}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open a lock file, made if it is not there.

    Raises:
        KdistillError: if kdistill did not make what is there: writing to it could destroy something else.
    """
    refused = KdistillError(f"{path} is not a lock that kdistill made: rm {shlex.quote(str(path))}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise refused from None
        raise
    status = os.fstat(descriptor)
    ours = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
    if not ours or not HELD_BY.encode().startswith(os.pread(descriptor, len(HELD_BY), 0)):
        os.close(descriptor)
        raise refused
    return descriptor


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
        threads=threads(),
    )


def threads() -> int:
    """How many threads TensorFlow computes an operation with: `TF_NUM_INTRAOP_THREADS`, or one per available core.

    Sums over several threads are rounded differently, so that the bits of a result can depend on it.
    """
    if (number := os.environ.get("TF_NUM_INTRAOP_THREADS", "")).isdecimal() and int(number):
        return int(number)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    if not os.path.lexists(place):
        os.rename(new, place)
    elif not _swap(new, place):  # a file system that cannot exchange two names: the old one is aside for an instant
        aside = place.with_name(f".{place.name}.old")
        if _is_directory(aside) and (aside / "manifest.json").exists():
            shutil.rmtree(aside)
        elif os.path.lexists(aside):
            raise KdistillError(f"{aside} is in the way, and kdistill did not make it: rm -r {shlex.quote(str(aside))}")
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
        return Artifact("teacher", name, self.root, f"teachers/{name}", self._command("train-teacher", name, "teacher"))

    def student(self, name: str) -> Artifact:
        """A student, or, of a name `SWEEP/STUDENT`, a student of a sweep."""
        if "/" in name:
            return replace(self.sweep_student(*name.split("/", 1)), name=name)
        return Artifact("student", name, self.root, f"students/{name}", self._command("train-student", name, "student"))

    def corrected(self, settings: CorrectBias) -> Artifact:
        """A student whose biases are corrected, which stands among the others."""
        command = commands.correct_bias(
            self.root, settings.corrected, settings.student, settings.frequencies, settings.inputs
        )
        return replace(self.student(settings.corrected), command=command)

    def soft_targets(self, name: str) -> Artifact:
        command = self._command("soften", name, "soft-targets")
        return Artifact("soft targets", name, self.root, f"soft-targets/{name}.h5", command)

    def export(self, settings: Export) -> Artifact:
        command = commands.export(self.root, settings)
        return Artifact("export", settings.name, self.root, f"exports/{settings.name}", command)

    def sweep(self, name: str) -> Artifact:
        return Artifact("sweep", name, self.root, f"sweeps/{name}", self._command("sweep", name, Sweep.name))

    def sweep_student(self, sweep: str, name: str) -> Artifact:
        whole = self.sweep(sweep)
        return Artifact("student", name, self.root, f"{whole.place}/students/{name}", whole.command, whole)

    @cached_property
    def plots(self) -> Artifact:
        return Artifact("plots", "plots", self.root, "plots", self._command("plot", "plots", "plots"))

    @property
    def cache(self) -> Path:
        """Where decoded rows are kept; see `row_cache`."""
        return self.root / "cache"

    def events(self, network: Artifact) -> Path:
        """Where TensorBoard's event files of a network go; they are no part of it.

        Raises:
            KdistillError: if the place leads out of the workspace through a symbolic link.
        """
        directory = self.root / "tensorboard" / network.place
        refuse_links(self.root, directory)
        return directory

    def command(self, command: str) -> str:
        """A command on this workspace."""
        return commands.command(self.root, command)

    def _command(self, command: str, name: str, default: str) -> str:
        return commands.command(self.root, command, called=name, default=default)

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
        return [sweep for sweep in found if sweep.manifest_path.exists() or sweep.path.is_symlink()]

    def sweep_students(self, sweep: str) -> list[Artifact]:
        return [self.sweep_student(sweep, name) for name in self._names(f"sweeps/{sweep}/students")]

    def begun(self) -> list[Artifact]:
        """Networks, soft targets and sweeps that a run has begun to make and not put in their place yet."""
        found = [self.teacher(name) for name in self._begun("teachers")]
        found += [self.soft_targets(name.removesuffix(".h5")) for name in self._begun("soft-targets")]
        found += [self.student(name) for name in self._begun("students")]
        sweeps = self._begun("sweeps")
        found += [self.sweep(name) for name in sweeps]
        for sweep in self._names("sweeps"):
            if sweep not in sweeps:  # else it is the sweep that is resumed
                found += [self.sweep_student(sweep, name) for name in self._begun(f"sweeps/{sweep}/students")]
        return found

    def _begun(self, directory: str) -> list[str]:
        names = sorted(item.name for item in (self.root / directory).glob(".*.partial"))
        return [name for item in names if NAME.fullmatch(name := item.removeprefix(".").removesuffix(".partial"))]

    def _names(self, directory: str, suffix: str = "") -> list[str]:
        place = self.root / directory
        if not place.is_dir():
            return []
        return sorted(
            item.name
            for item in place.iterdir()  # links too, wherever they lead: an artifact that is one is refused by name
            if item.name[0] != "." and (item.name.endswith(suffix) if suffix else item.is_dir() or item.is_symlink())
        )
