"""`.npy` files and directories of them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from small_data import HALF, X, Y, check_error, check_rows, load, save_npy, write

from kdistill import data
from kdistill.errors import UsageError
from kdistill.settings import ReadOptions


def test_files_are_memory_mapped(tmp_path):
    """Inputs, labels and a test part, each in a file, are read from the files."""
    path = save_npy(tmp_path, x_train=X, labels=Y, other=X[:10], more=Y[:10])
    files = {"labels": "labels", "test_inputs": "other", "test_labels": "more"}
    dataset = load(path, **{option: str(tmp_path / f"{file}.npy") for option, file in files.items()})
    check_rows(dataset.train.inputs, X)
    check_rows(dataset.test.inputs, X[:10])
    assert (dataset.test.labels == Y[:10]).all()
    assert isinstance(dataset.train.inputs.values.base, np.memmap)


def test_test_fraction_splits_all_rows(tmp_path):
    """The training and test rows together are the rows of the file."""
    path = save_npy(tmp_path, x_train=X, labels=Y)
    dataset = load(path, labels=str(tmp_path / "labels.npy"), test_fraction=0.25)
    assert (len(dataset.train), len(dataset.test)) == (45, 15)
    rows = np.concatenate([dataset.train.read(), dataset.test.read()])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, X))
    check_rows(dataset.train.inputs, dataset.train.read())


def test_classes_do_not_depend_on_the_split(tmp_path):
    """A class whose only row is in the test part is still a class."""
    labels = Y % 2
    for row in range(0, 60, 7):
        changed = np.where(np.arange(60) == row, 2, labels)
        assert load(save_npy(tmp_path, x_train=X, y_train=changed).parent, **HALF).classes == 3


def test_files_in_options_have_absolute_paths(tmp_path, monkeypatch):
    """The name of a dataset has the full path of an option's file, but its digest depends on the contents only."""
    sources = []
    for place in (tmp_path / "one", tmp_path / "two"):
        place.mkdir()
        save_npy(place, x_train=X, labels=Y)
        monkeypatch.chdir(place)
        sources.append(data.resolve(ReadOptions(labels="labels.npy", **HALF).named("x_train.npy")))
    monkeypatch.chdir(tmp_path)
    one, two = sources
    assert one.name == f"{tmp_path}/one/x_train.npy?labels={tmp_path}/one/labels.npy&test-fraction=0.5"
    assert data.resolve(one.name).load().classes == 3
    digest = one.digest()
    assert two.digest() == digest
    np.save(tmp_path / "two" / "labels.npy", Y[::-1])
    assert two.digest() != digest
    assert data.resolve(ReadOptions(test_fraction=0.4).named(one.name)).digest() != digest


def test_directory(tmp_path):
    save_npy(tmp_path, x_train=X, y_train=Y, x_test=X[:9], y_test=Y[:9], class_names=np.array(["a", "b", "ü"]))
    dataset = load(tmp_path)
    check_rows(dataset.train.inputs, X)
    assert (len(dataset.test), dataset.class_names) == (9, ("a", "b", "ü"))


def test_test_labels_need_test_inputs(tmp_path):
    path = save_npy(tmp_path, x_train=X)
    with pytest.raises(UsageError, match="--test-inputs"):
        load(path, test_labels=str(path))


def _header(path, shape):
    """Write a header that claims a shape, and 1000 bytes."""
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.write(bytes(1000))
    return path


def _pipe(place, name):
    os.mkfifo(place / f"{name}.npy")
    return place


OF_FILES = {
    "labels of another length": (
        lambda p: save_npy(p, x_train=X, labels=np.zeros(10**6, np.uint8)),
        {"labels": "labels.npy"},
        ["labels.npy", "1000000", "60"],
    ),
    "labels from a pipe": (
        lambda p: save_npy(_pipe(p, "labels"), x_train=X),
        {"labels": "labels.npy"},
        ["--labels", "labels.npy", "pipe"],
    ),
    "labels from a directory": (lambda p: save_npy(p, x_train=X), {"labels": "."}, ["--labels", "directory"]),
    "missing file of labels": (lambda p: save_npy(p, x_train=X), {"labels": "/nosuch.npy"}, ["--labels /nosuch.npy"]),
    "no labels": (lambda p: save_npy(p, x_train=X), {}, ["--labels FILE.npy"]),
    "no test labels": (
        lambda p: save_npy(p, x_train=X, y_train=Y),
        {"labels": "y_train.npy", "test_inputs": "x_train.npy"},
        ["--test-labels FILE.npy"],
    ),
    "10^12 rows": (lambda p: _header(p / "x.npy", (10**12, 28)), {"labels": "x.npy"}, ["x.npy", "1000000000000"]),
    "negative shape": (lambda p: _header(p / "x.npy", (-10, -100)), {"labels": "x.npy"}, ["x.npy", "(-10, -100)"]),
    "objects": (
        lambda p: save_npy(p, x_train=np.array([{}, {}], object)),
        {"labels": "x_train.npy"},
        ["x_train.npy", "object", "pickle"],
    ),
    "text file": (lambda p: write(p / "x.npy", b"hello\n" * 50), {"labels": "x.npy"}, ["x.npy", ".npy file"]),
}
OF_FOLDERS = {
    "long class names": (
        {"x_train": X, "y_train": Y, "class_names": np.array(["a" * 1001])},
        HALF,
        ["class_names.npy", "1,001"],
    ),
    "no y_train": ({"x_train": X}, {}, ["y_train.npy"]),
    "no test part": ({"x_train": X, "y_train": Y}, {}, ["--test-fraction 0.2"]),
    "test part without rows": ({"x_train": X, "y_train": Y}, {"test_fraction": 0.001}, ["0.001", "60 rows"]),
}


@pytest.mark.parametrize("case", OF_FILES)
def test_bad_files(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    make, options, expected = OF_FILES[case]
    check_error(make(tmp_path), *expected, **options)


@pytest.mark.parametrize("case", OF_FOLDERS)
def test_bad_folders(tmp_path, case):
    arrays, options, expected = OF_FOLDERS[case]
    check_error(save_npy(tmp_path, **arrays).parent, *expected, **options)


def test_pipe_in_a_folder(tmp_path):
    """A pipe is not read: it might never end."""
    check_error(_pipe(tmp_path, "x_train"), "x_train.npy")
