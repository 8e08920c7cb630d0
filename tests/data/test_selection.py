"""Which rows of a transfer set are used: classes, and fractions of them."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
from helpers import QUICK, write_npz

from kdistill import data
from kdistill.data.keys import fraction_rows, validation_rows
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import Selection, Soften, TrainStudent
from kdistill.soft_targets import SoftTargets

SMALL = ["--model", "mlp-30", "--epochs", "1", "--batch-size", "16"]


def drawn(counts, seed=0):
    """Keys and labels of some rows of each class, in any order."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(counts)), counts))
    return draw.integers(0, 256, (len(labels), 16), np.uint8), labels


def kept_of(labels, kept, classes):
    return np.bincount(labels[kept], minlength=classes).tolist()


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([100, 100], 0.03, [3, 3]),
        ([100, 50, 17], 0.1, [10, 5, 2]),  # 10, 5, 1.7 and 17 in all
        ([14, 15, 16], 0.1, [1, 1, 2]),  # 1.4, 1.5, 1.6 and round(4.5) = 4 in all: the largest remainder
        ([15, 15, 15, 15], 0.1, [2, 2, 1, 1]),  # alike: the first classes
        ([1000, 3], 0.01, [9, 1]),  # a class that would be left without a row takes one from the largest
        ([5, 1], 0.2, [1, 0]),  # fewer rows than classes
        ([5, 1], 0.01, [0, 0]),
        ([7, 0, 3], 1.0, [7, 0, 3]),
    ],
)
def test_exact_counts(counts, fraction, expected):
    keys, labels = drawn(counts)
    kept = fraction_rows(keys, labels, fraction, 0)
    assert kept_of(labels, kept, len(counts)) == expected
    assert kept.sum() == round(fraction * len(labels))


def test_a_fraction_is_a_function_of_rows_and_seed():
    """Whatever the order; another seed keeps others; a class's rows don't depend on the other classes'."""
    keys, labels = drawn([300, 200, 100])
    kept = fraction_rows(keys, labels, 0.1, 7)
    order = np.random.default_rng(1).permutation(len(keys))
    assert (fraction_rows(keys[order], labels[order], 0.1, 7) == kept[order]).all()
    other = fraction_rows(keys, labels, 0.1, 8)
    assert other.sum() == kept.sum()
    assert 0 < (other & kept).sum() < 20
    alone = labels == 1
    assert (fraction_rows(keys[alone], labels[alone], 0.1, 7) == kept[alone]).all()


def test_fractions_are_nested():
    keys, labels = drawn([300, 200, 100])
    some = [fraction_rows(keys, labels, fraction, 0) for fraction in (0.01, 0.03, 0.1, 0.25, 0.5, 1)]
    for smaller, larger in pairwise(some):
        assert (smaller <= larger).all()
        assert smaller.sum() < larger.sum()
    assert some[-1].all()


def test_equal_rows_and_rows_without_a_label():
    """Of equal rows the first are kept; rows without a label have their share."""
    keys = np.repeat(drawn([1])[0], 10, axis=0)
    assert np.flatnonzero(fraction_rows(keys, np.zeros(10, np.int64), 0.3, 0)).tolist() == [0, 1, 2]
    keys, labels = drawn([100, 300])
    kept = fraction_rows(keys, labels - 1, 0.1, 0)
    assert kept_of(labels, kept, 2) == [10, 30]


def test_a_fraction_is_drawn_apart_from_validation_rows():
    """With the same seed the rows kept are no likelier to be held out than others."""
    keys, labels = drawn([2000, 2000])
    kept = fraction_rows(keys, labels, 0.1, 3)
    assert 0.05 < validation_rows(keys, 0.1, 3)[kept].mean() < 0.15


def test_classes_by_name_or_number(digits):
    named = dataclasses.replace(digits, class_names=("nil", "2", *"abcdefgh"))

    def classes(**selection):
        return set(digits.train.labels[data.selected(digits.train, Selection(**selection), named)].tolist())

    assert classes(only_classes="nil, 9") == {0, 9}
    assert classes(only_classes="2") == {1}  # its name, though it is another's number
    assert classes(omit_class="nil,h,3") == {1, 2, 4, 5, 6, 7, 8}
    assert classes() == set(range(10))
    for unknown in ("none", "10", "-1", "²"):
        with pytest.raises(UsageError, match=r"no such class; it has nil, 2, a, .*by number 0 to 9"):
            classes(omit_class=unknown)


def test_a_fraction_is_of_the_rows_that_the_classes_leave(digits):
    rows = digits.train
    kept = data.selected(rows, Selection(only_classes="7,8", fraction=0.1), digits)
    of_classes = np.isin(rows.labels, (7, 8))
    assert kept.sum() == round(0.1 * of_classes.sum())
    assert (kept <= of_classes).all()
    assert (data.selected(rows, Selection(only_classes="7,8", fraction=0.1), digits, rows.keys()) == kept).all()


