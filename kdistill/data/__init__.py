"""Datasets: from a name to rows and labels that have been checked, and the keys that say which row is which.

A dataset has training and test rows: inputs of any one shape, uint8 (which the networks see scaled to [0, 1]) or other
numbers (taken as they are), and class numbers from 0. A transfer set has training rows alone, labelled or not. Which
formats there are is `kdistill.data.readers`' business.
"""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.console import Reporter
from kdistill.data.keys import fraction_rows, row_keys
from kdistill.data.readers import (
    BLOCK_ROWS,
    Concat,
    Part,
    Reader,
    Rows,
    Standardized,
    Subset,
    Task,
    check_file,
    check_labels,
    matrix_fault,
    nearest,
    standards_of,
    text,
)
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import ReadOptions, Selection, split_list

KERAS_DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
NAMES = ("digits", *KERAS_DATASETS)
FORMATS = {"npz": "npz:Npz", "npy": "npy:Npy", "hdf5": "hdf5:Hdf5", "csv": "tables:Table", "parquet": "tables:Table"}
ENDINGS = {".npz": "npz", ".npy": "npy", ".h5": "hdf5", ".hdf5": "hdf5", ".csv": "csv", ".parquet": "parquet"}
NO_LABEL = -1
MOST_NAMES = 10_000  # of classes that are recorded with a network; a longer list would swamp the manifest
MOST_CLASSES = 1 << 20  # a label beyond it is damaged, or something else
MANY_CLASSES = 10_000  # more than these are warned of
MOST_FLOAT_CLASSES = 1000


@dataclass(frozen=True)
class Split:
    """Rows of a dataset: inputs (rows, ...) that need not be in memory, and labels (rows,) int64, `NO_LABEL` for none.

    `warnings` are lines for the user, of a transfer set; those of a dataset's splits are the dataset's.
    """

    name: str
    inputs: Rows
    labels: NDArray[np.int64]
    warnings: tuple[str, ...] = ()

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
        """The `row_keys` of all inputs, (rows, 16); rows are read for them once."""
        return self._keys

    @cached_property
    def _keys(self) -> NDArray[np.uint8]:
        keys = np.concatenate([row_keys(block) for block in self.blocks(BLOCK_ROWS)])
        keys.flags.writeable = False
        return keys

    def chosen(self, mask: NDArray[np.bool_]) -> Split:
        """The rows that a mask (rows,) chooses."""
        return self if mask.all() else replace(self, inputs=Subset(self.inputs, mask), labels=self.labels[mask])


@dataclass(frozen=True)
class Dataset:
    """Training and test rows of one classification task.

    `preprocessing` is what was done to the inputs as they lie in their files, for whoever deploys a network: nothing,
    or `standardised`, each column's mean and standard deviation, or the size and colours of images. `warnings` are lines
    for the user, which whoever loads the dataset prints.
    """

    name: str
    train: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.inputs.shape[1:])

    @property
    def input_dtype(self) -> str:
        return str(self.train.inputs.dtype)

    @property
    def description(self) -> dict[str, Any]:
        """What a program needs to know to use a network of this dataset: its class names, and the preprocessing.

        `class_names` is None where there are more than `MOST_NAMES`.
        """
        names = list(self.class_names) if self.classes <= MOST_NAMES else None
        return {"class_names": names, "preprocessing": dict(self.preprocessing)}


