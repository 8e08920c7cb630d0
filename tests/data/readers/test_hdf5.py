"""HDF5 files."""

from __future__ import annotations

import zlib

import h5py
import numpy as np
import pytest
from small_data import HALF, NAMES, X, Y, check_error, check_rows, inputs_of, load, save_h5, small, write

from kdistill import data


@pytest.mark.parametrize("layout", [{}, {"chunks": (7, 2, 4), "compression": "gzip"}])
def test_rows_are_read_in_blocks(tmp_path, layout):
    path = save_h5(tmp_path, y_train=Y, x_test=X[:9], y_test=Y[:9], class_names=["a", "b", "ü"])
    with h5py.File(path, "a") as file:
        file.create_dataset("x_train", data=X, **layout)
    dataset = load(path)
    check_rows(dataset.train.inputs, X)
    assert (len(dataset.test), dataset.class_names) == (9, ("a", "b", "ü"))


def test_datasets_named_by_options(tmp_path):
    """Any dataset can be inputs or labels. Strings are sorted categories."""
    names = np.array(NAMES)
    path = save_h5(
        tmp_path,
        **{"photos/pixels": X, "photos/what": names[Y].astype("S"), "more": X[:9], "of more": names[Y[:9]].tolist()},
    )
    dataset = load(path, inputs="photos/pixels", labels="photos/what", test_inputs="more", test_labels="of more")
    assert dataset.class_names == ("ant", "bee", "cat")
    for part, labels in ((dataset.train, Y), (dataset.test, Y[:9])):
        assert (np.array(dataset.class_names)[part.labels] == names[labels]).all()
    check_rows(dataset.train.inputs, X)


def test_strings_are_read_in_blocks(tmp_path, monkeypatch):
    """Variable-length strings are read in small blocks if the file is large."""
    monkeypatch.setattr("kdistill.data.readers.hdf5.MAX_NAMES_BYTES", 0)
    monkeypatch.setattr("kdistill.data.readers.hdf5.MIN_STRINGS_PER_BLOCK", 7)
    labels = np.array(NAMES)[Y].tolist()
    path = save_h5(tmp_path, x_train=X, y_train=labels)
    assert data.resolve(str(path)).reader.contents().train.labels.tolist() == labels


def _change(place, change, **arrays):
    """Return a file with some arrays, after a change of the open file."""
    path = save_h5(place, **arrays)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def _many_labels(file):
    """Add 10^7 labels, which take little space."""
    file.create_dataset("y_train", (10**7,), "u1", chunks=(10**6,), compression="gzip")[:] = 0


def _large_chunk(file):
    """Add 60 labels in a chunk of 10^8, of which only the first bytes are stored."""
    labels = file.create_dataset("y_train", (60,), "u1", chunks=(10**8,), maxshape=(None,), compression="gzip")
    labels.id.write_direct_chunk((0,), zlib.compress(bytes(60)))


@pytest.mark.parametrize(("change", "number"), [(_many_labels, "10000000"), (_large_chunk, "100000000")])
def test_headers_are_checked_before_labels_are_read(tmp_path, monkeypatch, change, number):
    path = _change(tmp_path, change, x_train=X)
    monkeypatch.setattr("kdistill.data.readers.hdf5.Hdf5Rows.read_unchecked", lambda _: pytest.fail("read"))
    check_error(path, "y_train", number)


def _one_stored_row(file):
    file.create_dataset("x_train", (10**12, 28, 28), "u1", chunks=(1, 28, 28))[5] = 1


def _external(file):
    file.create_dataset("x_train", (10, 4), "u1", external=[("/etc/hostname", 0, 40)])


def _virtual(file):
    layout = h5py.VirtualLayout((10, 4), "u1")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (10, 4))
    file.create_virtual_dataset("x_train", layout)


def _flipped_bit(place):
    def checksummed(file):
        file.create_dataset("x_train", data=small(600)[0], chunks=(10, 6, 4), fletcher32=True)

    path = _change(place, checksummed, y_train=small(600)[1])
    with h5py.File(path) as file:
        offset = file["x_train"].id.get_chunk_info(30).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 5] ^= 4
    return write(path, content)


