"""Shifts of output biases from counts of predictions, and the student that `correct-bias` makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import QUICK, Outcome, imports_of, run_command, stamps, write_npz

from kdistill import CorrectBias, KdistillError, Reporter, Workspace, correct_bias
from kdistill.backend import keras
from kdistill.errors import UsageError
from kdistill.evaluation import metrics
from kdistill.networks import bias_shifts
from kdistill.networks.saved_models import SavedNetwork
from kdistill.networks.shifted_network import load_shifted
from kdistill.stages import correct_bias as stage


def problem(rows=2000, classes=10, seed=0):
    """Logits of a fair classifier, and its labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    return (draw.normal(size=(rows, classes)) + 3 * np.eye(classes)[labels]).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
def test_known_shift_is_recovered(classes):
    """What was added to the logits is taken away again, to the distance between rows."""
    logits, _ = problem(rows=20_000, classes=classes)
    wanted = bias_shifts.prediction_counts(logits, np.zeros(classes))
    added = np.random.default_rng(1).normal(size=classes)
    added[0] -= 3
    shifts = bias_shifts.matching_shifts(logits + np.float32(added), wanted)
    np.testing.assert_array_equal(bias_shifts.prediction_counts(logits + np.float32(added), shifts), wanted)
    expected = -(added - np.median(added))
    np.testing.assert_allclose(shifts - shifts.mean(), expected - expected.mean(), atol=0.05 if classes < 50 else 0.15)
    assert abs(np.median(shifts)) < 1e-9


def test_matching_counts_need_no_shift():
    logits, _ = problem()
    shifts = bias_shifts.matching_shifts(logits, bias_shifts.prediction_counts(logits, np.zeros(10)))
    np.testing.assert_array_equal(shifts, np.zeros(10))


@pytest.mark.parametrize("never", [[3], [0, 1, 2, 3, 4, 5, 6, 9], list(range(9))])
def test_classes_never_predicted(never):
    """A class whose logit is 50 below the others' is predicted as often as it should be, and errors fall."""
    logits, labels = problem()
    logits[:, never] -= 50
    wanted = np.bincount(labels, minlength=10)
    shifts = bias_shifts.matching_shifts(logits, wanted)
    np.testing.assert_array_equal(bias_shifts.prediction_counts(logits, shifts.astype(np.float32)), wanted)
    before, after = metrics.errors(logits, labels), metrics.errors(logits + shifts, labels)
    assert after < 0.1 * len(labels) + before / 2


def test_frequency_of_nought():
    """A class that no row should have is predicted for none, by a finite shift that is no larger than need be."""
    logits, labels = problem()
    wanted = bias_shifts.target_counts(np.array([0, 0, *[1] * 8]), len(labels))
    shifts = bias_shifts.matching_shifts(logits, wanted)
    np.testing.assert_array_equal(bias_shifts.prediction_counts(logits, shifts), wanted)
    assert list(wanted[:2]) == [0, 0]
    assert np.isfinite(shifts).all()
    assert np.abs(shifts).max() < 12
    alone = bias_shifts.matching_shifts(logits, bias_shifts.target_counts(np.eye(10)[4], len(labels)))
    np.testing.assert_array_equal(bias_shifts.prediction_counts(logits, alone), np.eye(10)[4] * len(labels))


def test_rows_that_are_alike_are_not_parted():
    """Among equal rows the nearest count that there is comes out, above or below."""
    logits = np.zeros((100, 2))
    for wanted, nearest in (([10, 90], [0, 100]), ([90, 10], [100, 0])):
        assert (
            bias_shifts.prediction_counts(logits, bias_shifts.matching_shifts(logits, np.array(wanted))).tolist()
            == nearest
        )
    logits, labels = problem(rows=300, classes=5)
    thrice = np.repeat(logits, 3, axis=0)
    wanted = np.bincount(labels, minlength=5) * 3
    found = bias_shifts.prediction_counts(
        thrice, bias_shifts.matching_shifts(thrice, wanted + np.array([1, -1, 0, 0, 0]))
    )
    assert np.abs(found - wanted).sum() <= 12


@pytest.mark.parametrize(("count", "below"), [(0, 0), (1, 0), (2, 0), (3, 4), (4, 4), (5, 5), (6, 6)])
def test_as_near_as_equal_rows_allow(count, below):
    """Four of six margins are equal: none or all of them come along, whichever is nearer."""
    margins = np.array([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])
    assert (margins < bias_shifts._between(margins, count)).sum() == below


