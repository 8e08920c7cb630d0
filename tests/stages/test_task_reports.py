"""`report` on several labels, numbers and vectors: the numbers of other commands, rows that exist, and names as they are."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers import run_command
from pages import check_page, page_of

from kdistill.evaluation import metrics
from kdistill.networks import saved_models
from kdistill.stages.report.diagrams import Axis

DRAW = np.random.default_rng(3)
X = DRAW.normal(0, 1, (360, 4, 5, 1)).astype(np.float32)  # pictures of 4 x 5 pixels
HIDDEN = np.tanh(X.reshape(360, -1) @ DRAW.normal(0, 0.3, (20, 3)))
NAMES = ('<script>alert("1")</script>', "a\"b' onload='x", "c & <b>d")
LABELS = {"multi-label": (HIDDEN > 0.1).astype(np.int8), "regression": (5e4 * HIDDEN + 2e5).astype(np.float32)}
TEST = slice(300, 360)
TRAIN = (
    *("--batch-size", "20", "--epochs", "6", "--learning-rate", "0.01", "--xla", "off"),
    *("--model", "mlp-8", "--validation-fraction", "0.2"),
)


def make(place, *commands):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdistill.cli.silence_native_stderr", lambda: None)
        patch.chdir(place)
        for command in commands:
            outcome = run_command(*command)
            assert outcome.code == 0, outcome.err
    return outcome


def save(path, labels, **more):
    np.savez(path, x_train=X[:300], x_test=X[TEST], y_train=labels[:300], y_test=labels[TEST], **more)


@pytest.fixture(scope="module", params=list(LABELS))
def reported(request, tmp_path_factory):
    """Return a task, and a directory with a workspace that has everything that is reported."""
    place = tmp_path_factory.mktemp("reported")
    save(place / "data.npz", LABELS[request.param], class_names=NAMES)
    make(
        place,
        ["train-teacher", "--dataset", "data.npz", *TRAIN],
        ["soften"],
        ["train-student", *TRAIN, "--alpha", "0.5"],
        ["train-student", *TRAIN, "--alpha", "1", "--name", "plain"],
        ["sweep", *TRAIN, "--alpha", "0.5", "--seeds", "0,1", *(["--temperature", "4"] * ("label" in request.param))],
        ["report"],
    )
    return request.param, place


def measured(place):
    """Return the measures of each network on the test rows."""
    found = json.loads(make(place, ["evaluate", "--json"]).out)
    return {each["name"]: each for each in found if each["split"] == "test"}


def number(text):
    """Return the first number of a cell."""
    return float(re.match(r"[+-]?[\d,.e]+", text)[0].replace(",", ""))


def numbers(text):
    return [float(each.replace(",", "")) for each in re.findall(r"[+-]?[\d,.]+\d", text)]


@pytest.mark.slow
def test_page(reported):
    """The page is accessible, needs nothing else, and shows names as they are."""
    task, place = reported
    page = page_of(place)
    check_page(page)
    assert set(NAMES) <= {one["text"] for one in page.find("h3", "th")}
    assert len(page.find("svg")) == (3 if task == "multi-label" else 2 * 3 * len(NAMES))


@pytest.mark.slow
def test_measures(reported):
    """Measures and differences are those of `evaluate`, inside their intervals; those over seeds are those of the manifests."""
    task, place = reported
    networks = measured(place)
    page = page_of(place)
    keys = {
        "mAP": "map",
        "micro-F1": "micro_f1",
        "MAE": "mae",
        "RMSE": "rmse",
        "R^2": "r2",
        "to teacher": "rmse_to_teacher",
    }
    rows = {row[0]: row[1:] for row in page.rows("Measures on 60 test rows")[1:]}
    assert set(rows) & set(keys) >= (
        {"mAP", "micro-F1"} if task == "multi-label" else {"MAE", "RMSE", "R^2", "to teacher"}
    )
    for name in set(rows) & set(keys) - {"to teacher"}:
        *values, difference = map(numbers, rows[name])
        expected = [networks[each][keys[name]] for each in ("teacher", "plain", "student")]
        assert [value[0] for value in values] == pytest.approx(expected, rel=1e-3)
        assert difference[0] == pytest.approx(expected[2] - expected[1], rel=1e-2, abs=1e-4)
        assert all(low <= value <= high for value, low, high in [*values, difference])
        assert difference[2] - difference[1] < values[2][2] - values[2][1] + values[1][2] - values[1][1]
    sweep = place / "workspace/sweeps/sweep/students"
    results = {path.parent.name: json.loads(path.read_text())["results"] for path in sweep.glob("*/manifest.json")}
    assert len(results) == 4
    for name, hard, distilled, difference in page.rows("All measures of mlp-8")[1:]:
        if name in keys:
            each = {
                key: [its[f"test_{keys[name]}"] for student, its in results.items() if key in student]
                for key in ("hard", "alpha")
            }
            assert number(hard) == pytest.approx(np.mean(each["hard"]), rel=1e-3)
            assert number(distilled) == pytest.approx(np.mean(each["alpha"]), rel=1e-3)
            assert number(difference) == pytest.approx(
                np.mean(each["alpha"]) - np.mean(each["hard"]), rel=1e-2, abs=1e-4
            )


def outputs(place, name):
    """Return the outputs of a student for the test rows."""
    return saved_models.SavedNetwork.load(place / f"workspace/students/{name}/saved_model").logits(X[TEST])


@pytest.mark.slow
def test_rows(reported):
    """Tables of classes and of the largest errors have the numbers of the networks, and galleries the rows that changed."""
    task, place = reported
    page, labels = page_of(place), LABELS[task][TEST]
    plain, student = (outputs(place, name) for name in ("plain", "student"))
    if task == "multi-label":
        known = np.ones_like(labels, bool)
        _, *classes = page.rows("Average precision per class")
        assert [int(row[1]) for row in classes] == labels.sum(axis=0).tolist()
        expected = metrics.average_precisions(student, labels, known)
        assert [float(row[-2]) for row in classes] == pytest.approx(expected, abs=1e-3)
        right = [(each > 0) == labels for each in (plain, student)]
        counts = np.array([(right[1] & ~right[0]).sum(axis=0), (right[0] & ~right[1]).sum(axis=0)])
        _, *changes = page.rows("Labels gained and lost")
        assert [list(map(int, row[1:3])) for row in changes] == counts.T.tolist()
        scores = [each.sum(axis=1) for each in right]
    else:
        errors = np.abs(np.array([plain, student]) - labels) / labels.std(axis=0)
        _, *largest = page.rows("Largest errors of the distilled student")
        row, name, label, _, hard, distilled, error_of_hard, error = largest[0]
        place = np.unravel_index(errors[1].argmax(), labels.shape)
        assert (int(row), NAMES.index(name)) == place
        assert [number(label), number(hard), number(distilled)] == pytest.approx(
            [labels[place], plain[place], student[place]], abs=1
        )
        assert number(error) == pytest.approx(student[place] - labels[place], abs=1)
        assert number(error_of_hard) == pytest.approx(plain[place] - labels[place], abs=1)
        scores = -errors.mean(axis=2)
    change = scores[1] - scores[0]
    text = next(one["text"] for one in page.find("p") if "sign test" in one["text"])
    assert [int(each) for each in re.findall(r"on (\d+)", text)] == [(change > 0).sum(), (change < 0).sum()]
    shown = [int(re.search(r"row (\d+)", one["text"])[1]) for one in page.find("li") if "hard: " in one["text"]]
    gained = np.argsort(-change, kind="stable")[: min(12, (change > 0).sum())].tolist()
    lost = np.argsort(change, kind="stable")[: min(12, (change < 0).sum())].tolist()
    assert shown == [*gained, *lost]


@pytest.mark.slow
def test_axes_are_equal(reported):
    """The diagrams of a kind have the same ticks for all networks."""
    _, place = reported
    diagrams = [re.sub(r"\s", "", one["text"]) for one in page_of(place).find("svg")]
    for start in range(0, len(diagrams), 3):
        assert len(set(diagrams[start : start + 3])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [5, 3])
def test_vectors(run, tmp_path, width):
    """The page has the measures of `evaluate`, and the neighbors with the vectors of the teacher; without cosines for other widths."""
    from kdistill.backend import keras

    keras.utils.set_random_seed(1)
    teacher = keras.Sequential([keras.Input((4, 5, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
    teacher.save("vectors.keras")
    save("data.npz", (HIDDEN[:, 0] > 0).astype(int), class_names=NAMES[:2])
    make(
        tmp_path,
        ["soften", "--dataset", "data.npz", "--task", "embedding", "--teacher", "vectors.keras"],
        ["train-student", *TRAIN, "--embedding-size", width],
        ["report"],
    )
    page = page_of(tmp_path)
    check_page(page)
    student, headline = measured(tmp_path)["student"], page.find("h1")[0]["text"]
    rows = {name: numbers(cell) for name, *_, cell in page.rows("Measures on 60 test rows")[1:]}
    assert rows["neighbors"][0] == pytest.approx(100 * student["neighbor_agreement"], abs=0.1)
    assert rows["probe"][0] == pytest.approx(100 * student["probe_accuracy"], abs=0.1)
    assert ("cosine" in rows) == (width == 5) == ("cosine" in headline) == bool(page.find("svg"))
    if width == 5:
        assert rows["cosine"][0] == pytest.approx(student["cosine"], abs=1e-4)
        assert f"{student['cosine']:.4f}" in headline
    vectors = teacher.predict(X[TEST], verbose=0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = [one["text"] for one in page.find("caption") if one["text"].startswith("Neighbors of row")]
    assert len(queries) == 6
    for query in queries:
        row = int(re.search(r"\d+", query)[0])
        expected = [other for other in np.argsort(-unit @ unit[row], kind="stable") if other != row][:5]
        of_teacher = page.rows(query)[1]
        assert [int(number(cell)) for cell in of_teacher[1:]] == expected
    assert len(page.find("img", **{"class": "row"})) == 6 * 11


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0.0", "0.5", "1.0"]),
        (1990, 2021, ["1,990", "2,000", "2,010", "2,020"]),
        (-280e3, 290e3, ["-200k", "0k", "200k"]),
        (0.7, 1, ["0.7", "0.8", "0.9", "1.0"]),
    ],
)
def test_ticks(low, high, texts):
    """Ticks are round numbers that differ as texts, and lie on the axis."""
    places = [place for place, _ in Axis("", low, high).ticks()]
    assert [text for _, text in Axis("", low, high).ticks()] == texts
    assert all(0 <= place <= 200 for place in places)
    assert places == sorted(places)
