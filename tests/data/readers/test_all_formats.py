"""What all formats have in common: byte order, options, names, and the stages that use them."""

from __future__ import annotations

import os
import re
import shlex

import numpy as np
import pytest
from small_data import (
    HALF,
    X,
    Y,
    check_error,
    check_rows,
    load,
    save_csv,
    save_h5,
    save_images,
    save_module,
    save_npy,
    save_npz,
    save_table,
    table,
)

from kdistill import data
from kdistill.data.readers import images
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import ReadOptions

SPLIT = ["--test-fraction", "0.2"]
TRAINING = ["--model", "small", "--epochs", "1", "--batch-size", "8"]
NPY_OPTIONS = ["--labels", "y.npy", "--test-inputs", "x_train.npy", "--test-labels", "y.npy"]
FORMATS = {
    "npz": lambda p: (save_npz(p), SPLIT),
    "npy": lambda p: (save_npy(p, x_train=X, y=Y).name, NPY_OPTIONS),
    "npy folder": lambda p: (save_npy(p, x_train=X, y_train=Y).parent, SPLIT),
    "hdf5": lambda p: (save_h5(p, pixels=X, what=Y), ["--inputs", "pixels", "--labels", "what", *SPLIT]),
    "images": lambda p: (save_images(p / "photos"), ["--image-size", "8", *SPLIT]),
    "csv": lambda p: (save_csv(p), ["--inputs", "age,count", "--labels", "label", *SPLIT]),
    "parquet": lambda p: (save_table(p / "d.parquet", table()), ["--test-inputs", "d.parquet"]),
    "tfds": lambda _: ("tfds:mine", []),
    "function": lambda p: (save_module(p, "return (x, y), (x, y)"), []),
    "function of tf.data": lambda p: (save_module(p, "return dataset(), dataset(9)"), []),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_teacher_of_each_format(run, tmp_path, kind, request):
    """A teacher can be trained on each format, and is up to date until its data changes."""
    if kind == "tfds":
        request.getfixturevalue("prepare_tfds")(train=60, test=9)
    place, options = FORMATS[kind](tmp_path)
    command = ["train-teacher", "--dataset", place, *options, *TRAINING]
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    assert outcome.err.replace("a module may print\n", "") == ""
    assert "up to date" in run(*command).out.lower()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "function of tf.data"])
def test_later_stages_take_read_options_from_the_manifest(run, tmp_path, monkeypatch, kind):
    """Only the first stage needs them, and only the first stage decodes images."""
    place, options = FORMATS[kind](tmp_path)
    commands = ["soften"], ["train-student", *TRAINING], ["plot"], ["evaluate"], ["verify"]
    for command in (["train-teacher", "--dataset", place, *options, *TRAINING], *commands):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err + outcome.out
        monkeypatch.setattr(images, "decode", lambda path, **_: pytest.fail(f"decoded {path}"))
    assert "kdistill report" in run("status").out


@pytest.mark.slow
def test_command_in_status_can_be_pasted(run, tmp_path):
    """A dataset's name with spaces and read options is quoted for the shell."""
    photos = save_images(tmp_path / "my photos")
    run("train-teacher", "--dataset", photos, *SPLIT, "--model", "small", "--epochs", "1")
    (photos / "cat" / "000.png").unlink()
    command = re.search(r"kdistill (train-teacher.*)", run("status").out)[1]
    assert f"--dataset '{photos}?test-fraction=0.2'" in command
    assert run(*shlex.split(command)).code == 0
    assert "stale" not in run("status").out


@pytest.mark.parametrize("kind", ["npy", "h5", "function"])
def test_big_endian_data(tmp_path, monkeypatch, kind):
    """Rows and keys are those of the same numbers in this machine's byte order."""
    monkeypatch.chdir(tmp_path)
    arrays = {"x_train": X.astype(">f4"), "y_train": Y.astype(">i8")}
    if kind == "function":
        place = save_module(tmp_path, "return x.astype('>f4'), y.astype('>i8')")
    else:
        place = save_npy(tmp_path, **arrays).parent if kind == "npy" else save_h5(tmp_path, **arrays)
    dataset = load(place, test_fraction=0.25)
    (tmp_path / "native").mkdir()
    native = load(save_npy(tmp_path / "native", x_train=X.astype("f4"), y_train=Y).parent, test_fraction=0.25)
    check_rows(dataset.train.inputs, native.train.read())
    assert dataset.train.read().dtype.isnative
    assert (dataset.train.keys() == native.train.keys()).all()
    assert (dataset.train.labels == native.train.labels).all()


def test_transfer_set_without_labels(tmp_path):
    dataset = load(save_h5(tmp_path, x_train=X, y_train=Y, x_test=X, y_test=Y))
    for path in (save_npy(tmp_path, x_train=X[:20]), save_h5(tmp_path, x_train=X[:20])):
        split = data.resolve(str(path)).load_transfer_set(dataset)
        assert (len(split), split.labeled_rows) == (20, 0)
        check_rows(split.inputs, X[:20])


