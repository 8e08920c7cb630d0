"""Datasets: from a name to arrays or streams of blocks, and the keys that say which row is which.

A dataset is an `.npz` laid out as Keras lays out MNIST: `x_train` (rows, ...), `y_train` (rows,), `x_test`, `y_test`,
and, if it likes, `class_names`. Inputs are uint8, which the networks see scaled to [0, 1], or floats, taken as they
are; labels are whole numbers from 0.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.errors import KdistillError

KERAS_DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
BUILT_IN = Path(__file__).parent / "digits" / "digits.npz"
BLOCK_ROWS = 1000

CLASS_NAMES = {
    "fashion_mnist": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}


@dataclass(frozen=True)
class Split:
    """One part of a dataset: inputs that can be read whole or in blocks, and their labels.

    `labels` has shape (rows,), int64.
    """

    name: str
    inputs: NpzMember | NDArray[Any]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """The inputs in order, `rows` at a time, one block in memory."""
        if isinstance(self.inputs, NpzMember):
            yield from self.inputs.blocks(rows)
        else:
            for start in range(0, len(self), rows):
                yield self.inputs[start : start + rows]

    def read(self) -> NDArray[Any]:
        """All inputs, (rows, ...)."""
        return self.inputs.read() if isinstance(self.inputs, NpzMember) else self.inputs

    def keys(self) -> NDArray[np.uint8]:
        """The `row_keys` of all inputs, (rows, 16)."""
        return np.concatenate([row_keys(block) for block in self.blocks(BLOCK_ROWS)])


@dataclass(frozen=True)
class Dataset:
    """Training and test rows of one classification task."""

    name: str
    train: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.inputs.shape[1:])

    @property
    def input_dtype(self) -> str:
        return str(self.train.inputs.dtype)


@dataclass(frozen=True)
class Source:
    """A dataset's name, resolved to the file it lies in."""

    name: str
    path: Path

    def identity(self) -> workspace.Input:
        return workspace.Input(self.name, workspace.digest(self.path))

    def load(self) -> Dataset:
        """Open it: labels are read and checked, inputs when they are asked for.

        Raises:
            KdistillError: if the file is no dataset, saying which array is wrong and how.
        """
        try:
            dataset = _read_npz(self)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise KdistillError(f"{self.path} is not a readable .npz: {error}") from None
        return _enlarged(dataset) if self.path == BUILT_IN else dataset


def resolve(name: str) -> Source:
    """Find the dataset that a name or a path stands for; nothing is guessed.

    Raises:
        KdistillError: if there is none, saying what is known.
    """
    if name == "digits":
        return Source(name, BUILT_IN)
    if name in KERAS_DATASETS:
        return Source(name, _keras_file(name))
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        raise KdistillError(f"--dataset {name} is a directory: it needs an .npz file")
    if not path.exists():
        known = ", ".join(("digits", *KERAS_DATASETS))
        raise KdistillError(f"--dataset {name}: there is no such file, and the names are {known}")
    return Source(str(path), path)


def load(name: str) -> Dataset:
    """A dataset by name or path, as `--dataset` takes it.

    Raises:
        KdistillError: if there is none, or the file is no dataset.
    """
    return resolve(name).load()