@dataclass(frozen=True)
class Source:
    """A dataset's name, resolved to what reads it."""

    name: str
    reader: Reader

    def identity(self) -> workspace.Input:
        """What the data is: its name, and a digest of its bytes and of how they are read."""
        digest = self.reader.digest()
        given = self.reader.options.given()
        left_out = (*self.reader.files, *self.reader.limits)
        if how := sorted((name, value) for name, value in given.items() if name not in left_out):
            digest = "sha256:" + hashlib.sha256(f"{digest} {how}".encode()).hexdigest()
        return workspace.Input(self.name, digest)

    def load(self) -> Dataset:
        """Open it as a dataset: labels are read and checked, inputs when they are asked for.

        Raises:
            KdistillError: if it is none, saying what is wrong with what.
        """
        contents = self.reader.contents()
        for part in (contents.train, contents.test):
            if part and part.labels is None:
                raise KdistillError(
                    f"{self.place} has no {part.labels_name}: a dataset has labels; without, it can be a --transfer-set"
                )
        names = list(contents.class_names)
        if contents.by_name and not names:
            names = _categories(contents.train)
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise KdistillError(f"{self.place}: class_names has {twice!r} twice: each class needs a name of its own")
        by = names if contents.by_name else None
        train = _split(contents.train, "train", self.place, by)
        _check_classes(contents.train, f"{self.place}: {contents.train.labels_name}", table=contents.categories)
        classes = max(len(names), int(train.labels.max()) + 1)
        if classes < 2:
            raise KdistillError(
                f"{self.place}: {contents.train.labels_name} holds a single class: it needs two or more"
            )
        if contents.test:
            test = _split(contents.test, "test", self.place, by)
            used = len(np.unique(np.concatenate([train.labels, test.labels])))
            self._no_cut()
            _alike(train.inputs, contents.train.name, test.inputs, contents.test.name, self.place)
            if test.labels.max() >= classes:
                raise KdistillError(
                    f"{self.place}: {contents.test.labels_name} holds the label {test.labels.max()}, beyond the "
                    f"{classes} classes of {contents.train.labels_name}"
                )
        else:
            used = len(np.unique(train.labels))
            train, test = self._cut(train)
        if names and len(names) < classes:
            raise KdistillError(f"{self.place}: class_names has {len(names)} names for {classes} classes")
        preprocessing = dict(contents.preprocessing)
        if contents.columns:
            standards = standards_of(train.inputs, contents.columns, self.place)
            preprocessing["standardised"] = standards
            train, test = (
                replace(one, inputs=Standardized(one.inputs, standards, f"{self.place}: the {one.name} part"))
                for one in (train, test)
            )
        names = names or list(map(str, range(classes)))
        unusual = _unusual(classes, used, f"{self.place}: {contents.train.labels_name}")
        return Dataset(self.name, train, test, classes, tuple(names), preprocessing, (*contents.warnings, *unusual))

    def transfer_set(self, dataset: Dataset) -> Split:
        """Open it as a transfer set for the task of a dataset: its training rows, `NO_LABEL` where it has no labels.

        What is done to the dataset's inputs is done to these, with the dataset's numbers.

        Raises:
            KdistillError: if its rows are of another shape, type or task than the dataset's.
        """
        contents = self.reader.suited(Task(dataset.input_shape, dataset.preprocessing)).contents()
        names = dataset.class_names if contents.by_name else None
        if contents.class_names and not contents.by_name and tuple(contents.class_names) != dataset.class_names:
            raise KdistillError(
                f"{self.place} has the classes {', '.join(contents.class_names[:5])}..., and {dataset.name} has "
                f"{', '.join(dataset.class_names[:5])}...: a transfer set's labels are the dataset's classes, or none"
            )
        split = _split(contents.train, "transfer set", self.place, names)
        if contents.test:
            self._no_cut()
        elif self.reader.options.test_fraction is not None:
            split = replace(self._cut(split)[0], name="transfer set")
        if contents.columns and (standards := dataset.preprocessing.get("standardised")):
            split = replace(split, inputs=Standardized(split.inputs, standards, self.place))
        _alike(dataset.train.inputs, f"{dataset.name}", split.inputs, self.place, "the transfer set")
        if split.labels.max() >= dataset.classes:
            raise KdistillError(
                f"{self.place}: {contents.train.labels_name} holds the label {split.labels.max()}, beyond the "
                f"{dataset.classes} classes of {dataset.name}"
            )
        return replace(split, warnings=contents.warnings)

    @property
    def place(self) -> str:
        """Where the data lies, for messages."""
        return self.reader.place

    def _no_cut(self) -> None:
        if self.reader.options.test_fraction is not None:
            raise UsageError(f"{self.place} has a test part of its own: leave out --test-fraction")

    def _cut(self, whole: Split) -> tuple[Split, Split]:
        """Set a test part aside, of data that brings none: which rows is a function of their number alone."""
        fraction = self.reader.options.test_fraction
        if fraction is None:
            raise KdistillError(
                f"{self.place} has no test part: --test-fraction 0.2 sets a fifth of its rows aside, always the same "
                "ones"
            )
        rows = len(whole)
        out = np.zeros(rows, bool)
        out[np.random.default_rng(rows).permutation(rows)[: round(rows * float(fraction))]] = True
        if not 0 < out.sum() < rows:
            raise KdistillError(
                f"--test-fraction {fraction} sets {out.sum()} of the {rows} rows of {self.place} aside: it needs some "
                "on either side"
            )
        return whole.chosen(~out), replace(whole.chosen(out), name="test")


