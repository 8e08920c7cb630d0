"""Datasets, and the keys by which their rows are known."""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from helpers import MNIST, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdistill import data
from kdistill.data.keys import row_keys, validation_rows
from kdistill.data.readers import Array
from kdistill.data.readers.builtin import _enlarge
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import Selection

DTYPES = [np.uint8, np.float16, np.float32, np.float64]
BLOCKS = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=2, max_dims=4, max_side=5))


def test_digits_are_what_they_say(digits):
    """1,437 and 360 rows of 28x28 uint8 in ten classes, all of them in both splits, no row in both."""
    assert (len(digits.train), len(digits.test), digits.classes) == (1437, 360, 10)
    assert digits.input_shape == (28, 28)
    assert digits.input_dtype == "uint8"
    assert set(digits.train.labels) == set(digits.test.labels) == set(range(10))
    assert digits.train.read().max() == 255
    train, test = ({bytes(key) for key in part.keys()} for part in (digits.train, digits.test))
    assert not train & test


def test_enlarging_is_bilinear():
    """Enlarged images agree with interpolation done separately in floating point, to one grey level."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 17, (3, 8, 8)).astype(np.uint8)
    centres = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
    tall = np.array([[np.interp(centres, range(8), column) for column in image.T] for image in small]).swapaxes(1, 2)
    wide = np.array([[np.interp(centres, range(8), row) for row in image] for image in tall])
    np.testing.assert_allclose(_enlarge(small), wide * 255 / 16, atol=0.51)


@given(BLOCKS)
@settings(max_examples=60, deadline=None)
def test_keys_follow_content(inputs):
    """Equal rows have equal keys and different rows different ones, in any order and any split into blocks."""
    keys = row_keys(inputs)
    assert keys.shape == (len(inputs), 16)
    assert keys.dtype == np.uint8
    same = [[a.tobytes() == b.tobytes() for b in inputs] for a in inputs]
    assert [[a.tobytes() == b.tobytes() for b in keys] for a in keys] == same
    order = np.random.default_rng(0).permutation(len(inputs))
    assert (row_keys(inputs[order]) == keys[order]).all()
    assert (np.concatenate([row_keys(inputs[:1]), row_keys(inputs[1:])]) == keys).all()


def test_keys_of_a_split_are_made_once(digits):
    read = []

    class Counted(Array):
        def part(self, start, stop):
            read.append(start)
            return super().part(start, stop)

    split = data.Split("train", Counted(digits.test.read(), "here"), digits.test.labels)
    np.testing.assert_array_equal(split.keys(), row_keys(digits.test.read()))
    assert split.keys() is split.keys()
    assert read == [0]
    assert not split.keys().flags.writeable


def test_keys_know_shape_and_type():
    """The same bytes in another shape or type are another row."""
    row = np.zeros((1, 4, 4), np.uint8)
    others = [row, row.reshape(1, 16), row.reshape(1, 2, 8), row.view(np.float32), row.astype(np.float32)]
    assert len({row_keys(other).tobytes() for other in others}) == len(others)


def test_key_is_the_documented_digest():
    """A key can be made without kdistill: BLAKE2b-128 of the row, salted with BLAKE2b-128 of type and shape."""
    row = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    salt = hashlib.blake2b(b"|u1(2, 3)", digest_size=16).digest()
    expected = hashlib.blake2b(bytes(range(6)), digest_size=16, salt=salt).digest()
    assert row_keys(row).tobytes() == expected


def test_keys_do_not_depend_on_byte_order_or_layout():
    inputs = np.random.default_rng(0).normal(size=(5, 3, 2))
    assert (row_keys(inputs) == row_keys(inputs.astype(">f8"))).all()
    assert (row_keys(inputs) == row_keys(np.asfortranarray(inputs))).all()


@pytest.mark.skipif(not MNIST.exists(), reason="the real MNIST is not here")
def test_mnist_is_keyed_quickly():
    """60,000 rows in 0.3 s, the best of three."""
    inputs = data.resolve(str(MNIST)).load().train.read()
    best = []
    for _ in range(3):
        start = time.perf_counter()
        row_keys(inputs)
        best.append(time.perf_counter() - start)
    assert min(best) <= 0.3


def test_validation_rows_depend_on_key_and_seed_alone(digits):
    """A row is held out or not whatever rows stand around it; another seed holds out others; equal rows go together."""
    keys = digits.train.keys()
    out = validation_rows(keys, 0.2, 5)
    assert 0.15 < out.mean() < 0.25
    order = np.random.default_rng(1).permutation(len(keys))[:400]
    assert (validation_rows(keys[order], 0.2, 5) == out[order]).all()
    assert (validation_rows(keys, 0.2, 6) != out).any()
    assert (validation_rows(keys, 0.1, 5) <= out).all()
    assert len(set(validation_rows(np.repeat(keys[:1], 9, axis=0), 0.5, 5))) == 1


@pytest.mark.parametrize("compressed", [False, True])
def test_blocks_are_the_array(tmp_path, digits, compressed):
    """Read in blocks of any size or whole, compressed or not, an array is what NumPy reads."""
    path = tmp_path / "data.npz"
    save = np.savez_compressed if compressed else np.savez
    arrays = {"x_train": digits.train.read(), "y_train": digits.train.labels}
    save(path, x_test=digits.test.read(), y_test=digits.test.labels, **arrays)
    dataset = data.resolve(str(path)).load()
    for rows in (1, 100, 1437, 5000):
        assert (np.concatenate(list(dataset.train.blocks(rows))) == arrays["x_train"]).all()
    assert (dataset.train.read() == arrays["x_train"]).all()
    assert (dataset.train.keys() == digits.train.keys()).all()


def test_fortran_order_is_read_too(tmp_path, digits):
    path = write_npz(tmp_path / "data.npz", digits, x_train=np.asfortranarray(digits.train.read()))
    dataset = data.resolve(str(path)).load()
    assert (np.concatenate(list(dataset.train.blocks(100))) == digits.train.read()).all()
    assert (dataset.train.keys() == digits.train.keys()).all()


def test_identity_is_the_files_bytes(tmp_path, digits):
    path = write_npz(tmp_path / "data.npz", digits)
    before = data.resolve(str(path)).identity()
    write_npz(path, digits, y_train=digits.train.labels[::-1])
    assert data.resolve(str(path)).identity().digest != before.digest


def _object_npz(path):
    np.savez(path, x_train=np.array([[1, "a"], [None, 2]], object), y_train=[0, 1], x_test=[[1.0]], y_test=[0])


def _recompressed(path, digits, method, damage):
    """An `.npz` as another program zips it, with some bytes of its first array overwritten."""
    write_npz(path, digits)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    contents = bytearray(path.read_bytes())
    contents[500 : 500 + damage] = b"x" * damage
    path.write_bytes(contents)


def _marked(path, digits, flags=0, method=0):
    """An `.npz` whose members claim to have other flags and another compression method than they have."""
    write_npz(path, digits)
    contents = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = -1
        while (place := contents.find(signature, place + 1)) >= 0:
            contents[place + at] |= flags
            contents[place + at + 2] |= method
    path.write_bytes(contents)


def _many_labels(path, digits, count=10**7):
    """An `.npz` of many labels that take little room, which are not to be read."""
    write_npz(path, digits)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "y_train.npy"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
        with archive.open("y_train.npy", "w") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (count,)})
            stream.write(bytes(count))


def _multi_label(dataset):
    labels = np.eye(10)[dataset.train.labels]
    labels[7, :3] = 1
    return labels


def _floats(dataset, value):
    """Inputs as float64, one of them a value."""
    inputs = dataset.train.read().astype(np.float64)
    inputs[3, 4, 5] = value
    return inputs


def _truncated(path, digits):
    write_npz(path, digits)
    path.write_bytes(path.read_bytes()[:-2000])


def _claims_much(path):
    """An `.npz` whose header claims 10^12 rows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 28, 28)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", header.getvalue() + bytes(1000))
        for name in ("y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", header.getvalue())


