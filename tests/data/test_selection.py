"""Selecting rows by class and by fraction, as a function and in the stages."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise

import numpy as np
import pytest
from helpers import QUICK, stamps, write_npz

from kdistill import data
from kdistill.data.keys import validation_rows
from kdistill.data.selection import fraction_mask
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import Selection, Soften, TrainStudent
from kdistill.soft_targets import SoftTargets

SMALL = ["--model", "mlp-30", "--epochs", "1", "--batch-size", "16"]


def random_rows(counts, seed=0):
    """Return keys and labels of some rows of each class, in random order."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(counts)), counts))
    return draw.integers(0, 256, (len(labels), 16), np.uint8), labels


def kept_per_class(labels, kept, classes):
    return np.bincount(labels[kept], minlength=classes).tolist()


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([100, 100], 0.03, [3, 3]),
        ([100, 50, 17], 0.1, [10, 5, 2]),  # quotas 10, 5, 1.7; total 17
        ([14, 15, 16], 0.1, [1, 1, 2]),  # quotas 1.4, 1.5, 1.6; total round(4.5) = 4: largest remainder
        ([15, 15, 15, 15], 0.1, [2, 2, 1, 1]),  # equal remainders: the first classes
        ([1000, 3], 0.01, [9, 1]),  # a class without a row takes one from the largest
        ([5, 1], 0.2, [1, 0]),  # fewer rows than classes
        ([5, 1], 0.01, [0, 0]),
        ([7, 0, 3], 1.0, [7, 0, 3]),
    ],
)
def test_exact_counts(counts, fraction, expected):
    """Each class keeps its quota, rounded by the largest-remainder method."""
    keys, labels = random_rows(counts)
    kept = fraction_mask(keys, labels, fraction, 0)
    assert kept_per_class(labels, kept, len(counts)) == expected
    assert kept.sum() == round(fraction * len(labels))


def test_fraction_depends_only_on_rows_and_seed():
    """The order of rows and the rows of other classes do not matter; another seed keeps other rows."""
    keys, labels = random_rows([300, 200, 100])
    kept = fraction_mask(keys, labels, 0.1, 7)
    order = np.random.default_rng(1).permutation(len(keys))
    assert (fraction_mask(keys[order], labels[order], 0.1, 7) == kept[order]).all()
    other = fraction_mask(keys, labels, 0.1, 8)
    assert other.sum() == kept.sum()
    assert 0 < (other & kept).sum() < 20
    alone = labels == 1
    assert (fraction_mask(keys[alone], labels[alone], 0.1, 7) == kept[alone]).all()


def test_fractions_are_nested():
    """The rows of a smaller fraction are among those of a larger one."""
    keys, labels = random_rows([300, 200, 100])
    some = [fraction_mask(keys, labels, fraction, 0) for fraction in (0.01, 0.03, 0.1, 0.25, 0.5, 1)]
    for smaller, larger in pairwise(some):
        assert (smaller <= larger).all()
        assert smaller.sum() < larger.sum()
    assert some[-1].all()


def test_equal_rows_and_rows_without_a_label():
    """Of equal rows the first are kept; rows without a label are kept in proportion."""
    keys = np.repeat(random_rows([1])[0], 10, axis=0)
    assert np.flatnonzero(fraction_mask(keys, np.zeros(10, np.int64), 0.3, 0)).tolist() == [0, 1, 2]
    keys, labels = random_rows([100, 300])
    kept = fraction_mask(keys, labels - 1, 0.1, 0)
    assert kept_per_class(labels, kept, 2) == [10, 30]


def test_fraction_is_independent_of_validation_rows():
    """With the same seed, the kept rows are held out as often as others."""
    keys, labels = random_rows([2000, 2000])
    kept = fraction_mask(keys, labels, 0.1, 3)
    assert 0.05 < validation_rows(keys, 0.1, 3)[kept].mean() < 0.15


def test_classes_by_name_or_number(digits):
    """A class is given by its name, or else by its number."""
    named = dataclasses.replace(digits, class_names=("nil", "2", *"abcdefgh"))

    def classes(**selection):
        return set(digits.train.labels[data.selection_mask(digits.train, Selection(**selection), named)].tolist())

    assert classes(only_classes="nil, 9") == {0, 9}
    assert classes(only_classes="2") == {1}  # the name of class 1, not class number 2
    assert classes(omit_class="nil,h,3") == {1, 2, 4, 5, 6, 7, 8}
    assert classes() == set(range(10))
    for unknown in ("none", "10", "-1", "²"):
        with pytest.raises(UsageError, match=rf"--omit-class {unknown}.*nil, 2, a, .*\b9\b"):
            classes(omit_class=unknown)


