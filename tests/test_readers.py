"""The formats of data: each is read as what it is, and what is wrong with a file is said in one line."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from kdistill import data
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import Reading


def small(rows=60, classes=3, seed=0):
    """Rows (rows, 6, 4) uint8 whose brightness is their class, and labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    return (draw.integers(0, 60, (rows, 6, 4)) + 60 * labels[:, None, None]).astype(np.uint8), labels


def load(name, **reading):
    return data.resolve(Reading(**reading).named(str(name))).load()


def check_rows(rows, expected):
    """However rows are asked for, they are these."""
    assert rows.shape == expected.shape
    assert rows.dtype == expected.dtype
    for size in (1, 7, 1000):
        np.testing.assert_array_equal(np.concatenate(list(rows.blocks(size))), expected)
    np.testing.assert_array_equal(rows.read(), expected)
    if rows.seekable:
        np.testing.assert_array_equal(rows.part(3, 9), expected[3:9])
        np.testing.assert_array_equal(rows.take(np.array([2, 3, 8])), expected[[2, 3, 8]])


def save_npy(place, **arrays):
    for name, values in arrays.items():
        np.save(place / f"{name}.npy", values)
    return place / "x_train.npy"


def save_h5(place, **arrays):
    (place / "data.h5").unlink(missing_ok=True)  # it may be held open
    with h5py.File(place / "data.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return place / "data.h5"


def test_npy_files_are_mapped(tmp_path):
    """A pair of files, with another pair or a share of the rows as test part; read from where they lie."""
    x, y = small()
    path = save_npy(tmp_path, x_train=x, labels=y, other=x[:10], more=y[:10])
    said = {"labels": tmp_path / "labels.npy", "test_inputs": tmp_path / "other.npy"}
    said |= {"test_labels": tmp_path / "more.npy"}
    dataset = load(path, **{name: str(place) for name, place in said.items()})
    check_rows(dataset.train.inputs, x)
    check_rows(dataset.test.inputs, x[:10])
    assert (dataset.test.labels == y[:10]).all()
    assert isinstance(dataset.train.inputs.values.base, np.memmap)
    cut = load(path, labels=str(tmp_path / "labels.npy"), test_fraction="0.25")
    assert (len(cut.train), len(cut.test)) == (45, 15)
    both = np.concatenate([cut.train.read(), cut.test.read()])
    assert sorted(map(bytes, both)) == sorted(map(bytes, x))
    check_rows(cut.train.inputs, cut.train.read())


def test_files_in_options_are_found_from_anywhere(tmp_path, monkeypatch):
    """A file that an option names is recorded by its full path, and where it lies is no part of what the data is."""
    x, y = small()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        save_npy(tmp_path / place, x_train=x, labels=y)
    found = []
    for place in ("one", "two"):
        monkeypatch.chdir(tmp_path / place)
        found.append(data.resolve(Reading(labels="labels.npy", test_fraction="0.5").named("x_train.npy")))
    monkeypatch.chdir(tmp_path)
    assert found[0].name == f"{tmp_path}/one/x_train.npy?labels={tmp_path}/one/labels.npy&test-fraction=0.5"
    assert data.resolve(found[0].name).load().classes == 3
    assert found[0].identity().digest == found[1].identity().digest
    np.save(tmp_path / "two" / "labels.npy", y[::-1])
    assert found[0].identity().digest != found[1].identity().digest
    other = data.resolve(Reading(test_fraction="0.4").named(found[0].name))
    assert other.identity().digest != found[0].identity().digest


def test_directory_of_npy(tmp_path):
    x, y = small()
    save_npy(tmp_path, x_train=x, y_train=y, x_test=x[:9], y_test=y[:9], class_names=np.array(["a", "b", "ü"]))
    dataset = load(tmp_path)
    check_rows(dataset.train.inputs, x)
    assert (len(dataset.test), dataset.class_names) == (9, ("a", "b", "ü"))


@pytest.mark.parametrize("layout", [{}, {"chunks": (7, 2, 4), "compression": "gzip"}])
def test_hdf5_is_read_in_blocks(tmp_path, layout):
    x, y = small()
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("x_train", data=x, **layout)
        file["y_train"], file["x_test"], file["y_test"] = y, x[:9], y[:9]
        file["class_names"] = ["a", "b", "ü"]
    dataset = load(tmp_path / "data.h5")
    check_rows(dataset.train.inputs, x)
    assert (len(dataset.test), dataset.class_names) == (9, ("a", "b", "ü"))


def test_hdf5_names_by_option_and_labels_of_text(tmp_path):
    """Any dataset can be inputs or labels; texts are categories, in order."""
    x, y = small()
    names = np.array(["cat", "ant", "bee"])
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["photos/pixels"] = x
        file["photos/what"] = names[y].astype("S")
        file["more"] = x[:9]
        file.create_dataset("of more", data=names[y[:9]].tolist())
    dataset = load(path, inputs="photos/pixels", labels="photos/what", test_inputs="more", test_labels="of more")
    assert dataset.class_names == ("ant", "bee", "cat")
    assert (np.array(dataset.class_names)[dataset.train.labels] == names[y]).all()
    assert (np.array(dataset.class_names)[dataset.test.labels] == names[y[:9]]).all()
    check_rows(dataset.train.inputs, x)


def test_transfer_set_without_labels(tmp_path):
    """Inputs alone can be a transfer set, and their classes are the dataset's."""
    x, y = small()
    dataset = load(save_h5(tmp_path, x_train=x, y_train=y, x_test=x, y_test=y))
    for path in (save_npy(tmp_path, x_train=x[:20]), save_h5(tmp_path, x_train=x[:20])):
        split = data.resolve(str(path)).transfer_set(dataset)
        assert (len(split), split.labelled) == (20, 0)
        check_rows(split.inputs, x[:20])


def test_transfer_set_maps_names_to_the_datasets_classes(tmp_path):
    x, y = small()
    names = np.array(["cat", "ant", "bee"])
    dataset = load(save_h5(tmp_path, x_train=x, y_train=names[y].tolist()), test_fraction="0.5")
    split = data.resolve(str(save_h5(tmp_path, x_train=x, y_train=["cat", "bee"] * 30))).transfer_set(dataset)
    assert split.labels.tolist() == [2, 1] * 30
    path = save_h5(tmp_path, x_train=x, y_train=["cat", "dog"] * 30)
    with pytest.raises(KdistillError, match="holds 'dog', which is none of the classes ant, bee, cat"):
        data.resolve(str(path)).transfer_set(dataset)


def test_classes_do_not_depend_on_the_cut(tmp_path):
    """A class whose only row is in the test part still is one."""
    x, y = small()
    y[:] = y % 2
    for row in range(60):
        y[row] = 2
        dataset = load(save_npy(tmp_path, x_train=x, y_train=y).parent, test_fraction="0.5")
        assert dataset.classes == 3
        y[row] = row % 2


def _claims_much(path, shape=(10**12, 28, 28)):
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.write(bytes(1000))
    return path


def _h5(path, make):
    with h5py.File(path / "bad.h5", "w") as file:
        make(file)
    return path / "bad.h5"


def _without_storage(file):
    file.create_dataset("x_train", (10**12, 28, 28), "u1", chunks=(1, 28, 28))
    file["x_train"][5] = 1
    file["y_train"] = np.zeros(10)


def _external(file):
    file.create_dataset("x_train", (10, 4), "u1", external=[("/etc/hostname", 0, 40)])


def _virtual(file):
    layout = h5py.VirtualLayout((10, 4), "u1")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (10, 4))
    file.create_virtual_dataset("x_train", layout)


