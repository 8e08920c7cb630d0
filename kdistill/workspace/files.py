"""Files: digests, flushing, and putting a file or directory in another's place in one step."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
from pathlib import Path

from kdistill.errors import KdistillError


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or of a directory's names and bytes.

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


def short_digest(digest: str) -> str:
    """Return the first eight hexadecimal digits of a digest, as shown to people."""
    return digest.removeprefix("sha256:")[:8]


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def flush(path: Path, *, inside: bool = True) -> None:
    """Force a file, or a directory and all files inside it, onto the disk."""
    if inside and path.is_dir():
        for item in path.iterdir():
            flush(item)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(new: Path, place: Path) -> None:
    """Put `new` in the place of `place` in one step. What was at `place` ends up at `new`.

    Raises:
        KdistillError: if a file that kdistill did not make is in the way.
    """
    if not os.path.lexists(place):
        os.rename(new, place)
    elif not _swap(new, place):  # the file system cannot swap two names: move the old one aside for an instant
        aside = place.with_name(f".{place.name}.old")
        if is_directory(aside) and (aside / "manifest.json").exists():
            shutil.rmtree(aside)
        elif os.path.lexists(aside):
            raise KdistillError(
                f"{aside} is in the way, and kdistill did not write it: remove it, rm -r {shlex.quote(str(aside))}"
            )
        os.rename(place, aside)
        os.rename(new, place)
        os.rename(aside, new)
    flush(place.parent, inside=False)


def _swap(one: Path, other: Path) -> bool:
    """Swap two names atomically: renameat2(2) on Linux, renamex_np(2) on macOS. Return whether it was possible."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    exchange_flag = 2
    if hasattr(library, "renameat2"):
        current_directory = -100  # AT_FDCWD
        return bool(library.renameat2(current_directory, names[0], current_directory, names[1], exchange_flag) == 0)
    if hasattr(library, "renamex_np"):
        return bool(library.renamex_np(*names, exchange_flag) == 0)
    return False


def is_directory(path: Path) -> bool:
    """Return whether a path is a directory, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def link_in(root: Path, path: Path) -> Path | None:
    """Return the first symbolic link on the way from a workspace to a path inside it, or None."""
    places = (*reversed(path.parents), path)
    return next(
        (place for place in places if place != root and place.is_relative_to(root) and place.is_symlink()), None
    )


def refuse_links(root: Path, path: Path) -> None:
    """Refuse a path inside a workspace that goes through a symbolic link. The workspace itself may be one.

    Raises:
        KdistillError: naming the link.
    """
    if link := link_in(root, path):
        raise KdistillError(
            f"{link} is a symbolic link, which kdistill does not follow inside a workspace: remove it, "
            f"rm {shlex.quote(str(link))}"
        )


def remove_contents(directory: Path, keep: str = "") -> None:
    """Remove a directory that is not a link. If a file of the name `keep` is in it, remove everything else.

    Links inside are removed and never followed.
    """
    if not is_directory(directory):
        return
    with os.scandir(directory) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item)
            elif item.name != keep or not item.is_file(follow_symlinks=False):
                os.unlink(item)
            elif item.stat(follow_symlinks=False).st_nlink > 1:  # writing to it would change the file of the other name
                copy = Path(item).with_name(f"{item.name}.copy")
                shutil.copyfile(item, copy)
                os.replace(copy, item)
    with contextlib.suppress(OSError):  # not empty: the file is kept
        directory.rmdir()


def make_directories(path: Path) -> list[Path]:
    """Make a directory and its parents, and return those that were made, the innermost first."""
    made = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return made