def test_transfer_set_has_the_datasets_classes(tmp_path):
    """Names in a transfer set get the class numbers of the dataset; other names are an error."""
    names = np.array(["cat", "ant", "bee"])
    dataset = load(save_h5(tmp_path, x_train=X, y_train=names[Y].tolist()), **HALF)
    split = data.resolve(str(save_h5(tmp_path, x_train=X, y_train=["cat", "bee"] * 30))).load_transfer_set(dataset)
    assert split.labels.tolist() == [2, 1] * 30
    source = data.resolve(str(save_h5(tmp_path, x_train=X, y_train=["cat", "dog"] * 30)))
    with pytest.raises(KdistillError, match=r"'dog'.* ant, bee, cat"):
        source.load_transfer_set(dataset)


def test_data_format(tmp_path):
    """--data-format names the format of a file with another extension."""
    files = {
        "hdf5": save_h5(tmp_path, x_train=X, y_train=Y),
        "npz": save_npz(tmp_path),
        "parquet": save_table(tmp_path / "a.parquet", table()),
    }
    for data_format, path in files.items():
        other = path.rename(tmp_path / f"{data_format}.data")
        check_error(other, "--data-format", **HALF)
        assert load(other, data_format=data_format, **HALF).classes == 3
    path = save_npy(tmp_path, x_train=X, y=Y)
    assert load(path, labels=str(tmp_path / "y.npy"), data_format="npy", **HALF).classes == 3


def test_link_to_a_device(tmp_path):
    (tmp_path / "x.npz").symlink_to("/dev/zero")
    check_error(tmp_path / "x.npz", "x.npz", "regular file")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"test_fraction": 1.0}, ["--test-fraction", "1"]),
        ({"test_fraction": float("nan")}, ["--test-fraction", "nan"]),
        ({"image_size": "0"}, ["--image-size", "0"]),
        ({"image_size": "32x"}, ["--image-size", "32x"]),
        ({"max_pixels": 0}, ["--max-pixels", "0"]),
        ({"labels": ""}, ["--labels"]),
    ],
)
def test_wrong_option_values(options, expected):
    with pytest.raises(UsageError) as caught:
        ReadOptions(**options)
    assert all(text in str(caught.value) for text in expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("/a/photos", {}),
        ("/a b/ü&c=d", {"labels": "/ö/a b&c?=%.npy", "test_fraction": 0.5}),
        ("/is this?.npz", {"test_fraction": 0.5}),
        ("/is this?.npz", {}),
    ],
)
def test_read_options_in_a_name(name, options):
    """Options that are appended to a name can be split off again, whatever characters they have."""
    extended = ReadOptions(**options).named(name)
    assert ReadOptions.of(extended) == (name, ReadOptions(**options))
    assert ReadOptions.of(ReadOptions(inputs="x").named(extended)) == (name, ReadOptions(inputs="x", **options))


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["train-teacher", "--labels", "x"], 2, ["--labels", "digits"]),
        (["train-teacher", "--dataset", "digits?test-fraction=0.2"], 2, ["--test-fraction", "digits"]),
        (["train-teacher", "--dataset", "digits?color=red"], 2, ["'color'", "inputs"]),
        (["soften", "--image-size", "32"], 2, ["--image-size", "--dataset"]),
        (["train-student", "--test-fraction", "0.5"], 2, ["--test-fraction"]),
        (["run", "--test-fraction", "2", "--dataset", "digits"], 2, ["--test-fraction", "2"]),
        (["train-teacher", "--data-format", "csv"], 2, ["--data-format", "digits"]),
        (["soften", "--data-format", "csv"], 2, ["--data-format"]),
        (["train-teacher", "--dataset", "/dev/zero", "--data-format", "npy"], 1, ["/dev/zero"]),
        (["train-teacher", "--dataset", "digit"], 1, ["(did you mean digits?)"]),
        (["train-teacher", "--dataset", "tfds:no/such/name"], 2, ["tfds:no/such/name", "tfds:NAME"]),
        (["train-teacher", "--dataset", "no.such:module"], 1, ["no.such"]),
        (["train-teacher", "--dataset", "data.xyz"], 1, ["data.xyz", ".npz, .npy, .h5"]),
        (["train-teacher", "--dataset", "nosuch.csv"], 1, ["nosuch.csv", "digits, mnist"]),
        (["train-teacher", "--dataset", "bad.npz", *SPLIT], 1, ["bad.npz"]),
    ],
)
def test_wrong_commands(run, tmp_path, arguments, code, expected):
    """The error is one line, and nothing is written."""
    (tmp_path / "data.xyz").write_text("hello")
    (tmp_path / "bad.npz").write_text("hello")
    outcome = run(*arguments)
    assert outcome.code == code, outcome.err
    assert all(text in outcome.err for text in expected), outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["bad.npz", "data.xyz"]