@pytest.mark.parametrize("frequencies", ["labels", "uniform"])
def test_many_classes(frequencies):
    """With 1,000 classes of three rows each, some raised and some lowered, all counts match in float32 as well."""
    logits, labels = problem(rows=3000, classes=1000)
    logits[:, ::10] -= 5
    wanted = np.bincount(labels, minlength=1000) if frequencies == "labels" else np.full(1000, 3)
    shifts = bias_shifts.matching_shifts(logits, wanted)
    np.testing.assert_array_equal(bias_shifts.prediction_counts(logits, shifts), wanted)
    assert np.abs(bias_shifts.prediction_counts(logits, shifts.astype(np.float32)) - wanted).sum() <= 4


def test_work_grows_with_logits(monkeypatch):
    """Four times the classes on the same rows need about four times the logits, not sixteen times."""
    looked_at = []
    for classes in (500, 2000):
        count = [0]
        monkeypatch.setattr(bias_shifts, "_blocks", counting(bias_shifts._blocks, count))
        logits, labels = problem(rows=2000, classes=classes)
        logits[:, ::10] -= 5
        bias_shifts.matching_shifts(logits, np.bincount(labels, minlength=classes))
        monkeypatch.undo()
        looked_at.append(count[0] * classes)
    assert looked_at[1] < 8 * looked_at[0]


def counting(blocks, count):
    def counted(rows, classes):
        count[0] += len(rows)
        return blocks(rows, classes)

    return counted


def test_equal_rows_end():
    """A student that gives all rows the same logits costs a bounded number of passes, and no shift helps."""
    logits = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (2000, 1))
    shifts = bias_shifts.matching_shifts(logits, np.full(200, 10))
    assert np.isfinite(shifts).all()
    assert np.abs(bias_shifts.prediction_counts(logits, shifts) - 10).sum() <= 2 * 1990


def test_constants_change_nothing():
    """Neither one added to all logits nor one a row; and twice is the same to the bit."""
    logits, labels = problem()
    wanted = bias_shifts.target_counts(np.arange(1, 11), len(labels))
    shifts = bias_shifts.matching_shifts(logits, wanted)
    np.testing.assert_array_equal(bias_shifts.matching_shifts(logits, wanted), shifts)
    np.testing.assert_allclose(bias_shifts.matching_shifts(logits.astype(float) + 7, wanted), shifts, atol=1e-6)
    by_row = np.random.default_rng(3).normal(size=(len(labels), 1))
    np.testing.assert_allclose(bias_shifts.matching_shifts(logits.astype(float) + by_row, wanted), shifts, atol=1e-6)


@pytest.mark.parametrize("frequencies", [[1, 1, 1], [0.5, 0.25, 0.25], [0, 0, 1], [0.1, 0.2, 0.7]])
def test_whole_counts_add_up(frequencies):
    for rows in (1, 2, 10, 1001):
        counts = bias_shifts.target_counts(np.array(frequencies), rows)
        assert counts.sum() == rows
        assert (np.abs(counts - np.array(frequencies) / sum(frequencies) * rows) < 1).all()


def test_raised_classes():
    """One class that lacked stands alone; of two that were alone, all others are raised; alike ones are not parted."""
    assert np.flatnonzero(bias_shifts.raised(np.array([0.1, 0, 3.5, -0.2]))).tolist() == [2]
    assert np.flatnonzero(bias_shifts.raised(np.array([0.1, -6, 0.3, -7.5]))).tolist() == [0, 2]
    assert not bias_shifts.raised(np.zeros(4)).any()


def test_tuned_finds_the_fewest_errors():
    """The number that a fine grid finds, exactly, in blocks of any size; 0 where nothing is gained."""
    logits, labels = problem()
    lowered = logits - np.float32([0, 0, 2.5, 0, 2.5, 0, 0, 0, 0, 0])
    classes = np.isin(np.arange(10), [2, 4])
    halves = [(lowered[:700], labels[:700]), (lowered[700:], labels[700:])]
    found = bias_shifts.tuned(halves, classes)
    grid = [metrics.errors(lowered + shift * classes, labels) for shift in np.linspace(-1, 6, 7001)]
    assert found.errors == min(grid) < metrics.errors(lowered, labels)
    assert metrics.errors(lowered + found.shift * classes, labels) == found.errors
    perfect = np.float32(10 * np.eye(10)[labels])
    assert bias_shifts.tuned([(perfect, labels)], classes) == bias_shifts.Tuned(0.0, 0)


