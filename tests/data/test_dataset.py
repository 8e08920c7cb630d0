"""Datasets: finding, reading and checking them."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from helpers import write_npz

from kdistill import data
from kdistill.data.keys import row_keys
from kdistill.data.readers.builtin import enlarge
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import Selection


def test_digits(digits):
    """The digits have 1,437 and 360 rows of 28x28 uint8; both splits have all ten classes, and no row is in both."""
    assert (len(digits.train), len(digits.test), digits.classes) == (1437, 360, 10)
    assert digits.input_shape == (28, 28)
    assert digits.input_dtype == "uint8"
    assert set(digits.train.labels) == set(digits.test.labels) == set(range(10))
    assert digits.train.read().max() == 255
    train, test = ({bytes(key) for key in part.keys()} for part in (digits.train, digits.test))
    assert not train & test


def test_enlarging_is_bilinear():
    """Enlarged images agree with an interpolation in floating point to one gray level."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 17, (3, 8, 8)).astype(np.uint8)
    centers = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
    tall = np.array([[np.interp(centers, range(8), column) for column in image.T] for image in small]).swapaxes(1, 2)
    wide = np.array([[np.interp(centers, range(8), row) for row in image] for image in tall])
    np.testing.assert_allclose(enlarge(small), wide * 255 / 16, atol=0.51)


def test_keys_of_a_split_are_computed_once(digits):
    """A second call returns the same read-only keys without reading the rows again."""
    read = []

    class Counted(ArrayRows):
        def read_range(self, start, stop):
            read.append(start)
            return super().read_range(start, stop)

    split = data.Split("train", Counted(digits.test.read(), "here"), digits.test.labels)
    np.testing.assert_array_equal(split.keys(), row_keys(digits.test.read()))
    assert split.keys() is split.keys()
    assert read == [0]
    assert not split.keys().flags.writeable


@pytest.mark.parametrize("compressed", [False, True])
def test_blocks_have_all_rows(tmp_path, digits, compressed):
    """Blocks of any size hold the rows that NumPy reads, from compressed and uncompressed files."""
    path = tmp_path / "data.npz"
    save = np.savez_compressed if compressed else np.savez
    arrays = {"x_train": digits.train.read(), "y_train": digits.train.labels}
    save(path, x_test=digits.test.read(), y_test=digits.test.labels, **arrays)
    dataset = data.resolve(str(path)).load()
    for rows in (1, 100, 1437, 5000):
        assert (np.concatenate(list(dataset.train.blocks(rows))) == arrays["x_train"]).all()
    assert (dataset.train.read() == arrays["x_train"]).all()
    assert (dataset.train.keys() == digits.train.keys()).all()


def test_fortran_order(tmp_path, digits):
    """Arrays in Fortran order give the same rows and keys."""
    path = write_npz(tmp_path / "data.npz", digits, x_train=np.asfortranarray(digits.train.read()))
    dataset = data.resolve(str(path)).load()
    assert (np.concatenate(list(dataset.train.blocks(100))) == digits.train.read()).all()
    assert (dataset.train.keys() == digits.train.keys()).all()


def test_identity_depends_on_the_bytes(tmp_path, digits):
    """Changed labels change the digest."""
    path = write_npz(tmp_path / "data.npz", digits)
    before = data.resolve(str(path)).digest()
    write_npz(path, digits, y_train=digits.train.labels[::-1])
    assert data.resolve(str(path)).digest() != before


def _object_npz(path):
    np.savez(path, x_train=np.array([[1, "a"], [None, 2]], object), y_train=[0, 1], x_test=[[1.0]], y_test=[0])


def _recompressed(path, digits, method, damage):
    """Write an `.npz` with another compression method, and overwrite some bytes of its first array."""
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
    """Write an `.npz` with wrong flags and a wrong compression method in its headers."""
    write_npz(path, digits)
    contents = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = -1
        while (place := contents.find(signature, place + 1)) >= 0:
            contents[place + at] |= flags
            contents[place + at + 2] |= method
    path.write_bytes(contents)