def short_name(name: str) -> str:
    """A dataset's name as the title of a picture has room for it: without folders, and without how it is read."""
    return ReadOptions.of(name)[0].rsplit("/", 1)[-1]


def resolve(name: str, *, option: str | None = None, cache: Path | None = None) -> Source:
    """Find the dataset that a name, a path or a `package.module:function` stands for; nothing is guessed.

    Args:
        name: what the user gave, or what `Source.name` was: the same with `?` and how it is read, as `ReadOptions.named`
            puts it there.
        option: the option that the user gave it with, for messages; None if a manifest has it.
        cache: a directory for decoded rows, e.g. `Workspace.cache`.

    Raises:
        KdistillError: if there is none, saying what is known.
        UsageError: if an option has a wrong value, or means nothing to its format.
    """
    place, options = ReadOptions.of(name)
    place, reader = _format(place, option, options.data_format)
    options = options.absolute(reader.files)
    return Source(options.named(place), reader(place, options, cache))


def joined(splits: Sequence[Split]) -> Split:
    """The rows of several splits, one after the other."""
    if len(splits) == 1:
        return splits[0]
    labels = np.concatenate([split.labels for split in splits])
    inputs, warnings = Concat([split.inputs for split in splits]), sum((split.warnings for split in splits), ())
    return Split(" + ".join(split.name for split in splits), inputs, labels, warnings)


def selected(
    rows: Split,
    selection: Selection,
    dataset: Dataset,
    keys: NDArray[np.uint8] | None = None,
    *,
    reporter: Reporter = Reporter(quiet=True),
) -> NDArray[np.bool_]:
    """Which rows a selection keeps, (rows,) bool: those of its classes, and the fraction of them.

    Args:
        rows: of a transfer set of the dataset, or its training rows.
        selection: classes are meant by their names in the dataset, or else by their numbers.
        dataset: says which classes there are.
        keys: the rows' keys, where they are known already; only a fraction needs any.
        reporter: hears how many rows and classes are kept, where not all are asked for.

    Raises:
        UsageError: if there is no such class.
        KdistillError: if rows without a label can't be told apart, or no row is left.
    """
    keep = np.ones(len(rows), bool)
    for option, value in (("omit-class", selection.omit_class), ("only-classes", selection.only_classes)):
        if value is not None:
            numbers = [_class(one, option, dataset) for one in split_list(value)]
            if rows.labelled < len(rows):
                raise KdistillError(
                    f"--{option} {value}: {len(rows) - rows.labelled:,} of the {len(rows):,} rows have no label, so that "
                    "nobody knows their classes: leave it out, or leave out the transfer set that they are of"
                )
            keep = np.isin(rows.labels, numbers, invert=option == "omit-class")
    if selection.fraction is not None and keep.any():
        of_kept = rows.chosen(keep).keys() if keys is None else keys[keep]
        keep[keep] = fraction_rows(of_kept, rows.labels[keep], selection.fraction, selection.rows_seed)
    if not keep.any():
        raise KdistillError(f"{selection} leaves none of the {len(rows):,} rows: it needs to leave some")
    if str(selection):
        all_of, kept = (len(set(labels.tolist()) - {NO_LABEL}) for labels in (rows.labels, rows.labels[keep]))
        which = f", {kept} of {all_of} classes" if all_of else ""
        reporter.say(f"{selection} keeps {int(keep.sum()):,} of {len(rows):,} rows{which}")
    return keep