def test_fraction_of_selected_classes(digits):
    """A fraction is taken of the rows of the selected classes."""
    rows = digits.train
    kept = data.selection_mask(rows, Selection(only_classes="7,8", fraction=0.1), digits)
    of_classes = np.isin(rows.labels, (7, 8))
    assert kept.sum() == round(0.1 * of_classes.sum())
    assert (kept <= of_classes).all()
    assert (data.selection_mask(rows, Selection(only_classes="7,8", fraction=0.1), digits, rows.keys()) == kept).all()


def test_selection_of_manifest_settings():
    """A selection is restored from recorded settings; settings without one select all rows."""
    selection = Selection(omit_class="3", fraction=0.5, rows_seed=2)
    assert Selection.of(selection.recorded() | {"temperature": 4.0}) == selection
    assert Selection.of({"temperature": 4.0}) == Selection() == Soften().selection == TrainStudent().selection


def student(workspace, name="student"):
    return json.loads((workspace / f"students/{name}/manifest.json").read_text())


def status(run):
    return {artifact["name"]: artifact for artifact in json.loads(run("status", "--json").out)["artifacts"]}


@pytest.mark.slow
def test_omitted_class(run, workspace, digits):
    """Soft targets without class 3 are used by all later stages, and the recorded commands reproduce them."""
    outcome = run("soften", "--omit-class", "3")
    assert outcome.code == 0, outcome.err
    rows = int((digits.train.labels != 3).sum())
    assert re.search(rf"--omit-class 3 .*{rows:,}.*1,437.*\b9\b.*10", outcome.out)
    soft = SoftTargets(workspace / "soft-targets/soft-targets.h5")
    assert (soft.rows, sorted(set(soft.labels.tolist()))) == (rows, [0, 1, 2, 4, 5, 6, 7, 8, 9])
    outcome = run("train-student", *QUICK)
    assert outcome.code == 0, outcome.err
    results = student(workspace)["results"]
    assert (results["training_rows"], results["test_rows"]) == (rows, 360)
    assert "kdistill plot" in run("status").out
    assert run("plot").code == 0
    assert run("verify").code == 0
    assert len(json.loads(run("evaluate", "--json").out)) == 4
    artifacts = status(run)
    assert "--omit-class 3" in artifacts["soft-targets"]["summary"]
    assert artifacts["soft-targets"]["command"].split()[:2] == ["kdistill", "soften"]
    assert "--omit-class 3" in artifacts["soft-targets"]["command"]
    before = stamps(workspace)
    for name in ("soft-targets", "student"):
        assert run(*artifacts[name]["command"].split()[1:]).code == 0
    assert stamps(workspace) == before
    assert run("soften").code == 0
    assert SoftTargets(workspace / "soft-targets/soft-targets.h5").rows == 1437
    assert status(run)["student"]["state"] == "stale"


@pytest.mark.slow
def test_selection_of_a_student(run, workspace, digits):
    """A student can select from the rows of the soft targets; its command has the fraction with all digits."""
    options = ["--only-classes", "7,8", "--fraction", "0.31234567891", "--rows-seed", "4"]
    outcome = run("train-student", *SMALL, *options, "--name", "some")
    assert outcome.code == 0, outcome.err
    of_classes = int(np.isin(digits.train.labels, (7, 8)).sum())
    rows = round(0.31234567891 * of_classes)
    assert student(workspace, "some")["results"]["training_rows"] == rows
    assert re.search(rf"{rows}.*1,437.*\b2\b.*10", outcome.out)
    assert student(workspace)["results"]["training_rows"] == len(digits.train)
    command = status(run)["some"]["command"]
    assert " ".join(options) in command
    before = stamps(workspace)
    assert run(*command.split()[1:]).code == 0
    assert stamps(workspace) == before
    assert run("verify").code == 0


def training_rows_of(run, monkeypatch, *command):
    """Return the keys and labels of a student's training rows, and whether they have teacher logits."""
    trained = []

    def note(*_, rows, **__):
        keys = [key.tobytes() for key in rows.split.keys()]
        trained.append((sorted(zip(keys, rows.split.labels.tolist(), strict=True)), rows.teacher is not None))
        raise KdistillError("not trained in a test")

    monkeypatch.setattr("kdistill.training.run.train_network", note)
    assert run("train-student", *command, "--name", "other").code == 1
    return trained[0]


def test_baseline_has_the_same_rows(run, workspace, digits, tmp_path, monkeypatch):
    """Soften, a distilled student and a hard-label student select the same rows, whatever their order."""
    some = ["--fraction", "0.03"]
    at_student = training_rows_of(run, monkeypatch, *some)
    assert len(at_student[0]) == 43
    assert training_rows_of(run, monkeypatch, *some, "--alpha", "1") == (at_student[0], False)
    assert run("soften", *some).code == 0
    assert training_rows_of(run, monkeypatch) == at_student
    order = np.random.default_rng(0).permutation(len(digits.train))
    path = write_npz(
        tmp_path / "shuffled.npz", digits, x_train=digits.train.read()[order], y_train=digits.train.labels[order]
    )
    assert training_rows_of(run, monkeypatch, "--dataset", path) == at_student
    half = training_rows_of(run, monkeypatch, "--fraction", "0.5")
    assert len(half[0]) == 22
    assert set(half[0]) <= set(at_student[0])