def _many_labels(path, digits, count=10**7):
    """Write a small `.npz` that claims to hold many labels."""
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
    """Return the inputs as float64, with one value replaced."""
    inputs = dataset.train.read().astype(np.float64)
    inputs[3, 4, 5] = value
    return inputs


def _truncated(path, digits):
    write_npz(path, digits)
    path.write_bytes(path.read_bytes()[:-2000])


def _claims_much(path):
    """Write an `.npz` with a header that claims 10^12 rows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 28, 28)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", header.getvalue() + bytes(1000))
        for name in ("y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", header.getvalue())


BAD = {
    "no x_test": (lambda p, d: write_npz(p, d, x_test=None), "--test-fraction 0.2"),
    "unequal length": (lambda p, d: write_npz(p, d, y_train=d.train.labels[:-1]), "y_train.*1436.*1437"),
    "rank": (lambda p, d: write_npz(p, d, x_train=np.zeros(1437, np.uint8)), r"x_train.*\(1437,\)"),
    "objects": (lambda p, _: _object_npz(p), "x_train.*object"),
    "text inputs": (lambda p, d: write_npz(p, d, x_train=np.full((1437, 4), "a")), "x_train.*<U1"),
    "nan": (lambda p, d: write_npz(p, d, x_train=_floats(d, np.nan), x_test=np.zeros((360, 28, 28))), "x_train.*row 3"),
    "infinity": (
        lambda p, d: write_npz(p, d, x_train=_floats(d, np.inf), x_test=np.zeros((360, 28, 28))),
        "x_train.*row 3",
    ),
    "negative labels": (lambda p, d: write_npz(p, d, y_train=d.train.labels - 1), "y_train.*-1"),
    "fractional labels": (lambda p, d: write_npz(p, d, y_train=d.train.labels + 0.5), r"y_train.*\d\.5 in row 0"),
    "nan labels": (lambda p, d: write_npz(p, d, y_train=d.train.labels * np.nan), "y_train.*nan"),
    "one-hot labels": (lambda p, d: write_npz(p, d, y_train=np.eye(10)[d.train.labels]), "y_train.*argmax"),
    "labels beyond": (lambda p, d: write_npz(p, d, y_test=d.test.labels + 5), "y_test.*14.*0 to 9"),
    "huge labels": (lambda p, d: write_npz(p, d, y_train=d.train.labels + 2**20), r"y_train.*10485[78]\d"),
    "one class": (lambda p, d: write_npz(p, d, y_train=d.train.labels * 0), "y_train"),
    "no rows": (
        lambda p, d: write_npz(p, d, x_train=np.zeros((0, 28, 28), np.uint8), y_train=np.zeros(0, int)),
        "x_train",
    ),
    "other shape": (lambda p, d: write_npz(p, d, x_test=np.zeros((360, 8, 8), np.uint8)), r"\(8, 8\)"),
    "empty": (lambda p, _: p.write_bytes(b""), r"bad\.npz"),
    "text": (lambda p, _: p.write_text("hello\n" * 100), r"bad\.npz"),
    "truncated": (_truncated, r"bad\.npz"),
    "10^12 rows": (lambda p, _: _claims_much(p), "1000000000000"),
    "int64 beyond int32": (
        lambda p, d: write_npz(p, d, x_train=d.train.read().astype(np.int64) << 28, x_test=d.test.read().astype(int)),
        "-2147483648.*2147483647",
    ),
    "uint32 beyond int32": (
        lambda p, d: write_npz(
            p,
            d,
            x_train=np.where(np.arange(1437) == 3, 2**31, 0).astype(np.uint32)[:, None],
            x_test=np.zeros((360, 1), np.uint32),
        ),
        "2147483648.*row 3, column 0",
    ),
    "uint64 beyond int64": (
        lambda p, d: write_npz(
            p, d, x_train=np.full((1437, 2), 2**64 - 1, np.uint64), x_test=np.zeros((360, 2), np.uint64)
        ),
        "18446744073709551615.*row 0",
    ),
    "float64 beyond float32": (
        lambda p, d: write_npz(p, d, x_train=_floats(d, -1e300), x_test=np.zeros((360, 28, 28))),
        r"-1e\+300.*row 3.*\(4, 5\)",
    ),
    "float128": (
        lambda p, d: write_npz(p, d, x_train=d.train.read().astype(np.longdouble)),
        "x_train.*float1",
    ),
    "complex": (lambda p, d: write_npz(p, d, x_train=d.train.read().astype(complex)), "x_train.*complex128"),
    "several classes in one part": (lambda p, d: write_npz(p, d, y_train=_multi_label(d)), r"y_test.*\(?1.*10"),
    "labels of no columns": (
        lambda p, d: write_npz(p, d, y_train=np.zeros((1437, 0))),
        r"y_train.*\(1437, 0\)",
    ),
    "probabilities": (
        lambda p, d: write_npz(p, d, y_train=np.full((1437, 10), 0.1)),
        r"y_train.*\(1437, 10\)",
    ),
    "infinite numbers": (
        lambda p, d: write_npz(p, d, y_train=np.append(np.arange(1436.0), np.inf)),
        "y_train.*row 1436",
    ),
    "many labels": (_many_labels, "y_train.*10000000.*1437"),
    "long class names": (
        lambda p, d: write_npz(p, d, class_names=np.array(["a" * 1001, *"bcdefghij"])),
        "class_names.*1,001",
    ),
    "long labels": (
        lambda p, d: write_npz(p, d, y_train=np.where(d.train.labels, "a" * 1001, "b")),
        "y_train.*1,001",
    ),
    "large class names": (
        lambda p, d: write_npz(p, d, class_names=np.zeros((1 << 23) + 1)),
        r"class_names.*\(8388609,\)",
    ),
    "repeated class name": (
        lambda p, d: write_npz(p, d, class_names=np.array([*"abcdefghi", "a"])),
        "class_names.*'a'",
    ),
    "one class name": (lambda p, d: write_npz(p, d, class_names=np.array("a")), r"class_names.*\b1\b.*10"),
    "damaged LZMA": (lambda p, d: _recompressed(p, d, zipfile.ZIP_LZMA, 40), "x_train"),
    "damaged bzip2": (lambda p, d: _recompressed(p, d, zipfile.ZIP_BZIP2, 40), "x_train"),
    "damaged deflate": (lambda p, d: _recompressed(p, d, zipfile.ZIP_DEFLATED, 40), "x_train"),
    "encrypted": (lambda p, d: _marked(p, d, flags=1), "encrypted"),
    "unknown compression": (lambda p, d: _marked(p, d, method=9), "x_train"),
    "other case": (lambda p, d: write_npz(p, d, x_train=None, X_train=d.train.read()), "X_train"),
    "labels in other case": (lambda p, d: write_npz(p, d, y_train=None, Y_train=[0]), "Y_train"),
    "class names": (lambda p, d: write_npz(p, d, class_names=np.array(["a", "b"])), r"class_names.*\b2\b.*10"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_line(tmp_path, digits, case):
    """The error names the file, the array and the value at fault, in one line."""
    make, expected = BAD[case]
    path = tmp_path / "bad.npz"
    make(path, digits)
    with pytest.raises(KdistillError, match=r"bad\.npz") as caught:
        data.resolve(str(path)).load().train.read()
    assert re.search(expected, str(caught.value))
    assert "\n" not in str(caught.value)


def test_flipped_bit_is_detected(tmp_path, digits):
    """The checksum of the archive detects a flipped bit in the inputs."""
    path = write_npz(tmp_path / "data.npz", digits)
    contents = bytearray(path.read_bytes())
    contents[100_000] ^= 4
    path.write_bytes(contents)
    with pytest.raises(KdistillError, match=r"data\.npz"):
        data.resolve(str(path)).load().train.read()


@pytest.mark.parametrize("case", ["many labels", "long labels", "long class names", "large class names"])
def test_headers_are_checked_before_values_are_read(tmp_path, digits, monkeypatch, case):
    """Impossible labels and names are refused by their headers, without reading their values."""
    make, _ = BAD[case]
    make(tmp_path / "bad.npz", digits)
    monkeypatch.setattr("kdistill.data.readers.npz.NpzRows.read_unchecked", lambda _: pytest.fail("read"))
    with pytest.raises(KdistillError):
        data.resolve(str(tmp_path / "bad.npz")).load()


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint64, np.float64])
def test_limits_of_int32_and_float32(tmp_path, digits, dtype):
    """Values that fit into int32 or float32 are read unchanged from wider types."""
    limits = np.finfo(np.float32) if dtype is np.float64 else np.iinfo(np.int32)
    inputs = np.zeros((1437, 2), dtype)
    inputs[5] = (0 if np.dtype(dtype).kind == "u" else limits.min), limits.max
    dataset = data.load(str(write_npz(tmp_path / "data.npz", digits, x_train=inputs, x_test=inputs[:360])))
    assert dataset.input_dtype == np.dtype(dtype).name
    np.testing.assert_array_equal(dataset.train.read(), inputs)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "i8", "u2"])
def test_byte_order(tmp_path, digits, dtype):
    """Big-endian arrays are returned in native order, with the keys of native rows."""
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
def test_unusual_numbers_of_classes(tmp_path, digits, labels, warned):
    """Very many classes, or many unused ones, cause a warning with their number."""
    dataset = data.load(str(write_npz(tmp_path / "data.npz", digits, y_train=labels, y_test=labels[:360])))
    assert bool(dataset.warnings) == warned
    if warned:
        assert f"{dataset.classes:,} classes" in dataset.warnings[0]


def test_dataset_warnings_are_printed(run, tmp_path, digits, monkeypatch):
    """Both training commands print the warnings of their dataset before training starts."""
    inputs, labels = digits.train.read()[:40], np.arange(40) % 2 * 9
    parts = {"x_train": inputs, "y_train": labels, "x_test": inputs, "y_test": labels}
    path = write_npz(tmp_path / "data.npz", digits, **parts)

    def make(*_, **__):
        raise KdistillError("not trained in a test")

    monkeypatch.setattr("kdistill.training.run.train_network", make)
    for command in (["train-teacher"], ["train-student", "--alpha", "1"]):
        warning, stopped = run(*command, "--dataset", path, "--model", "small").err.splitlines()
        assert warning.startswith("warning: ")
        assert re.search(r"\b10\b.*\b2\b", warning)
        assert "not trained" in stopped


@pytest.mark.parametrize("name", ["nosuch", "nosuch.npz", "", "MNIST"])
def test_unknown_name(name, tmp_path, monkeypatch):
    """A name that is neither a file nor a dataset is refused."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdistillError, match="--dataset"):
        data.resolve(name, option="dataset")


def test_similar_name_is_suggested(digits):
    """The error for an unknown dataset or class names the most similar one."""
    with pytest.raises(KdistillError, match=r"\bfashion_mnist\?"):
        data.resolve("fashion-mnist", option="dataset")
    shirts = replace(digits, class_names=("T-shirt", *"bcdefghij"))
    with pytest.raises(UsageError, match=r"\bT-shirt\?"):
        data.selection_mask(shirts.train, Selection(omit_class="t-shirt"), shirts)


def test_failed_download(tmp_path, monkeypatch):
    """The error says in one line where to put the file, and which dataset works offline."""
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


def test_keras_dataset_is_stored_as_npz(tmp_path, monkeypatch, digits):
    """A Keras dataset is downloaded once; its labels have one dimension, and its classes have names."""
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
