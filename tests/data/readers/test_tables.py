"""`.csv` and `.parquet` tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import MNIST, mentions
from small_data import HALF, check_error, check_rows, inputs_of, load, save_csv, save_table, table, write

from kdistill import data
from kdistill.data.preprocessing import TablePreprocessing
from kdistill.data.rows import held_out
from kdistill.errors import KdistillError


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_columns_are_standardized_with_the_training_rows(tmp_path, extension):
    """Test rows are standardized with the statistics of the training rows. A constant column becomes 0."""
    columns = table()
    dataset = load(save_table(tmp_path / f"data.{extension}", columns), test_fraction=0.25)
    assert (len(dataset.train), len(dataset.test), dataset.class_names) == (30, 10, ("ant", "bee", "cat"))
    assert dataset.input_dtype == "float32"
    train, test = dataset.train.read(), dataset.test.read()
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), [1, 0, 1], rtol=1e-5)
    assert abs(test.mean(axis=0)[0]) > 1e-3
    assert not train[:, 1].any()
    check_rows(dataset.train.inputs, train)
    preprocessing = dataset.preprocessing
    assert json.loads(json.dumps(preprocessing)) == preprocessing
    (mean, deviation), (_, zero), _ = _statistics(dataset).values()
    assert zero == 0
    ages = np.sort(np.concatenate([train, test])[:, 0].astype(float) * deviation + mean)
    np.testing.assert_allclose(ages, np.sort(columns["age"]), rtol=1e-5)


def _statistics(dataset):
    """Return the statistics of the columns, by name."""
    (statistics,) = (value for name, value in dataset.preprocessing.items() if name != "table")
    return statistics


def test_transfer_set_is_standardized_as_the_dataset(tmp_path):
    """With the dataset's statistics, for any order of the columns. Its labels are the dataset's classes."""
    dataset = load(save_csv(tmp_path), test_fraction=0.25)
    more = {"id": [10, 11], "label": ["cat", "bee"], "count": [3, 4], "same": [0.1, 7.0], "age": [50.0, 90.0]}
    split = data.resolve(str(save_table(tmp_path / "more.parquet", more))).load_transfer_set(dataset)
    (age, age_deviation), _, (count, count_deviation) = _statistics(dataset).values()
    np.testing.assert_allclose(
        split.read()[0], [(50 - age) / age_deviation, 0, (3 - count) / count_deviation], rtol=1e-6
    )
    assert [dataset.class_names[label] for label in split.labels] == ["cat", "bee"]
    del more["label"]
    assert data.resolve(str(save_table(tmp_path / "more.csv", more))).load_transfer_set(dataset).labeled_rows == 0
    del more["age"]
    source = data.resolve(str(save_table(tmp_path / "more.csv", more)))
    with pytest.raises(KdistillError, match=r"more\.csv.* age"):
        source.load_transfer_set(dataset)


def test_transfer_set_uses_the_datasets_columns(tmp_path):
    """The label column of the dataset is that of the transfer set, and never an input."""
    columns = table() | {"extra": np.arange(40)}
    columns["kind"] = columns.pop("label")
    path = save_table(tmp_path / "data.csv", columns)
    dataset = load(path, labels="kind", inputs="count,age", test_inputs=str(path))
    split = data.resolve(str(path)).load_transfer_set(dataset)
    assert (split.labels == dataset.train.labels).all()
    np.testing.assert_array_equal(split.read(), dataset.train.read())
    assert list(_statistics(dataset)) == ["count", "age"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 2], ("2", "9", "10")),
        ([10.0, 9.0, 2.0], ("2", "9", "10")),
        ([1.5, 0.5, 10.0], ("0.5", "1.5", "10.0")),
        ([True, False, True], ("False", "True")),
        (["NA", "None", "x"], ("NA", "None", "x")),
    ],
)
def test_labels_are_categories(tmp_path, values, names):
    """Classes are sorted, numbers as numbers. In labels, NA and None are strings."""
    assert load(save_table(tmp_path / "data.csv", table(12) | {"label": values * 4}), **HALF).class_names == names


def test_values_far_from_the_training_rows(tmp_path):
    """A value that is infinite after standardization is an error; a large value is not."""
    test = _csv(tmp_path, "a,label\n1,x\n1e300,y\n").rename(tmp_path / "test.csv")
    path = _csv(tmp_path, "a,label\n1,x\n1.5,y\n")
    check_error(path, "test.csv: column a", "1e+300", test_inputs=str(test))
    path = _csv(tmp_path, "a,label\n1e100,x\n2e100,y\n")
    np.testing.assert_allclose(load(path, test_inputs=str(path)).train.read(), [[-1], [1]])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "  "])
@pytest.mark.parametrize("extension", ["csv", "data"])
def test_separators_and_extensions(tmp_path, separator, extension):
    """The separator is found in the header, and --data-format names the format of a file with another extension."""
    path = save_csv(tmp_path)
    expected = load(path, test_fraction=0.25)
    other = tmp_path / f"other.{extension}"
    other.write_text(path.read_text().replace(",", separator))
    options = {} if extension == "csv" else {"data_format": "csv"}
    dataset = load(other, test_fraction=0.25, **options)
    np.testing.assert_array_equal(dataset.train.read(), expected.train.read())
    assert dataset.class_names == expected.class_names
    assert len(load(other, test_inputs=str(other), **options).test) == 40


def test_command_that_adds_a_header(tmp_path):
    """Numbers in order are a header, and the command in the error about a missing header writes one."""
    command = re.search(
        r"\(seq.* > numbered\.csv", check_error(_csv(tmp_path, "a,1,9\nb,2,9\n" * 6), labels="0", **HALF)
    )[0]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    dataset = load(tmp_path / "numbered.csv", labels="0", **HALF)
    assert (len(dataset.train) + len(dataset.test), dataset.class_names) == (12, ("a", "b"))
    assert list(_statistics(dataset)) == ["1", "2"]


def test_equal_strings_of_parquet_are_shared(tmp_path):
    columns = {"a": np.random.default_rng(0).normal(size=40), "label": ["b" * 900, "c"] * 20}
    labels = data.resolve(str(save_table(tmp_path / "d.parquet", columns))).reader.contents().train.labels
    assert labels.dtype == object
    assert len({id(label) for label in labels}) == 2


def test_small_parquet_of_many_rows(tmp_path, monkeypatch):
    """A small file with very many rows is an error before they are read; with fewer rows it is read."""
    rows = 200_000
    path = save_table(tmp_path / "d.parquet", {"a": np.zeros(rows), "label": np.arange(rows) * 2 // rows})
    assert load(path, **HALF).classes == 2
    monkeypatch.setattr("kdistill.data.readers.tables.TRUSTED_BYTES", 1 << 20)
    monkeypatch.setattr("pandas.read_parquet", lambda *_, **__: pytest.fail("read"))
    check_error(path, "200,000 rows", **HALF)


def _incomplete(rows=200):
    """Return a table with a column of numbers and one of texts, in both of which values are missing, and booleans."""
    draw = np.random.default_rng(1)
    number = draw.normal(5, 2, rows)
    city = np.array(["Oslo", "Rome", "Bern"], object)[draw.integers(0, 3, rows)]
    number[::7], city[::11] = np.nan, None
    return {"number": number, "city": city, "member": draw.integers(0, 2, rows) == 1, "label": np.arange(rows) % 2}


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_missing_values_and_categories(tmp_path, extension):
    """Means and categories are those of the training rows. A missing or unknown text is 0 in every category."""
    columns = _incomplete()
    test = held_out(200, 0.25)
    columns["city"][np.flatnonzero(test & (columns["city"] != None))[:3]] = "Lima"  # noqa: E711 - elementwise
    path = save_table(tmp_path / f"data.{extension}", columns)
    dataset = load(path, test_fraction=0.25, missing="mean")
    number, member = columns["number"], columns["member"].astype(float)
    expected = np.zeros((200, 5))
    expected[:, 0] = np.nan_to_num((number - np.nanmean(number[~test])) / np.nanstd(number[~test]))
    expected[:, 1:4] = columns["city"][:, None] == np.array(["Bern", "Oslo", "Rome"], object)
    expected[:, 4] = (member - member[~test].mean()) / member[~test].std()
    np.testing.assert_allclose(dataset.train.read(), expected[~test], atol=1e-5)
    np.testing.assert_allclose(dataset.test.read(), expected[test], atol=1e-5)
    assert dataset.notes == ("city: 3 categories",)
    check_error(path, "column number", "29 missing", "--missing mean", **HALF)


def test_rows_with_missing_values_are_left_out(tmp_path):
    """`--missing drop` leaves out rows with their labels, also those without a label."""
    columns = _incomplete()
    columns["label"] = np.where(np.arange(200) == 1, None, "b" + columns["label"].astype(str).astype(object))
    kept = ~np.isnan(columns["number"]) & (columns["city"] != None) & (np.arange(200) != 1)  # noqa: E711 - elementwise
    path = save_table(tmp_path / "data.csv", columns)
    dataset = load(path, missing="drop", test_inputs=str(path))
    number = columns["number"][kept]
    np.testing.assert_allclose(dataset.train.read()[:, 0], (number - number.mean()) / number.std(), atol=1e-5)
    assert [dataset.class_names[label] for label in dataset.test.labels] == columns["label"][kept].tolist()
    assert all(mentions(note, path.name, 200 - kept.sum(), 200) for note in dataset.notes[1:])
    assert len(dataset.notes) == 3


def test_preprocessing_is_recorded(tmp_path):
    """What a dataset describes is enough to prepare other rows, whatever the type of a column of texts looks like."""
    columns = _incomplete()
    columns["city"] = np.where(columns["city"] == "Oslo", "07", columns["city"])
    dataset = load(save_table(tmp_path / "data.csv", columns), missing="mean", test_fraction=0.25)
    recorded = json.loads(json.dumps(dataset.description))["preprocessing"]
    preprocessing = TablePreprocessing.from_json(recorded)
    assert preprocessing.columns == ["number", "city=07", "city=Bern", "city=Rome", "member"]
    assert preprocessing.as_json() == recorded
    new = {"member": [True, False], "city": ["07", "08"], "number": [None, 5.0]}
    rows = data.resolve(str(save_table(tmp_path / "new.csv", new))).load_transfer_set(dataset).read()
    assert rows[0, :4].tolist() == [0, 1, 0, 0]
    assert rows[1, 1:4].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(preprocessing.apply(pytest.importorskip("pandas").DataFrame(new)), rows)
    dropped = data.resolve(str(tmp_path / "new.csv?missing=drop")).load_transfer_set(dataset)
    np.testing.assert_array_equal(dropped.read(), rows[1:])
    for damaged in ({"table": {}}, {"table": {"inputs": ["a"], "labels": "b"}, "standardised": {}}):
        with pytest.raises(KdistillError):
            TablePreprocessing.from_json(damaged)
    assert TablePreprocessing.from_json({}) is None


def test_table_as_transfer_set_of_arrays(tmp_path):
    """Numbers of a table stay as they are if the dataset is no table."""
    arrays = {"x_train": np.ones((4, 3)), "y_train": np.arange(4) % 2, "x_test": np.ones((2, 3)), "y_test": [0, 1]}
    np.savez(tmp_path / "data.npz", **arrays)
    dataset = load(tmp_path / "data.npz")
    columns = table()
    del columns["label"]
    split = data.resolve(f"{save_table(tmp_path / 'more.csv', columns)}?inputs=age,same,count").load_transfer_set(
        dataset
    )
    np.testing.assert_array_equal(split.read()[:, 2], columns["count"])


def test_housing():
    """The well-known table of house prices has a column with missing values, one with texts, and quantities as labels."""
    housing = MNIST.parent / "housing.csv"
    if not housing.exists():
        pytest.skip("housing.csv is not available")
    dataset = load(housing, labels="median_house_value", missing="mean", test_fraction=0.2)
    assert (dataset.task.name, dataset.class_names) == ("regression", ("median_house_value",))
    assert dataset.input_shape == (8 + 5,)
    assert dataset.notes == ("ocean_proximity: 5 categories",)


def test_pandas_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    check_error(write(tmp_path / "data.csv", b"a,label\n1,2\n"), "pip install 'kdistill[tables]'", **HALF)


def test_inputs_only(tmp_path):
    """A table without labels can be read as a transfer set."""
    columns = table()
    del columns["label"]
    assert inputs_of(save_table(tmp_path / "data.csv", columns)).shape == (40, 3)


def _csv(place, text):
    pytest.importorskip("pandas", reason="kdistill[tables] is not installed")
    return write(place / "data.csv", text.encode("latin1"))


def _with_ages(place, extension, age, rows=(5, 9)):
    columns = table()
    columns["age"][list(rows)] = age
    return save_table(place / f"data.{extension}", columns)


def _with_test(place, columns):
    save_table(place / "test.csv", columns)
    return save_csv(place)


def _columns(**columns):
    return lambda place: save_table(place / "d.csv", columns)


TEST = {"test_inputs": "test.csv"}
BAD = {
    "missing values in CSV": (
        lambda p: _with_ages(p, "csv", np.nan),
        ["column age", "2 missing", "row 5", "--missing mean", "--missing drop"],
    ),
    "missing values in Parquet": (
        lambda p: _with_ages(p, "parquet", np.nan),
        ["column age", "2 missing", "row 5", "--missing mean", "--missing drop"],
    ),
    "infinite values": (lambda p: _with_ages(p, "csv", np.inf), ["column age", "2 infinite", "row 5"]),
    "missing labels": (lambda p: save_csv(p, label=[None, "b"] * 20), ["column label", "20 missing", "row 0"]),
    "infinite labels": (lambda p: save_csv(p, label=[1.0, np.inf] * 20), ["column label", "20 infinite", "row 1"]),
    "a text among numbers": (
        lambda p: save_csv(p, age=[*range(39), "?"]),
        ["column age", "1 text", "'?'", "row 39", "--missing mean", "--inputs same,count"],
        {"test_fraction": 0.25},
    ),
    "names as inputs": (
        lambda p: save_csv(p, age=[f"person {i}" for i in range(40)]),
        ["column age", "30 different texts in 30 rows", "--inputs same,count"],
        {"test_fraction": 0.25},
    ),
    "texts in a test table": (
        lambda p: _with_test(p, {**table(), "age": ["old", "12"] * 20}),
        ["test.csv: column age", "20 texts", "'old'", "row 0"],
        {"test_fraction": None, **TEST},
    ),
    "only missing values": (
        lambda p: _with_ages(p, "csv", np.nan, rows=range(40)),
        ["column age", "--inputs"],
        {"missing": "mean"},
    ),
    "no complete row": (
        lambda p: _with_ages(p, "csv", np.nan, rows=range(40)),
        ["none of the 40 rows", "--missing mean"],
        {"missing": "drop"},
    ),
    "missing labels, filled": (
        lambda p: save_csv(p, label=[None, "b"] * 20),
        ["column label", "20 missing", "--missing drop"],
        {"missing": "mean"},
    ),
    "not a way to treat missing values": (save_csv, ["--missing", "median"], {"missing": "median"}),
    "dates as inputs": (
        lambda p: save_table(p / "d.parquet", {**table(), "age": np.full(40, "2020-01-01", "M8[s]")}),
        ["column age", "datetime64"],
    ),
    "no label column": (_columns(a=[1.0, 2.0], b=[1.0, 2.0]), ["column label", "--labels COLUMN"]),
    "unnamed label column": (_columns(a=[1.0, 2.0], b=["x", "y"]), ["--labels b"]),
    "similar column": (save_csv, ["(did you mean age?)"], {"inputs": "Age"}),
    "similar label column": (_columns(a=[1.0, 2.0], Label=[1.0, 2.0]), ["(did you mean Label?)"]),
    "long label": (lambda p: save_csv(p, label=["a", "b" * 1001] * 20), ["column label", "1,001", "row 1"]),
    "no header": (
        lambda p: _csv(p, "T,2,8.5\nI,5,12\n"),
        ["data.csv", "2, 8.5", "(seq -s ',' 0 2; cat ", "--labels 0"],
    ),
    "no header, only numbers": (lambda p: _csv(p, "5\t1\n4\t0\n"), ["data.csv", "5, 1", "--labels 1"]),
    "unknown column": (save_csv, ["nosuch", "age, same"], {"inputs": "age,nosuch"}),
    "unknown label column": (save_csv, ["nosuch", "age, same"], {"labels": "nosuch"}),
    "label as input": (save_csv, ["--inputs age,label"], {"inputs": "age,label"}),
    "regression read as classes": (
        lambda p: save_csv(p, label=["a", "b"] * 20),
        ["column label", "--task regression"],
        {"task": "regression"},
    ),
    "values too large": (lambda p: _with_ages(p, "csv", 1e308), ["column age", "too large"]),
    "no test part": (save_csv, ["--test-fraction 0.2"], {"test_fraction": None}),
    "no rows": (lambda p: _csv(p, "a,label\n"), ["data.csv", "empty"]),
    "empty file": (lambda p: _csv(p, ""), ["data.csv"]),
    "longer rows": (lambda p: _csv(p, "a,label\n1,2,3\n1,2,4\n"), ["data.csv"]),
    "one longer row": (lambda p: _csv(p, "a,label\n1,2\n1,2,4\n"), ["data.csv", "line 3"]),
    "not UTF-8": (lambda p: _csv(p, "a,label\n1,\xff\n"), ["data.csv", "utf-8"]),
    "not Parquet": (lambda p: _csv(p, "a,label\n1,2\n").rename(p / "x.parquet"), ["x.parquet"]),
    "test table without a column": (
        lambda p: _with_test(p, {"age": [1.0], "label": ["cat"]}),
        ["test.csv", "same"],
        {"test_fraction": None, **TEST},
    ),
    "test table with another class": (
        lambda p: _with_test(p, {**table(2), "label": ["cat", "dog"]}),
        ["column label", "'dog'"],
        {"test_fraction": None, **TEST},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    make, expected, *options = BAD[case]
    check_error(make(tmp_path), *expected, **HALF | (options[0] if options else {}))
