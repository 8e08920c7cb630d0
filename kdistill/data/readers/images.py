"""Folders of images, laid out as `keras.utils.image_dataset_from_directory` has them: a folder a class.

Above them there may be `train` and `test` (or `validation`, or `val`). Without class folders, images are unlabelled.
They are decoded as they are asked for, by Pillow, which Matplotlib brings and needs itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdistill.data import row_cache
from kdistill.data.readers import BLOCK_ROWS, Array, Contents, Part, Reader, Rows, Subset, Task
from kdistill.errors import KdistillError, first_line
from kdistill.settings import MAX_PIXELS, parse_image_size

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # of all that Pillow knows, some are programs
LITTER = {"thumbs.db", "desktop.ini"}
TEST_FOLDERS = ("test", "validation", "val")
GREY, DEEP_GREY = {"1", "L", "LA", "La"}, {"I", "I;16", "I;16L", "I;16B", "I;16N"}
DECODING = 1  # to be raised whenever the same files are decoded to other values
CODECS = ("jpg", "webp")  # libraries that may decode the same file to other values in another version
RECENT = 2.0  # seconds in which a file may change again and keep its times
ORIENTATION, SIDEWAYS = 0x0112, {5, 6, 7, 8}  # the tag of EXIF, and those of its values that swap height and width

CHUNK = 16  # files a task: one small file takes less time than handing it to a thread
NAMED = 5  # ignored files that a warning names
STORED_SIZE = 0x0100, 0x0101  # TIFF's tags: some versions of Pillow turn its `size`, others leave it as stored
TILE_SIZE = 0x0142, 0x0143  # TIFF's tags: a tile is decoded whole, though it may be larger than the image


@dataclass(frozen=True)
class Folder:
    """The images of one part, in the order that rows have, and the class of each, by name; None where there are none."""

    place: Path
    files: Sequence[Path]
    classes: Sequence[str] | None


@dataclass(frozen=True)
class Images(Reader):
    """A folder of images. `row` is the shape of a row, where something else has settled it."""

    row: tuple[int, ...] | None = None
    format = "a folder of images"
    takes = ("image-size", "max-pixels", "test-fraction")
    limits = ("max-pixels",)

    def suited(self, task: Task) -> Images:
        is_image = len(task.shape) == 2 or (len(task.shape) == 3 and task.shape[2] in (1, 3))
        return replace(self, row=task.shape) if is_image else self

    def digest(self) -> str:
        return self._digest([file for part in self._parts()[0] for file in part.files])

    def _digest(self, files: Sequence[Path]) -> str:
        """The digest of names and bytes, which is remembered while the files have the same times and sizes."""
        start, stamp = time.time(), _stamp(files)
        if stamp and _DIGESTS.get(self.path, (None,))[0] == stamp:
            return _DIGESTS[self.path][1]
        digest = self._combined(files, _each(_file_digest, files))
        if stamp and stamp[1] < start - RECENT:
            _DIGESTS[self.path] = stamp, digest
        return digest

    def _combined(self, files: Sequence[Path], digests: Iterable[str]) -> str:
        whole = hashlib.sha256()
        for file, digest in zip(files, digests, strict=True):
            name = os.fsencode(str(file).removeprefix(self.place).lstrip("/"))
            whole.update(b"%d:%s%s" % (len(name), name, digest.encode()))
        return f"sha256:{whole.hexdigest()}"

    def contents(self) -> Contents:
        parts, ignored = self._parts()
        rows = self._rows([file for part in parts for file in part.files])
        row, of_part = rows.shape[1:], np.repeat(range(len(parts)), [len(part.files) for part in parts])
        train, *test = (
            Part(
                rows if len(parts) == 1 else Subset(rows, of_part == number),
                None if part.classes is None else np.array(part.classes),
                name=part.place.name,
                labels_name=f"class folders in {part.place.name}",
            )
            for number, part in enumerate(parts)
        )
        preprocessing = {
            "height": row[0],
            "width": row[1],
            "colours": "RGB" if row[2:] == (3,) else "grey",
            "resized": "bilinear",
        }
        return Contents(
            train,
            test[0] if test else None,
            categories=True,
            preprocessing={"images": preprocessing},
            warnings=self._warnings(ignored),
        )

    def _parts(self) -> tuple[list[Folder], list[Path]]:
        """Training images, and test images if they are apart; and the files beside their folders, which are ignored."""
        folders, files = _listed(self.path)
        names = {folder.name for folder in folders}
        if "train" not in names or not names <= {"train", *TEST_FOLDERS}:
            part, ignored = _folder(self.path)
            return [part], ignored
        _check_beside(folders, files)
        test = [name for name in TEST_FOLDERS if name in names][:1]
        parts, inside = zip(*(_folder(self.path / name) for name in ("train", *test)), strict=True)
        return list(parts), [*files, *(file for ignored in inside for file in ignored)]

    def _warnings(self, ignored: Sequence[Path]) -> tuple[str, ...]:
        if not ignored:
            return ()
        names = ", ".join(str(file.relative_to(self.path)) for file in ignored[:NAMED])
        more = f" and {len(ignored) - NAMED} more" if len(ignored) > NAMED else ""
        return (f"{self.place}: ignoring files that are not images: {names}{more}",)

    @property
    def _max_pixels(self) -> int:
        return self.options.max_pixels or MAX_PIXELS

    def _rows(self, files: Sequence[Path]) -> Rows:
        """The images as rows, from the cache or on their way there if there is one."""
        if self.cache is None:
            return ImageRows(files, self._row(files), self._max_pixels)
        digest = self._digest(files)
        cache, key = self.cache / "rows", self._key(digest)
        kept = row_cache.read(cache, key)
        if kept is not None:
            return Array(kept, self.place)
        rows = ImageRows(files, self._row(files), self._max_pixels)
        return KeptRows(rows, lambda: row_cache.write(cache, key, rows.shape, self._unchanged(rows, digest)))

    def _key(self, digest: str) -> str:
        """A digest of all that decoded rows depend on: files and their order, options, and what decodes them."""
        from PIL import __version__, features

        codecs = [features.version(name) for name in CODECS]
        how = (DECODING, __version__, codecs, self.options.image_size, self.row, self._max_pixels)
        return hashlib.sha256(f"{digest} {how}".encode()).hexdigest()

    def _unchanged(self, rows: ImageRows, digest: str) -> Iterator[NDArray[np.uint8]]:
        """Decode all rows, block by block.

        Raises:
            KdistillError: at the end, if the files that were decoded are not those of the digest.
        """
        digests: list[str] = []
        for block, of_block in rows.digested_blocks():
            digests += of_block
            yield block
        if self._combined(rows.files, digests) != digest:
            raise KdistillError(f"{self.place} changed while it was read: run this again")

    def _row(self, files: Sequence[Path]) -> tuple[int, ...]:
        """The shape of a row, from the heads of all images as far as nothing else says it."""
        heads = list(_each(functools.partial(_head, max_pixels=self._max_pixels), files))
        size = heads[0][0]
        if self.options.image_size:
            size = parse_image_size(self.options.image_size)
        elif self.row:
            size = self.row[0], self.row[1]
        elif other := next((place for place, head in enumerate(heads) if head[0] != size), 0):
            sizes = [f"{file} is {'x'.join(map(str, head[0]))}" for file, head in zip(files, heads, strict=True)]
            raise KdistillError(
                f"{self.place} has images of different sizes ({sizes[0]}, {sizes[other]}): --image-size HxW brings "
                "them to one"
            )
        channels = self.row[2:] if self.row else () if all(grey for _, grey in heads) else (3,)
        return (*size, *channels)


class ImageRows(Rows):
    """Images as rows of one shape: (height, width), the same with a channel of grey, or (height, width, 3); uint8."""

    def __init__(self, files: Sequence[Path], row: tuple[int, ...], max_pixels: int) -> None:
        self.files, self._max_pixels = files, max_pixels
        self.shape, self.dtype = (len(files), *row), np.dtype(np.uint8)

    def part(self, start: int, stop: int) -> NDArray[Any]:
        return self._decoded(self.files[start:stop])

    def take(self, places: NDArray[np.intp]) -> NDArray[Any]:
        return self._decoded([self.files[place] for place in places])

    def _decoded(self, files: Sequence[Path]) -> NDArray[Any]:
        block = np.empty((len(files), *self.shape[1:]), self.dtype)
        pixels = functools.partial(_pixels, row=self.shape[1:], max_pixels=self._max_pixels)
        for place, values in enumerate(_each(pixels, files)):
            block[place] = values
        return block

    def digested_blocks(self) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
        """All rows in order, and the digest of the file of each."""
        decode = functools.partial(_digested_pixels, row=self.shape[1:], max_pixels=self._max_pixels)
        for start in range(0, len(self), BLOCK_ROWS):
            pixels, digests = zip(*_each(decode, self.files[start : start + BLOCK_ROWS]), strict=True)
            yield np.stack(pixels), list(digests)


class KeptRows(Rows):
    """Rows that are decoded all at once, when the first is asked for, and read from where they are kept after that.

    Args:
        rows: the rows as they are read where they can't be kept.
        keep: decodes and keeps them, and returns them; or None.
    """

    def __init__(self, rows: ImageRows, keep: Callable[[], NDArray[np.uint8] | None]) -> None:
        self._rows, self._keep = rows, keep
        self.shape, self.dtype = rows.shape, rows.dtype

    @functools.cached_property
    def _kept(self) -> Rows:
        kept = self._keep()
        return self._rows if kept is None else Array(kept, "the cache")

    def part(self, start: int, stop: int) -> NDArray[Any]:
        return self._kept.part(start, stop)

    def take(self, places: NDArray[np.intp]) -> NDArray[Any]:
        return self._kept.take(places)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads to read images in; Pillow works outside Python's lock."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def _each(function: Callable[[Path], T], files: Sequence[Path]) -> Iterator[T]:
    """What a function returns for each file, in order, computed in threads."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    for results in _pool().map(lambda chunk: [function(file) for file in chunk], chunks):
        yield from results