def test_settings_of_old_manifests():
    """What knows nothing of the options says that all rows are used, and no option that is not used is recorded."""
    assert Selection.of({"temperature": 4.0}) == Selection()
    assert set(Selection().settings().values()) == {None}
    given = Selection(omit_class="3", fraction=0.5)
    assert given.settings() == {"omit_class": "3", "only_classes": None, "fraction": 0.5, "rows_seed": 0}
    assert given.settings() == Selection(omit_class="3", fraction=0.5, rows_seed=0).settings()
    assert Soften().selection == TrainStudent().selection == Selection()


def student(workspace, name="student"):
    return json.loads((workspace / f"students/{name}/manifest.json").read_text())


def test_omitted_class(run, workspace, digits):
    """The file has no 3, a student trains on just its rows, everything else follows, and the commands make it again."""
    outcome = run("soften", "--omit-class", "3")
    assert outcome.code == 0, outcome.err
    rows = int((digits.train.labels != 3).sum())
    assert f"--omit-class 3 keeps {rows:,} of 1,437 rows, 9 of 10 classes" in outcome.out
    soft = SoftTargets(workspace / "soft-targets/soft-targets.h5")
    assert (soft.rows, sorted(set(soft.labels.tolist()))) == (rows, [0, 1, 2, 4, 5, 6, 7, 8, 9])
    outcome = run("train-student", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "Leaving out" not in outcome.out
    results = student(workspace)["results"]
    assert (results["training_rows"], results["test_rows"]) == (rows, 360)
    assert "next: kdistill plot" in run("status").out
    assert run("plot").code == 0
    assert run("verify").out == "checked 4 artifacts: no problems found\n"
    assert len(json.loads(run("evaluate", "--json").out)) == 4
    said = {one["name"]: one for one in json.loads(run("status", "--json").out)["artifacts"]}
    assert "--omit-class 3" in said["soft-targets"]["summary"]
    assert said["soft-targets"]["command"] == "kdistill soften --temperature 20 --omit-class 3"
    for name in ("soft-targets", "student"):
        assert "Up to date" in run(*said[name]["command"].split()[1:]).out
    again = run("soften")
    assert "omit class 3 -> none" in again.out
    assert "stale" in run("status").out


def test_student_of_some_rows_of_a_whole_file(run, workspace, digits):
    """A student's own selection is of the file's rows, is recorded, and its command says it to the last digit."""
    options = ["--only-classes", "7,8", "--fraction", "0.31234567891", "--rows-seed", "4"]
    outcome = run("train-student", *SMALL, *options, "--name", "some")
    assert outcome.code == 0, outcome.err
    of_classes = int(np.isin(digits.train.labels, (7, 8)).sum())
    rows = round(0.31234567891 * of_classes)
    assert student(workspace, "some")["results"]["training_rows"] == rows
    assert f"keeps {rows} of 1,437 rows, 2 of 10 classes" in outcome.out
    assert student(workspace)["results"]["training_rows"] == len(digits.train)
    found = {one["name"]: one["command"] for one in json.loads(run("status", "--json").out)["artifacts"]}
    assert found["some"].endswith(" ".join([*options, "--epochs 1 --batch-size 16"]))
    assert "Up to date" in run(*found["some"].split()[1:]).out
    assert run("verify").code == 0


def lesson_of(run, monkeypatch, *command):
    """The examples of a student, as keys with labels, and whether a teacher comes with them."""
    from kdistill.training import artifact

    seen = []

    def note(*_, dataset, lesson, **__):
        keys = [key.tobytes() for key in lesson.rows.keys()]
        seen.append((sorted(zip(keys, lesson.rows.labels.tolist(), strict=True)), lesson.teacher is not None))
        raise KdistillError("seen")

    monkeypatch.setattr(artifact, "make", note)
    assert "seen" in run("train-student", *command, "--name", "other").err
    return seen[0]


def test_a_baseline_has_the_same_rows(run, workspace, digits, tmp_path, monkeypatch):
    """Subset by soften, by the student or at alpha 1, from the data in any order, a fraction is of the same rows."""
    some = ["--fraction", "0.03"]
    at_student = lesson_of(run, monkeypatch, *some)
    assert len(at_student[0]) == 43
    assert lesson_of(run, monkeypatch, *some, "--alpha", "1") == (at_student[0], False)
    assert run("soften", *some).code == 0
    assert lesson_of(run, monkeypatch) == at_student
    order = np.random.default_rng(0).permutation(len(digits.train))
    path = write_npz(
        tmp_path / "shuffled.npz", digits, x_train=digits.train.read()[order], y_train=digits.train.labels[order]
    )
    assert lesson_of(run, monkeypatch, "--dataset", path) == at_student
    half = lesson_of(run, monkeypatch, "--fraction", "0.5")
    assert len(half[0]) == 22
    assert set(half[0]) <= set(at_student[0])


@pytest.mark.parametrize("alpha", ["0.1", "1"])
def test_validation_rows_stay_those_of_the_whole(run, workspace, digits, alpha):
    """Subset rows that are held out are left out without a word, and the whole validation part judges."""
    options = ["--alpha", alpha, "--fraction", "0.2", "--validation-fraction", "0.25"]
    outcome = run("train-student", *SMALL, *options, "--name", "some")
    assert outcome.code == 0, outcome.err
    keys = digits.train.keys()
    out = validation_rows(keys, 0.25, 0)
    kept = fraction_rows(keys, digits.train.labels, 0.2, 0)
    assert 0 < (kept & out).sum() < kept.sum()
    assert student(workspace, "some")["results"]["training_rows"] == (kept & ~out).sum()
    assert f"validation on {out.sum()}\n" in outcome.out
    assert "Leaving out" not in outcome.out


def test_own_rows_that_are_test_rows_too_stay(run, tmp_path, digits):
    """A dataset whose training rows hold test rows is trained on as it is, all or some of them."""
    path = write_npz(tmp_path / "twice.npz", digits, x_test=digits.train.read(), y_test=digits.train.labels)
    outcome = run("train-student", *SMALL, "--alpha", "1", "--dataset", path, "--omit-class", "3")
    assert outcome.code == 0, outcome.err
    assert "Leaving out" not in outcome.out
    assert student(tmp_path / "workspace")["results"]["training_rows"] == (digits.train.labels != 3).sum()


def test_transfer_set_from_elsewhere(run, workspace, digits):
    """Its rows are selected first, test rows among them left out then; rows without a label have no class."""
    inputs, labels = digits.train.read(), digits.train.labels
    moved = np.concatenate([np.roll(inputs[:300], 1, axis=2), digits.test.read()[:40]])
    moved_labels = np.concatenate([labels[:300], digits.test.labels[:40]])
    np.savez("moved.npz", x_train=moved, y_train=moved_labels)
    np.savez("pool.npz", x_train=np.roll(inputs, 2, axis=2)[:200])
    assert run("soften", "--transfer-set", "moved.npz", "--omit-class", "3").code == 0
    outcome = run("train-student", *SMALL)
    threes = int((digits.test.labels[:40] == 3).sum())
    assert f"{40 - threes} rows that are test rows of digits" in outcome.out
    assert student(workspace)["results"]["training_rows"] == (labels[:300] != 3).sum()
    sets = ["--transfer-set", "moved.npz", "--transfer-set", "pool.npz"]
    for option in ("--omit-class", "--only-classes"):
        outcome = run("soften", *sets, option, "3")
        assert outcome.code == 1
        assert f"{option} 3: 200 of the 540 rows have no label" in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert run("soften", *sets, "--fraction", "0.1").code == 0
    soft = SoftTargets(workspace / "soft-targets/soft-targets.h5")
    assert (soft.rows, int((soft.labels == -1).sum())) == (54, 20)
    assert run("verify").code == 0


def test_logits_from_elsewhere_are_of_the_whole_transfer_set(run, workspace, digits):
    """What another program said of all rows is kept of those that are selected."""
    logits = 5 * np.eye(10, dtype=np.float32)[digits.train.labels]
    logits[:, 0] += np.arange(len(logits)) / 1e4
    np.save("logits.npy", logits)
    outcome = run("soften", "--logits", "logits.npy", "--dataset", "digits", "--only-classes", "7", "--fraction", "0.5")
    assert outcome.code == 0, outcome.err
    assert "better than chance" not in outcome.err
    kept = data.selected(digits.train, Selection(only_classes="7", fraction=0.5), digits)
    soft = SoftTargets(workspace / "soft-targets/soft-targets.h5")
    np.testing.assert_array_equal(soft.logits(), logits[kept])
    np.save("logits.npy", logits[kept])
    outcome = run("soften", "--logits", "logits.npy", "--dataset", "digits", "--only-classes", "7", "--fraction", "0.5")
    assert f"has {kept.sum()} rows of logits, and the transfer set 1,437 rows" in outcome.err


def test_too_few_rows(run, workspace):
    """A class that vanishes is told, a single row is trained on, and batches larger than what is left are refused."""
    outcome = run("soften", "--fraction", "0.003")
    assert "keeps 4 of 1,437 rows, 4 of 10 classes" in outcome.out
    outcome = run("train-student", *QUICK)
    assert (outcome.code, "--batch-size 4" in outcome.err) == (1, True)
    assert run("soften", "--fraction", "0.0007").code == 0
    outcome = run("train-student", *QUICK, "--batch-size", "1")
    assert outcome.code == 0, outcome.err
    assert student(workspace)["results"]["training_rows"] == 1
    assert run("plot").code == run("verify").code == 0
    for command in (["soften", "--fraction", "0.0001"], ["train-student", "--alpha", "1", "--fraction", "0.0001"]):
        outcome = run(*command)
        assert outcome.code == 1
        assert "--fraction 0.0001 --rows-seed 0 leaves none of the 1,437 rows" in outcome.err
    outcome = run("train-student", "--only-classes", "12")
    assert (outcome.code, "--only-classes 12: digits has no such class" in outcome.err) == (2, True)