BAD = {
    "no x_test": (lambda p, d: write_npz(p, d, x_test=None), "has no test part: --test-fraction 0.2"),
    "unequal length": (lambda p, d: write_npz(p, d, y_train=d.train.labels[:-1]), "1436 labels for 1437 rows"),
    "rank": (lambda p, d: write_npz(p, d, x_train=np.zeros(1437, np.uint8)), "inputs need rows"),
    "objects": (lambda p, _: _object_npz(p), "of type object"),
    "text inputs": (lambda p, d: write_npz(p, d, x_train=np.full((1437, 4), "a")), "of type <U1"),
    "nan": (lambda p, d: write_npz(p, d, x_train=_floats(d, np.nan), x_test=np.zeros((360, 28, 28))), "first in row 3"),
    "infinity": (lambda p, d: write_npz(p, d, x_train=_floats(d, np.inf), x_test=np.zeros((360, 28, 28))), "row 3"),
    "negative labels": (lambda p, d: write_npz(p, d, y_train=d.train.labels - 1), "the label -1"),
    "fractional labels": (lambda p, d: write_npz(p, d, y_train=d.train.labels + 0.5), "no class numbers"),
    "nan labels": (lambda p, d: write_npz(p, d, y_train=d.train.labels * np.nan), "NaN"),
    "one-hot labels": (lambda p, d: write_npz(p, d, y_train=np.eye(10)[d.train.labels]), "argmax"),
    "labels beyond": (lambda p, d: write_npz(p, d, y_test=d.test.labels + 5), "label 14, beyond the 10 classes"),
    "huge labels": (lambda p, d: write_npz(p, d, y_train=d.train.labels + 2**20), "class numbers are 0 up to"),
    "one class": (lambda p, d: write_npz(p, d, y_train=d.train.labels * 0), "single class"),
    "no rows": (
        lambda p, d: write_npz(p, d, x_train=np.zeros((0, 28, 28), np.uint8), y_train=np.zeros(0, int)),
        "no rows",
    ),
    "other shape": (lambda p, d: write_npz(p, d, x_test=np.zeros((360, 8, 8), np.uint8)), "must be alike"),
    "empty": (lambda p, _: p.write_bytes(b""), "not a readable .npz"),
    "text": (lambda p, _: p.write_text("hello\n" * 100), "not a readable .npz"),
    "truncated": (_truncated, "not a readable .npz"),
    "10^12 rows": (lambda p, _: _claims_much(p), "not what the file holds"),
    "int64 beyond int32": (
        lambda p, d: write_npz(p, d, x_train=d.train.read().astype(np.int64) << 28, x_test=d.test.read().astype(int)),
        "-2147483648 to 2147483647 (int32)",
    ),
    "uint32 beyond int32": (
        lambda p, d: write_npz(
            p,
            d,
            x_train=np.where(np.arange(1437) == 3, 2**31, 0).astype(np.uint32)[:, None],
            x_test=np.zeros((360, 1), np.uint32),
        ),
        "holds 2147483648 in row 3, column 0",
    ),
    "uint64 beyond int64": (
        lambda p, d: write_npz(
            p, d, x_train=np.full((1437, 2), 2**64 - 1, np.uint64), x_test=np.zeros((360, 2), np.uint64)
        ),
        "18446744073709551615 in row 0",
    ),
    "float64 beyond float32": (
        lambda p, d: write_npz(p, d, x_train=_floats(d, -1e300), x_test=np.zeros((360, 28, 28))),
        "holds -1e+300 in row 3, position (4, 5)",
    ),
    "float128": (
        lambda p, d: write_npz(p, d, x_train=d.train.read().astype(np.longdouble)),
        "x_train is of type float1",
    ),
    "complex": (lambda p, d: write_npz(p, d, x_train=d.train.read().astype(complex)), "is of type complex128"),
    "multi-label": (lambda p, d: write_npz(p, d, y_train=_multi_label(d)), "multi-label data is not supported: row 7"),
    "labels of no columns": (
        lambda p, d: write_npz(p, d, y_train=np.zeros((1437, 0))),
        "(1437, 0): labels are one class per row",
    ),
    "probabilities": (
        lambda p, d: write_npz(p, d, y_train=np.full((1437, 10), 0.1)),
        "(1437, 10): labels are one class per row",
    ),
    "regression": (lambda p, d: write_npz(p, d, y_train=np.arange(1437.0)), "1,437 different numbers in 1,437 rows"),
    "many labels": (_many_labels, "10000000 labels for 1437 rows"),
    "long class names": (
        lambda p, d: write_npz(p, d, class_names=np.array(["a" * 1001, *"bcdefghij"])),
        "class_names holds texts of up to 1,001 characters",
    ),
    "long labels": (
        lambda p, d: write_npz(p, d, y_train=np.where(d.train.labels, "a" * 1001, "b")),
        "y_train holds texts of up to 1,001 characters",
    ),
    "large class names": (
        lambda p, d: write_npz(p, d, class_names=np.zeros((1 << 23) + 1)),
        "class_names claims (8388609,) of float64",
    ),
    "repeated class name": (
        lambda p, d: write_npz(p, d, class_names=np.array([*"abcdefghi", "a"])),
        "class_names has 'a' twice",
    ),
    "one class name": (lambda p, d: write_npz(p, d, class_names=np.array("a")), "1 names for 10 classes"),
    "damaged LZMA": (lambda p, d: _recompressed(p, d, zipfile.ZIP_LZMA, 40), "x_train is damaged"),
    "damaged bzip2": (lambda p, d: _recompressed(p, d, zipfile.ZIP_BZIP2, 40), "x_train is damaged"),
    "damaged deflate": (lambda p, d: _recompressed(p, d, zipfile.ZIP_DEFLATED, 40), "x_train is damaged"),
    "encrypted": (lambda p, d: _marked(p, d, flags=1), "x_train can't be read: it is encrypted"),
    "unknown compression": (lambda p, d: _marked(p, d, method=9), "x_train can't be read"),
    "other case": (lambda p, d: write_npz(p, d, x_train=None, X_train=d.train.read()), "(did you mean X_train?)"),
    "labels in other case": (lambda p, d: write_npz(p, d, y_train=None, Y_train=[0]), "(did you mean Y_train?)"),
    "class names": (lambda p, d: write_npz(p, d, class_names=np.array(["a", "b"])), "2 names for 10 classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_line(tmp_path, digits, case):
    """Whatever is wrong with a file, the message names the file and what is wrong."""
    make, expected = BAD[case]
    path = tmp_path / "bad.npz"
    make(path, digits)
    with pytest.raises(KdistillError, match=r"bad\.npz") as caught:
        data.resolve(str(path)).load().train.read()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flipped_bit_in_the_inputs_is_seen(tmp_path, digits):
    """A bit flipped in stored inputs is found by the archive's checksum."""
    path = write_npz(tmp_path / "data.npz", digits)
    contents = bytearray(path.read_bytes())
    contents[100_000] ^= 4
    path.write_bytes(contents)
    with pytest.raises(KdistillError, match="is damaged"):
        data.resolve(str(path)).load().train.read()


@pytest.mark.parametrize("case", ["many labels", "long labels", "long class names", "large class names"])
def test_claims_are_checked_before_anything_is_read(tmp_path, digits, monkeypatch, case):
    """Labels and names that no dataset has are refused by their headers alone."""
    make, _ = BAD[case]
    make(tmp_path / "bad.npz", digits)
    monkeypatch.setattr("kdistill.data.readers.npz.NpzMember.values", lambda _: pytest.fail("read"))
    with pytest.raises(KdistillError):
        data.resolve(str(tmp_path / "bad.npz")).load()


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint64, np.float64])
def test_values_at_the_limits_of_networks_are_read(tmp_path, digits, dtype):
    """All that fits into int32 or float32 is taken as it is, whatever type it is stored in."""
    limits = np.finfo(np.float32) if dtype is np.float64 else np.iinfo(np.int32)
    inputs = np.zeros((1437, 2), dtype)
    inputs[5] = (0 if np.dtype(dtype).kind == "u" else limits.min), limits.max
    dataset = data.load(str(write_npz(tmp_path / "data.npz", digits, x_train=inputs, x_test=inputs[:360])))
    assert dataset.input_dtype == np.dtype(dtype).name
    np.testing.assert_array_equal(dataset.train.read(), inputs)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "i8", "u2"])
