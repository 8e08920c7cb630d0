"""User-defined functions that return arrays or `tf.data.Dataset`s."""

from __future__ import annotations

import numpy as np
import pytest
from small_data import HALF, X, Y, check_error, check_rows, load, save_module

from kdistill import data


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


RETURNED = {
    "arrays": "return x, y",
    "lists": "return x.tolist(), y.tolist()",
    "train and test": "return (x, y), (x[:9], y[:9])",
    "a dictionary": "return {'x_train': x, 'y_train': y, 'x_test': x[:9], 'y_test': y[:9], 'class_names': list('abc')}",
    "string labels": "return x, [['a', 'b', 'c'][label] for label in y]",
    "tensors": "return tf.constant(x), tf.constant(y)",
    "tf.data": "return dataset()",
    "two of tf.data": "return dataset(), dataset(9)",
    "tf.data of unknown length": "return dataset().filter(lambda a, b: True)",
    "tf.data with string labels": "return dataset().map(lambda a, b: (a, tf.gather(['a', 'b', 'c'], b)))",
    "tf.data shuffled once": "return dataset().shuffle(60, seed=1, reshuffle_each_iteration=False)",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RETURNED)
def test_returned_values(tmp_path, capsys, kind):
    """All supported values give the same rows and labels. What the module prints does not go to stdout."""
    has_test = kind in ("train and test", "a dictionary", "two of tf.data")
    dataset = load(save_module(tmp_path, RETURNED[kind]), **{} if has_test else {"test_fraction": 0.15})
    parts = (dataset.train,) if has_test else (dataset.train, dataset.test)
    rows = [row.astype(np.uint8).tobytes() for part in parts for row in part.read()]
    labels = np.concatenate([part.labels for part in parts])
    assert sorted(zip(rows, labels, strict=True)) == sorted(zip(map(bytes, X), Y, strict=True))
    assert (len(dataset.test), dataset.classes) == (9, 3)
    assert dataset.class_names == (("a", "b", "c") if "string" in kind or "dictionary" in kind else ("0", "1", "2"))
    check_rows(dataset.train.inputs, dataset.train.read())
    assert capsys.readouterr().out == ""


def test_inputs_only(tmp_path):
    """A function that returns no labels can be a transfer set."""
    dataset = load(save_module(tmp_path, "return (x, y), (x, y)"))
    for body in ("return dataset().map(lambda a, b: a)", "return {'x_train': x}", "return x, None"):
        split = data.resolve(save_module(tmp_path, body)).load_transfer_set(dataset)
        assert (len(split), split.labeled_rows) == (60, 0)
        check_rows(split.inputs, X)


def test_digest_is_that_of_the_source(tmp_path):
    """It is computed without running the module or its package."""
    package = tmp_path / "pack_age"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "mine.py").write_text("raise SystemExit")
    source = data.resolve("pack_age.mine:load")
    before = source.digest()
    (package / "mine.py").write_text("raise SystemExit  # changed")
    assert data.resolve(source.name).digest() != before
    assert source.name == "pack_age.mine:load"


_GENERATED = "\nreturn tf.data.Dataset.from_generator(rows, output_types=(tf.float32, tf.int64))"
_SHAPES = "def rows():\n    for i in range({0}): yield np.zeros(1 + i // {1}), i % 2" + _GENERATED
_PASSES = (
    "passes = []\ndef rows():\n    passes.append(1)\n    for i in range(9 {0} len(passes)): yield np.zeros(3), i % 2"
)
_RANDOM = "draw = np.random.default_rng()\ndef rows():\n    for i in range(9): yield draw.normal(size=3), i % 2"
_RAGGED = "return tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1], [1, 2]]), [0, 1]))"
BAD = {
    "exception": ("a = 1\nreturn a / 0", ["ZeroDivisionError: division by zero", ".py:10"]),
    "exception of many lines": ("raise ValueError('one\\ntwo')", ["ValueError: one", ".py:9"]),
    "exit": ("raise SystemExit('enough')", ["SystemExit: enough", ".py:9"]),
    "bad syntax": ("return (", ["SyntaxError", ".py:9"]),
    "None": ("return None", ["None", "(x, y)"]),
    "triple": ("return x, y, x", ["(a value of type ndarray, a value of type ndarray, a value"]),
    "other names": ("return {'x': x, 'y': y}", ["x, y", "x_train"]),
    "ragged lists": ("return [[1], [1, 2]], [0, 1]", ["x_train", "array"]),
    "objects": ("return [{}, {}], [0, 1]", ["x_train", "dict"]),
    "labels of several types": ("return x, np.array([None, *y[1:]])", ["y_train", "NoneType, int"]),
    "missing label": ("return x, y[:-1]", ["59 labels", "60 rows"]),
    "floats beyond float32": ("return x * 1e300, y", ["x_train", "e+30", "float32"]),
    "tf.data and an array": ("return dataset(), x", ["_TensorSliceDataset"]),
    "endless tf.data": ("return dataset().repeat()", ["train", ".repeat()"]),
    "batches": ("return dataset().batch(20)", ["(None,)", ".unbatch()"]),
    "one-hot labels": ("return dataset().map(lambda a, b: (a, tf.one_hot(b, 3)))", ["(60, 3)", "argmax"]),
    "dictionaries": ("return dataset().map(lambda a, b: {'a': a, 'b': b})", ["a dictionary of a, b"]),
    "triples": ("return dataset().map(lambda a, b: (a, b, b))", ["(Tensor, Tensor, Tensor)"]),
    "ragged tensors": (_RAGGED, ["(RaggedTensor, Tensor)"]),
    "rows of other shapes": (_SHAPES.format(9, 5), ["train", "shape"]),
    "blocks of other shapes": (_SHAPES.format(1500, 1000), ["(1,)", "(2,)"]),
    "failing generator": (
        "def rows():\n    yield np.zeros(3), 0\n    1 / 0" + _GENERATED,
        ["ZeroDivisionError: division by zero", ".py:11)"],
    ),
    "empty tf.data": ("return dataset(0)", ["train", "empty"]),
    "NaN": ("return dataset().map(lambda a, b: (tf.cast(a, tf.float32) / 0, b))", ["train", "row 0"]),
    "new order in each pass": ("return dataset().shuffle(60, seed=1)", ["reshuffle_each_iteration=False"]),
    "new values in each pass": (_RANDOM + _GENERATED, ["train", "row 0"]),
    "shorter second pass": (_PASSES.format("-") + _GENERATED, ["train", "8"]),
    "longer second pass": (_PASSES.format("+") + _GENERATED, ["train", "10"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_functions(tmp_path, case):
    body, expected = BAD[case]
    place = save_module(tmp_path, body)
    check_error(place, place, *expected, **HALF)


def test_function_with_an_argument(tmp_path):
    check_error(save_module(tmp_path, "return x, y", "path"), "TypeError", str(tmp_path), **HALF)


@pytest.mark.parametrize(
    ("place", "missing"),
    [("nosuch:load", "nosuch"), ("json.nosuch:load", "json.nosuch"), ("json:nosuch", "nosuch"), ("sys:exit", "sys")],
)
def test_functions_that_do_not_exist(place, missing):
    assert missing in check_error(place, **HALF).replace(place, "")
