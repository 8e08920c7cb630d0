"""Sources: finds the reader of a dataset name, and loads what it reads as a dataset or transfer set."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import tasks
from kdistill.data.dataset import Dataset, Split
from kdistill.data.reader import Contents, Part, Reader, RowSpec, check_file, did_you_mean
from kdistill.data.rows import Rows, held_out, network_dtype, type_name
from kdistill.data.texts import TextRows
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import DATA_FORMATS, ReadOptions
from kdistill.tasks import RawLabels, Task, Vocabulary

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

    def digest(self) -> str:
        """Return a digest of the data and of the options that it is read with."""
        digest = self.reader.digest()
        without_effect = (*self.reader.files, *self.reader.limits)
        given = self.reader.options.given()
        if options := sorted(item for item in given.items() if item[0] not in without_effect):
            digest = "sha256:" + hashlib.sha256(f"{digest} {options}".encode()).hexdigest()
        return digest

    def load(self) -> Dataset:
        """Read and check the labels, and return a dataset whose inputs are read when needed.

        Raises:
            KdistillError: if the data is not a dataset.
            UsageError: if `--test-fraction` is set, but the data has test rows.
        """
        contents = self._checked(self.reader.contents())
        raw = self._raw_labels(contents.train, contents)
        task = self._task(raw, contents)
        raw_test = self._raw_labels(contents.test, contents) if contents.test else None
        vocabulary, labels, test_labels = task.read_labels(raw, raw_test, contents.class_names)
        train = Split("train", contents.train.inputs, labels, self._weights(contents.train))
        if contents.test and test_labels is not None:
            test = Split("test", contents.test.inputs, test_labels)
            self._refuse_test_fraction()
            self._check_match(contents.test, test, train, "the training rows")
        else:
            train, test = self._hold_out(train)
        return Dataset(
            self.name,
            train,
            test,
            task,
            vocabulary.size,
            tuple(vocabulary.names),
            contents.preprocessing,
            (*contents.warnings, *vocabulary.warnings),
            contents.notes,
        )

    def load_transfer_set(self, dataset: Dataset) -> Split:
        """Return the training rows as a transfer set for a dataset, preprocessed like the rows of the dataset.

        Raises:
            KdistillError: if the rows or classes differ from those of the dataset.
            UsageError: if `--test-fraction` is set, but the data has test rows.
        """
        contents = self._matching(RowSpec(dataset.input_shape, dataset.preprocessing))
        raw = self._raw_labels(contents.train, contents)
        self._check_class_names(
            raw, contents, dataset.class_names, dataset.name, "use the classes of the dataset, or no labels"
        )
        vocabulary = Vocabulary(dataset.classes, dataset.class_names)
        split = Split(
            "transfer set", contents.train.inputs, dataset.task.encode(raw, vocabulary), self._weights(contents.train)
        )
        if contents.test:
            self._refuse_test_fraction()
        elif self.reader.options.test_fraction is not None:
            split = self._hold_out(split)[0]
        self._check_match(contents.train, split, dataset.train, dataset.name)
        return replace(split, warnings=contents.warnings, notes=contents.notes)

    def load_rows(self, like: Mapping[str, Any], split: str = "train") -> Rows:
        """Return rows without labels, preprocessed like the rows that a network was trained on.

        Args:
            like: the description of the network, as `Dataset.description` returns it.
            split: `train`, or `test` for the test rows of data that has them.

        Raises:
            KdistillError: if the data has no such rows, or they do not fit the network.
        """
        contents = self._contents_like(like, labels=False)
        part = contents.test if split == "test" else contents.train
        if part is None:
            raise UsageError(f"{self.place} has no test rows: remove --split {split}")
        self._check_like(part, contents, like)
        return part.inputs

    def load_other(self, like: Mapping[str, Any]) -> Dataset:
        """Return labeled rows that a network was not trained on, as the test rows of a dataset without training rows.

        These are the test rows of the data, or all of its rows if it has no test rows.

        Args:
            like: the description of the network, as `Dataset.description` returns it, with all class names.

        Raises:
            KdistillError: if the rows or labels do not fit the network.
            UsageError: if an option does not apply.
        """
        contents = self._contents_like(like)
        part = contents.test or contents.train
        self._check_like(part, contents, like)
        task, names, option = tasks.get(like["task"]), tuple(like["class_names"]), self.reader.options.task
        if option not in (None, task.name):
            raise UsageError(f"--task {option} does not fit the network, whose task is {task.name}: remove it")
        raw = self._raw_labels(part, contents)
        if not task.needs_labels:
            raw = replace(raw, values=None)
        elif raw.values is None:
            raise KdistillError(f"{self.place} has no {part.labels_name} (for rows without labels: kdistill predict)")
        self._check_class_names(raw, contents, names, "the network", "number the classes as the network does")
        rows = Split("other", part.inputs, task.encode(raw, Vocabulary(len(names), names)))
        if contents.test:
            self._refuse_test_fraction()
        elif self.reader.options.test_fraction is not None:
            rows = replace(self._hold_out(rows)[1], name=rows.name)
        none = rows.select(np.zeros(len(rows), np.bool_))
        about = contents.preprocessing, contents.warnings, contents.notes
        return Dataset(self.name, none, rows, task, len(names), names, *about)

    def _contents_like(self, like: Mapping[str, Any], *, labels: bool = True) -> Contents:
        return self._matching(RowSpec(tuple(like["input"]["shape"]), like["preprocessing"], labels))

    def _matching(self, spec: RowSpec) -> Contents:
        return self._checked(self.reader.matching(spec).contents())

    def _check_like(self, part: Part, contents: Contents, like: Mapping[str, Any]) -> None:
        """Check that rows fit the network with a description."""
        rows, table = part.inputs, like["preprocessing"].get("table")
        if table and "table" not in contents.preprocessing:
            columns = table["inputs"]
            raise KdistillError(
                f"{self.place} is not a table (expected a .csv or .parquet with the columns {', '.join(columns[:5])}"
                f"{', ...' * (len(columns) > 5)}, as the network was trained on)"
            )
        shape = tuple(like["input"]["shape"])
        expected = like["input"]["data_dtype"] or type_name(rows.dtype)
        if rows.shape[1:] != shape or network_dtype(type_name(rows.dtype)) != network_dtype(expected):
            raise KdistillError(
                f"{self.place}: {part.name} has rows of shape {rows.shape[1:]} and type {type_name(rows.dtype)} (expected {shape} and "
                f"{expected}, like the rows that the network was trained on)"
            )

    def _check_class_names(self, raw: RawLabels, contents: Contents, names: tuple[str, ...], of: str, fix: str) -> None:
        """Check that class numbers have the same meaning as in a dataset or network, where both name the classes."""
        by_number = raw.values is None or (not raw.by_name and raw.values.dtype.kind not in "USO")
        if contents.class_names and by_number and tuple(contents.class_names) != names:
            raise KdistillError(
                f"{self.place} has the classes {', '.join(contents.class_names[:5])}..., but {of} has "
                f"{', '.join(names[:5])}...: {fix}"
            )

    def _raw_labels(self, part: Part, contents: Contents) -> RawLabels:
        where = f"{self.place}: {part.labels_name}"
        return RawLabels(part.labels, len(part.inputs), where, contents.categories, part.columns)

    def _weights(self, part: Part) -> NDArray[np.float32] | None:
        """Return the weights of a part's rows, (rows,), after a check that they are not negative and not all 0."""
        if part.weights is None:
            return None
        with np.errstate(over="ignore"):
            weights = part.weights.astype(np.float32)
        if not (usable := np.isfinite(weights) & (weights >= 0)).all():
            row = int(np.argmin(usable))
            raise KdistillError(f"{self.place}: the weight of row {row} is {part.weights[row]} (expected 0 or more)")
        if not weights.any():
            raise KdistillError(f"{self.place}: all weights are 0 (expected at least one above 0)")
        return weights

    def _task(self, raw: RawLabels, contents: Contents) -> Task:
        """Return the task of the option `--task`, or else of the labels.

        Raises:
            KdistillError: if the task needs labels and a part has none.
        """
        name = self.reader.options.task
        task = tasks.get(name) if name else tasks.choose(raw)
        for part in (contents.train, contents.test) if task.needs_labels else ():
            if part and part.labels is None:
                raise KdistillError(
                    f"{self.place} has no {part.labels_name} (data without labels can only be a --transfer-set, or have "
                    "--task embedding)"
                )
        return task

    def _checked(self, contents: Contents) -> Contents:
        """Return the contents after a check of their inputs, with strings as rows of texts."""
        train, test = (part and replace(part, inputs=self._inputs(part)) for part in (contents.train, contents.test))
        assert train
        return replace(contents, train=train, test=test)

    def _inputs(self, part: Part) -> Rows:
        inputs, where = part.inputs, f"{self.place}: {part.name}"
        if inputs.dtype.kind in "USO" and inputs.shape[1:] in ((), (1,)):
            inputs = TextRows(inputs, where)
        elif inputs.dtype.kind not in "fiub" or inputs.dtype.itemsize > 8:
            raise KdistillError(f"{where} has type {inputs.dtype}: convert it to numbers, e.g. .astype('float32')")
        elif len(inputs.shape) < 2 or 0 in inputs.shape[1:]:
            raise KdistillError(f"{where} has shape {inputs.shape} (expected rows of one or more values each)")
        if len(inputs) == 0:
            raise KdistillError(f"{where} is empty (expected at least one row)")
        return inputs

    def _check_match(self, part: Part, split: Split, train: Split, train_name: str) -> None:
        """Check that the rows of a part match the training rows of a dataset."""
        actual, expected = split.inputs, train.inputs
        if actual.shape[1:] != expected.shape[1:] or actual.dtype != expected.dtype:
            raise KdistillError(
                f"{self.place}: {part.name} has rows of shape {actual.shape[1:]} and type {type_name(actual.dtype)} "
                f"(expected {expected.shape[1:]} and {type_name(expected.dtype)}, like {train_name})"
            )

    def _refuse_test_fraction(self) -> None:
        if self.reader.options.test_fraction is not None:
            raise UsageError(f"{self.place} has a test part: remove --test-fraction")

    def _hold_out(self, split: Split) -> tuple[Split, Split]:
        """Return training and test rows, by `--test-fraction`; the choice depends only on the number of rows."""
        fraction = self.reader.options.test_fraction
        if fraction is None:
            raise KdistillError(
                f"{self.place} is missing a test split: --test-fraction 0.2 sets aside a fifth of the rows"
            )
        rows = len(split)
        is_test = held_out(rows, fraction)
        if not 0 < is_test.sum() < rows:
            raise KdistillError(
                f"--test-fraction {fraction} sets aside {is_test.sum()} of the {rows} rows of {self.place} (expected "
                "at least one training row and one test row)"
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
    argument = f"--{option} {place}" if option else f"dataset {place}"
    if not place or not path.exists():
        raise KdistillError(
            f"{argument}: there is no such file or dataset (expected a path, {', '.join(NAMED_DATASETS)}, tfds:NAME or "
            f"package.module:function){did_you_mean(place, NAMED_DATASETS)}"
        )
    if path.is_dir():
        return str(path), _import_reader("npy:NpyFolder" if (path / "x_train.npy").exists() else "images:Images")
    check_file(argument, place)
    by_extension = {extension: each for each in DATA_FORMATS.values() for extension in each.extensions}
    file_format = DATA_FORMATS[data_format] if data_format else by_extension.get(path.suffix.lower())
    if file_format is None:
        raise KdistillError(
            f"{argument}: unrecognized file extension {path.suffix!r} (expected {', '.join(by_extension)}, or a "
            f"directory of images or .npy files): convert the file, or if it has one of these formats, pass --data-format "
            f"{'|'.join(DATA_FORMATS)}"
        )
    return str(path), _import_reader(file_format.reader)


def _import_reader(name: str) -> type[Reader]:
    module, _, kind = name.partition(":")
    reader: type[Reader] = getattr(importlib.import_module(f"kdistill.data.readers.{module}"), kind)
    return reader