def _class(name: str, option: str, dataset: Dataset) -> int:
    """The number of a class that is meant by its name, or else by its number."""
    if name in dataset.class_names:
        return dataset.class_names.index(name)
    if name.isdecimal() and int(name) < dataset.classes:
        return int(name)
    known = ", ".join(dataset.class_names[:10]) + ", ..." * (dataset.classes > 10)
    raise UsageError(
        f"--{option} {name}: {dataset.name} has no such class; it has {known}, or by number 0 to {dataset.classes - 1}"
        f"{nearest(name, dataset.class_names)}"
    )


def _format(place: str, option: str | None, file_format: str | None) -> tuple[str, type[Reader]]:
    """The full name of what is meant, and what reads it; a file's format, where it isn't its ending that says it."""
    if place == "digits":
        return place, _reader("builtin:Digits")
    if place in KERAS_DATASETS:
        return place, _reader("builtin:KerasDataset")
    if place.startswith("tfds:"):
        return place, _reader("tfds:Tfds")
    path = Path(place).expanduser().absolute()
    module, colon, function = place.rpartition(":")
    if colon and not path.exists() and all(name.isidentifier() for name in (*module.split("."), function)):
        return place, _reader("functions:Function")
    if option is None and not path.exists():
        raise KdistillError(f"the dataset {place} is gone: put it back")
    if not place or not path.exists():
        raise KdistillError(
            f"--{option} {place}: there is no such file, and the names are {', '.join(NAMES)}, tfds:NAME and "
            f"package.module:function{nearest(place, NAMES)}"
        )
    if path.is_dir():
        return str(path), _reader("npy:NpyFolder" if (path / "x_train.npy").exists() else "images:Images")
    check_file(option or "dataset", place)
    if not file_format and path.suffix.lower() not in ENDINGS:
        what = f"--{option} {place}" if option else place
        raise KdistillError(
            f"{what}: its ending says no format: they are {', '.join(ENDINGS)}, and directories of images "
            f"or of .npy; for another file, --data-format says one of {', '.join(FORMATS)}"
        )
    return str(path), _reader(FORMATS[file_format or ENDINGS[path.suffix.lower()]])


def _reader(name: str) -> type[Reader]:
    """A format's reader, from the module that reads it, which is imported late."""
    module, kind = name.split(":")
    reader: type[Reader] = getattr(importlib.import_module(f"kdistill.data.readers.{module}"), kind)
    return reader


def load(name: str) -> Dataset:
    """A dataset by name or path, as `--dataset` takes it.

    Raises:
        KdistillError: if there is none, or the file is no dataset.
    """
    return resolve(name, option="dataset").load()


def _split(part: Part, name: str, place: str, names: Sequence[str] | None) -> Split:
    """Check a part; `names` are the classes its labels name, None where labels are class numbers already."""
    inputs = part.inputs
    where = f"{place}: {part.name}"
    if inputs.dtype.kind not in "fiub" or inputs.dtype.itemsize > 8:
        raise KdistillError(
            f"{where} is of type {inputs.dtype}: inputs are uint8, floats or whole numbers of up to 64 bits; save them "
            "as such, e.g. with .astype('float32')"
        )
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
    return _named(np.unique(part.labels))


