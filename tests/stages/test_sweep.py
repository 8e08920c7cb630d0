"""`sweep`: its students equal those of train-student, its numbers are those of their files, and it resumes."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import imports_of, mentions, run_command, saved_weights

from kdistill import Sweep, TrainStudent
from kdistill.console import Reporter
from kdistill.errors import UsageError
from kdistill.evaluation import metrics
from kdistill.evaluation.sweeps import DISTILLED, HARD, OTHER, PERMUTED, SCALED, SMOOTHED
from kdistill.networks.saved_models import SavedNetwork
from kdistill.settings import Objective
from kdistill.stages.sweep_students import SweepPlan
from kdistill.training import loop
from kdistill.training.checkpoint import Checkpoint
from kdistill.workspace import Workspace

SMALL = ["--epochs", "2", "--batch-size", "64", "--learning-rate", "0.01", "--validation-fraction", "0.2"]
SMALL += ["--xla", "off"]
GRID = ["sweep", "--temperature", "1,4", "--seeds", "0,1", "--model", "mlp-10", *SMALL]
CONTROLS = [*GRID, "--controls", "--other-soft-targets", "other"]


@pytest.fixture(scope="session")
def swept(made, tmp_path_factory):
    """A workspace with a sweep that has all controls; do not write to it."""
    place = tmp_path_factory.mktemp("swept") / "workspace"
    shutil.copytree(made, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdistill.cli.silence_native_stderr", lambda: None)
        for command in (
            ["train-teacher", "--name", "second", "--model", "mlp-30", "--epochs", "1", "--seed", "1"],
            ["soften", "--teacher", "second", "--name", "other"],
            CONTROLS,
        ):
            outcome = run_command(*command, "--workspace", place)
            assert outcome.code == 0, outcome.err
    return place


@pytest.fixture
def workspace(swept, tmp_path):
    """A copy of `swept` at `./workspace`, to write to."""
    return shutil.copytree(swept, tmp_path / "workspace")


def table(workspace):
    with (workspace / "sweeps/sweep/table.csv").open() as stream:
        return list(csv.DictReader(stream))


def summaries(workspace):
    return json.loads((workspace / "sweeps/sweep/summary.json").read_text())


def stamps(workspace):
    return {str(path): path.stat().st_mtime_ns for path in (workspace / "sweeps").rglob("*") if path.is_file()}


def test_table_matches_the_students(swept, digits):
    """Errors in the table are those of the students' files, and NLL and agreement those of the loaded networks."""
    rows = table(swept)
    assert len(rows) == 2 * (1 + 2 + 3)
    teacher = SavedNetwork.load(swept / "teachers/teacher/saved_model").logits(digits.test.read()).argmax(axis=1)
    for row in rows:
        place = swept / "sweeps/sweep/students" / row["student"]
        manifest = json.loads((place / "manifest.json").read_text())
        assert float(row["test"]) == manifest["results"]["test_errors"]
        assert row["student"].endswith(f"-seed{row['seed']}")
        last = list(csv.DictReader((place / "history.csv").open()))[-1]
        wrong = int(row["validation_rows"]) * (1 - float(last["validation_accuracy"]))
        assert float(row["validation"]) == pytest.approx(wrong, abs=1e-3)
        if not row["nll"]:
            continue
        logits = SavedNetwork.load(place / "saved_model").logits(digits.test.read())
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        nll = -np.log(probabilities[np.arange(360), digits.test.labels]).mean()
        assert float(row["nll"]) == pytest.approx(nll, rel=1e-5)
        assert float(row["agreement"]) == pytest.approx((logits.argmax(axis=1) == teacher).mean())
        assert float(row["test"]) == (logits.argmax(axis=1) != digits.test.labels).sum()


