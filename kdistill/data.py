"""Datasets: from a name to rows and labels that have been checked, and the keys that say which row is which.

A dataset has training and test rows: inputs of any one shape, uint8 (which the networks see scaled to [0, 1]) or other
numbers (taken as they are), and class numbers from 0. A transfer set has training rows alone, labelled or not. Which
formats there are is `kdistill.readers`' business.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.errors import KdistillError, UsageError
from kdistill.readers import AS_IT_IS, BLOCK_ROWS, Array, Chained, Chosen, Contents, Options, Part, Reader, Rows

KERAS_DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
BUILT_IN = Path(__file__).parent / "digits" / "digits.npz"
NO_LABEL = -1

CLASS_NAMES = {
    "fashion_mnist": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}


@dataclass(frozen=True)
class Split:
    """Rows of a dataset: inputs (rows, ...) that need not be in memory, and labels (rows,) int64, `NO_LABEL` for none."""

    name: str
    inputs: Rows
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> int:
        """How many rows have a label."""
        return int((self.labels != NO_LABEL).sum())

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """The inputs in order, `rows` at a time, one block in memory."""
        yield from self.inputs.blocks(rows)

    def read(self) -> NDArray[Any]:
        """All inputs, (rows, ...)."""
        return self.inputs.read()

    def keys(self) -> NDArray[np.uint8]:
        """The `row_keys` of all inputs, (rows, 16)."""
        return np.concatenate([row_keys(block) for block in self.blocks(BLOCK_ROWS)])

    def chosen(self, mask: NDArray[np.bool_]) -> Split:
        """The rows that a mask (rows,) chooses."""
        return self if mask.all() else Split(self.name, Chosen(self.inputs, mask), self.labels[mask])


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
    """A dataset's name, resolved to what reads it."""

    name: str
    reader: Reader
    options: Options = AS_IT_IS

    def identity(self) -> workspace.Input:
        """What the data is: its name, and a digest of its bytes and of how they are read."""
        digest = self.reader.digest()
        if given := self.options.given():
            digest = "sha256:" + hashlib.sha256(f"{digest} {sorted(given.items())}".encode()).hexdigest()
        return workspace.Input(self.name, digest)

    def load(self) -> Dataset:
        """Open it as a dataset: labels are read and checked, inputs when they are asked for.

        Raises:
            KdistillError: if it is none, saying what is wrong with what.
        """
        contents = self.reader.contents()
        test = contents.test
        if test is None:
            contents, test = _cut(contents, self)
        for part in (contents.train, test):
            if part.labels is None:
                raise KdistillError(
                    f"{self.place} has no {part.labels_name}: a dataset has labels; without, it can be a --transfer-set"
                )
        names = list(contents.class_names) or CLASS_NAMES.get(self.name, [])
        if contents.categories:
            names = _categories(contents.train)
        train, test_split = (
            _split(part, name, self.place, names if contents.categories else None)
            for part, name in ((contents.train, "train"), (test, "test"))
        )
        _alike(train.inputs, contents.train.name, test_split.inputs, test.name, self.place)
        classes = len(names) if contents.categories else int(train.labels.max()) + 1
        if classes < 2:
            raise KdistillError(
                f"{self.place}: {contents.train.labels_name} holds a single class: it needs two or more"
            )
        if test_split.labels.max() >= classes:
            raise KdistillError(
                f"{self.place}: {test.labels_name} holds the label {test_split.labels.max()}, beyond the {classes} "
                f"classes of {contents.train.labels_name}"
            )
        if names and len(names) != classes:
            raise KdistillError(f"{self.place}: class_names has {len(names)} names for {classes} classes")
        return Dataset(self.name, train, test_split, classes, tuple(names or map(str, range(classes))))

    def transfer_set(self, dataset: Dataset) -> Split:
        """Open it as a transfer set for the task of a dataset: its training rows, `NO_LABEL` where it has no labels.

        Raises:
            KdistillError: if its rows are of another shape, type or task than the dataset's.
        """
        contents = self.reader.contents()
        names = dataset.class_names if contents.categories or contents.class_names else None
        if contents.class_names and not contents.categories and tuple(contents.class_names) != dataset.class_names:
            raise KdistillError(
                f"{self.place} has the classes {', '.join(contents.class_names[:5])}..., and {dataset.name} has "
                f"{', '.join(dataset.class_names[:5])}...: a transfer set's labels are the dataset's classes, or none"
            )
        split = _split(contents.train, "transfer set", self.place, names if contents.categories else None)
        _alike(dataset.train.inputs, f"{dataset.name}", split.inputs, self.place, "the transfer set")
        if split.labels.max() >= dataset.classes:
            raise KdistillError(
                f"{self.place}: {contents.train.labels_name} holds the label {split.labels.max()}, beyond the "
                f"{dataset.classes} classes of {dataset.name}"
            )
        return split

    @property
    def place(self) -> str:
        """Where the data lies, for messages."""
        return self.name.partition("?")[0]


