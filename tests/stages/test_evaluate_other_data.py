"""`evaluate --dataset`: networks are measured on labeled rows that are not those of the recorded dataset."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from helpers import QUICK, mentions, write_npz

from kdistill.networks.saved_models import SavedNetwork
from kdistill.workspace import digest


def evaluated(run, *arguments):
    """Return the objects that `evaluate` prints."""
    outcome = run("evaluate", "--json", *arguments)
    assert outcome.code == 0, outcome.err
    assert not outcome.err
    return json.loads(outcome.out)


def test_rows_without_a_test_split(run, workspace, digits):
    """All rows are measured, and students are compared with their teacher on them; nothing is written."""
    rows, labels = 255 - digits.test.read()[:200], digits.test.labels[:200]
    np.savez("negative.npz", x_train=rows, y_train=labels)
    before = digest(workspace)
    measured = evaluated(run, "--dataset", "negative.npz")
    logits = {
        name: SavedNetwork.load(workspace / name / "saved_model").logits(rows)
        for name in ("teachers/teacher", "students/student")
    }
    classes = [each.argmax(axis=1) for each in logits.values()]
    assert [each["errors"] for each in measured] == [(each != labels).sum() for each in classes]
    assert measured[1]["agreement"] == pytest.approx((classes[0] == classes[1]).mean())
    assert [(each["name"], each["split"], each["rows"]) for each in measured] == [
        ("teacher", "other", 200),
        ("student", "other", 200),
    ]
    assert {each["dataset"] for each in measured} == {str(workspace.parent / "negative.npz")}
    outcome = run("evaluate", "--dataset", "negative.npz", "--per-class")
    assert mentions(outcome.out, "other", workspace.parent / "negative.npz", 200)
    assert "gap" not in outcome.out
    assert digest(workspace) == before
    assert [each["rows"] for each in evaluated(run, "--dataset", "negative.npz", "--test-fraction", "0.25")] == [50, 50]


def test_rows_with_a_test_split(run, workspace, digits):
    """Only the test rows are measured, also if the recorded dataset is gone."""
    for network in (workspace / "teachers/teacher", workspace / "students/student"):
        manifest = json.loads((network / "manifest.json").read_text())
        for each in manifest["inputs"]:
            if each["kind"] == "dataset":
                each["name"] = "/nosuch/digits.npz"
        (network / "manifest.json").write_text(json.dumps(manifest))
    write_npz(workspace.parent / "other.npz", digits, x_train=digits.train.read()[:9], y_train=digits.train.labels[:9])
    measured = evaluated(run, "--dataset", "other.npz")
    assert [(each["split"], each["rows"]) for each in measured] == [("other", 360)] * 2


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"x_train": np.zeros((4, 5), np.uint8), "y_train": [0, 1, 2, 3]}, [], [(5,), (28, 28)]),
        ({"x_train": np.zeros((4, 28, 28)), "y_train": [0, 1, 2, 3]}, [], ["float64", "uint8"]),
        ({"y_train": [0, 1, 2, 10]}, [], [10]),
        ({"y_train": ["0", "1", "2", "x"]}, [], ["'x'"]),
        ({"y_train": [0, 1, 2, 3], "class_names": list("9876543210")}, [], [9, 8, 0, 1]),
        ({"y_train": None}, [], ["y_train", "predict"]),
        ({"y_train": [[0, 1], [1, 1], [0, 0], [1, 0]]}, [], [(4, 2)]),
        ({"y_train": [0, 1, 2, 3]}, ["--task", "regression"], ["--task regression", "classification"]),
    ],
    ids=["shape", "type", "number", "name", "names", "no labels", "several labels", "task"],
)
@pytest.mark.usefixtures("workspace")
def test_data_that_does_not_fit(run, tmp_path, arrays, options, words):
    """It gives one line that names the data and what differs."""
    arrays = {"x_train": np.zeros((4, 28, 28), np.uint8)} | arrays
    np.savez("other.npz", **{name: values for name, values in arrays.items() if values is not None})
    outcome = run("evaluate", "--dataset", "other.npz", *options)
    assert outcome.code in (1, 2)
    assert len(outcome.err.splitlines()) == 1
    assert all(str(word) in outcome.err for word in words), outcome.err
    assert options or str(tmp_path / "other.npz") in outcome.err


def test_table(run, tmp_path):
    """A table is prepared with the recorded statistics and categories, and its columns can be in any order."""
    pandas = pytest.importorskip("pandas", reason="kdistill[tables] is not installed")
    draw = np.random.default_rng(0)
    size, color = draw.normal(50, 10, 200), draw.choice(["red", "blue", "green"], 200)
    frame = pandas.DataFrame({"size": size, "color": color, "kind": np.where(size > 50, "big", "small")})
    frame.to_csv("old.csv", index=False)
    options = ["--labels", "kind", "--test-fraction", "0.2", "--missing", "mean"]
    train = ["train-teacher", "--dataset", "old.csv", *options, "--model", "mlp-30", "--epochs", "3", "--xla", "off"]
    assert run(*train).code == 0
    (tmp_path / "old.csv").unlink()
    other = frame.iloc[:50, [2, 1, 0]].assign(size=size[:50] + 15, unused=1)
    other.loc[:20, "color"] = "violet"
    other.loc[5, "size"] = np.nan
    other.to_csv("other.csv", index=False)
    (measured,) = evaluated(run, "--dataset", "other.csv")
    assert run("predict", "other.csv", "--network", "teacher").code == 0
    with (tmp_path / "predictions.csv").open() as file:
        predicted = [row["class"] for row in csv.DictReader(file)]
    wrong = int((np.array(predicted) != other["kind"]).sum())
    assert (measured["rows"], measured["errors"]) == (50, wrong)
    assert 0 < wrong < 50
    outcome = run("evaluate", "--dataset", "digits")
    assert outcome.code == 1
    assert mentions(outcome.err, "digits", "size, color")


@pytest.mark.usefixtures("workspace")
def test_networks_of_several_datasets(run, digits):
    """Those that other data does not fit are skipped with a warning."""
    np.savez("small.npz", x_train=np.zeros((40, 5)), y_train=[0, 1] * 20)
    train = ["train-teacher", "--name", "small", "--dataset", "small.npz", "--test-fraction", "0.2", "--epochs", "1"]
    assert run(*train, *QUICK[:2], "--batch-size", "8", "--xla", "off").code == 0
    np.savez("other.npz", x_train=digits.test.read()[:40], y_train=digits.test.labels[:40])
    outcome = run("evaluate", "--json", "--dataset", "other.npz")
    assert outcome.code == 0
    assert [each["name"] for each in json.loads(outcome.out)] == ["teacher", "student"]
    assert mentions(outcome.err, "teacher 'small'", (5,))
    assert len(outcome.err.splitlines()) == 1
    assert run("evaluate", "--dataset", "small.npz", "--test-fraction", "0.2").code == 0


def test_stored_logits_are_left_out(run, digits):
    """Logits of the recorded test rows are not compared with outputs of as many other rows."""
    np.save("train.npy", 9.0 * np.eye(10, dtype=np.float32)[digits.train.labels])
    np.save("test.npy", np.eye(10, dtype=np.float32)[digits.test.labels])
    soften = ["soften", "--logits", "train.npy", "--test-logits", "test.npy", "--dataset", "digits"]
    assert run(*soften).code == 0
    assert run("train-student", *QUICK[:2], "--epochs", "1", "--batch-size", "200", "--xla", "off").code == 0
    assert len(evaluated(run)) == 3
    np.savez("other.npz", x_train=digits.test.read()[::-1], y_train=digits.test.labels[::-1])
    (measured,) = evaluated(run, "--dataset", "other.npz")
    assert (measured["name"], measured["rows"], measured["agreement"]) == ("student", 360, None)