def _cut_short(path):
    x, y = small(3000)
    path = save_h5(path, x_train=x, y_train=y)
    path.write_bytes(path.read_bytes()[:-40_000])
    return path


def _flipped(path):
    x, y = small(600)
    with h5py.File(path / "bad.h5", "w") as file:
        file.create_dataset("x_train", data=x, chunks=(10, 6, 4), fletcher32=True)
        file["y_train"] = y
        where = file["x_train"].id.get_chunk_info(30).byte_offset
    contents = bytearray((path / "bad.h5").read_bytes())
    contents[where + 5] ^= 4
    (path / "bad.h5").write_bytes(contents)
    return path / "bad.h5"


def _nan(file):
    x = np.zeros((60, 4))
    x[7, 2] = np.nan
    file["x_train"], file["y_train"] = x, np.arange(60) % 2


BAD = {
    "npy without labels": (lambda p: save_npy(p, x_train=small()[0]), {}, "no labels: --labels FILE.npy"),
    "npy labels that are not there": (
        lambda p: save_npy(p, x_train=small()[0]),
        {"labels": "/nosuch.npy"},
        "/nosuch.npy: there is no such file",
    ),
    "npy test inputs without labels": (
        lambda p: save_npy(p, x_train=small()[0]),
        {"labels": "x_train.npy", "test_inputs": "x_train.npy"},
        "no test labels: --test-labels FILE.npy",
    ),
    "npy 10^12 rows": (lambda p: _claims_much(p / "x.npy"), {"labels": "x"}, "not what the file holds"),
    "npy negative shape": (
        lambda p: _claims_much(p / "x.npy", (-10, -100)),
        {"labels": "x"},
        "its header is damaged (shape (-10, -100))",
    ),
    "npy objects": (
        lambda p: save_npy(p, x_train=np.array([{}, {}], object)),
        {"labels": "x"},
        "of type object, which only pickle",
    ),
    "npy of text": (lambda p: _written(p / "x.npy", b"hello\n" * 50), {"labels": "x"}, "is not a readable .npy"),
    "npy folder without labels": (lambda p: save_npy(p, x_train=small()[0]).parent, {}, "has no y_train.npy"),
    "npy folder without test": (
        lambda p: save_npy(p, x_train=small()[0], y_train=small()[1]).parent,
        {},
        "has no test part: --test-fraction 0.2",
    ),
    "npy NaN": (
        lambda p: (
            save_npy(p, x_train=np.where(small()[0] == small()[0][8, 0, 0], np.nan, 1.0), y_train=small()[1]).parent
        ),
        {"test_fraction": "0.5"},
        "holds NaN or infinity, first in row",
    ),
    "cut of nothing": (
        lambda p: save_npy(p, x_train=small()[0], y_train=small()[1]).parent,
        {"test_fraction": "0.001"},
        "sets 0 of the 60 rows",
    ),
    "cut of what has a test part": (
        lambda p: save_h5(p, x_train=small()[0], y_train=small()[1], x_test=small()[0], y_test=small()[1]),
        {"test_fraction": "0.5"},
        "has a test part of its own: leave out --test-fraction",
    ),
    "h5 of text": (lambda p: _written(p / "x.h5", b"hello\n" * 50), {}, "is damaged, or no HDF5"),
    "h5 empty": (lambda p: _written(p / "x.h5", b""), {}, "is damaged, or no HDF5"),
    "h5 cut short": (_cut_short, {"test_fraction": "0.5"}, "is damaged, or no HDF5"),
    "h5 flipped bit": (_flipped, {"test_fraction": "0.5"}, "bad.h5: x_train is damaged"),
    "h5 NaN": (lambda p: _h5(p, _nan), {"test_fraction": "0.5"}, "x_train holds NaN or infinity, first in row 7"),
    "h5 other names": (
        lambda p: save_h5(p, a=[1], b=[2]),
        {},
        "has no x_train: it holds a, b; --inputs NAME and --labels NAME",
    ),
    "h5 wrong name": (lambda p: save_h5(p, a=[1]), {"inputs": "a/b/c"}, "has no a/b/c"),
    "h5 group": (lambda p: _h5(p, lambda file: file.create_group("x_train")), {}, "x_train is no dataset with values"),
    "h5 external link": (
        lambda p: _h5(p, lambda file: file.__setitem__("x_train", h5py.ExternalLink("/etc/hostname", "x"))),
        {},
        "x_train is a link",
    ),
    "h5 external storage": (lambda p: _h5(p, _external), {}, "lies in other files"),
    "h5 virtual": (lambda p: _h5(p, _virtual), {}, "lies in other files"),
    "h5 10^12 rows": (lambda p: _h5(p, _without_storage), {}, "claims (1000000000000, 28, 28) of uint8 and holds less"),
    "h5 ragged": (
        lambda p: _h5(p, lambda file: file.create_dataset("x_train", (4,), h5py.vlen_dtype("i4"))),
        {},
        "of no fixed size",
    ),
    "h5 text inputs": (lambda p: save_h5(p, x_train=[["a"], ["b"]], y_train=[0, 1]), {}, "inputs are uint8, floats"),
    "h5 one class of text": (lambda p: save_h5(p, x_train=[[1], [2]], y_train=["a", "a"]), {}, "a single class"),
    "soft targets": (
        lambda p: _h5(p, lambda file: file.attrs.__setitem__("kdistill_format", 1)),
        {},
        "is a soft-target file of kdistill's",
    ),
    "option that means nothing": (
        lambda p: save_h5(p, a=[1]),
        {"image_size": "32"},
        "--image-size means nothing for an HDF5 file, which takes --inputs, --labels",
    ),
}