def test_summary_compares_students_of_the_same_seed(swept):
    """Mean, deviation and interval follow from the table, and the best setting from validation errors only."""
    rows, found = table(swept), summaries(swept)
    hard = {row["seed"]: float(row["test"]) for row in rows if row["kind"] == HARD}
    for one in found:
        if one["kind"] == SCALED:
            continue
        at = "" if one["temperature"] is None else str(one["temperature"])
        own = [row for row in rows if row["kind"] == one["kind"] and row["temperature"] == at]
        errors = np.array([float(row["test"]) for row in own])
        assert one["test"]["mean"] == pytest.approx(errors.mean())
        assert one["test"]["sd"] == pytest.approx(errors.std(ddof=1))
        if one["kind"] == HARD:
            assert one["difference"] is None
            continue
        differences = errors - [hard[row["seed"]] for row in own]
        reach = 12.706204736 * differences.std(ddof=1) / np.sqrt(2)
        assert one["difference"]["mean"] == pytest.approx(differences.mean())
        assert one["difference"]["low"] == pytest.approx(differences.mean() - reach)
        assert one["difference"]["high"] == pytest.approx(differences.mean() + reach)
    grid = [one for one in found if one["kind"] in (HARD, DISTILLED)]
    lowest = min(one["validation"]["mean"] for one in grid)
    assert [one["best"] for one in grid].count(True) == 1
    assert next(one for one in grid if one["best"])["validation"]["mean"] == lowest
    kinds = [one["kind"] for one in found]
    assert kinds == [HARD, DISTILLED, DISTILLED, SMOOTHED, PERMUTED, OTHER, SCALED]
    chosen = next(one for one in found if one["chosen"])
    assert {one["temperature"] for one in found if one["kind"] in (PERMUTED, OTHER)} == {chosen["temperature"]}


def test_scaled_is_fitted_on_validation_rows(swept, digits):
    """Temperature scaling uses the T with the lowest NLL on the held-out rows, and is measured on the test rows."""
    from kdistill.data.keys import validation_rows

    for row in (row for row in table(swept) if row["kind"] == HARD):
        network = SavedNetwork.load(swept / "sweeps/sweep/students" / row["student"] / "saved_model")
        held = validation_rows(digits.train.keys(), 0.2, int(row["seed"]))
        assert held.sum() == int(row["validation_rows"])
        logits, labels = network.logits(digits.train.read()[held]), digits.train.labels[held]
        fitted = float(row["fitted_temperature"])
        at = [
            metrics.negative_log_likelihood(logits / t, labels).mean() for t in (fitted, fitted * 1.02, fitted / 1.02)
        ]
        assert at[0] == min(at)
        scaled = network.logits(digits.test.read()) / fitted
        nll = metrics.negative_log_likelihood(scaled, digits.test.labels).mean()
        assert float(row["scaled_nll"]) == pytest.approx(nll, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (HARD, ["--alpha", "1"]),
        (DISTILLED, []),
        (SMOOTHED, ["--alpha", "1", "--label-smoothing", "0.1"]),
        (PERMUTED, ["--permute-soft-targets"]),
        (OTHER, ["--soft-targets", "other"]),
    ],
)
def test_students_are_train_students(run, workspace, kind, options):
    """Students and controls of a sweep have the same bytes as train-student makes with the same options."""
    row = [row for row in table(workspace) if row["kind"] == kind][-1]
    at = ["--temperature", row["temperature"]] if row["temperature"] else []
    outcome = run("train-student", *options, *at, "--model", "mlp-10", "--seed", row["seed"], *SMALL)
    assert outcome.code == 0, outcome.err
    own = workspace / "sweeps/sweep/students" / row["student"]
    assert saved_weights(workspace / "students/student") == saved_weights(own)
    single, swept = (
        json.loads((place / "manifest.json").read_text()) for place in (workspace / "students/student", own)
    )
    assert (single["settings"], single["inputs"]) == (swept["settings"], swept["inputs"])
    for output in ("saved_model", "model.keras"):
        assert single["outputs"][output] == swept["outputs"][output]