def _of_categories(part: Part, place: str, names: Sequence[str]) -> NDArray[np.int64]:
    assert part.labels is not None
    number = {name: place for place, name in enumerate(names)}
    values, where = np.unique(part.labels, return_inverse=True)
    texts = _named(values)
    if unknown := [text for text in texts if text not in number]:
        raise KdistillError(
            f"{place}: {part.labels_name} holds {unknown[0]!r}, which is none of the classes {', '.join(list(names)[:10])}"
        )
    return np.array([number[text] for text in texts], np.int64)[where.reshape(-1)]


def _named(values: NDArray[Any]) -> list[str]:
    """The classes that distinct labels name; floats that are all whole numbers do so without a decimal point."""
    whole = values.dtype.kind == "f" and np.array_equal(values, np.round(values))
    return [text(int(value) if whole else value) for value in values]


def _check_classes(part: Part, where: str, *, table: bool) -> None:
    """Refuse labels that look like the targets of a regression, which would train a class for each number.

    Whole numbers in arrays are class numbers, by agreement. Floats, and numbers of any kind in a table, are classes
    unless they have more than `MOST_FLOAT_CLASSES` distinct values (whole numbers: and fewer than ten rows for each, as
    prices do), or more than 20 of which most have a single row. Numbers with a fraction, which are rarely classes, may
    not have a distinct value for more than half of the rows.

    Raises:
        KdistillError: if they do.
    """
    labels = part.labels
    if labels is None or labels.dtype.kind not in ("iuf" if table else "f"):
        return
    values, counts = np.unique(labels, return_counts=True)
    distinct, rows, floats = len(values), len(labels), labels.dtype.kind == "f"
    many = distinct > MOST_FLOAT_CLASSES and (floats or rows < 10 * distinct)
    single = distinct > 20 and 2 * np.count_nonzero(counts == 1) > distinct
    fractions = floats and 2 * distinct > rows and not np.array_equal(values, np.round(values))
    if many or single or fractions:
        as_classes = "write them as texts, e.g. class 7" if table else "store them as integers from 0"
        raise KdistillError(
            f"{where} holds {distinct:,} different numbers in {rows:,} rows, e.g. {values[0]}: regression is not "
            f"supported, and a label is one of some classes; if these numbers are classes, {as_classes}"
        )


def _unusual(classes: int, used: int, where: str) -> tuple[str, ...]:
    """Warnings about a number of classes, of which some are used by a row."""
    if classes <= MANY_CLASSES and classes <= 2 * used:
        return ()
    fix = "; numpy.unique(labels, return_inverse=True)[1] numbers the classes that are used" if used < classes else ""
    has = f"{where} makes {classes:,} classes, of which {used:,} have a row, and networks have an output for each"
    return (has + fix,)


def _labels(labels: NDArray[Any], rows: int, where: str) -> NDArray[np.int64]:
    """Class numbers (rows,) as int64, checked."""
    check_labels(labels.shape, labels.dtype, rows, where)
    if labels.size != rows:
        raise KdistillError(f"{where} has shape {labels.shape}: {matrix_fault(labels, 'labels.argmax(axis=1)')}")
    labels = labels.reshape(-1)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise KdistillError(f"{where} holds NaN or infinity, first in row {int(np.argmin(np.isfinite(labels)))}")
    kind = labels.dtype.kind
    if kind not in "iufb" or (kind == "f" and not np.array_equal(labels, np.floor(labels))):
        raise KdistillError(
            f"{where} holds {labels.dtype} values that are no class numbers: it needs 0, 1, 2, ... (regression is not "
            "supported)"
        )
    if labels.min() < 0:
        raise KdistillError(f"{where} holds the label {labels.min()}: class numbers begin at 0")
    if labels.max() >= MOST_CLASSES:
        raise KdistillError(f"{where} holds the label {labels.max()}: class numbers are 0 up to the number of classes")
    return labels.astype(np.int64)