def _written(path, contents):
    path.write_bytes(contents)
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_line(tmp_path, monkeypatch, case):
    """Whatever is wrong with data of any format, one line names what and where."""
    make, reading, expected = BAD[case]
    place = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdistillError) as caught:
        dataset = load(place, **reading)
        dataset.train.read()
        dataset.test.read()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ({"test_fraction": "1"}, "--test-fraction is 1: it needs a number between 0 and 1"),
        ({"test_fraction": "nan"}, "--test-fraction is nan"),
        ({"test_fraction": "a fifth"}, "--test-fraction is a fifth"),
        ({"image_size": "0"}, "--image-size is 0: it needs height and width"),
        ({"image_size": "32x"}, "--image-size is 32x"),
        ({"labels": ""}, "--labels is empty"),
    ],
)
def test_wrong_option_values(reading, said):
    with pytest.raises(UsageError) as caught:
        Reading(**reading)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("/a/photos", {}),
        ("/a b/ü&c=d", {"labels": "/ö/a b&c?=%.npy", "test_fraction": "0.5"}),
        ("/is this?.npz", {"test_fraction": "0.5"}),
        ("/is this?.npz", {}),
    ],
)
def test_a_name_says_how_it_is_read(name, reading):
    """What is put on a name is read from it again, whatever letters it has."""
    put = Reading(**reading).named(name)
    assert Reading.of(put) == (name, Reading(**reading))
    assert Reading.of(Reading(inputs="x").named(put)) == (name, Reading(inputs="x", **reading))