def resolve(name: str, options: Options = AS_IT_IS, option: str = "dataset") -> Source:
    """Find the dataset that a name, a path or a `package.module:function` stands for; nothing is guessed.

    Args:
        name: what the user gave, or what `Source.name` was: the same with `?` and how it is read.
        options: how it is read, beside what the name says.
        option: the command line's name for it, for messages.

    Raises:
        KdistillError: if there is none, saying what is known.
    """
    place, _, query = name.partition("?")
    known = {one.name for one in fields(Options)}
    said = {key.replace("-", "_"): value for key, value in parse_qsl(query)}
    if unknown := [key for key in said if key not in known]:
        raise UsageError(
            f"--{option} {name}: {unknown[0]} is no option of reading data, only {', '.join(sorted(known))}"
        )
    options = replace(options, **said)
    place, make = _reader(place, option)
    suffix = f"?{urlencode(options.given(), quote_via=quote, safe='/:,')}" if options.given() else ""
    return Source(place + suffix, make(options), options)


def joined(splits: Sequence[Split]) -> Split:
    """The rows of several splits, one after the other."""
    if len(splits) == 1:
        return splits[0]
    labels = np.concatenate([split.labels for split in splits])
    return Split(" + ".join(split.name for split in splits), Chained([split.inputs for split in splits]), labels)


def _reader(place: str, option: str) -> tuple[str, Callable[[Options], Reader]]:
    """The full name of what is meant, and what makes its reader."""
    from kdistill.readers.npz import Npz

    if place == "digits":
        return place, _Digits
    if place in KERAS_DATASETS:
        return place, lambda options: Npz(_keras_file(place), options)
    path = Path(place).expanduser().absolute()
    if not place or not path.exists():
        known = ", ".join(("digits", *KERAS_DATASETS))
        raise KdistillError(f"--{option} {place}: there is no such file, and the names are {known}")
    if path.is_dir():
        raise KdistillError(f"--{option} {place} is a directory: it needs an .npz file")
    return str(path), lambda options: Npz(path, options)


@dataclass(frozen=True)
class _Digits:
    """The digits that come with kdistill: 8x8 with values 0 to 16, as 28x28 with values 0 to 255."""

    options: Options = AS_IT_IS

    def __post_init__(self) -> None:
        self.options.allow("digits")

    def digest(self) -> str:
        return workspace.digest(BUILT_IN)

    def contents(self) -> Contents:
        from kdistill.readers.npz import Npz

        small = Npz(BUILT_IN).contents()
        assert small.test is not None
        train, test = (
            replace(part, inputs=Array(_enlarge(part.inputs.read()), "digits")) for part in (small.train, small.test)
        )
        return replace(small, train=train, test=test)


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


def sortable(keys: NDArray[np.uint8]) -> NDArray[Any]:
    """Keys (rows, 16) as (rows,) strings of fixed length, which NumPy sorts and compares as bytes."""
    return np.ascontiguousarray(keys).view("S16").ravel()


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