def test_byte_order_changes_nothing(tmp_path, digits, dtype):
    """Big-endian arrays are handed out in native order, and their rows have the keys of the native ones."""
    loaded = []
    for order in "<>":
        arrays = {
            "x_train": digits.train.read().astype(order + dtype),
            "x_test": digits.test.read().astype("<" + dtype),
            "y_train": digits.train.labels.astype(">i4"),
        }
        loaded.append(data.load(str(write_npz(tmp_path / f"{ord(order)}.npz", digits, **arrays))))
    little, big = loaded
    assert big.input_dtype == np.dtype(dtype).name
    assert big.train.read().dtype.isnative
    np.testing.assert_array_equal(big.train.read(), little.train.read())
    assert (big.train.keys() == little.train.keys()).all()
    assert (big.train.labels == digits.train.labels).all()


@pytest.mark.parametrize(
    ("labels", "warned"),
    [
        (np.arange(1437) % 10, False),
        (np.where(np.arange(1437) % 2, 1_048_575, 0), True),
        (np.arange(1437) % 10 * 3, True),
        (np.where(np.arange(1437) % 2, 10_000, np.arange(1437)), True),
        ((np.arange(1437) % 10).astype(np.float32), False),
        (np.arange(1437) // 2, False),
    ],
    ids=["ten", "a million", "gaps", "more than ten thousand", "floats", "many"],
)
def test_unusual_numbers_of_classes_are_warned_of(tmp_path, digits, labels, warned):
    """Networks have an output for every class, also for those that no row has."""
    dataset = data.load(str(write_npz(tmp_path / "data.npz", digits, y_train=labels, y_test=labels[:360])))
    assert bool(dataset.warnings) == warned
    if warned:
        assert f"{dataset.classes:,} classes" in dataset.warnings[0]


def test_warnings_of_a_dataset_are_printed(run, tmp_path, digits, monkeypatch):
    """Teachers, and students without one, say what is unusual about their data before they are trained."""
    inputs, labels = digits.train.read()[:40], np.arange(40) % 2 * 9
    parts = {"x_train": inputs, "y_train": labels, "x_test": inputs, "y_test": labels}
    path = write_npz(tmp_path / "data.npz", digits, **parts)

    def make(*_, **__):
        raise KdistillError("not trained in a test")

    monkeypatch.setattr("kdistill.training.run.train_network", make)
    for command in (["train-teacher"], ["train-student", "--alpha", "1"]):
        warning, stopped = run(*command, "--dataset", path, "--model", "small").err.splitlines()
        assert warning.startswith("warning: ")
        assert "10 classes, of which 2 have a row" in warning
        assert "not trained" in stopped


@pytest.mark.parametrize("name", ["nosuch", "nosuch.npz", "", "MNIST"])
def test_unknown_name_is_not_guessed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdistillError, match=r"digits, mnist, fashion_mnist|is a directory"):
        data.resolve(name, option="dataset")