def _listed(place: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the other entries of a directory, sorted.

    Hidden ones are left out, and what file managers leave. Links are followed.

    Raises:
        KdistillError: if something is named like an image and is not a regular file, as reading it may never end.
    """
    folders: list[Path] = []
    files: list[Path] = []
    with os.scandir(place) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name[0] == "." or entry.name.lower() in LITTER:
                continue
            path = place / entry.name
            with _refused_by_name(path):
                if entry.is_dir():
                    folders.append(path)
                    continue
                if not entry.is_file() and _is_image(path):
                    broken = entry.is_symlink() and not path.exists()
                    raise ValueError("broken link" if broken else "not a regular file")
            files.append(path)
    return folders, files


def _is_image(path: Path) -> bool:
    """Whether a file is named like an image."""
    return path.suffix.lower() in ENDINGS


def _check_beside(folders: Sequence[Path], files: Sequence[Path]) -> None:
    """Refuse images beside folders, as they would be in no class."""
    if images := [file for file in files if _is_image(file)]:
        more = f" (and {len(images) - 1} more)" if len(images) > 1 else ""
        raise KdistillError(
            f"{images[0]}{more} is an image beside folders ({folders[0].name}, ...): move it into the folder of its "
            "class, or elsewhere"
        )


def _folder(place: Path) -> tuple[Folder, list[Path]]:
    """The images of a part, and the files beside its class folders."""
    folders, files = _listed(place)
    if folders:
        _check_beside(folders, files)
    if not folders and not files:
        raise KdistillError(f"{place} is a directory with nothing in it: it needs a folder of images for each class")
    found = [(file, folder.name) for folder in folders for file in _images(folder)]
    order = np.random.default_rng(len(found) or len(files)).permutation(len(found) or len(files))  # classes mixed
    if not folders:
        _images(place)
        return Folder(place, [files[i] for i in order], None), []
    return Folder(place, [found[i][0] for i in order], [found[i][1] for i in order]), files


def _images(folder: Path) -> list[Path]:
    folders, files = _listed(folder)
    if folders:
        raise KdistillError(f"{folders[0]} is a directory where images are meant: a folder of images for each class")
    if not files:
        raise KdistillError(f"{folder} is the folder of a class, and empty: put its images there, or remove it")
    if strange := [file for file in files if not _is_image(file)]:
        raise KdistillError(
            f"{strange[0]} is no image (they end in {', '.join(sorted(ENDINGS))}): move it elsewhere"
            + f", and {len(strange) - 1} more" * (len(strange) > 1)
        )
    return files


@contextlib.contextmanager
def _refused_by_name(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file, one line that names it."""
    try:
        yield
    except (KdistillError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever their parsers do
        raise KdistillError(f"{path} can't be read as an image ({first_line(error)}): replace or remove it") from None


def _file_digest(path: Path) -> str:
    with _refused_by_name(path), path.open("rb", buffering=0) as stream:
        return _stream_digest(stream)


def _stream_digest(stream: IO[bytes]) -> str:
    whole = hashlib.sha256()
    while block := stream.read(1 << 20):
        whole.update(block)
    return f"sha256:{whole.hexdigest()}"


_DIGESTS: dict[Path, tuple[tuple[bytes, float], str]] = {}  # of folders: their `_stamp`, and the digest


def _stamp(files: Sequence[Path]) -> tuple[bytes, float] | None:
    """What changes whenever a file changes, and when one did last; None if a file is gone.

    It is a hash of names, inodes, sizes and times, that of the last change of an inode among them, which can't be set.
    """
    whole, latest = hashlib.sha256(), 0.0
    try:
        for file in files:
            found = os.stat(file)
            latest = max(latest, found.st_ctime)
            times = found.st_mtime_ns, found.st_ctime_ns
            whole.update(repr((str(file), found.st_dev, found.st_ino, found.st_size, *times)).encode())
    except OSError:
        return None
    return whole.digest(), latest


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int, stream: IO[bytes] | None = None) -> Iterator[Image.Image]:
    """An image whose header has been read, and nothing more; from a stream of the file, if it is open already.

    Raises:
        KdistillError: if it has more pixels than `max_pixels`, or is none.
    """
    from PIL import Image

    # As a stream: by name, Pillow (13.0.0) maps an uncompressed TIFF, and scrambles it if it is to be turned.
    with (
        _refused_by_name(path),
        _PILLOWS_BOUND.lifted(),
        contextlib.nullcontext(stream) if stream else path.open("rb") as opened,
        Image.open(opened, formats=FORMATS) as image,
    ):
        sizes = [image.size]
        if image.format == "TIFF":
            sizes.append(tuple(image.tag_v2.get(tag, 0) for tag in TILE_SIZE))
        width, height = max(sizes, key=math.prod)
        if width * height > max_pixels:
            raise KdistillError(
                f"{path} has {height}x{width} pixels, and --max-pixels allows {max_pixels}: pass --max-pixels "
                f"{width * height}, or make the image smaller"
            )
        yield image


class _PillowsBound:
    """Pillow's own bound on pixels: one number for the whole process, at which it warns and then fails.

    It is lifted only while images are read here, where `max_pixels` bounds them.
    """

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0
        self._bound: int | None = None

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        from PIL import Image

        with self._lock:
            if not self._readers:
                self._bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    Image.MAX_IMAGE_PIXELS = self._bound


_PILLOWS_BOUND = _PillowsBound()


def _head(path: Path, max_pixels: int) -> tuple[tuple[int, int], bool]:
    """An image's height and width, as it is meant to be seen, and whether it is grey."""
    with _opened(path, max_pixels) as image:
        width, height = (image.tag_v2[tag] for tag in STORED_SIZE) if image.format == "TIFF" else image.size
        if _orientation(image) in SIDEWAYS:
            width, height = height, width
        grey = image.mode in GREY | DEEP_GREY
        if image.mode in ("P", "PA"):
            palette = np.reshape(image.getpalette() or [], (-1, 3))
            grey = bool((palette == palette[:, :1]).all())
        return (height, width), grey


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:  # else asking for it decodes the image
        return 1
    return int(image.getexif().get(ORIENTATION, 1))


def _digested_pixels(path: Path, row: tuple[int, ...], max_pixels: int) -> tuple[NDArray[np.uint8], str]:
    """An image's values, in the shape of a row, and the digest of its file."""
    with _refused_by_name(path), path.open("rb") as stream:
        digest = _stream_digest(stream)
        stream.seek(0)
        return _pixels(path, row, max_pixels, stream), digest


def _pixels(path: Path, row: tuple[int, ...], max_pixels: int, stream: IO[bytes] | None = None) -> NDArray[np.uint8]:
    """An image's values, in the shape of a row."""
    from PIL import Image, ImageOps

    size = row[1::-1]  # Pillow's are (width, height)
    with _opened(path, max_pixels, stream) as opened:
        if opened.format in ("JPEG", "MPO"):  # decoded no larger than needed
            opened.draft(None, size[::-1] if _orientation(opened) in SIDEWAYS else size)
        opened.load()  # which turns a TIFF, in some versions of Pillow
        image = _eight_bits(opened if _orientation(opened) == 1 else ImageOps.exif_transpose(opened))
        if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB" if row[2:] == (3,) else "L")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image, np.uint8).reshape(row)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a value as one of 8."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("it holds floating-point numbers, of no known range")
    if image.mode not in DEEP_GREY:
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("it holds numbers of more than 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
