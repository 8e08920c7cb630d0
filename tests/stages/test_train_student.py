"""`kdistill train-student`: losses, label smoothing, hard-label students, and mistakes that must not come back."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest
from helpers import QUICK, mentions, saved_weights, write_npz

from kdistill.data.sources import Source
from kdistill.settings.catalog import CLASSIFICATION, LOSSES

STAGES = (["soften"], ["train-student", *QUICK])

NAMES = [name for name, loss in LOSSES.items() if CLASSIFICATION in loss.formulas]


def results_of(workspace, name):
    return json.loads((workspace / "students" / name / "manifest.json").read_text())["results"]


def command_of(run, name):
    artifacts = json.loads(run("status", "--json").out)["artifacts"]
    return next(artifact["command"] for artifact in artifacts if artifact["name"] == name).split()


@pytest.mark.slow
@pytest.mark.parametrize("options", [*([loss] for loss in NAMES), ["kd", "--standardize-logits"]], ids=" ".join)
def test_each_loss_trains_a_student(run, workspace, options):
    """Each loss trains a student, prints its formula, and is in the command that reproduces the student."""
    options = ["--loss", *options, *([] if options == ["mse"] else ["--temperature", "2"])]
    outcome = run("train-student", *QUICK, "--name", "other", *options)
    assert outcome.code == 0, outcome.err
    results = results_of(workspace, "other")
    assert results["test_errors"] < 60, results
    assert results["objective"] in outcome.out
    command = command_of(run, "other")
    assert set(command) - {"kdistill"} == {"train-student", "--name", "other", *QUICK, *options} - {
        *("--batch-size", "32"),
        *(("--loss", "kd") if "kd" in options else ()),
    }
    assert run(*command[1:]).up_to_date


@pytest.mark.slow
@pytest.mark.parametrize("loss", NAMES)
def test_each_loss_with_top_k_logits_without_labels(run, workspace, tmp_path, digits, loss):
    """Each loss trains from the three largest logits of a transfer set without labels, at alpha 0."""
    np.savez(tmp_path / "pool.npz", x_train=digits.train.read())
    soften = ["--transfer-set", "pool.npz", "--name", "pool", "--top-k", "3", "--temperature", "2"]
    assert run("soften", *soften).code == 0
    outcome = run("train-student", *QUICK, "--alpha", "0", "--loss", loss, "--soft-targets", "pool", "--name", "other")
    assert outcome.code == 0, outcome.err
    results = results_of(workspace, "other")
    assert results["labeled_rows"] == 0
    assert results["test_errors"] < 60, results
    assert ("warning" in outcome.err) == (loss == "mse")  # it does not depend on T


@pytest.mark.slow
def test_label_smoothing(run, tmp_path):
    """Both trainers take `--label-smoothing`; it is in the formula and in the command that reproduces the network."""
    for name, command in (("teacher", "train-teacher"), (None, "soften"), ("student", "train-student")):
        outcome = run(command, *([*QUICK, "--label-smoothing", "0.1"] if name else []))
        assert outcome.code == 0, outcome.err
        if name:
            manifest = json.loads((tmp_path / f"workspace/{name}s/{name}/manifest.json").read_text())
            assert mentions(manifest["results"]["objective"], "CE", "0.1")
            assert manifest["results"]["objective"] in outcome.out
            reproduced = command_of(run, name)
            assert mentions(" ".join(reproduced), "--label-smoothing 0.1")
            assert run(*reproduced[1:]).up_to_date


@pytest.mark.slow
def test_test_rows_do_not_change_training(run, tmp_path, digits):
    """Other test rows leave every weight of teacher and student as it is."""
    weights = []
    for name in ("one", "two"):
        changed = {} if name == "one" else {"x_test": 255 - digits.test.read(), "y_test": digits.test.labels[::-1]}
        path = write_npz(tmp_path / f"{name}.npz", digits, **changed)
        place = tmp_path / name
        for command in (["train-teacher", "--dataset", path, *QUICK], *STAGES):
            assert run(*command, "--workspace", place).code == 0
        weights.append([saved_weights(place / network) for network in ("teachers/teacher", "students/student")])
    assert weights[0] == weights[1]


def test_temperature_divides_logits_not_inputs(made, digits):
    """The stored logits are those of the inputs as they are, and the soft targets are softmax(logits / T)."""
    from kdistill.networks.saved_models import SavedNetwork

    network = SavedNetwork.load(made / "teachers/teacher/saved_model")
    inputs = digits.train.read()
    with h5py.File(made / "soft-targets/soft-targets.h5") as file:
        logits, soft_targets = file["logits"][()], file["soft_targets"][()]
    np.testing.assert_allclose(logits, network.logits(inputs), atol=1e-4)
    powers = np.exp(logits / 20)
    np.testing.assert_allclose(soft_targets, powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)
    assert not np.allclose(logits, network.logits(inputs / np.float32(255 * 20)), atol=0.1)


@pytest.mark.slow
def test_rows_are_joined_by_content(run, workspace, tmp_path, digits):
    """With all rows in one batch, a shuffled copy of the dataset gives the same losses: each row has its own logits."""
    order = np.random.default_rng(0).permutation(len(digits.train))
    inputs, labels = digits.train.read()[order], digits.train.labels[order]
    shuffled = write_npz(tmp_path / "shuffled.npz", digits, x_train=inputs, y_train=labels)
    how = [*QUICK, "--batch-size", len(order), "--optimizer", "sgd", "--learning-rate", "0.1"]
    losses = []
    for dataset in ("digits", shuffled):
        assert run("train-student", "--force", "--dataset", dataset, *how).code == 0
        with (workspace / "students/student/history.csv").open() as stream:
            losses.append([[float(row[name]) for name in ("hard_loss", "soft_loss")] for row in csv.DictReader(stream)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_hard_label_student_needs_only_a_dataset(run, tmp_path):
    """At alpha 1 a student needs no soft targets and no teacher."""
    outcome = run("train-student", "--alpha", 1, *QUICK, "--name", "baseline")
    assert outcome.code == 0, outcome.err
    manifest = json.loads((tmp_path / "workspace/students/baseline/manifest.json").read_text())
    assert [each["kind"] for each in manifest["inputs"]] == ["dataset"]
    assert manifest["results"]["objective"] == "CE(labels)"


@pytest.mark.slow
def test_hard_label_student_takes_dataset_and_model_of_the_teacher(run, tmp_path, digits):
    """A hard-label student has the dataset and the network of the only teacher, or else of the soft targets."""
    path = write_npz(tmp_path / "mine.npz", digits)
    quick = ["--epochs", "1", "--batch-size", "64", "--xla", "off"]
    run("train-teacher", "--dataset", path, "--model", "mlp-20", "--name", "big", *quick)
    assert mentions(run("train-student", "--alpha", 1, *quick, "--name", "a").out, "mlp-20", path)
    run("train-teacher", "--name", "other", "--model", "small", *quick)
    outcome = run("train-student", "--alpha", 1, *quick, "--name", "b")
    assert outcome.code == 1
    assert mentions(outcome.err, "big", "other", "--dataset", "--model")
    run("soften", "--teacher", "big")
    assert mentions(run("train-student", "--alpha", 1, *quick, "--name", "b").out, "mlp-20", path)


@pytest.mark.slow
def test_teacher_and_student_hold_out_the_same_rows(run, tmp_path):
    """With `--validation-fraction`, teacher and student train on the same rows, and histories have validation columns."""
    how = [*QUICK, "--validation-fraction", "0.2"]
    for command in (["train-teacher", *how], ["soften"], ["train-student", *how]):
        assert run(*command).code == 0
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "workspace").glob("*s/*/manifest.json")]
    training_rows = {manifest["results"]["training_rows"] for manifest in manifests}
    assert len(manifests) == 2
    assert len(training_rows) == 1
    assert 1000 < training_rows.pop() < 1300
    header = (tmp_path / "workspace/students/student/history.csv").read_text().splitlines()[0]
    assert header == (
        "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy,hard_loss,soft_loss,learning_rate,seconds"
    )


def test_soft_targets_of_another_dataset(run, workspace, tmp_path, digits):
    """Rows that the file does not have, or another number of classes, are refused."""
    path = write_npz(tmp_path / "other.npz", digits, x_train=255 - digits.train.read())
    outcome = run("train-student", "--dataset", path, "--name", "other")
    assert outcome.code == 1
    assert mentions(outcome.err, path, "1,437", f"kdistill soften --dataset {path}")
    train, test = digits.train.labels < 5, digits.test.labels < 5
    path = write_npz(
        tmp_path / "five.npz",
        digits,
        x_train=digits.train.read()[train],
        y_train=digits.train.labels[train],
        x_test=digits.test.read()[test],
        y_test=digits.test.labels[test],
    )
    for command in (["train-student", "--dataset", path, "--name", "other"], ["soften", "--dataset", path]):
        outcome = run(*command)
        assert outcome.code == 1
        assert mentions(outcome.err, 10, 5)
    assert not (workspace / "students/other").exists()


@pytest.mark.usefixtures("workspace")
def test_given_dataset_is_digested_once(run, monkeypatch):
    """The staleness check and the manifest share the digest of `--dataset`."""
    names, digest = [], Source.digest
    monkeypatch.setattr(Source, "digest", lambda source: names.append(source.name) or digest(source))
    assert run("train-student", *QUICK, "--dataset", "digits").up_to_date
    assert names == ["digits"]