def test_names_that_may_have_been_meant_are_said(digits):
    """A name of a dataset or of a class that is not there comes with the nearest one."""
    with pytest.raises(KdistillError, match=r"did you mean fashion_mnist\?"):
        data.resolve("fashion-mnist", option="dataset")
    shirts = replace(digits, class_names=("T-shirt", *"bcdefghij"))
    with pytest.raises(UsageError, match=r"did you mean T-shirt\?"):
        data.selected(shirts.train, Selection(omit_class="t-shirt"), shirts)


def test_no_network_says_where_the_file_goes(tmp_path, monkeypatch):
    """Without a network, one line says where the file would go and what works offline."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    from kdistill.backend import keras

    def fails():
        raise Exception("URL fetch failure on https://example.invalid: None -- no network\nmore")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fails)
    with pytest.raises(KdistillError) as caught:
        data.resolve("mnist")
    assert str(tmp_path / "datasets" / "mnist.npz") in str(caught.value)
    assert "--dataset digits" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keras_dataset_is_kept_as_npz(tmp_path, monkeypatch, digits):
    """What `keras.datasets` gives is read like any other file, with labels in one dimension and names of classes."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    from kdistill.backend import keras

    train = digits.train.read(), digits.train.labels[:, None]
    test = digits.test.read(), digits.test.labels[:, None]
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: (train, test))
    dataset = data.resolve("cifar10").load()
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: pytest.fail("loaded twice"))
    assert (data.resolve("cifar10").load().train.labels == digits.train.labels).all()
    assert dataset.class_names[:2] == ("airplane", "automobile")