@pytest.mark.slow
def test_each_architecture_is_compiled_once(run, workspace, monkeypatch):
    """Students with other temperatures, alphas and seeds reuse the compiled step of the first one."""
    trainer, compiled = loop.Trainer, []
    monkeypatch.setattr(loop, "Trainer", lambda *given: (compiled.append(1), trainer(*given))[1])
    options = ["--temperature", "1,4", "--alpha", "0,0.1", "--seeds", "0,1", "--model", "mlp-10", "--epochs", "1"]
    assert run("sweep", *options, "--name", "other").code == 0
    assert len(list((workspace / "sweeps/other/students").iterdir())) == 10
    assert len(compiled) == 2, "one from hard labels, one distilled"


def test_manifests_distinguish_controls(swept):
    """No two students have the same settings and inputs."""
    manifests = [json.loads(path.read_text()) for path in (swept / "sweeps/sweep/students").glob("*/manifest.json")]
    identities = {json.dumps([each["settings"], each["inputs"]], sort_keys=True) for each in manifests}
    assert len(identities) == len(manifests) == 12


@pytest.mark.slow
def test_up_to_date(run, workspace):
    """A sweep that is up to date writes nothing, imports no TensorFlow, and prints its table."""
    before = stamps(workspace)
    code, imported = imports_of(*CONTROLS, cwd=workspace.parent)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)
    outcome = run(*CONTROLS)
    assert outcome.up_to_date
    assert "sweeps/sweep" in outcome.out
    assert HARD in outcome.out
    assert PERMUTED in outcome.out
    assert json.loads(run(*CONTROLS, "--json").out) == summaries(workspace)
    assert stamps(workspace) == before
    status = run("status").out
    assert mentions(status, "sweep sweep", 12)
    assert "mlp-10-hard" not in status
    assert run("verify").code == 0


def test_students_share_a_dataset(swept):
    """The dataset is loaded once for all students, including those of other soft targets."""
    settings = Sweep(controls=True, other_soft_targets="other", student=TrainStudent(model="mlp-10"))
    plan = SweepPlan.open(Workspace(swept), settings, Reporter(quiet=True))
    assert plan.other.soft is not plan.inputs.soft
    assert plan.other.dataset is plan.inputs.dataset is plan.inputs.dataset


@pytest.mark.slow
def test_interrupted_sweep_resumes(run, workspace, swept, monkeypatch):
    """A sweep that is interrupted within a student keeps the finished ones, and ends as without the interruption."""
    students = workspace / "sweeps/sweep/students"
    missing = ["mlp-10-T1-alpha0.1-seed1", "mlp-10-T4-alpha0.1-seed0"]
    for name in missing:
        shutil.rmtree(students / name)
    before = stamps(workspace)
    write, calls = Checkpoint.write, []

    def interrupt(*arguments):
        write(*arguments)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "write", interrupt)
    assert run(*CONTROLS).code == 130
    assert (students / missing[0] / "manifest.json").exists()
    assert (students / f".{missing[1]}.partial/checkpoint.npz").exists()
    monkeypatch.setattr(Checkpoint, "write", lambda *arguments: (write(*arguments), calls.append(1)))
    outcome = run(*CONTROLS)
    assert outcome.code == 0, outcome.err
    assert len(calls) == 4
    assert outcome.out.count("up to date") == 11
    after = stamps(workspace)
    kept = [name for name in before if "/students/" in name]
    assert all(after[name] == before[name] for name in kept)
    for name in missing:
        assert saved_weights(students / name) == saved_weights(swept / "sweeps/sweep/students" / name)
    assert table(workspace) == table(swept)