@pytest.mark.slow
@pytest.mark.parametrize("alpha", ["0.1", "1"])
def test_validation_rows_do_not_depend_on_the_selection(run, workspace, digits, alpha):
    """Held-out rows are not trained on, and all of them are evaluated."""
    options = ["--alpha", alpha, "--fraction", "0.2", "--validation-fraction", "0.25"]
    outcome = run("train-student", *SMALL, *options, "--name", "some")
    assert outcome.code == 0, outcome.err
    keys = digits.train.keys()
    out = validation_rows(keys, 0.25, 0)
    kept = fraction_mask(keys, digits.train.labels, 0.2, 0)
    assert 0 < (kept & out).sum() < kept.sum()
    assert student(workspace, "some")["results"]["training_rows"] == (kept & ~out).sum()
    assert re.search(rf"\b{out.sum()} validation", outcome.out)


@pytest.mark.slow
def test_dataset_with_test_rows_among_training_rows(run, tmp_path, digits):
    """Training rows of a dataset that are also test rows are kept."""
    path = write_npz(tmp_path / "twice.npz", digits, x_test=digits.train.read(), y_test=digits.train.labels)
    outcome = run("train-student", *SMALL, "--alpha", "1", "--dataset", path, "--omit-class", "3")
    assert outcome.code == 0, outcome.err
    assert student(tmp_path / "workspace")["results"]["training_rows"] == (digits.train.labels != 3).sum()


@pytest.mark.slow
def test_selection_of_a_transfer_set(run, workspace, digits):
    """Rows are selected before test rows are removed; rows without a label cannot be selected by class."""
    inputs, labels = digits.train.read(), digits.train.labels
    moved = np.concatenate([np.roll(inputs[:300], 1, axis=2), digits.test.read()[:40]])
    moved_labels = np.concatenate([labels[:300], digits.test.labels[:40]])
    np.savez("moved.npz", x_train=moved, y_train=moved_labels)
    np.savez("pool.npz", x_train=np.roll(inputs, 2, axis=2)[:200])
    assert run("soften", "--transfer-set", "moved.npz", "--omit-class", "3").code == 0
    outcome = run("train-student", *SMALL)
    threes = int((digits.test.labels[:40] == 3).sum())
    assert re.search(rf"\b{40 - threes} rows\b.*test rows", outcome.out)
    assert student(workspace)["results"]["training_rows"] == (labels[:300] != 3).sum()
    sets = ["--transfer-set", "moved.npz", "--transfer-set", "pool.npz"]
    for option in ("--omit-class", "--only-classes"):
        outcome = run("soften", *sets, option, "3")
        assert outcome.code == 1
        assert re.search(rf"{option} 3.*200.*540", outcome.err)
        assert len(outcome.err.splitlines()) == 1
    assert run("soften", *sets, "--fraction", "0.1").code == 0
    soft = SoftTargets(workspace / "soft-targets/soft-targets.h5")
    assert (soft.rows, int((soft.labels == -1).sum())) == (54, 20)
    assert run("verify").code == 0


def test_precomputed_logits_are_for_all_rows(run, workspace, digits):
    """A file of logits covers the whole transfer set, and the logits of the selected rows are kept."""
    logits = 5 * np.eye(10, dtype=np.float32)[digits.train.labels]
    logits[:, 0] += np.arange(len(logits)) / 1e4
    np.save("logits.npy", logits)
    outcome = run("soften", "--logits", "logits.npy", "--dataset", "digits", "--only-classes", "7", "--fraction", "0.5")
    assert outcome.code == 0, outcome.err
    kept = data.selection_mask(digits.train, Selection(only_classes="7", fraction=0.5), digits)
    soft = SoftTargets(workspace / "soft-targets/soft-targets.h5")
    np.testing.assert_array_equal(soft.logits(), logits[kept])
    np.save("logits.npy", logits[kept])
    outcome = run("soften", "--logits", "logits.npy", "--dataset", "digits", "--only-classes", "7", "--fraction", "0.5")
    assert outcome.code == 1
    assert re.search(rf"logits\.npy.*\b{kept.sum()}\b.*1,437", outcome.err)


@pytest.mark.slow
def test_too_few_rows(run, workspace):
    """A single row can be trained on; batches larger than the selection and empty selections are refused."""
    outcome = run("soften", "--fraction", "0.003")
    assert re.search(r"\b4\b.*1,437.*\b4\b.*10", outcome.out)
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
        assert re.search(r"--fraction 0\.0001.*1,437", outcome.err)
    outcome = run("train-student", "--only-classes", "12")
    assert (outcome.code, "--only-classes 12" in outcome.err) == (2, True)