def _cut(contents: Contents, source: Source) -> tuple[Contents, Part]:
    """Set a test part aside, of data that brings none: which rows is a function of their number alone."""
    fraction = source.options.test_fraction
    whole = contents.train
    if fraction is None:
        raise KdistillError(
            f"{source.place} has no test part: --test-fraction 0.2 sets a fifth of its rows aside, always the same ones"
        )
    try:
        share = float(fraction)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UsageError(f"--test-fraction is {fraction}: it needs a number between 0 and 1")
    rows = len(whole.inputs)
    out = np.zeros(rows, bool)
    out[np.random.default_rng(rows).permutation(rows)[: round(rows * share)]] = True
    if not 0 < out.sum() < rows:
        raise KdistillError(
            f"--test-fraction {fraction} sets {out.sum()} of {rows} rows aside: it needs some on either side"
        )
    test, train = (
        replace(whole, inputs=Chosen(whole.inputs, mask), labels=None if whole.labels is None else whole.labels[mask])
        for mask in (out, ~out)
    )
    return replace(contents, train=train), test


def _split(part: Part, name: str, place: str, names: Sequence[str] | None) -> Split:
    """Check a part; `names` are the classes its labels name, None where labels are class numbers already."""
    inputs = part.inputs
    where = f"{place}: {part.name}"
    if inputs.dtype.kind not in "fiub":
        raise KdistillError(f"{where} is of type {inputs.dtype}: inputs are uint8, floats or whole numbers")
    if len(inputs.shape) < 2 or 0 in inputs.shape[1:]:
        raise KdistillError(f"{where} has shape {inputs.shape}: inputs need rows, and at least one value in each")
    if len(inputs) == 0:
        raise KdistillError(f"{where} has no rows")
    if part.labels is None:
        return Split(name, inputs, np.full(len(inputs), NO_LABEL, np.int64))
    labels = _of_categories(part, place, names) if names is not None else part.labels
    return Split(name, inputs, _labels(labels, len(inputs), f"{place}: {part.labels_name}"))


def _alike(one: Rows, one_name: str, other: Rows, other_name: str, place: str) -> None:
    if one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
        raise KdistillError(
            f"{place}: {one_name} has rows of {one.shape[1:]} {one.dtype} and {other_name} of {other.shape[1:]} "
            f"{other.dtype}: they must be alike"
        )


def _categories(part: Part) -> list[str]:
    """The classes that labels of any values name, in order."""
    assert part.labels is not None
    return [_text(value) for value in np.unique(part.labels)]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _of_categories(part: Part, place: str, names: Sequence[str]) -> NDArray[np.int64]:
    assert part.labels is not None
    number = {name: place for place, name in enumerate(names)}
    values, where = np.unique(part.labels, return_inverse=True)
    texts = [_text(value) for value in values]
    if unknown := [text for text in texts if text not in number]:
        raise KdistillError(
            f"{place}: {part.labels_name} holds {unknown[0]!r}, which is none of the classes {', '.join(list(names)[:10])}"
        )
    return np.array([number[text] for text in texts], np.int64)[where.reshape(-1)]


def _labels(labels: NDArray[Any], rows: int, where: str) -> NDArray[np.int64]:
    """Class numbers (rows,) as int64, checked."""
    if len(labels.shape) > 1 and labels.shape != (rows, 1):
        raise KdistillError(
            f"{where} has shape {labels.shape}: it needs class numbers, ({rows},); one-hot labels become that by "
            "labels.argmax(axis=1)"
        )
    labels = labels.reshape(-1)
    if len(labels) != rows:
        raise KdistillError(f"{where} has {len(labels)} labels for {rows} rows of inputs")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise KdistillError(f"{where} holds NaN or infinity, first in row {int(np.argmin(np.isfinite(labels)))}")
    if labels.dtype.kind not in "iufb" or not np.array_equal(labels, np.floor(labels)):
        raise KdistillError(f"{where} holds {labels.dtype} values that are no class numbers: it needs 0, 1, 2, ...")
    if labels.min() < 0:
        raise KdistillError(f"{where} holds the label {labels.min()}: class numbers begin at 0")
    if labels.max() >= 2**31:
        raise KdistillError(f"{where} holds the label {labels.max()}: class numbers are 0 up to the number of classes")
    return labels.astype(np.int64)


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