@pytest.mark.slow
def test_changed_soft_targets_retrain_students(run, workspace):
    """If the soft targets change, distilled students are trained again, and hard-label students are not."""
    assert run("soften", "--dtype", "float16").code == 0
    assert mentions(run("status").out, "stale", "soft targets 'soft-targets'")
    outcome = run("sweep", "--temperature", "4", "--seeds", "0", "--model", "mlp-10", *SMALL)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith(("1/2", "2/2"))]
    assert mentions(lines[0], "mlp-10-hard-seed0", "up to date")
    assert mentions(lines[1], "re-run", "soft targets")


@pytest.mark.slow
def test_damaged_student_is_trained_again(run, workspace):
    """`verify` names a student with a changed file, and the sweep trains it again."""
    history = workspace / "sweeps/sweep/students/mlp-10-hard-seed0/history.csv"
    history.write_text("")
    outcome = run("verify")
    assert outcome.code == 1
    (line,) = [line for line in outcome.out.splitlines() if "kdistill sweep " in line]
    assert "history.csv" in line
    outcome = run(*line.partition("kdistill ")[2].split())
    assert mentions(outcome.out, "mlp-10-hard-seed0", "re-run", "history.csv")
    assert run("verify").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", ""], ["--temperature"]),
        (["--seeds", "0,x"], ["--seeds", "x"]),
        (["--seeds", "0,1,0"], ["--seeds", "0"]),
        (["--temperature", "1,1.0"], ["--temperature", "1"]),
        (["--temperature", "1,0"], ["--temperature", "0", "0.01", "10000"]),
        (["--temperature", "nan"], ["--temperature", "nan"]),
        (["--alpha", "0.1,1"], ["--alpha", "1"]),
        (["--alpha", "-1"], ["--alpha", "-1"]),
        (["--model", "mlp-30,mpl-30"], ["--model", "mpl-30"]),
        (["--model", "mlp-30,"], ["--model"]),
        (["--loss", "kl"], ["--loss", "kl", "kd", "mse"]),
        (["--name", "../up"], ["--name", "../up"]),
        (["--other-soft-targets", "x"], ["--other-soft-targets", "--controls"]),
        (["--controls", "--other-soft-targets", "soft-targets"], ["--other-soft-targets", "soft-targets"]),
        (["--controls", "--other-soft-targets", "x" * 90], ["--other-soft-targets", "x" * 90]),
    ],
)
def test_wrong_usage(run, made, options, words):
    """Wrong options give one line with the option and its value, before anything is trained."""
    outcome = run("sweep", *options, "-w", made)
    assert outcome.code == 2, outcome.out
    assert mentions(outcome.err, *words), outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (made / "sweeps").exists()


def test_missing_soft_targets(run, made, tmp_path):
    """Missing soft targets are named with the command that makes them."""
    outcome = run("sweep", "--soft-targets", "nosuch", "-w", made)
    assert outcome.code == 1
    assert mentions(outcome.err, "'nosuch'", "kdistill soften")
    assert run("sweep").code == 1
    assert not (tmp_path / "workspace").exists()


def test_permutation_leaves_out_validation_rows(run, workspace, monkeypatch):
    """The training rows of a class have the same set of logits with and without --permute-soft-targets."""
    logits_by_label = []

    def record(_, rows, *__, **___):
        logits = rows.teacher.at(np.arange(len(rows))).dense()
        logits_by_label.append({label: logits[rows.split.labels == label] for label in range(10)})
        raise KeyboardInterrupt

    monkeypatch.setattr("kdistill.training.run.train", record)
    run("train-student", "--name", "a", *SMALL)
    run("train-student", "--name", "b", "--permute-soft-targets", *SMALL)
    plain, permuted = logits_by_label
    for label in range(10):
        assert not (plain[label] == permuted[label]).all()
        assert sorted(map(tuple, plain[label])) == sorted(map(tuple, permuted[label]))


def test_nothing_to_permute():
    """--permute-soft-targets is refused for hard labels only."""
    with pytest.raises(UsageError, match="--permute-soft-targets"):
        TrainStudent(objective=Objective(alpha=1.0), permute_soft_targets=True)