def _keras_file(name: str) -> Path:
    """The file of a `keras.datasets` name in Keras's own cache, fetched and written there on first use."""
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    path = cache / ("mnist.npz" if name == "mnist" else f"kdistill-{name}.npz")
    if path.exists():
        return path
    from kdistill.backend import keras
    from kdistill.console import silent_stdout

    try:
        with silent_stdout():
            (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # noqa: BLE001 - Keras raises a bare Exception when the download fails
        raise KdistillError(
            f"{name} could not be downloaded ({str(error).splitlines()[0]}): without a network put it at {path}, "
            "or use --dataset digits or --dataset FILE.npz"
        ) from None
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        arrays = {"x_train": x_train, "y_train": y_train.ravel(), "x_test": x_test, "y_test": y_test.ravel()}
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
        os.replace(partial, path)
    return path


def row_keys(inputs: NDArray[Any]) -> NDArray[np.uint8]:
    """What identifies each row: BLAKE2b of its bytes, salted with its shape and type.

    The one function that makes keys, for the file's writer and its readers; equal rows have equal keys, whatever
    their place.

    Args:
        inputs: (rows, ...) of any numeric type.

    Returns:
        (rows, 16) uint8.
    """
    inputs = np.ascontiguousarray(inputs, dtype=inputs.dtype.newbyteorder("<"))
    salt = hashlib.blake2b(f"{inputs.dtype.str}{inputs.shape[1:]}".encode(), digest_size=16).digest()
    rows, width = memoryview(inputs.tobytes()), inputs.dtype.itemsize * math.prod(inputs.shape[1:])
    starts = range(0, len(rows), width)
    keys = b"".join([hashlib.blake2b(rows[i : i + width], digest_size=16, salt=salt).digest() for i in starts])
    return np.frombuffer(keys, np.uint8).reshape(-1, 16)


def validation_rows(keys: NDArray[np.uint8], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out: a row's key and the seed alone decide, so every stage holds out the same ones.

    Args:
        keys: (rows, 16), from `row_keys`.
        fraction: the share to hold out, in expectation.
        seed: another seed holds out other rows.

    Returns:
        (rows,) bool. Equal rows fall on the same side.
    """
    mixed = np.ascontiguousarray(keys).view("<u8")[:, 0] ^ np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction)


def _read_npz(source: Source) -> Dataset:
    splits = {}
    with zipfile.ZipFile(source.path) as archive:
        names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
        missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in names]
        if missing:
            raise KdistillError(
                f"{source.path} has no {missing[0]}: a dataset holds x_train, y_train, x_test and y_test, "
                f"and this file holds {', '.join(sorted(names)) or 'nothing'}"
            )
        for name in ("train", "test"):
            inputs, labels = (NpzMember.open(archive, source.path, f"{part}_{name}") for part in "xy")
            splits[name] = Split(name, inputs, _labels(labels, len(inputs), source.path))
        members = ["class_names"] if "class_names" in names else []
        class_names = [str(n) for m in members for n in NpzMember.open(archive, source.path, m).read()]
    train, test = splits["train"], splits["test"]
    if train.inputs.shape[1:] != test.inputs.shape[1:] or train.inputs.dtype != test.inputs.dtype:
        raise KdistillError(
            f"{source.path}: x_train has rows of {train.inputs.shape[1:]} {train.inputs.dtype} and x_test of "
            f"{test.inputs.shape[1:]} {test.inputs.dtype}: they must be alike"
        )
    classes = int(train.labels.max()) + 1
    if classes < 2:
        raise KdistillError(f"{source.path}: y_train holds a single class (0): it needs two or more")
    if test.labels.max() >= classes:
        raise KdistillError(
            f"{source.path}: y_test holds the label {test.labels.max()}, beyond the {classes} classes of y_train"
        )
    class_names = class_names or CLASS_NAMES.get(source.name, [])
    if class_names and len(class_names) != classes:
        raise KdistillError(f"{source.path}: class_names has {len(class_names)} names for {classes} classes")
    return Dataset(source.name, train, test, classes, tuple(class_names or map(str, range(classes))))


def _labels(member: NpzMember, rows: int, path: Path) -> NDArray[np.int64]:
    """Labels (rows,) as int64, checked."""
    where = f"{path}: {member.name}"
    if member.shape in ((rows, 1), (rows,)) or len(member.shape) < 2:
        labels = member.read().reshape(-1)
    else:
        raise KdistillError(
            f"{where} has shape {member.shape}: it needs class numbers, ({rows},); one-hot labels become that by "
            "labels.argmax(axis=1)"
        )
    if len(labels) != rows:
        raise KdistillError(f"{where} has {len(labels)} labels for {rows} rows of inputs")
    if rows == 0:
        raise KdistillError(f"{where} has no rows")
    if labels.dtype.kind not in "iufb" or not np.array_equal(labels, np.floor(labels)):
        raise KdistillError(f"{where} holds {labels.dtype} values that are no class numbers: it needs 0, 1, 2, ...")
    if labels.min() < 0:
        raise KdistillError(f"{where} holds the label {labels.min()}: class numbers begin at 0")
    if labels.max() >= 2**31:
        raise KdistillError(f"{where} holds the label {labels.max()}: class numbers are 0 up to the number of classes")
    return labels.astype(np.int64)


@dataclass(frozen=True)
class NpzMember:
    """One array in an `.npz`, read in blocks from where it lies; its claims are checked before memory is taken."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    @classmethod
    def open(cls, archive: zipfile.ZipFile, path: Path, name: str) -> NpzMember:
        """Read an array's header.

        Raises:
            KdistillError: if it is of a type that is no data, or claims more than the file can hold.
        """
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as stream:
            shape, fortran, dtype = _header(stream)
            start = stream.tell()
        where = f"{path}: {name}"
        allowed = "U" if name == "class_names" else "fiub"
        if dtype.kind not in allowed or (name.startswith("x_") and dtype.kind != "f" and dtype != np.uint8):
            raise KdistillError(f"{where} is of type {dtype}: inputs are uint8 or float32, labels whole numbers")
        if name.startswith("x_") and (len(shape) < 2 or 0 in shape[1:]):
            raise KdistillError(f"{where} has shape {shape}: inputs need rows, and at least one value in each")
        claimed = start + dtype.itemsize * int(np.prod(shape, dtype=object))
        if claimed != info.file_size or info.file_size > 1100 * max(info.compress_size, 1):  # deflate's best is 1032
            raise KdistillError(f"{where} claims {shape} of {dtype}, which is not what the file holds: it is damaged")
        return cls(path, name, shape, dtype, fortran and len(shape) > 1)

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """The array in order, `rows` rows at a time, the last block shorter.

        Raises:
            KdistillError: if the file is damaged, or a float is not finite.
        """
        start = 0
        for block in self._raw_blocks(rows):
            if self.dtype.kind == "f" and not np.isfinite(block).all():
                bad = start + int(np.argmin(np.isfinite(block).reshape(len(block), -1).all(axis=1)))
                raise KdistillError(f"{self.path}: {self.name} holds NaN or infinity, first in row {bad}")
            yield block
            start += len(block)

    def _raw_blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        if self.fortran or not len(self):  # in Fortran order no row lies in one piece
            whole = self._load()
            yield from (whole[start : start + rows] for start in range(0, max(len(self), 1), rows))
            return
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as stream:
                _header(stream)
                for start in range(0, len(self), rows):
                    count = min(rows, len(self) - start)
                    block = np.empty((count, *self.shape[1:]), self.dtype)
                    self._fill(stream, block, count * row_bytes)
                    yield block
                if stream.read(1):  # reading to the end makes zipfile check its CRC-32
                    raise EOFError
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise KdistillError(f"{self.path}: {self.name} is damaged: {error or 'it ends early'}") from None

    def _fill(self, stream: IO[bytes], block: NDArray[Any], count: int) -> None:
        view = block.reshape(-1).view(np.uint8).data
        done = 0
        while done < count:
            got = stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise EOFError
            done += got

    def read(self) -> NDArray[Any]:
        """The whole array."""
        (whole,) = self.blocks(max(len(self), 1))
        return whole

    def _load(self) -> NDArray[Any]:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return np.ascontiguousarray(arrays[self.name])
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise KdistillError(f"{self.path}: {self.name} is damaged: {error}") from None


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return tuple(shape), bool(fortran), dtype


def _enlarged(dataset: Dataset) -> Dataset:
    """The built-in digits, 8x8 with values 0 to 16, as 28x28 with values 0 to 255: bilinear, in integers, exact."""
    train, test = (Split(part.name, _enlarge(part.read()), part.labels) for part in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test)


def _enlarge(images: NDArray[np.uint8], side: int = 28, full: int = 16) -> NDArray[np.uint8]:
    """(rows, 8, 8) to (rows, side, side); pixel centres at half-integers, edges repeated."""
    small = images.shape[1]
    position, unit = (2 * np.arange(side) + 1) * small - side, 2 * side  # in units of 1 / (2 * side) of a small pixel
    low = position // unit
    weight = position - low * unit
    low, high = np.clip(low, 0, small - 1), np.clip(low + 1, 0, small - 1)
    wide = images.astype(np.int64)
    wide = wide[:, low] * (unit - weight)[:, None] + wide[:, high] * weight[:, None]
    wide = wide[:, :, low] * (unit - weight) + wide[:, :, high] * weight
    scale = full * unit * unit
    return np.ascontiguousarray((wide * 255 + scale // 2) // scale, np.uint8)
