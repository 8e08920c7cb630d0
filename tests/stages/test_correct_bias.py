"""`correct-bias`: the corrected student, its errors, and the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import QUICK, Outcome, count_errors, imports_of, mentions, run_command, stamps, write_npz

from kdistill import CorrectBias, Reporter, Workspace, correct_bias
from kdistill.errors import UsageError
from kdistill.networks.saved_models import SavedNetwork
from kdistill.stages import correct_bias as stage

MISSING = 8


@pytest.fixture(scope="session")
def missing_class(made, digits, tmp_path_factory):
    """A workspace whose student `no8s` has seen no 8, while `student` has seen all classes; do not write to it."""
    place = Path(shutil.copytree(made, tmp_path_factory.mktemp("missing-class") / "workspace"))
    seen = digits.train.labels != MISSING
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
def place(missing_class, tmp_path):
    """A copy of `missing_class` at `./workspace`, to write to."""
    return Path(shutil.copytree(missing_class, tmp_path / "workspace"))


def manifest_of(place, name):
    return json.loads((place / "students" / name / "manifest.json").read_text())


def logits_of(place, name, inputs):
    return SavedNetwork.load(place / "students" / name / "saved_model").logits(inputs)


def students_in_status(run):
    """Return what `status --json` says of each student, by name, and the next command."""
    status = json.loads(run("status", "--json").out)
    return {item["name"]: item for item in status["artifacts"] if item["kind"] == "student"}, status["next"]


def test_missing_class_is_predicted_again(run, place, digits):
    """Each class is predicted as often as it occurs in the training set, and errors fall, most in the missing class."""
    outcome = run("correct-bias", "--student", "no8s")
    assert outcome.code == 0, outcome.err
    results = manifest_of(place, "no8s-corrected")["results"]
    inputs, labels = digits.test.read(), digits.test.labels
    before, after = (logits_of(place, name, inputs) for name in ("no8s", "no8s-corrected"))
    shifts = np.array([row["shift"] for row in results["classes"]], np.float32)
    np.testing.assert_allclose(after, before + shifts, atol=1e-5)
    errors = [count_errors(logits, labels) for logits in (before, after)]
    missing = labels == MISSING
    missing_errors = [count_errors(logits[missing], labels[missing]) for logits in (before, after)]
    assert errors[1] < 0.7 * errors[0]
    assert missing_errors[1] < missing_errors[0] / 2
    assert [results["student_test_errors"], results["test_errors"]] == errors
    counts = np.bincount(digits.train.labels)
    assert [row["wanted"] for row in results["classes"]] == counts.tolist()
    assert [row["after"] for row in results["classes"]] == counts.tolist()
    predicted = logits_of(place, "no8s-corrected", digits.train.read()).argmax(axis=1)
    np.testing.assert_array_equal(np.bincount(predicted), counts)
    last_line = outcome.out.splitlines()[-1]
    assert all(str(number) in last_line for number in (360, *errors))


@pytest.mark.slow
def test_corrected_student_is_a_student(run, place):
    """It is shown below its student, evaluated and verified; its command reproduces it; `plot` leaves it out."""
    assert run("correct-bias", "--student", "no8s", "--name", "better", "--frequencies", "uniform").code == 0
    files = {item.name for item in (place / "students/better").iterdir()}
    assert files == {"saved_model", "model.keras", "manifest.json"}
    lines = run("status").out.splitlines()
    depths = [line.index("student ") for line in lines if "student no8s [" in line or "student better [" in line]
    assert depths[1] == depths[0] + 2
    measured = {row["name"]: row for row in json.loads(run("evaluate", "--json").out) if row["split"] == "test"}
    assert measured["better"]["errors"] == manifest_of(place, "better")["results"]["test_errors"]
    assert 0.8 < measured["better"]["agreement"] < 1
    assert measured["better"]["parameters"] == measured["no8s"]["parameters"]
    assert run("verify").code == 0
    students, _ = students_in_status(run)
    assert mentions(students["better"]["command"], "--name better", "--student no8s", "--frequencies uniform")
    before = stamps(place)
    assert run(*students["better"]["command"].split()[1:]).code == 0
    assert stamps(place) == before
    outcome = run("plot")
    assert (outcome.code, outcome.err) == (0, "")
    plotted = [each["name"] for each in json.loads((place / "plots/manifest.json").read_text())["inputs"]]
    assert any("no8s" in name for name in plotted)
    assert not any("better" in name for name in plotted)
    assert "better" in run("plot", "--network", "better", "--network", "no8s").out
    outcome = run("plot", "--network", "better")
    assert outcome.code == 1
    assert "kdistill plot --network no8s" in outcome.err


@pytest.mark.slow
def test_up_to_date_and_stale(run, place):
    """If it is up to date it needs no TensorFlow; if the student has changed it is stale and made again."""
    first = run("correct-bias", "--student", "no8s")
    before = stamps(place)
    code, imported = imports_of("correct-bias", "--student", "no8s", cwd=place.parent)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)
    second = run("correct-bias", "--student", "no8s")
    assert second.out.splitlines()[1:] == first.out.splitlines()[-len(second.out.splitlines()) + 1 :]
    assert stamps(place) == before
    run("train-student", *QUICK, "--soft-targets", "no8s", "--name", "no8s", "--seed", "1")
    students, following = students_in_status(run)
    assert students["no8s-corrected"]["state"] == "stale"
    assert following == "kdistill correct-bias --student no8s"
    assert "seed 0 -> 1" in run("correct-bias", "--student", "no8s").out
    assert students_in_status(run)[0]["no8s-corrected"]["state"] == "fresh"
    assert "frequencies training -> uniform" in run("correct-bias", "--student", "no8s", "--frequencies=uniform").out
    shutil.rmtree(place / "students/no8s")
    assert students_in_status(run)[0]["no8s-corrected"]["state"] == "stale"


@pytest.mark.slow
def test_test_labels_have_no_influence(run, made, tmp_path, digits):
    """With other test labels, shifts and weights are the same; only the reported errors differ."""
    manifests = []
    for name, changed in (("one", {}), ("two", {"y_test": digits.test.labels[::-1]})):
        path, place = write_npz(tmp_path / f"{name}.npz", digits, **changed), tmp_path / name
        assert run("train-student", "--alpha", 1, "--dataset", path, *QUICK, "-w", place).code == 0
        assert run("correct-bias", "--frequencies", "uniform", "-w", place).code == 0
        manifests.append(manifest_of(place, "student-corrected"))
    assert manifests[0]["results"]["classes"] == manifests[1]["results"]["classes"]
    logits = [logits_of(tmp_path / name, "student-corrected", digits.test.read()) for name in ("one", "two")]
    np.testing.assert_array_equal(*logits)
    assert manifests[0]["results"]["test_errors"] < manifests[1]["results"]["test_errors"]


@pytest.mark.slow
def test_other_inputs(run, place, tmp_path, digits):
    """Other inputs replace the training rows; their labels are ignored, and test rows among them are reported."""
    half = digits.train.read()[::2]
    path = write_npz(tmp_path / "pool.npz", digits, x_train=half, y_train=None, x_test=None, y_test=None)
    outcome = run("correct-bias", "--student", "no8s", "--inputs", path, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    unlabeled = json.loads(outcome.out)
    assert unlabeled["inputs"] == len(half)
    after = np.bincount(logits_of(place, "no8s-corrected", half).argmax(axis=1), minlength=10)
    for column in ("after", "wanted"):
        assert [row[column] for row in unlabeled["classes"]] == after.tolist()
    assert students_in_status(run)[0]["no8s-corrected"]["state"] == "fresh"
    write_npz(path, digits, x_train=half, y_train=np.zeros(len(half), int), x_test=None, y_test=None)
    student = students_in_status(run)[0]["no8s-corrected"]
    assert student["state"] == "stale"
    assert str(path) in "".join(student["reasons"])
    labeled = json.loads(run("correct-bias", "--student", "no8s", "--inputs", path, "--json").out)
    assert labeled["classes"] == unlabeled["classes"]
    student = students_in_status(run)[0]["no8s-corrected"]
    assert student["command"] == f"kdistill correct-bias --student no8s --inputs {path}"
    mixed = np.concatenate([half, digits.test.read()[:5]])
    write_npz(path, digits, x_train=mixed, y_train=None, x_test=None, y_test=None)
    outcome = run("correct-bias", "--student", "no8s", "--inputs", path)
    assert outcome.code == 0
    assert "warning: " in outcome.err
    assert all(text in outcome.err for text in (" 5 ", " 724 ", str(path)))


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        (["--student", "nosuch"], 1, ["'nosuch'", "no8s, student", "kdistill correct-bias"]),
        (["--student", "teacher"], 1, ["'teacher'", "no8s, student", "kdistill correct-bias"]),
        (["--student", "../x"], 2, ["--student", "'../x'"]),
        (["--name", "../x"], 2, ["--name", "'../x'"]),
        (["--name", "student"], 2, ["--name", "student"]),
        (["--name", "no8s"], 1, ["--name", "'no8s'"]),
        (["--frequencies", "even"], 2, ["--frequencies", "'even'", "training", "uniform"]),
        (["--frequencies", ""], 2, ["--frequencies", "''"]),
        (["--frequencies", "0.5,0.5"], 2, ["--frequencies", " 2 ", " 10 "]),
        (["--frequencies=-0.1,1.1"], 2, ["--frequencies", "-0.1"]),
        (["--frequencies", "nan,1"], 2, ["--frequencies", "nan"]),
        (["--frequencies", ",".join(["0.2"] * 10)], 2, ["--frequencies", "2"]),
        (["--inputs", "nosuch.npz"], 1, ["--inputs", "nosuch.npz"]),
        (["--inputs", "flat.npz"], 1, ["flat.npz"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_option_is_one_line(run, place, arguments, code, texts):
    """The error names the option and its value, and nothing is written."""
    np.savez(place.parent / "flat.npz", x_train=np.zeros((40, 3), np.uint8))
    before = stamps(place)
    outcome = run("correct-bias", *arguments)
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert all(text in outcome.err for text in texts), outcome.err
    assert stamps(place) == before
    assert not (place / "students/student-corrected").exists()


def test_refused_command_prints_only_the_error(run, place):
    """A refused command does not first announce that it makes the student again."""
    assert run("correct-bias", "--name", "fixed").code == 0
    np.savez(place.parent / "flat.npz", x_train=np.zeros((40, 3), np.uint8))
    for wrong in (["--frequencies", "0.5,0.5"], ["--inputs", "flat.npz"]):
        outcome = run("correct-bias", "--name", "fixed", *wrong)
        assert (outcome.code > 0, outcome.out) == (True, "")
    assert "training -> uniform" in run("correct-bias", "--name", "fixed", "--frequencies", "uniform").out


def test_student_that_cannot_be_corrected(run, place, tmp_path):
    """No student, a corrected one, or one without `model.keras`: one line with a command, and nothing is written."""
    outcome = run("correct-bias", "-w", tmp_path / "empty")
    assert outcome.code == 1
    assert f"kdistill train-student --workspace {tmp_path / 'empty'}" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert run("correct-bias").code == 0
    outcome = run("correct-bias", "--student", "student-corrected")
    assert outcome.code == 1
    assert "'student-corrected'" in outcome.err
    assert outcome.err.endswith("kdistill correct-bias\n")
    (place / "students/student-corrected/manifest.json").write_text("{")
    assert run("correct-bias").code == 0, "a damaged corrected student is made again"
    manifest = manifest_of(place, "no8s")
    (place / "students/no8s/model.keras").unlink()
    for outputs, text in (
        ({name: digest for name, digest in manifest["outputs"].items() if name != "model.keras"}, "--model"),
        (manifest["outputs"], "--name no8s"),
    ):
        (place / "students/no8s/manifest.json").write_text(json.dumps(manifest | {"outputs": outputs}))
        outcome = run("correct-bias", "--student", "no8s")
        assert outcome.code == 1
        assert all(part in outcome.err for part in ("'no8s'", "model.keras", text)), outcome.err
    assert not (place / "students/no8s-corrected").exists()


def test_sample_of_many_inputs(run, place, monkeypatch):
    """If there are more logits than memory should hold, a sample of the rows is used, always the same one."""
    monkeypatch.setattr(stage, "MAX_LOGITS", 5000)
    results = []
    for name in ("one", "two"):
        outcome = run("correct-bias", "--name", name)
        assert "500 of the 1,437" in outcome.out
        results.append(manifest_of(place, name)["results"])
    assert results[0]["classes"] == results[1]["classes"]
    assert results[0]["inputs"] == sum(row["after"] for row in results[0]["classes"]) == 500


def test_python_function(place):
    """The function returns the same manifest, whether it has just made the student or the student was up to date."""
    workspace, quiet = Workspace(place), Reporter(quiet=True)
    manifests = [correct_bias(workspace, CorrectBias(student="no8s"), reporter=quiet).manifest for _ in range(2)]
    assert manifests[0].results["test_errors"] < manifests[0].results["student_test_errors"]
    assert manifests[0] == manifests[1]
    with pytest.raises(UsageError, match="--frequencies"):
        CorrectBias(frequencies="none")


@pytest.mark.slow
def test_mixed_precision_student(run, place, digits):
    """A student that was trained in mixed precision has float32 logits, which are shifted as exactly."""
    run("train-student", *QUICK, "--soft-targets", "no8s", "--name", "mixed", "--precision", "mixed_bfloat16")
    outcome = run("correct-bias", "--student", "mixed")
    assert outcome.code == 0, outcome.err
    results = manifest_of(place, "mixed-corrected")["results"]
    shifts = np.float32([row["shift"] for row in results["classes"]])
    inputs = digits.test.read()
    before, after = (logits_of(place, name, inputs) for name in ("mixed", "mixed-corrected"))
    np.testing.assert_allclose(after, before + shifts, atol=1e-5)
    assert results["test_errors"] < results["student_test_errors"]


@pytest.mark.slow
def test_corrected_student_is_exported(run, place):
    """A corrected student is exported like any other, also after mixed precision."""
    pytest.importorskip("ai_edge_litert", reason="needs kdistill[tflite]")
    run("train-student", *QUICK, "--soft-targets", "no8s", "--name", "mixed", "--precision", "mixed_bfloat16")
    for student in ("no8s", "mixed"):
        assert run("correct-bias", "--student", student).code == 0
        outcome = run("export", "--network", f"{student}-corrected", "--json")
        assert outcome.code == 0, outcome.err
        errors = manifest_of(place, f"{student}-corrected")["results"]["test_errors"]
        assert abs(json.loads(outcome.out)["test_errors"] - errors) <= 2