LACKED = 8


@pytest.fixture(scope="session")
def lacking(made, digits, tmp_path_factory):
    """A workspace whose student `no8s` has seen no 8, and `student` all classes; not to be written to."""
    place = Path(shutil.copytree(made, tmp_path_factory.mktemp("lacking") / "workspace"))
    seen = digits.train.labels != LACKED
    inputs, labels = digits.train.read()[seen], digits.train.labels[seen]
    pool = write_npz(place.parent / "no8s.npz", digits, x_train=inputs, y_train=labels, x_test=None, y_test=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdistill.cli.silence_native_stderr", lambda: None)
        for command in (
            ["soften", "--transfer-set", pool, "--temperature", "2", "--name", "no8s"],
            ["train-student", *QUICK, "--soft-targets", "no8s", "--name", "no8s"],
        ):
            outcome: Outcome = run_command(*command, "--workspace", place)
            assert outcome.code == 0, outcome.err
    return place


@pytest.fixture
def place(lacking, tmp_path):
    """A copy of `lacking` at `./workspace`, to be spoiled."""
    return Path(shutil.copytree(lacking, tmp_path / "workspace"))


def recorded(place, name):
    return json.loads((place / "students" / name / "manifest.json").read_text())


def said(place, name, inputs):
    return SavedNetwork.load(place / "students" / name / "saved_model").logits(inputs)


def test_lacking_class_comes_back(run, place, digits):
    """Each class is predicted as often as the training set has it, and errors fall, most of all the class's own."""
    outcome = run("correct-bias", "--student", "no8s")
    assert outcome.code == 0, outcome.err
    results = recorded(place, "no8s-corrected")["results"]
    inputs, labels = digits.test.read(), digits.test.labels
    before, after = (said(place, name, inputs) for name in ("no8s", "no8s-corrected"))
    shifts = np.array([one["shift"] for one in results["classes"]], np.float32)
    np.testing.assert_allclose(after, before + shifts, atol=1e-5)
    errors = [metrics.errors(logits, labels) for logits in (before, after)]
    of_class = [metrics.errors(logits[labels == LACKED], labels[labels == LACKED]) for logits in (before, after)]
    assert errors[1] < 0.7 * errors[0]
    assert of_class[1] < of_class[0] / 2
    assert [results["student_test_errors"], results["test_errors"]] == errors
    counts = np.bincount(digits.train.labels)
    assert [one["wanted"] for one in results["classes"]] == counts.tolist()
    assert [one["after"] for one in results["classes"]] == counts.tolist()
    predicted = said(place, "no8s-corrected", digits.train.read()).argmax(axis=1)
    np.testing.assert_array_equal(np.bincount(predicted), counts)
    assert f"test split, 360 rows: {errors[0]} errors before, {errors[1]} after" in outcome.out
    assert "oracle" not in outcome.out
    assert "test-tuned" not in outcome.out


def test_it_is_a_student_like_any(run, place):
    """It stands below its student, is measured, verified and drawn around, and its command makes it again."""
    assert run("correct-bias", "--student", "no8s", "--name", "better", "--frequencies", "uniform").code == 0
    files = {item.name for item in (place / "students/better").iterdir()}
    assert files == {"saved_model", "model.keras", "manifest.json"}
    lines = run("status").out.splitlines()
    depths = [line.index("student ") for line in lines if "student no8s [" in line or "student better [" in line]
    assert depths[1] == depths[0] + 2
    found = {one["name"]: one for one in json.loads(run("evaluate", "--json").out) if one["split"] == "test"}
    assert found["better"]["errors"] == recorded(place, "better")["results"]["test_errors"]
    assert 0.8 < found["better"]["agreement"] < 1
    assert found["better"]["parameters"] == found["no8s"]["parameters"]
    assert run("verify").out.endswith("no problems found\n")
    commands = {one["name"]: one["command"] for one in json.loads(run("status", "--json").out)["artifacts"]}
    assert commands["better"] == "kdistill correct-bias --name better --student no8s --frequencies uniform"
    assert "is up to date" in run(*commands["better"].split()[1:]).out
    outcome = run("plot")
    assert (outcome.code, outcome.err) == (0, "")
    assert "better" not in outcome.out
    assert list(json.loads((place / "plots/manifest.json").read_text())["inputs"]) == [
        "teacher teacher",
        "student no8s",
        "student student",
        "soft_targets",
    ]
    outcome = run("plot", "--network", "better", "--network", "no8s")
    assert "student 'better': no learning curve" in outcome.out
    outcome = run("plot", "--network", "better")
    assert outcome.code == 1
    assert outcome.err.endswith("kdistill plot --network no8s\n")


def test_up_to_date_and_stale(run, place):
    """With nothing to do it needs no TensorFlow; with another student it is stale, and made again."""
    first = run("correct-bias", "--student", "no8s")
    before = stamps(place)
    code, imported = imports_of("correct-bias", "--student", "no8s", cwd=place.parent)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)
    second = run("correct-bias", "--student", "no8s")
    assert "is up to date" in second.out.splitlines()[0]
    assert second.out.splitlines()[1:] == first.out.splitlines()[2:]
    assert stamps(place) == before
    run("train-student", *QUICK, "--soft-targets", "no8s", "--name", "no8s", "--seed", "1")
    status = run("status").out
    assert "stale: student 'no8s' has been made anew since" in status
    assert "next: kdistill correct-bias --student no8s" in status
    assert "again: seed 0 -> 1; student changed" in run("correct-bias", "--student", "no8s").out
    assert "stale" not in run("status").out
    assert "frequencies training -> uniform" in run("correct-bias", "--student", "no8s", "--frequencies=uniform").out
    shutil.rmtree(place / "students/no8s")
    assert "stale: student 'no8s' is gone" in run("status").out


