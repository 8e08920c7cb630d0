"""Small data in every format, and how the tests of the readers load it."""

from __future__ import annotations

import itertools

import h5py
import numpy as np
import pytest
from PIL import Image

from kdistill import data
from kdistill.errors import KdistillError
from kdistill.settings import ReadOptions

NAMES = ["cat", "ant", "bee"]
HALF = {"test_fraction": 0.5}
_COUNT = itertools.count()
_MODULE = """
import numpy as np, tensorflow as tf
y = np.arange(60) % 3
x = (np.random.default_rng(0).integers(0, 60, (60, 6, 4)) + 60 * y[:, None, None]).astype(np.uint8)
def dataset(rows=60):
    return tf.data.Dataset.from_tensor_slices((x[:rows], y[:rows]))
print("a module may print")
"""


def small(rows=60, classes=3, seed=0):
    """Return inputs (rows, 6, 4) uint8 whose brightness is their class, and labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    return (draw.integers(0, 60, (rows, 6, 4)) + 60 * labels[:, None, None]).astype(np.uint8), labels


X, Y = small()


def named(place, **options):
    return ReadOptions(**options).named(str(place))


def load(place, **options):
    return data.resolve(named(place, **options)).load()


def inputs_of(place, **options):
    """Return the rows of the training part, in the order of the reader."""
    return data.resolve(named(place, **options)).reader.contents().train.inputs


def read_parts(dataset):
    return [dataset.train.read(), dataset.test.read()]


def check_error(place, *expected, **options):
    """Check that loading or reading a dataset raises an error of one line with the expected words, and return it."""
    with pytest.raises(KdistillError) as caught:
        read_parts(load(place, **options))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(words in message for words in expected), message
    return message


def check_rows(rows, expected):
    """Check that all ways to read rows return the expected ones."""
    assert (rows.shape, rows.dtype) == (expected.shape, expected.dtype)
    for size in (1, 7, 1000):
        np.testing.assert_array_equal(np.concatenate(list(rows.blocks(size))), expected)
    np.testing.assert_array_equal(rows.read(), expected)
    if rows.seekable:
        np.testing.assert_array_equal(rows.read_range(3, 9), expected[3:9])
        np.testing.assert_array_equal(rows.take(np.array([2, 3, 8])), expected[[2, 3, 8]])


def write(path, content):
    path.write_bytes(content)
    return path


def save_npy(place, **arrays):
    for name, values in arrays.items():
        np.save(place / f"{name}.npy", values)
    return place / "x_train.npy"


def save_npz(place):
    np.savez(place / "data.npz", x_train=X, y_train=Y)
    return place / "data.npz"


def save_h5(place, **arrays):
    (place / "data.h5").unlink(missing_ok=True)  # an earlier test may hold it open
    with h5py.File(place / "data.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return place / "data.h5"


def save_images(place, images=X, labels=Y, names=NAMES, ending="png"):
    """Write images to one folder per class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = place / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.{ending}")
    return place


def table(rows=40):
    """Return two columns of numbers, a constant one, and labels that name three classes."""
    draw = np.random.default_rng(0)
    label = np.arange(rows) % 3
    return {
        "age": draw.normal(50, 9, rows) + 20 * label,
        "same": np.full(rows, 0.1),
        "count": draw.integers(0, 9, rows),
        "label": np.array(NAMES)[label],
    }


def save_table(path, columns):
    pandas = pytest.importorskip("pandas", reason="kdistill[tables] is not installed")
    pytest.importorskip("pyarrow", reason="kdistill[tables] is not installed")
    frame = pandas.DataFrame(columns)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


def save_csv(place, **changed):
    return save_table(place / "data.csv", {**table(), **changed})


def save_module(place, body, arguments=""):
    """Write a module with a function `load` to the current directory, under a new name, and return its place."""
    name = f"data_{next(_COUNT)}"
    indented = body.replace("\n", "\n    ")
    (place / f"{name}.py").write_text(f"{_MODULE}def load({arguments}):\n    {indented}\n")
    return f"{name}:load"