def _truncated(place):
    x, y = small(3000)
    path = save_h5(place, x_train=x, y_train=y)
    return write(path, path.read_bytes()[:-40_000])


def _multi_label():
    labels = np.eye(3, dtype=np.uint8)[Y]
    labels[4] = 1
    return labels


def _nan():
    values = np.zeros((60, 4))
    values[7, 2] = np.nan
    return values


BAD_ARRAYS = {
    "long variable-length string": (
        {"x_train": X, "y_train": ["a", "b" * 1001] * 30},
        {},
        ["y_train", "1,001", "row 1"],
    ),
    "long string": ({"x_train": X, "y_train": np.array(["a" * 1001, "b"] * 30, "S")}, {}, ["y_train", "1,001"]),
    "several classes": (
        {"x_train": X, "y_train": _multi_label()},
        {"task": "classification", **HALF},
        ["y_train", "--task multi-label"],
    ),
    "integers beyond int32": ({"x_train": X.astype(np.int64) << 40, "y_train": Y}, HALF, ["x_train", "int32"]),
    "floats beyond float32": (
        {"x_train": np.full((60, 3), 1e39), "y_train": Y},
        HALF,
        ["x_train", "1e+39", "column 0", "float32"],
    ),
    "complex numbers": ({"x_train": X * 1j, "y_train": Y}, HALF, ["x_train", "complex128"]),
    "NaN": ({"x_train": _nan(), "y_train": Y}, HALF, ["x_train", "NaN", "row 7"]),
    "similar name": ({"Pixels": [1]}, {"inputs": "pixel"}, ["pixel", "(did you mean Pixels?)"]),
    "other names": ({"a": [1], "b": [2]}, {}, ["x_train", "a, b", "--inputs NAME", "--labels NAME"]),
    "name that does not exist": ({"a": [1]}, {"inputs": "a/b/c"}, ["a/b/c"]),
    "two strings per row": ({"x_train": [["a", "b"], ["c", "d"]], "y_train": [0, 1]}, {}, ["x_train", "object"]),
    "one class": ({"x_train": [[1], [2]], "y_train": ["a", "a"]}, {}, ["y_train"]),
    "test part and --test-fraction": (
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y},
        HALF,
        ["--test-fraction"],
    ),
    "option of images": ({"a": [1]}, {"image_size": "32"}, ["--image-size", "--inputs, --labels"]),
}
BAD_FILES = {
    "text file": (lambda p: write(p / "x.h5", b"hello\n" * 50), ["x.h5", "HDF5"]),
    "empty file": (lambda p: write(p / "x.h5", b""), ["x.h5", "HDF5"]),
    "truncated file": (_truncated, ["data.h5", "HDF5"]),
    "flipped bit": (_flipped_bit, ["data.h5: x_train", "HDF5"]),
    "group": (lambda p: _change(p, lambda file: file.create_group("x_train")), ["x_train"]),
    "external link": (
        lambda p: _change(p, lambda file: file.__setitem__("x_train", h5py.ExternalLink("/etc/hostname", "x"))),
        ["x_train", "link"],
    ),
    "external storage": (lambda p: _change(p, _external), ["x_train", "other files"]),
    "virtual dataset": (lambda p: _change(p, _virtual), ["x_train", "other files"]),
    "10^12 rows": (
        lambda p: _change(p, _one_stored_row, y_train=np.zeros(10)),
        ["x_train", "(1000000000000, 28, 28)"],
    ),
    "variable size": (
        lambda p: _change(p, lambda file: file.create_dataset("x_train", (4,), h5py.vlen_dtype("i4"))),
        ["x_train", "object"],
    ),
    "soft targets": (
        lambda p: _change(p, lambda file: file.attrs.__setitem__("kdistill_format", 1)),
        ["soft-target file", "--dataset"],
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path, case):
    arrays, options, expected = BAD_ARRAYS[case]
    check_error(save_h5(tmp_path, **arrays), *expected, **options)


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    make, expected = BAD_FILES[case]
    check_error(make(tmp_path), *expected, **HALF)


def test_inputs_only(tmp_path):
    """A file without labels can be read as a transfer set."""
    check_rows(inputs_of(save_h5(tmp_path, x_train=X)), X)