def test_test_labels_have_no_influence(run, made, tmp_path, digits):
    """With other test labels, shifts and weights are the same; only what is reported differs."""
    found = []
    for name, changed in (("one", {}), ("two", {"y_test": digits.test.labels[::-1]})):
        path, place = write_npz(tmp_path / f"{name}.npz", digits, **changed), tmp_path / name
        assert run("train-student", "--alpha", 1, "--dataset", path, *QUICK, "-w", place).code == 0
        assert run("correct-bias", "--frequencies", "uniform", "-w", place).code == 0
        found.append(recorded(place, "student-corrected"))
    assert found[0]["results"]["classes"] == found[1]["results"]["classes"]
    one, two = (said(tmp_path / name, "student-corrected", digits.test.read()) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
    assert found[0]["results"]["test_errors"] < found[1]["results"]["test_errors"]


def test_other_inputs(run, place, tmp_path, digits):
    """Unlabelled inputs are taken for the training rows', labels of theirs are not looked at, test rows are told of."""
    half = digits.train.read()[::2]
    path = write_npz(tmp_path / "pool.npz", digits, x_train=half, y_train=None, x_test=None, y_test=None)
    outcome = run("correct-bias", "--student", "no8s", "--inputs", path, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["inputs"] == len(half)
    after = np.bincount(said(place, "no8s-corrected", half).argmax(axis=1), minlength=10)
    assert [one["after"] for one in found["classes"]] == [one["wanted"] for one in found["classes"]] == after.tolist()
    assert run("status").out.count("stale") == 0
    write_npz(path, digits, x_train=half, y_train=np.zeros(len(half), int), x_test=None, y_test=None)
    assert f"the inputs {path} has changed" in run("status").out
    again = json.loads(run("correct-bias", "--student", "no8s", "--inputs", path, "--json").out)
    assert again["classes"] == found["classes"]
    (command,) = [o["command"] for o in json.loads(run("status", "--json").out)["artifacts"] if "corr" in o["name"]]
    assert command == f"kdistill correct-bias --student no8s --inputs {path}"
    mixed = np.concatenate([half, digits.test.read()[:5]])
    write_npz(path, digits, x_train=mixed, y_train=None, x_test=None, y_test=None)
    outcome = run("correct-bias", "--student", "no8s", "--inputs", path)
    assert outcome.code == 0
    assert f"warning: 5 of the 724 inputs of {path} are test rows of digits" in outcome.err


def test_oracle_is_labelled_and_written_nowhere(run, place, digits):
    """The paper's number is the best on test labels for the class that lacked, says so, and changes nothing."""
    run("correct-bias", "--student", "no8s")
    before = stamps(place)
    found = json.loads(run("correct-bias", "--student", "no8s", "--oracle", "--json").out)
    told = found["oracle"]
    assert told["what"] == "test-tuned, for comparison with the paper only; not written"
    logits = said(place, "no8s", digits.test.read())
    classes = np.isin(digits.class_names, told["classes"])
    assert metrics.errors(logits + told["shift"] * classes, digits.test.labels) == told["test_errors"]
    assert told["classes"] == [str(LACKED)]
    assert told["test_errors"] < found["student_test_errors"]
    line = run("correct-bias", "--student", "no8s", "--oracle").out.splitlines()[-1]
    assert line.endswith(f"{told['test_errors']} errors ({told['what']})")
    assert stamps(place) == before
    assert "test-tuned" not in json.dumps(recorded(place, "no8s-corrected"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--student", "nosuch"], 1, "there is no student 'nosuch' in workspace, only no8s, student: kdistill corr"),
        (["--student", "teacher"], 1, "there is no student 'teacher', which is a teacher, in workspace"),
        (["--student", "../x"], 2, "--student is '../x'"),
        (["--name", "../x"], 2, "--name is '../x'"),
        (["--name", "student"], 2, "--name student is the student that is corrected"),
        (["--name", "no8s"], 1, "student 'no8s' was trained, and would be lost"),
        (["--frequencies", "even"], 2, "--frequencies is 'even': it needs training, uniform, or a number a class"),
        (["--frequencies", ""], 2, "--frequencies is ''"),
        (["--frequencies", "0.5,0.5"], 2, "--frequencies has 2 numbers, and digits has 10 classes"),
        (["--frequencies=-0.1,1.1"], 2, "--frequencies holds -0.1"),
        (["--frequencies", "nan,1"], 2, "--frequencies holds nan"),
        (["--frequencies", ",".join(["0.2"] * 10)], 2, "--frequencies sum to 2"),
        (["--inputs", "nosuch.npz"], 1, "--inputs nosuch.npz: there is no such file"),
        (["--inputs", "flat.npz"], 1, "flat.npz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(run, place, arguments, code, message):
    np.savez(place.parent / "flat.npz", x_train=np.zeros((40, 3), np.uint8))
    before = stamps(place)
    outcome = run("correct-bias", *arguments)
    assert outcome.code == code, outcome.err
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert stamps(place) == before
    assert not (place / "students/student-corrected").exists()


def test_refusal_comes_before_the_announcement(run, place):
    """A command that is refused does not say first that it makes the student again."""
    assert run("correct-bias", "--name", "fixed").code == 0
    for wrong in (["--frequencies", "0.5,0.5"], ["--inputs", "flat.npz"]):
        np.savez(place.parent / "flat.npz", x_train=np.zeros((40, 3), np.uint8))
        outcome = run("correct-bias", "--name", "fixed", *wrong)
        assert (outcome.code > 0, outcome.out) == (True, "")
    assert "again" in run("correct-bias", "--name", "fixed", "--frequencies", "uniform").out


def test_student_that_cannot_be_corrected(run, place, tmp_path):
    """Damaged, without a `model.keras`, or corrected already: one line that says what to do, and nothing written."""
    outcome = run("correct-bias", "-w", tmp_path / "empty")
    assert outcome.code == 1
    assert (
        outcome.err == f"error: {tmp_path / 'empty'} has no student to correct: kdistill train-student --workspace "
        f"{tmp_path / 'empty'}\n"
    )
    assert run("correct-bias").code == 0
    outcome = run("correct-bias", "--student", "student-corrected")
    assert outcome.code == 1
    assert outcome.err.endswith("corrected already, from student 'student': correct that one, kdistill correct-bias\n")
    (place / "students/student-corrected/manifest.json").write_text("{")
    assert run("correct-bias").code == 0
    manifest = recorded(place, "no8s")
    del manifest["outputs"]["model.keras"]
    (place / "students/no8s/manifest.json").write_text(json.dumps(manifest))
    model = place / "students/no8s/model.keras"
    model.unlink()
    outcome = run("correct-bias", "--student", "no8s")
    assert (outcome.code, "student 'no8s' has no model.keras" in outcome.err) == (1, True)
    manifest["outputs"]["model.keras"] = "sha256:0"
    (place / "students/no8s/manifest.json").write_text(json.dumps(manifest))
    outcome = run("correct-bias", "--student", "no8s")
    assert outcome.code == 1
    assert "model.keras is missing: kdistill train-student --name no8s" in outcome.err
    assert not (place / "students/no8s-corrected").exists()


def test_few_inputs_stand_for_many(run, place, monkeypatch):
    """Of more logits than are held, rows that are always the same ones are taken."""
    monkeypatch.setattr(stage, "MOST_LOGITS", 5000)
    found = []
    for name in ("one", "two"):
        outcome = run("correct-bias", "--name", name)
        assert "takes 500 of the 1,437 inputs" in outcome.out
        found.append(recorded(place, name)["results"])
    assert found[0]["classes"] == found[1]["classes"]
    assert found[0]["inputs"] == sum(one["after"] for one in found[0]["classes"]) == 500


def test_from_python(place):
    """The function does what the command does, and returns the manifest."""
    workspace, quiet = Workspace(place), Reporter(quiet=True)
    manifest = correct_bias(workspace, CorrectBias(student="no8s"), reporter=quiet)
    assert manifest.results["test_errors"] < manifest.results["student_test_errors"]
    assert correct_bias(workspace, CorrectBias(student="no8s"), reporter=quiet) == manifest
    with pytest.raises(UsageError, match="--frequencies"):
        CorrectBias(frequencies="none")


def networks_of_all_kinds():
    """Name, network, and whether its own last bias is what is shifted."""
    layers, rows = keras.layers, keras.Input((6,))
    dense = layers.Dense(4, name="logits")
    twice = layers.Dense(6)
    return [
        ("Sequential", keras.Sequential([rows, layers.Dense(5, "relu"), layers.Dense(4)]), True),
        ("functional", keras.Model(rows, dense(layers.Dense(5, "relu")(rows))), True),
        ("no bias", keras.Sequential([rows, layers.Dense(4, use_bias=False)]), False),
        ("bfloat16", keras.Sequential([rows, layers.Dense(4, dtype="mixed_bfloat16")]), False),
        ("Add", keras.Model(rows, layers.Add()([layers.Dense(4)(rows), layers.Dense(4)(rows)])), False),
        ("nested", keras.Sequential([rows, keras.Sequential([keras.Input((6,)), layers.Dense(4)])]), False),
        ("squashed", keras.Sequential([rows, layers.Dense(4, "tanh")]), False),
        ("used twice", keras.Model(rows, twice(layers.ReLU()(twice(rows)))), False),
    ]


@pytest.mark.parametrize(("name", "network", "own"), networks_of_all_kinds(), ids=lambda v: v if v is str(v) else "")
def test_logits_are_shifted_exactly(tmp_path, name, network, own):
    """Whatever the network ends in, its logits are those it gave and the shifts; it loads without kdistill."""
    network.save(tmp_path / "model.keras")
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    classes = network.output_shape[-1]
    shifts = np.linspace(-3, 2, classes).astype(np.float32)
    shifted = load_shifted(tmp_path / "model.keras", shifts)
    shifted.save(tmp_path / "shifted.keras")
    again = keras.saving.load_model(tmp_path / "shifted.keras")
    before, after = (np.float32(one(rows)) for one in (network, again))
    np.testing.assert_allclose(after, before + shifts, atol=2e-6)
    assert (type(again.layers[-1]) is keras.layers.Rescaling) is not own
    assert again.count_params() == network.count_params()
    assert (again.input_shape, again.output_shape) == (network.input_shape, network.output_shape)


def test_network_that_needs_code(tmp_path):
    class Own(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    keras.Sequential([keras.Input((3,)), Own(), keras.layers.Dense(2)]).save(tmp_path / "model.keras")
    with pytest.raises(KdistillError, match="can't be loaded as it needs code"):
        load_shifted(tmp_path / "model.keras", np.zeros(2))


def test_mixed_precision_student(run, place, digits):
    """Trained in mixed precision, it is corrected as exactly: its logits are float32."""
    run("train-student", *QUICK, "--soft-targets", "no8s", "--name", "mixed", "--precision", "mixed_bfloat16")
    outcome = run("correct-bias", "--student", "mixed")
    assert outcome.code == 0, outcome.err
    results = recorded(place, "mixed-corrected")["results"]
    shifts = np.float32([one["shift"] for one in results["classes"]])
    inputs = digits.test.read()
    np.testing.assert_allclose(said(place, "mixed-corrected", inputs), said(place, "mixed", inputs) + shifts, atol=1e-5)
    assert results["test_errors"] < results["student_test_errors"]


def test_corrected_student_is_exported(run, place):
    """For another runtime it is a student like any, from mixed precision too."""
    pytest.importorskip("ai_edge_litert", reason="needs kdistill[tflite]")
    run("train-student", *QUICK, "--soft-targets", "no8s", "--name", "mixed", "--precision", "mixed_bfloat16")
    for student in ("no8s", "mixed"):
        assert run("correct-bias", "--student", student).code == 0
        outcome = run("export", "--network", f"{student}-corrected", "--json")
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)
        assert abs(found["test_errors"] - recorded(place, f"{student}-corrected")["results"]["test_errors"]) <= 2
