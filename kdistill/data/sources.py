"""Sources: finds the reader of a dataset name, and loads what it reads as a dataset or transfer set."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdistill import workspace
from kdistill.data.dataset import Dataset, Split
from kdistill.data.labels import category_names, class_numbers, class_warnings, refuse_regression
from kdistill.data.reader import Contents, Part, Reader, RowSpec, check_file, did_you_mean
from kdistill.data.rows import Standardized, column_statistics
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import ReadOptions

FILE_FORMATS = {  # by the name that --data-format takes: module and class of the reader, and file extensions
    "npz": ("npz:Npz", [".npz"]),
    "npy": ("npy:Npy", [".npy"]),
    "hdf5": ("hdf5:Hdf5", [".h5", ".hdf5"]),
    "csv": ("tables:Table", [".csv"]),
    "parquet": ("tables:Table", [".parquet"]),
}
KERAS_DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
NAMED_DATASETS = {"digits": "builtin:Digits"} | dict.fromkeys(KERAS_DATASETS, "builtin:KerasDataset")


@dataclass(frozen=True)
class Source:
    """A dataset name and the reader for it."""

    name: str
    reader: Reader

    @property
    def place(self) -> str:
        """Where the data is, for messages."""
        return self.reader.place

    def identity(self) -> workspace.Input:
        """Return the name of the data, and a digest of its bytes and of the options that it is read with."""
        digest = self.reader.digest()
        without_effect = (*self.reader.files, *self.reader.limits)
        options = sorted(
            (name, value) for name, value in self.reader.options.given().items() if name not in without_effect
        )
        if options:
            digest = "sha256:" + hashlib.sha256(f"{digest} {options}".encode()).hexdigest()
        return workspace.Input(self.name, digest)

    def load(self) -> Dataset:
        """Read and check the labels, and return a dataset whose inputs are read when needed.

        Raises:
            KdistillError: if the data is not a dataset.
            UsageError: if `--test-fraction` is set, but the data has test rows.
        """
        contents = self.reader.contents()
        names = self._class_names(contents)
        train = self._split(contents.train, "train", names if contents.by_name else None)
        where = f"{self.place}: {contents.train.labels_name}"
        refuse_regression(contents.train, where, table=contents.categories)
        classes = max(len(names), int(train.labels.max()) + 1)
        if classes < 2:
            raise KdistillError(f"{where} holds a single class: expected two or more")
        if names and len(names) < classes:
            raise KdistillError(f"{self.place}: class_names has {len(names)} names for {classes} classes")
        if contents.test:
            test = self._split(contents.test, "test", names if contents.by_name else None)
            self._refuse_test_fraction()
            _check_same_rows(train, contents.train.name, test, contents.test.name, self.place)
            self._check_range(contents.test, test, classes, contents.train.labels_name)
        else:
            train, test = self._hold_out(train)
        preprocessing = dict(contents.preprocessing)
        if contents.columns:
            statistics = column_statistics(train.inputs, contents.columns, self.place)
            preprocessing["standardised"] = statistics
            train, test = (
                _standardize(split, statistics, f"{self.place}: the {split.name} part") for split in (train, test)
            )
        used = len(np.unique(np.concatenate([train.labels, test.labels])))
        return Dataset(
            self.name,
            train,
            test,
            classes,
            tuple(names or map(str, range(classes))),
            preprocessing,
            (*contents.warnings, *class_warnings(classes, used, where)),
        )

    def load_transfer_set(self, dataset: Dataset) -> Split:
        """Return the training rows as a transfer set for a dataset, preprocessed like the rows of the dataset.

        Raises:
            KdistillError: if the rows or classes differ from those of the dataset.
            UsageError: if `--test-fraction` is set, but the data has test rows.
        """
        contents = self.reader.matching(RowSpec(dataset.input_shape, dataset.preprocessing)).contents()
        if contents.class_names and not contents.by_name and tuple(contents.class_names) != dataset.class_names:
            raise KdistillError(
                f"{self.place} has the classes {', '.join(contents.class_names[:5])}..., but {dataset.name} has "
                f"{', '.join(dataset.class_names[:5])}...: expected the classes of the dataset, or no labels"
            )
        split = self._split(contents.train, "transfer set", dataset.class_names if contents.by_name else None)
        if contents.test:
            self._refuse_test_fraction()
        elif self.reader.options.test_fraction is not None:
            split = self._hold_out(split)[0]
        if contents.columns and (statistics := dataset.preprocessing.get("standardised")):
            split = _standardize(split, statistics, self.place)
        _check_same_rows(dataset.train, dataset.name, split, self.place, "the transfer set")
        self._check_range(contents.train, split, dataset.classes, dataset.name)
        return replace(split, warnings=contents.warnings)

    def _class_names(self, contents: Contents) -> list[str]:
        """Return the class names, or an empty list if labels are numbers without names."""
        for part in (contents.train, contents.test):
            if part and part.labels is None:
                raise KdistillError(
                    f"{self.place} has no {part.labels_name}: a dataset needs labels; without, use it as a --transfer-set"
                )
        names = list(contents.class_names)
        if contents.by_name and not names:
            assert contents.train.labels is not None
            names = category_names(contents.train.labels)
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise KdistillError(f"{self.place}: class_names has {repeated[0]!r} twice: expected distinct names")
        return names

    def _split(self, part: Part, name: str, class_names: Sequence[str] | None) -> Split:
        """Check the inputs and labels of a part; `class_names` is None if its labels are class numbers."""
        inputs, where = part.inputs, f"{self.place}: {part.name}"
        if inputs.dtype.kind not in "fiub" or inputs.dtype.itemsize > 8:
            raise KdistillError(
                f"{where} is of type {inputs.dtype}: expected uint8, floats or integers of up to 64 bits, e.g. after "
                ".astype('float32')"
            )
        if len(inputs.shape) < 2 or 0 in inputs.shape[1:]:
            raise KdistillError(f"{where} has shape {inputs.shape}: expected rows of one or more values each")
        if len(inputs) == 0:
            raise KdistillError(f"{where} has no rows")
        return Split(name, inputs, class_numbers(part, self.place, class_names))

    def _check_range(self, part: Part, split: Split, classes: int, classes_of: str) -> None:
        if split.labels.max() >= classes:
            raise KdistillError(
                f"{self.place}: {part.labels_name} holds the label {split.labels.max()}, beyond the {classes} classes of "
                f"{classes_of}"
            )

    def _refuse_test_fraction(self) -> None:
        if self.reader.options.test_fraction is not None:
            raise UsageError(f"{self.place} has a test part: omit --test-fraction")

    def _hold_out(self, split: Split) -> tuple[Split, Split]:
        """Return training and test rows, by `--test-fraction`; the choice depends only on the number of rows."""
        fraction = self.reader.options.test_fraction
        if fraction is None:
            raise KdistillError(f"{self.place} has no test part: --test-fraction 0.2 sets aside a fifth of the rows")
        rows = len(split)
        is_test = np.zeros(rows, bool)
        is_test[np.random.default_rng(rows).permutation(rows)[: round(rows * float(fraction))]] = True
        if not 0 < is_test.sum() < rows:
            raise KdistillError(
                f"--test-fraction {fraction} sets aside {is_test.sum()} of the {rows} rows of {self.place}: expected at "
                "least one training row and one test row"
            )
        return split.select(~is_test), replace(split.select(is_test), name="test")


def load(name: str) -> Dataset:
    """Return the dataset with a name or path, as `--dataset` takes it.

    Raises:
        KdistillError: if there is no such dataset.
    """
    return resolve(name, option="dataset").load()


def resolve(name: str, *, option: str | None = None, cache: Path | None = None) -> Source:
    """Return the source of a dataset, a path or a `package.module:function`.

    Args:
        name: may end with `?` and read options, as written by `ReadOptions.named` and in `Source.name`.
        option: the command-line option that the name is from, for messages; None if it is from a manifest.
        cache: a directory for decoded rows, e.g. `Workspace.cache`.

    Raises:
        KdistillError: if there is no such dataset.
        UsageError: if a read option has a wrong value, or is not for this format.
    """
    place, options = ReadOptions.of(name)
    place, reader = _find_reader(place, option, options.data_format)
    options = options.absolute(reader.files)
    return Source(options.named(place), reader(place, options, cache))


def short_name(name: str) -> str:
    """Return the name of a dataset without folders and read options, for titles."""
    return ReadOptions.of(name)[0].rsplit("/", 1)[-1]


def _find_reader(place: str, option: str | None, data_format: str | None) -> tuple[str, type[Reader]]:
    """Return the absolute path, or the name if it is not a path, and the reader for it."""
    if place in NAMED_DATASETS:
        return place, _import_reader(NAMED_DATASETS[place])
    if place.startswith("tfds:"):
        return place, _import_reader("tfds:Tfds")
    path = Path(place).expanduser().absolute()
    module, colon, function = place.rpartition(":")
    if colon and not path.exists() and all(name.isidentifier() for name in (*module.split("."), function)):
        return place, _import_reader("functions:Function")
    if option is None and not path.exists():
        raise KdistillError(f"dataset {place} no longer exists: put it back")
    if not place or not path.exists():
        raise KdistillError(
            f"--{option} {place}: there is no such file or dataset (expected a path, {', '.join(NAMED_DATASETS)}, tfds:NAME or "
            f"package.module:function){did_you_mean(place, NAMED_DATASETS)}"
        )
    if path.is_dir():
        return str(path), _import_reader("npy:NpyFolder" if (path / "x_train.npy").exists() else "images:Images")
    check_file(option or "dataset", place)
    extensions = {extension: reader for reader, known in FILE_FORMATS.values() for extension in known}
    reader = FILE_FORMATS[data_format][0] if data_format else extensions.get(path.suffix.lower())
    if reader is None:
        raise KdistillError(
            f"{f'--{option} ' if option else ''}{place}: unrecognized file extension {path.suffix!r} (expected "
            f"{', '.join(extensions)}, or a directory of images or .npy files); pass --data-format, one of "
            f"{', '.join(FILE_FORMATS)}"
        )
    return str(path), _import_reader(reader)


def _import_reader(name: str) -> type[Reader]:
    module, _, kind = name.partition(":")
    reader: type[Reader] = getattr(importlib.import_module(f"kdistill.data.readers.{module}"), kind)
    return reader


def _check_same_rows(split: Split, name: str, other: Split, other_name: str, where: str) -> None:
    expected, actual = split.inputs, other.inputs
    if expected.shape[1:] != actual.shape[1:] or expected.dtype != actual.dtype:
        raise KdistillError(
            f"{where}: {name} has rows of {expected.shape[1:]} {expected.dtype} and {other_name} of {actual.shape[1:]} "
            f"{actual.dtype}: expected the same shape and type"
        )


def _standardize(split: Split, statistics: dict[str, Any], where: str) -> Split:
    return replace(split, inputs=Standardized(split.inputs, statistics, where))
