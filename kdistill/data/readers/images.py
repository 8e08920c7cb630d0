"""Folders of images, which are decoded on demand or read from the cache of decoded rows."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data import row_cache
from kdistill.data.reader import Contents, Part, Reader, RowSpec
from kdistill.data.readers.image_decoding import decode, decoder_versions, read_header
from kdistill.data.readers.image_folders import list_parts
from kdistill.data.rows import BLOCK_ROWS, ArrayRows, Rows, Subset
from kdistill.errors import KdistillError
from kdistill.settings import MAX_PIXELS, parse_image_size

T = TypeVar("T")

RECENT_SECONDS = 2.0  # within this time, a file can change again without a change of its times
FILES_PER_TASK = 16  # reading a small file takes less time than handing it to a thread
LISTED_FILES = 5  # ignored files that a warning names


@dataclass(frozen=True)
class Images(Reader):
    """A folder of images.

    Args:
        row_shape: the shape of a dataset's rows, for the transfer set of a dataset.
    """

    row_shape: tuple[int, ...] | None = None
    format = "a folder of images"
    takes = ("image-size", "max-pixels", "test-fraction")
    limits = ("max-pixels",)

    def matching(self, spec: RowSpec) -> Images:
        is_image = len(spec.shape) == 2 or (len(spec.shape) == 3 and spec.shape[2] in (1, 3))
        return replace(self, row_shape=spec.shape) if is_image else self

    def digest(self) -> str:
        return self._digest([file for part in list_parts(self.path)[0] for file in part.files])

    def contents(self) -> Contents:
        image_parts, ignored = list_parts(self.path)
        rows = self._rows([file for part in image_parts for file in part.files])
        part_numbers = np.repeat(range(len(image_parts)), [len(part.files) for part in image_parts])
        train, *test = (
            Part(
                rows if len(image_parts) == 1 else Subset(rows, part_numbers == number),
                None if part.classes is None else np.array(part.classes),
                name=part.path.name,
                labels_name=f"class folders in {part.path.name}",
            )
            for number, part in enumerate(image_parts)
        )
        height, width, *channels = rows.shape[1:]
        colors = "RGB" if channels == [3] else "gray"
        return Contents(
            train,
            test[0] if test else None,
            categories=True,
            preprocessing={"images": {"height": height, "width": width, "colors": colors, "resized": "bilinear"}},
            warnings=self._warnings(ignored),
        )

    def _warnings(self, ignored: Sequence[Path]) -> tuple[str, ...]:
        if not ignored:
            return ()
        names = ", ".join(str(file.relative_to(self.path)) for file in ignored[:LISTED_FILES])
        more = f" and {len(ignored) - LISTED_FILES} more" if len(ignored) > LISTED_FILES else ""
        return (f"{self.place}: ignoring files that are not images: {names}{more}",)

    @property
    def _max_pixels(self) -> int:
        return self.options.max_pixels or MAX_PIXELS

    def _rows(self, files: Sequence[Path]) -> Rows:
        """Return the images as rows. With a cache, they are read from it, or decoded into it when they are first read."""
        if self.cache is None:
            return self._decoded(files)
        state, digest = self._state(files), self._digest(files)
        directory, key = self.cache / "rows", self._cache_key(digest)
        cached = row_cache.read(directory, key)
        if cached is not None:
            return ArrayRows(cached, self.place)
        rows = self._decoded(files)

        def unchanged_blocks() -> Iterator[NDArray[np.uint8]]:
            yield from rows.blocks(BLOCK_ROWS)
            if self._state(files) != state or self._digest(files) != digest:
                raise KdistillError(f"{self.place} changed while it was read: run the command again")

        return CachedRows(rows, lambda: row_cache.write(directory, key, rows.shape, unchanged_blocks()))

    def _decoded(self, files: Sequence[Path]) -> ImageRows:
        return ImageRows(files, self._shape(files), self._max_pixels)

    def _cache_key(self, digest: str) -> str:
        """Return a digest of everything that decoded rows depend on."""
        parts = (digest, *decoder_versions(), self.options.image_size, self.row_shape, self._max_pixels)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _shape(self, files: Sequence[Path]) -> tuple[int, ...]:
        """Return the shape of a row, from the options, the dataset, or else the headers of all images."""
        headers = list(_map_files(functools.partial(read_header, max_pixels=self._max_pixels), files))
        channels: tuple[int, ...] = () if all(gray for _, gray in headers) else (3,)
        if self.row_shape:
            channels = self.row_shape[2:]
        if self.options.image_size:
            return (*parse_image_size(self.options.image_size), *channels)
        if self.row_shape:
            return self.row_shape
        size = headers[0][0]
        for file, (other, _) in zip(files, headers, strict=True):
            if other != size:
                raise KdistillError(
                    f"{self.place} has images of different sizes ({files[0]} is {size[0]}x{size[1]}, {file} is "
                    f"{other[0]}x{other[1]}): resize them with --image-size HxW, e.g. --image-size {size[0]}x{size[1]}"
                )
        return (*size, *channels)

    def _digest(self, files: Sequence[Path]) -> str:
        """Return the digest of names and bytes. It is remembered until a file changes, as commands need it repeatedly."""
        start, state = time.time(), self._state(files)
        remembered = _DIGESTS.get(self.path)
        if remembered and remembered[0] == state:
            return remembered[1]
        result = hashlib.sha256()
        for file, digest in zip(files, _map_files(workspace.digest, files), strict=True):
            name = os.fsencode(str(file).removeprefix(self.place).lstrip("/"))
            result.update(b"%d:%s%s" % (len(name), name, digest.encode()))
        digest = f"sha256:{result.hexdigest()}"
        if state[1] < start - RECENT_SECONDS:
            _DIGESTS[self.path] = state, digest
        return digest

    def _state(self, files: Sequence[Path]) -> tuple[bytes, float]:
        """Return a hash of the files' names, inodes, sizes and times, and the time of the last change.

        Programs can set a file's modification time, but not its change time (`st_ctime`).
        """
        result, latest = hashlib.sha256(), 0.0
        for file in files:
            status = os.stat(file)
            times = status.st_mtime_ns, status.st_ctime_ns
            result.update(repr((str(file), status.st_dev, status.st_ino, status.st_size, *times)).encode())
            latest = max(latest, status.st_ctime)
        return result.digest(), latest


_DIGESTS: dict[Path, tuple[tuple[bytes, float], str]] = {}  # the state and the digest of each folder


class ImageRows(Rows):
    """Image files as rows of one shape, uint8, which are decoded each time they are read."""

    def __init__(self, files: Sequence[Path], row_shape: tuple[int, ...], max_pixels: int) -> None:
        self.files = files
        self._decode = functools.partial(decode, row_shape=row_shape, max_pixels=max_pixels)
        self.shape, self.dtype = (len(files), *row_shape), np.dtype(np.uint8)

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        return self._read(self.files[start:stop])

    def take(self, indices: NDArray[np.intp]) -> NDArray[Any]:
        return self._read([self.files[index] for index in indices])

    def _read(self, files: Sequence[Path]) -> NDArray[Any]:
        block = np.empty((len(files), *self.shape[1:]), self.dtype)
        for index, values in enumerate(_map_files(self._decode, files)):
            block[index] = values
        return block


class CachedRows(Rows):
    """Rows that are all decoded into a cache when the first of them is read.

    Args:
        rows: the rows, decoded each time they are read, in case they can't be cached.
        write_cache: decodes all rows into the cache and returns them, or None if they can't be cached.
    """

    def __init__(self, rows: ImageRows, write_cache: Callable[[], NDArray[np.uint8] | None]) -> None:
        self._rows, self._write_cache = rows, write_cache
        self.shape, self.dtype = rows.shape, rows.dtype

    @functools.cached_property
    def _cached(self) -> Rows:
        cached = self._write_cache()
        return self._rows if cached is None else ArrayRows(cached, "the cache")

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        return self._cached.read_range(start, stop)

    def take(self, indices: NDArray[np.intp]) -> NDArray[Any]:
        return self._cached.take(indices)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Return the threads that read images. Pillow decodes without holding the global interpreter lock."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def _map_files(function: Callable[[Path], T], files: Sequence[Path]) -> Iterator[T]:
    """Yield the function's result for each file, in order, computed in threads."""
    chunks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    for results in _pool().map(lambda chunk: [function(file) for file in chunk], chunks):
        yield from results
