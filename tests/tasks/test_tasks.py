"""Tasks: how labels are read, which task they belong to, and the measures of each against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import mentions

from kdistill import tasks
from kdistill.errors import KdistillError
from kdistill.settings import TASKS
from kdistill.tasks import NO_LABEL, RawLabels, Vocabulary

DRAW = np.random.default_rng(5)
BINARY = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]])
PRICES = DRAW.normal(200, 50, 400)


def raw(values, **fields):
    return RawLabels(np.asarray(values), len(values), "labels", **fields)


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        pytest.param(raw([0, 1, 2, 1]), "classification", id="integers"),
        pytest.param(raw(["a", "b"]), "classification", id="text"),
        pytest.param(raw(np.eye(3)), "classification", id="one-hot, which its message explains"),
        pytest.param(raw([1.0, 2.0, 1.0, 2.0]), "classification", id="whole floats"),
        pytest.param(raw(BINARY), "multi-label", id="several ones"),
        pytest.param(raw(["a;b", "a", ""]), "multi-label", id="separated text"),
        pytest.param(raw(PRICES), "regression", id="floats"),
        pytest.param(raw(DRAW.normal(0, 1, (9, 2))), "regression", id="two floats"),
        pytest.param(raw(np.arange(5000), by_name=True), "regression", id="integers of a table"),
        pytest.param(raw(np.arange(5000)), "classification", id="integers of an array"),
    ],
)
def test_task_of_labels(labels, name):
    """The labels decide the task, if `--task` is not given."""
    assert tasks.choose(labels).name == name


def test_names():
    """Every task of the settings exists under its name."""
    assert [tasks.get(name).name for name in TASKS] == list(TASKS)


def test_text_of_several_classes():
    """Classes are sorted, spaces and empty parts are ignored, and unknown classes are refused."""
    task = tasks.get("multi-label")
    labels = raw(["rain; wind", "", "sun", "wind;"])
    vocabulary, encoded, of_test = task.read_labels(labels, raw(["sun;rain", ""]), ())
    assert list(vocabulary.names) == ["rain", "sun", "wind"]
    assert encoded.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert of_test.tolist() == [[1, 1, 0], [0, 0, 0]]
    with pytest.raises(KdistillError) as error:
        task.encode(raw(["sun", "snow"]), vocabulary)
    assert mentions(str(error.value), "snow", 1)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("multi-label", [[0, 1], [2, 1]], ["row 1"]),
        ("multi-label", [[0], [1]], [1]),
        ("regression", ["a", "b"], ["--task regression"]),
        ("regression", [1.0, np.inf, 2.0], ["row 1"]),
        ("regression", [3.0, 3.0], [3]),
        ("classification", [0.5, 1.0], ["0.5", "--task regression"]),
        ("classification", BINARY, ["--task multi-label"]),
    ],
)
def test_labels_of_another_task(name, values, expected):
    """Labels that are not those of the task are refused, with the value or the fix."""
    with pytest.raises(KdistillError) as error:
        tasks.get(name).read_labels(raw(values), None, ())
    assert mentions(str(error.value), *expected)


@pytest.mark.parametrize("name", TASKS)
def test_rows_without_labels(name):
    """Rows without labels are encoded as such, and score 0."""
    task = tasks.get(name)
    labels = task.encode(RawLabels(None, 4, "labels"), Vocabulary(3))
    assert labels.shape == (4, *task.label_type(3)[0])
    assert not tasks.is_labeled(labels).any()
    predictions = task.predict(np.zeros((4, 3), np.float32))
    assert task.score(predictions, labels).tolist() == [0.0] * 4


def test_multi_label_measures():
    """Average precision by counting, F1 and Hamming loss by their definitions; missing labels do not count."""
    task = tasks.get("multi-label")
    logits, labels = DRAW.normal(0, 1, (50, 4)), DRAW.integers(0, 2, (50, 4))
    labels[:, 3] = 0  # a class without a positive row has no average precision
    labels[7, 1] = NO_LABEL
    measures = task.measure([logits[:20], logits[20:]], labels)
    precisions = []
    for column in range(3):
        counted = labels[:, column] >= 0
        score, positive = logits[counted, column], labels[counted, column] == 1
        precisions.append(np.mean([positive[score >= value].mean() for value in score[positive]]))
    assert measures["map"] == pytest.approx(np.mean(precisions))
    known, guess = labels >= 0, logits > 0
    true, wrong = guess & (labels == 1), (guess != (labels == 1)) & known
    f1 = 2 * true.sum(axis=0) / (2 * true.sum(axis=0) + wrong.sum(axis=0))
    assert measures["macro_f1"] == pytest.approx(f1.mean())
    assert measures["micro_f1"] == pytest.approx(2 * true.sum() / (2 * true.sum() + wrong.sum()))
    assert measures["hamming_loss"] == pytest.approx(wrong.sum() / 199)
    assert measures["label_accuracy"] == pytest.approx(1 - wrong.sum() / 199)
    assert task.score(task.predict(logits), labels).sum() == 199 - wrong.sum()


def test_equal_scores_share_a_rank():
    """A network that gives all rows one score has the fraction of positive rows as average precision."""
    labels = np.array([[1, 0], [0, 1], [0, 1], [0, 1]])
    assert tasks.get("multi-label").measure([np.zeros((4, 2))], labels)["map"] == pytest.approx((0.25 + 0.75) / 2)


def test_regression_measures():
    """MAE, RMSE and R^2 by their definitions; missing numbers do not count."""
    task = tasks.get("regression")
    labels = PRICES[:60].reshape(30, 2).astype(np.float32)
    outputs = labels + DRAW.normal(0, 10, labels.shape)
    labels[3, 0] = np.nan
    error = (outputs - labels)[~np.isnan(labels)]
    measures = task.measure([outputs], labels, [outputs + 3])
    assert measures["mae"] == pytest.approx(np.abs(error).mean())
    assert measures["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert measures["rmse_to_teacher"] == pytest.approx(3)
    columns = [labels[~np.isnan(labels[:, number]), number] for number in range(2)]
    errors = [(outputs - labels)[~np.isnan(labels[:, number]), number] for number in range(2)]
    r2 = [1 - (e**2).sum() / ((c - c.mean()) ** 2).sum() for c, e in zip(columns, errors, strict=True)]
    assert measures["r2"] == pytest.approx(np.mean(r2), rel=1e-6)
    offset, scale = task.rescaling(labels)
    assert offset[1] == pytest.approx(columns[1].mean(), rel=1e-6)
    assert scale[0] == pytest.approx(columns[0].std(), rel=1e-6)


def test_embedding_measures():
    """A rotation keeps the neighbors and the linear probe, but not the cosine."""
    task = tasks.get("embedding")
    labels = np.arange(200) % 4
    vectors = DRAW.normal(0, 1, (200, 8)) + 3 * np.eye(8)[labels]
    rotation, _ = np.linalg.qr(DRAW.normal(0, 1, (8, 8)))
    rotated = vectors @ rotation
    measures = task.measure([vectors], labels, [rotated])
    cosines = (vectors * rotated).sum(axis=1) / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(rotated, axis=1))
    assert measures["cosine"] == pytest.approx(cosines.mean())
    assert measures["neighbor_agreement"] == 1.0
    assert "cosine" not in task.measure([vectors], labels, [vectors[:, :5]])
    probe = task.probe([vectors[:100]], labels[:100], [vectors[100:]], labels[100:])["probe_accuracy"]
    of_rotated = task.probe([rotated[:100]], labels[:100], [rotated[100:]], labels[100:])["probe_accuracy"]
    assert probe > 0.9
    assert of_rotated == pytest.approx(probe, abs=0.03)
    assert task.probe([vectors], np.full(200, NO_LABEL), [vectors], labels) == {}


@pytest.mark.parametrize("name", ["classification", "multi-label"])
def test_soft_targets(name):
    """Soft targets are softmax or sigmoid of logits / T."""
    logits = DRAW.normal(0, 3, (6, 4))
    soft = tasks.get(name).activation(logits, 4.0)
    expected = np.exp(logits / 4) / np.exp(logits / 4).sum(axis=1, keepdims=True)
    if name == "multi-label":
        expected = 1 / (1 + np.exp(-logits / 4))
    np.testing.assert_allclose(soft, expected, rtol=1e-12)


def test_groups():
    """Groups are classes, combinations of classes, or tenths of the range of a number."""
    assert len(set(tasks.get("multi-label").groups(np.vstack([BINARY, BINARY])).tolist())) == 4
    groups = tasks.get("regression").groups(PRICES[:, None].astype(np.float32))
    assert np.bincount(groups).tolist() == [40] * 10
    assert PRICES[groups == 0].max() <= PRICES[groups == 1].min()


@pytest.mark.parametrize(
    ("task", "outputs", "names", "expected"),
    [
        (
            "classification",
            [[0, 0, 0], [0, 3, 0]],
            ["a", "b", "c"],
            {"class": ["a", "b"], "probability": [1 / 3, 0.909443]},
        ),
        ("multi-label", [[-1, 2, 3], [-1, -2, -3]], ["a", "b", "c"], {"classes": ["b;c", ""]}),
        ("regression", [[2e5, -1.5]], ["price", "age"], {"values": [[2e5, -1.5]]}),
        ("embedding", [[0.5, -1.5]], [], {"embedding": [[0.5, -1.5]]}),
    ],
)
def test_described_predictions(task, outputs, names, expected):
    """Predictions have the names of classes and numbers; on request, the probability of each class is added."""
    outputs = np.asarray(outputs, np.float32)
    described = {each.name: each for each in tasks.get(task).describe_predictions(outputs, names)}
    assert described.keys() == expected.keys()
    for name, values in expected.items():
        if isinstance(values[0], str):
            assert described[name].values.tolist() == values
        else:
            np.testing.assert_allclose(described[name].values, values, rtol=1e-6)
            assert described[name].values.dtype == np.float32
    if task == "regression":
        assert described["values"].names == names
    every = tasks.get(task).describe_predictions(outputs, names, probabilities=True)[-1]
    if task == "classification":
        np.testing.assert_allclose(every.values.sum(axis=1), 1, rtol=1e-6)
    if task == "multi-label":
        np.testing.assert_allclose(every.values, 1 / (1 + np.exp(-outputs)), rtol=1e-6)
    assert (every.name, every.names) == ("probabilities", names) or task in ("regression", "embedding")


def test_classes_of_a_classification():
    """Recall, precision and F1 of each class by their definitions, and the classes that it is taken for."""
    labels, predicted = np.array([0, 0, 0, 1, 1, NO_LABEL]), np.array([0, 1, 2, 1, 1, 0])
    first, second, third = tasks.get("classification").per_class(np.eye(3)[predicted], labels, ["a", "b", "c"])
    assert (first["rows"], first["errors"], first["taken for"]) == (3, 2, "b (1), c (1)")
    assert (first["recall"], first["precision"], first["F1"]) == pytest.approx((1 / 3, 1.0, 0.5))
    assert (second["recall"], second["precision"], second["F1"]) == pytest.approx((1.0, 2 / 3, 0.8))
    assert (third["rows"], third["recall"], third["precision"], third["F1"]) == (0, None, 0.0, 0.0)


def test_classes_of_several_labels():
    """Missed and false rows of each class; a missing label counts as neither."""
    labels = np.array([[1, 0], [1, 1], [NO_LABEL, 0], [0, 0]])
    outputs = np.array([[2.0, 1], [-1, 3], [5, -1], [1, -2]])
    first, second = tasks.get("multi-label").per_class(outputs, labels, ["a", "b"])
    assert (first["rows"], first["missed"], first["false"]) == (2, 1, 1)
    assert (second["rows"], second["missed"], second["false"], second["average precision"]) == (1, 0, 1, 1.0)


def test_numbers_of_a_regression():
    """Each number of a row has its own measures."""
    labels = np.array([[0, 10], [2, 30]], np.float32)
    first, second = tasks.get("regression").per_class(labels + np.float32([1, -4]), labels, ["a", "b"])
    assert (first["number"], first["MAE"], second["RMSE"]) == ("a", 1.0, 4.0)


@pytest.mark.parametrize("name", [name for name in TASKS if not tasks.get(name).shows_rows])
def test_picture_of_a_teacher(name):
    """Each task without a picture of rows draws outputs; without labels only vectors."""
    task = tasks.get(name)
    outputs = DRAW.normal(0, 1, (20, 3)).astype(np.float32)
    shape, dtype = task.label_type(3)
    labels = np.resize([0, 1, 1], (20, *shape)).astype(dtype)
    assert task.draw(outputs, labels, "abc", "title").axes
    missing = np.full_like(labels, np.nan if labels.dtype.kind == "f" else NO_LABEL)
    assert bool(task.draw(outputs, missing, "abc", "title")) == (not task.needs_labels)


@pytest.mark.parametrize(
    ("score", "outputs", "close"), [(19, 10, True), (20, 10, False), (49, 2, True), (50, 2, False)]
)
def test_teacher_close_to_chance(score, outputs, close):
    """Below twice the accuracy of guessing, and below half, a classifier is close to chance; other tasks do not tell."""
    assert tasks.get("classification").is_close_to_chance(score, 100, outputs) is close
    assert not tasks.get("multi-label").is_close_to_chance(score, 100, outputs)
