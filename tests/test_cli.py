"""The command line, as its users meet it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest
from helpers import KDISTILL, QUICK, imports_of, saved_weights, stamps, write_npz
from typer.main import get_command

from kdistill import soft_targets
from kdistill.cli import app
from kdistill.soft_targets import SoftTargets
from kdistill.workspace import Workspace
from kdistill.workspace.resume_log import BlockLog

COMMANDS = [
    "train-teacher",
    "soften",
    "train-student",
    "plot",
    "evaluate",
    "export",
    "promote",
    "status",
    "sweep",
    "run",
]


@pytest.mark.parametrize("arguments", [["--help"], *[[command, "--help"] for command in COMMANDS], ["--version"]])
def test_help_imports_nothing_heavy(tmp_path, arguments):
    assert imports_of(*arguments, cwd=tmp_path) == (0, [])


def test_up_to_date_imports_no_tensorflow(workspace):
    """A stage with nothing to do says so without TensorFlow or Matplotlib."""
    place = workspace.parent
    for command in (["train-teacher", *QUICK], ["soften"], ["train-student", *QUICK], ["plot"], ["status"]):
        code, imported = imports_of(*command, cwd=place)
        assert code == 0
        assert not {"tensorflow", "keras", "matplotlib"} & set(imported), command


def test_every_command_has_help(run):
    """Each command and each of its options has a help text."""
    commands = get_command(app).commands
    assert set(COMMANDS) <= set(commands)
    for command, parsed in commands.items():
        assert command in run("--help").out
        assert len(parsed.help) > 20
        for parameter in parsed.params:
            assert parameter.help, (command, parameter.name)


def test_documented_exit_statuses(run):
    assert run("nosuch").code == 2
    assert run("train-teacher", "--nosuch").code == 2
    for wrong in (
        ["no\x1b\u202esuch"],
        ["--no\x1b\u202esuch"],
        ["train-teacher", "--no\x1b\u202esuch"],
        ["plot", "\u202e"],
    ):
        outcome = run(*wrong)
        assert (outcome.code, "\u202e" in outcome.err) == (2, False)
        assert r"\u202e" in outcome.err
    assert run("--version").out.startswith("kdistill ")


def test_twice_does_nothing(run, workspace):
    """Run again, no stage writes anything, and each says that it is up to date."""
    before = stamps(workspace)
    for command in (["train-teacher", *QUICK], ["soften"], ["train-student", *QUICK], ["plot"]):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
        assert "is up to date" in outcome.out
        assert len(outcome.out.splitlines()) == 1
    assert stamps(workspace) == before
    assert len(before) == 4


TEACHER, SOFT, STUDENT, PLOTS = (
    "teachers/teacher/manifest.json",
    "soft-targets/soft-targets.h5",
    "students/student/manifest.json",
    "plots/manifest.json",
)
CHANGES = [
    (["train-teacher", *QUICK, "--seed", "1"], TEACHER, "seed 0 -> 1"),
    (["train-teacher", *QUICK, "--epochs", "6"], TEACHER, "epochs 5 -> 6"),
    (["soften", "--temperature", "5"], SOFT, "temperature 20.0 -> 5.0"),
    (["train-student", *QUICK, "--alpha", "0.5"], STUDENT, "alpha 0.1 -> 0.5"),
    (["train-student", *QUICK, "--temperature", "3"], STUDENT, "temperature 20.0 -> 3.0"),
    (["train-student", *QUICK, "--precision", "mixed_bfloat16"], STUDENT, "precision float32 -> mixed_bfloat16"),
    (["plot", "--format", "svg"], PLOTS, ""),
]


@pytest.mark.parametrize(("command", "written", "said"), CHANGES, ids=[" ".join(c[0][:1] + c[0][-2:]) for c in CHANGES])
def test_changed_option_reruns_that_stage_alone(run, workspace, command, written, said):
    """A changed option writes the stage's own artifact, says what differs, and touches no other."""
    before = stamps(workspace)
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    assert said in outcome.out
    after = stamps(workspace)
    assert [name for name in after if after[name] != before[name]] == [written]


def test_changed_data_reruns_what_reads_it(run, tmp_path, digits):
    """When the dataset's file changes, each stage notices by itself, in order, and status says why."""
    path = write_npz(tmp_path / "mine.npz", digits)
    stages = ["train-teacher", "--dataset", path, *QUICK], ["soften"], ["train-student", *QUICK]
    for command in stages:
        assert run(*command).code == 0
    assert "next: kdistill plot" in run("status").out
    write_npz(path, digits, x_train=digits.train.read()[::-1], y_train=digits.train.labels[::-1])
    outcome = run("status")
    assert outcome.out.count(f"the dataset {path} has changed") == 3
    assert "next: kdistill train-teacher" in outcome.out
    warned = run("soften")
    assert "teacher 'teacher' is stale" in warned.err
    for command in stages:
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
        assert "again: " in outcome.out or "up to date" in outcome.out
    assert "stale" not in run("status").out


LOSSES = ["kd", "mse", "dkd", "dist", "jsd", "reverse-kl"]


@pytest.mark.parametrize("options", [*([loss] for loss in LOSSES), ["kd", "--standardize-logits"]], ids=" ".join)
def test_each_loss_trains_a_student(run, workspace, options):
    """Any loss trains a student, its formula is said, and the command that `status` names makes the same one."""
    loss = options[0]
    made_by = ["train-student", *QUICK, "--name", "other", "--loss", *options]
    made_by += [] if loss == "mse" else ["--temperature", "2"]
    outcome = run(*made_by)
    assert outcome.code == 0, outcome.err
    assert ("KL(soft targets), T = 2" in outcome.out) == (loss == "kd")
    student = Workspace("workspace").student("other")
    manifest = student.require()
    assert manifest.results["test_errors"] < 60, manifest.results
    assert f"minimises {manifest.results['objective']}" in outcome.out
    again = student.command_for(manifest)
    assert "up to date" in run(*again.split()[1:]).out, again
    assert ("--loss" in again) == (loss != "kd")
    assert ("--standardize-logits" in again.split()) == ("--standardize-logits" in options)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_of_the_largest_logits_without_labels(run, workspace, tmp_path, digits, loss):
    """A file of the three largest logits, and a transfer set without labels at alpha 0, teach by any loss; no XLA."""
    np.savez(tmp_path / "pool.npz", x_train=digits.train.read())
    named = ["--name", "pool", "--top-k", "3", "--temperature", "2"]
    assert run("soften", "--transfer-set", "pool.npz", *named).code == 0
    how = [*QUICK, "--xla", "off", "--alpha", "0"]
    outcome = run("train-student", *how, "--loss", loss, "--soft-targets", "pool", "--name", "other")
    assert outcome.code == 0, outcome.err
    results = json.loads((workspace / "students/other/manifest.json").read_text())["results"]
    assert results["labelled_rows"] == 0
    assert results["test_errors"] < 60, results
    assert ("is trained without a T from" in outcome.err) == (loss == "mse")


def test_what_stands_of_before_these_options_is_up_to_date(run, workspace):
    """A student whose manifest knows no other loss is one of kd, and stays; another loss makes it again and says so."""
    for place in ("teachers/teacher", "students/student"):
        path = workspace / place / "manifest.json"
        manifest = json.loads(path.read_text())
        for name in ("loss", "standardize_logits", "label_smoothing"):
            assert manifest["settings"].pop(name, None) is None
        path.write_text(json.dumps(manifest))
    assert "up to date" in run("train-teacher", *QUICK).out
    assert "up to date" in run("train-student", *QUICK).out
    outcome = run("train-student", *QUICK, "--loss", "jsd", "--standardize-logits", "--label-smoothing", "0.1")
    assert "loss none -> jsd; standardize logits none -> True" in outcome.out
    assert "label smoothing none -> 0.1" in outcome.out


def test_smoothed_labels(run, tmp_path):
    """Both trainers take `--label-smoothing`, say so, and are made again by the command that `status` names."""
    how = [*QUICK, "--label-smoothing", "0.1"]
    assert "minimises CE(labels smoothed by 0.1)" in run("train-teacher", *how).out
    run("soften")
    outcome = run("train-student", *how)
    assert "minimises 0.1 * CE(labels smoothed by 0.1) + 0.9 * T^2 * KL(soft targets), T = 20" in outcome.out
    for found in json.loads(run("status", "--json").out)["artifacts"][::2]:
        assert found["command"].endswith("--label-smoothing 0.1")
        assert "up to date" in run(*found["command"].split()[1:]).out


def test_stale_teacher_is_named(run, workspace):
    """After a teacher is retrained, students warn that their soft targets are an older teacher's."""
    run("train-teacher", *QUICK, "--seed", "2")
    status = run("status").out
    assert "teacher 'teacher' has been made anew since" in status
    assert "next: kdistill soften" in status
    outcome = run("train-student", *QUICK, "--name", "other")
    assert outcome.code == 0
    assert "soft targets 'soft-targets' is stale" in outcome.err
    assert "kdistill soften" in outcome.err


def test_original_mistake_training_on_the_test_split(run, tmp_path, digits):
    """Other test rows leave every weight of teacher and student as it is."""
    seen = []
    for name in ("one", "two"):
        changed = {} if name == "one" else {"x_test": 255 - digits.test.read(), "y_test": digits.test.labels[::-1]}
        path = write_npz(tmp_path / f"{name}.npz", digits, **changed)
        place = tmp_path / name
        for command in (["train-teacher", "--dataset", path, *QUICK], ["soften"], ["train-student", *QUICK]):
            assert run(*command, "-w", place).code == 0
        seen.append([saved_weights(place / which) for which in ("teachers/teacher", "students/student")])
    assert seen[0] == seen[1]


def test_original_mistake_tempering_the_input(made, digits):
    """The file's logits are the teacher's for the inputs as they are; T divides the logits, not the pixels."""
    from kdistill.networks.saved_models import SavedNetwork

    network = SavedNetwork.load(made / "teachers/teacher/saved_model")
    inputs = digits.train.read()
    with h5py.File(made / "soft-targets/soft-targets.h5") as file:
        np.testing.assert_allclose(file["logits"][()], network.logits(inputs), atol=1e-4)
        tempered = np.exp(file["logits"][()] / 20)
        np.testing.assert_allclose(file["soft_targets"][()], tempered / tempered.sum(axis=1, keepdims=True), rtol=1e-4)
        assert not np.allclose(file["logits"][()], network.logits(inputs / np.float32(255 * 20)), atol=0.1)


def test_original_mistake_shuffled_rows(run, workspace, digits, tmp_path, monkeypatch):
    """A shuffled copy of the dataset trains on the same pairs of input and soft target."""
    from kdistill.networks import loading as networks

    pairs = []

    def note(*_, lesson, **__):
        said = lesson.teacher.at(np.arange(len(lesson.rows))).dense()
        pairs.append({key.tobytes(): row.tobytes() for key, row in zip(lesson.rows.keys(), said, strict=True)})
        raise KeyboardInterrupt

    monkeypatch.setattr(networks, "make", note)
    order = np.random.default_rng(0).permutation(len(digits.train))
    path = write_npz(
        tmp_path / "shuffled.npz", digits, x_train=digits.train.read()[order], y_train=digits.train.labels[order]
    )
    run("train-student", "--name", "a")
    run("train-student", "--name", "b", "--dataset", path)
    assert len(pairs) == 2
    assert pairs[0] == pairs[1]
    blocks = SoftTargets.open(Workspace(workspace).soft_targets("soft-targets")).blocks()
    stored = {
        bytes(key): bytes(row) for keys, _, logits in blocks for key, row in zip(keys, logits.dense(), strict=True)
    }
    assert pairs[0] == stored


def test_permuted_file_trains_no_student(run, workspace):
    """Soft targets moved to other rows stop `train-student`, whatever moved them."""
    with h5py.File(workspace / "soft-targets/soft-targets.h5", "r+") as file:
        file["logits"][...] = np.roll(file["logits"][()], 1, axis=0)
    outcome = run("train-student", "--name", "other")
    assert outcome.code == 1
    assert "digest differs" in outcome.err
    assert not (workspace / "students/other").exists()


def test_student_needs_no_teacher(run, workspace):
    """With the teacher gone a student trains, and warns that its soft targets can't be made again."""
    shutil.rmtree(workspace / "teachers")
    outcome = run("train-student", *QUICK, "--name", "other")
    assert outcome.code == 0
    assert "teacher 'teacher' is gone" in outcome.err


def test_hard_label_student_needs_no_soft_targets(run, tmp_path):
    """At alpha 1 nothing but the dataset is needed."""
    outcome = run("train-student", "--alpha", 1, *QUICK, "--name", "baseline")
    assert outcome.code == 0, outcome.err
    assert "minimises CE(labels)" in outcome.out
    manifest = json.loads((tmp_path / "workspace/students/baseline/manifest.json").read_text())
    assert list(manifest["inputs"]) == ["dataset"]


def test_hard_label_student_takes_after_its_siblings(run, tmp_path, digits):
    """Without being told, a baseline has the dataset and the network of the soft targets it is compared with."""
    path = write_npz(tmp_path / "mine.npz", digits)
    quick = ["--epochs", "1", "--batch-size", "64"]
    run("train-teacher", "--dataset", path, "--model", "mlp-20", "--name", "big", *quick)
    said = run("train-student", "--alpha", 1, *quick, "--name", "a").out
    assert f"mlp-20 on {path}" in said
    run("train-teacher", "--name", "other", "--model", "small", *quick)
    outcome = run("train-student", "--alpha", 1, *quick, "--name", "b")
    assert outcome.code == 1
    assert "several teachers (big, other): name what this student has, --dataset and --model" in outcome.err
    assert "next: kdistill train-student --alpha 0.1" in run("soften", "--teacher", "big").out
    assert f"mlp-20 on {path}" in run("train-student", "--alpha", 1, *quick, "--name", "b").out


def test_refused_command_keeps_what_was_stopped(run, tmp_path, workspace):
    """A typo, or a dataset that the network can't take, leaves a stopped run's checkpoint where it is."""
    partial = workspace / "teachers/.teacher.partial"
    partial.mkdir()
    (partial / "checkpoint.npz").write_bytes(b"half")
    np.savez(
        tmp_path / "flat.npz", x_train=np.zeros((40, 3)), y_train=[0, 1] * 20, x_test=np.zeros((2, 3)), y_test=[0, 1]
    )
    for wrong in (["--model", "mpl-30"], ["--dataset", "flat.npz", "--model", "cnn"]):
        assert run("train-teacher", *wrong).code in (1, 2)
        assert os.listdir(partial) == ["checkpoint.npz"]


def test_status_names_commands_in_full(run, workspace):
    """The command that mends an artifact makes the same one again, with all of its options."""
    run("train-student", *QUICK, "--name", "tiny", "--alpha", "0.5", "--temperature", "3", "--schedule", "cosine")
    found = {one["name"]: one["command"] for one in json.loads(run("status", "--json").out)["artifacts"]}
    assert found["tiny"] == (
        "kdistill train-student --name tiny --model mlp-30 --alpha 0.5 --temperature 3 --epochs 5 --learning-rate 0.003 "
        "--schedule cosine"
    )
    assert found["soft-targets"] == "kdistill soften --temperature 20"
    for name in ("teacher", "soft-targets", "student", "tiny"):
        assert "up to date" in run(*found[name].split()[1:]).out, found[name]


def test_validation_rows_are_held_out_alike(run, tmp_path):
    """Teacher and student hold out the same rows, and their histories say validation."""
    how = [*QUICK, "--validation-fraction", "0.2"]
    run("train-teacher", *how)
    run("soften")
    outcome = run("train-student", *how)
    assert outcome.code == 0, outcome.err
    assert "validation on" in outcome.out
    rows = {
        json.loads(p.read_text())["results"]["training_rows"] for p in (tmp_path / "workspace").glob("*s/*/man*.json")
    }
    assert len(rows) == 1
    assert 1000 < rows.pop() < 1300
    header = (tmp_path / "workspace/students/student/history.csv").read_text().splitlines()[0]
    assert header == (
        "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy,hard_loss,soft_loss,learning_rate,seconds"
    )


def test_evaluate_json(run, workspace):
    """One object a network and split, with the documented keys; null where nothing applies."""
    outcome = run("evaluate", "--json")
    found = json.loads(outcome.out)
    keys = "name role split rows errors error_rate nll ece brier agreement kl_to_teacher parameters bytes".split()
    assert [list(one) for one in found] == [keys] * 4
    assert [(one["name"], one["split"], one["rows"]) for one in found] == [
        ("teacher", "train", 1437),
        ("teacher", "test", 360),
        ("student", "train", 1437),
        ("student", "test", 360),
    ]
    teacher, student = found[1], found[3]
    recorded = json.loads((workspace / "students/student/manifest.json").read_text())["results"]
    assert student["errors"] == recorded["test_errors"] == round(student["error_rate"] * 360)
    assert teacher["agreement"] is None
    assert 0.5 < student["agreement"] <= 1.0
    assert student["kl_to_teacher"] > 0
    table = run("evaluate").out
    assert "test split, 360 rows" in table
    assert max(map(len, table.splitlines())) < 100


def test_status_json(run, workspace):
    found = json.loads(run("status", "--json").out)
    assert [one["state"] for one in found["artifacts"]] == ["fresh"] * 4
    made_from = found["artifacts"][2]["made_from"]
    assert {role: one["name"] for role, one in made_from.items()} == {
        "dataset": "digits",
        "soft_targets": "soft-targets",
    }
    assert made_from["soft_targets"]["digest"] == found["artifacts"][1]["digest"]
    (workspace / "teachers/teacher/model.keras").unlink()
    found = json.loads(run("status", "--json").out)
    assert found["artifacts"][0]["state"] == "damaged"
    assert found["next"] == "kdistill train-teacher --model mlp-30 --epochs 5 --learning-rate 0.003 --force"


def test_status_names_each_next_command(run, made, tmp_path):
    """From nothing to everything, status names the command that comes next."""
    expected = ["train-teacher", "soften --temperature 20", "train-student --alpha 0.1", "plot", "evaluate"]
    place = tmp_path / "workspace"
    said = []
    for part in (None, "teachers", "soft-targets", "students", "plots"):
        if part:
            shutil.copytree(made / part, place / part)
        said.append(run("status").out.splitlines()[-1])
    assert said == [f"next: kdistill {command}" for command in expected]


def test_quiet_says_nothing(run, workspace):
    for command in (["train-teacher", *QUICK, "--seed", "9"], ["soften"], ["train-student", *QUICK], ["plot"]):
        outcome = run(*command, "--quiet")
        assert (outcome.code, outcome.out) == (0, "")


def test_more_epochs_go_on(run, workspace):
    """`--epochs` raised on a finished run trains the missing ones alone, and ends as if all had been asked for."""
    outcome = run("train-student", *QUICK, "--epochs", "7")
    assert "goes on after epoch 5" in outcome.out
    assert re.findall(r"^epoch (\d)/7", outcome.out, re.MULTILINE) == ["6", "7"]
    run("train-student", *QUICK, "--epochs", "7", "--name", "other")
    assert saved_weights(workspace / "students/student") == saved_weights(workspace / "students/other")


def test_force_makes_again(run, workspace):
    before = stamps(workspace)
    assert run("soften", "--force").code == 0
    after = stamps(workspace)
    assert [name for name in after if after[name] != before[name]] == [SOFT]
    outcome = run("train-teacher", *QUICK, "--force")
    assert outcome.out.count("epoch ") == 5, outcome.out
    assert "goes on" not in outcome.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["soften"], 1, "there is no teacher 'teacher' in workspace: kdistill train-teacher"),
        (["train-student"], 1, "there are no soft targets 'soft-targets'"),
        (["plot"], 1, "no networks to plot: kdistill train-teacher"),
        (["evaluate"], 1, "no networks to evaluate"),
        (["train-teacher", "--dataset", "nosuch"], 1, "--dataset nosuch: there is no such file"),
        (["train-teacher", "--dataset", "no\x1b[31m\u202e\nsuch"], 1, r"--dataset no\x1b[31m\u202e\nsuch: there is no"),
        (["train-teacher", "--model", "nosuch"], 2, "--model nosuch is unknown"),
        (["run", "--student-model", "nosuch"], 2, "--student-model nosuch is unknown"),
        (["train-teacher", "--epochs", "0"], 2, "--epochs is 0"),
        (["train-teacher", "--batch-size", "-1"], 2, "--batch-size is -1"),
        (["train-teacher", "--batch-size", "2000"], 1, "more than the 1,437 training rows"),
        (["train-teacher", "--learning-rate", "nan"], 2, "--learning-rate is nan"),
        (["train-teacher", "--seed", "4294967296"], 2, "--seed is 4294967296"),
        (["train-teacher", "--seed", "-1"], 2, "--seed is -1"),
        (["train-teacher", "--early-stopping", "3"], 2, "add --validation-fraction"),
        (["train-teacher", "--validation-fraction", "1"], 2, "--validation-fraction is 1"),
        (["train-teacher", "--name", "../x"], 2, "--name is '../x'"),
        (["train-teacher", "--name", ""], 2, "--name is ''"),
        (["soften", "--temperature", "0"], 2, "--temperature is 0"),
        (["soften", "--temperature", "-1"], 2, "--temperature is -1"),
        (["soften", "--temperature", "nan"], 2, "--temperature is nan"),
        (["soften", "--temperature", "1e-12"], 2, "--temperature is 1e-12"),
        (["soften", "--temperature", "1e12"], 2, "--temperature is 1e+12"),
        (["train-student", "--alpha", "1.5"], 2, "--alpha is 1.5"),
        (["train-student", "--alpha", "-0.1"], 2, "--alpha is -0.1"),
        (["train-student", "--alpha", "nan"], 2, "--alpha is nan"),
        (["soften", "--fraction", "0"], 2, "--fraction is 0: it needs a number above 0, and at most 1"),
        (["soften", "--fraction", "1.5"], 2, "--fraction is 1.5"),
        (["soften", "--fraction", "nan"], 2, "--fraction is nan"),
        (["soften", "--rows-seed", "1"], 2, "--rows-seed says which rows a --fraction keeps"),
        (["soften", "--fraction", "0.5", "--rows-seed", "-1"], 2, "--rows-seed is -1"),
        (["soften", "--omit-class", ""], 2, "--omit-class is '': it needs names or numbers of classes"),
        (["soften", "--omit-class", "3,"], 2, "--omit-class is '3,'"),
        (["soften", "--omit-class", "3, 4,3"], 2, "--omit-class 3, 4,3 has 3 twice"),
        (["soften", "--omit-class", "3", "--only-classes", "4"], 2, "--omit-class and --only-classes"),
        (["train-student", "--only-classes", "7,7"], 2, "--only-classes 7,7 has 7 twice"),
        (["train-student", "--fraction", "-1"], 2, "--fraction is -1"),
        (
            ["train-student", "--alpha", "1", "--omit-class", "x"],
            2,
            "--omit-class x: digits has no such class; it has 0, 1",
        ),
        (["train-student", "--alpha", "1", "--fraction", "0.0001"], 1, "leaves none of the 1,437 rows"),
        (["train-student", "--alpha", "1", "--loss", "dkd"], 2, "--loss dkd means nothing at --alpha 1"),
        (
            ["train-student", "--alpha", "1", "--standardize-logits"],
            2,
            "--standardize-logits means nothing at --alpha 1",
        ),
        (["train-student", "--loss", "mse", "--temperature", "4"], 2, "--temperature means nothing for --loss mse"),
        (["train-student", "--label-smoothing", "1"], 2, "--label-smoothing is 1"),
        (["train-teacher", "--label-smoothing", "0"], 2, "--label-smoothing is 0"),
        (["train-teacher", "--label-smoothing", "nan"], 2, "--label-smoothing is nan"),
        (
            ["train-student", "--label-smoothing", "0.1", "--alpha", "0"],
            2,
            "--label-smoothing means nothing at --alpha 0",
        ),
        (["run", "--alpha", "1", "--loss", "jsd"], 2, "--loss jsd means nothing at --alpha 1"),
        (["plot", "--format", "gif"], 2, "--format is 'gif'"),
        (["evaluate", "--network", "../x"], 2, "--network is '../x'"),
        (["evaluate", "--network", "sweep/../x"], 2, "--network is 'sweep/../x'"),
        (["evaluate", "--network", "nosuch"], 1, "kdistill train-student"),
        (["evaluate", "--network", "nosuch/student"], 1, "kdistill sweep --name nosuch"),
        (["evaluate", "--labels", "y"], 2, "--dataset"),
        (["export", "--network", "a/b/c"], 2, "--network is 'a/b/c'"),
        (["promote", "--student", "student"], 2, "--student is 'student'"),
        (["promote", "--student", "sweep/.."], 2, "--student is 'sweep/..'"),
        (["promote", "--student", "sweep/x", "--name", "../x"], 2, "--name is '../x'"),
        (["promote", "--student", "sweep/x"], 1, "kdistill sweep"),
        (["run", "--temperature", "0"], 2, "--temperature is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(run, tmp_path, arguments, code, said):
    """What, where and the remedy in one line, the documented status, and nothing written."""
    outcome = run(*arguments)
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("error: ")
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert os.listdir(tmp_path) == []


class ResourceExhaustedError(Exception):
    """As TensorFlow's."""


@pytest.mark.parametrize(
    ("command", "error", "said"),
    [
        ("status", OSError(errno.ENOSPC, "Can't write (time = now\n, errno = 28)"), "error: No space left on device\n"),
        ("status", OSError(errno.EACCES, "why", "a/file"), "error: a/file: Permission denied\n"),
        ("status", OSError("one\ntwo"), "error: one\n"),
        ("status", MemoryError(), "error: out of memory: use a machine with more\n"),
        ("soften", MemoryError("3 GiB"), "error: out of memory: try a smaller --batch-size\n"),
        (
            "train_student",
            ResourceExhaustedError("OOM"),
            "error: out of memory: try a smaller --batch-size or --model\n",
        ),
        ("plot", ResourceExhaustedError("x; No space left on device"), "error: workspace: No space left on device\n"),
        ("plot", ValueError(""), "error: ValueError: ValueError (--debug shows where)\n"),
    ],
)
def test_unexpected_error_is_one_line(run, tmp_path, monkeypatch, command, error, said):
    """It names the place where there is one, and no option that the command does not have."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"kdistill.stages.{command}.run", fail)
    outcome = run(command.replace("_", "-"))
    assert (outcome.code, outcome.err) == (1, said)
    assert os.listdir(tmp_path) == []


def test_recorded_dataset_that_is_gone(run, workspace):
    """It is named, without an option that nobody gave."""
    manifest = workspace / "teachers/teacher/manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "digits"', '"name": "/gone.npz"'))
    outcome = run("soften", "--temperature", "3")
    line = outcome.err.splitlines()[-1]
    assert (outcome.code, "/gone.npz" in line, "--dataset" in line) == (1, True, False)
    assert "--dataset /gone.npz" in run("soften", "--temperature", "3", "--dataset", "/gone.npz").err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train-teacher", "--dataset", "empty.npz"],
        ["soften", "--top-k", "10"],
        ["train-student", "--only-classes", "nosuch"],
    ],
    ids=" ".join,
)
def test_refused_before_it_is_announced(run, workspace, arguments):
    """A command that is refused does not say first that it makes an artifact again."""
    np.savez("empty.npz", x_train=np.zeros((0, 3)), y_train=np.zeros(0, int))
    outcome = run(*arguments)
    assert outcome.code > 0
    assert outcome.out == ""


def test_damaged_input_leaves_everything(run, workspace):
    """A damaged teacher stops `soften` before it writes, with the command that mends it."""
    before = stamps(workspace)
    (workspace / "teachers/teacher/saved_model/saved_model.pb").write_bytes(b"")
    outcome = run("soften", "--temperature", "3")
    assert outcome.code == 1
    assert stamps(workspace) == before
    remedy = "kdistill train-teacher --model mlp-30 --epochs 5 --learning-rate 0.003 --force"
    assert f"saved_model is not what was written: {remedy}" in outcome.err
    assert run(*remedy.split()[1:]).code == 0
    assert run("verify").code == 0


SPOILED = [
    ("teachers/teacher/manifest.json", b"", ["soften"], "is not a manifest"),
    ("teachers/teacher/manifest.json", b"[1]", ["evaluate"], "is not a manifest"),
    ("teachers/teacher/saved_model/saved_model.pb", b"text", ["soften", "--force"], "is not what was written"),
    ("students/student/history.csv", b"epoch,loss\n1,2\n", ["plot"], "history.csv is not what was written"),
    ("soft-targets/soft-targets.h5", b"text, not HDF5", ["train-student", "--seed", "3"], "is damaged"),
    ("soft-targets/soft-targets.h5", b"", ["plot", "--force"], "is damaged"),
]


@pytest.mark.parametrize(("name", "contents", "command", "said"), SPOILED, ids=[f"{c[2][0]} {c[0]}" for c in SPOILED])
def test_spoiled_artifact_is_one_line(run, workspace, name, contents, command, said):
    """Whatever of a workspace is spoiled, the stage that reads it says so, with the remedy, and writes nothing."""
    (workspace / name).write_bytes(contents)
    before = stamps(workspace)
    outcome = run(*command)
    assert outcome.code == 1, outcome.out
    assert said in outcome.err
    assert "kdistill" in outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("error")]) == 1
    assert stamps(workspace) == before
    assert run("verify").code == 1


def test_what_is_made_again_mends_it(run, workspace):
    """The remedy that a message names works."""
    (workspace / "teachers/teacher/manifest.json").write_text("{")
    assert run("verify").code == 1
    assert run("train-teacher", *QUICK).code == 0
    assert run("verify").code == 0, run("verify").out


def test_directory_where_a_file_is_meant(run, workspace, tmp_path):
    (workspace / "soft-targets/soft-targets.h5").unlink()
    (workspace / "soft-targets/soft-targets.h5").mkdir()
    for command in (["soften"], ["train-student", "--seed", "3"]):
        outcome = run(*command)
        assert outcome.code == 1
        assert "is a directory where a soft-target file is meant" in outcome.err
    outcome = run("train-teacher", "--dataset", tmp_path)
    assert (outcome.code, "is a directory" in outcome.err) == (1, True)
    shutil.rmtree(workspace / "teachers/teacher")
    (workspace / "teachers/teacher").write_text("precious")
    outcome = run("train-teacher", *QUICK)
    assert outcome.code == 1
    assert "is a file where a directory is meant" in outcome.err
    assert (workspace / "teachers/teacher").read_text() == "precious"


def test_soft_targets_of_another_dataset(run, workspace, tmp_path, digits):
    """Rows that the file does not know, or another number of classes, are refused with what to do."""
    path = write_npz(tmp_path / "other.npz", digits, x_train=255 - digits.train.read())
    outcome = run("train-student", "--dataset", path, "--name", "other")
    assert outcome.code == 1
    assert f"1,437 of the 1,437 training rows of {path} are not in" in outcome.err
    assert f"kdistill soften --dataset {path}" in outcome.err
    few = digits.train.labels < 5, digits.test.labels < 5
    path = write_npz(
        tmp_path / "five.npz",
        digits,
        x_train=digits.train.read()[few[0]],
        y_train=digits.train.labels[few[0]],
        x_test=digits.test.read()[few[1]],
        y_test=digits.test.labels[few[1]],
    )
    for command in (["train-student", "--dataset", path, "--name", "other"], ["soften", "--dataset", path]):
        outcome = run(*command)
        assert outcome.code == 1
        assert "10" in outcome.err
        assert " 5" in outcome.err
    assert not (workspace / "students/other").exists()


def test_diverging_run_writes_nothing(run, tmp_path):
    outcome = run("train-teacher", *QUICK, "--optimizer", "sgd", "--learning-rate", "1e30")
    assert outcome.code == 1
    assert "the loss is not finite in epoch" in outcome.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "..", ".x", "a/b", "a\x00b", "a\nb", "ä", "x" * 101, "-x"])
@pytest.mark.parametrize(
    "option", [["train-teacher", "--name"], ["soften", "--name"], ["train-student", "--soft-targets"]]
)
def test_names_cannot_leave_the_workspace(run, tmp_path, option, name):
    outcome = run(*option[:1], f"{option[1]}={name}")
    assert outcome.code == 2
    assert "a name has 1 to 100" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_verify_finds_what_was_changed(run, workspace):
    """One line a finding, exit 1, and the same as JSON; nothing found exits 0."""
    outcome = run("verify")
    assert (outcome.code, outcome.out) == (0, "checked 4 artifacts: no problems found\n")
    assert json.loads(run("verify", "--json").out) == []
    (workspace / "students/student/model.keras").write_bytes(b"x")
    outcome = run("verify")
    assert outcome.code == 1
    assert outcome.out.splitlines()[0] == (
        "student 'student': model.keras is not what was written: kdistill train-student --model mlp-30 --alpha 0.1 "
        "--temperature 20 --epochs 5 --learning-rate 0.003 --force"
    )
    found = json.loads(run("verify", "--json").out)
    assert [(one["artifact"], one["problem"]) for one in found] == [
        ("student 'student'", "model.keras is not what was written")
    ]


def test_verify_compares_logits_with_the_teacher(run, workspace):
    """A soft-target file whose logits, digest and accuracy agree with each other, but not with its teacher, is found."""
    artifact = Workspace(workspace).soft_targets("soft-targets")
    soft = SoftTargets.open(artifact)
    ((keys, labels, logits),) = soft.blocks()
    soft.file.close()
    log = BlockLog(workspace / "log", soft.manifest, {"row_keys": ((16,), "u1"), **soft.form.columns})
    log.append({"row_keys": keys, "logits": logits.values * np.float32(1.1)})
    said = dict(soft.manifest.results["teacher"])
    soft_targets.write(artifact.path, log, soft.manifest, labels, soft.form, since=0.0, teacher=said)
    log.close()
    outcome = run("verify")
    assert outcome.code == 1
    assert "logits differ from those of teacher by up to" in outcome.out


def test_plot_without_students(run, workspace):
    """A workspace with a teacher alone is drawn as far as it goes, and says what is missing."""
    for name in ("students", "soft-targets", "plots"):
        shutil.rmtree(workspace / name)
    outcome = run("plot")
    assert outcome.code == 0, outcome.err
    assert "no dark knowledge to show: there are no soft targets; kdistill soften" in outcome.out
    assert os.listdir(workspace / "plots").count("learning-curves.png") == 1


def test_unknown_network_for_the_plot(run, workspace):
    outcome = run("plot", "--network", "nosuch")
    assert outcome.code == 1
    assert "only teacher, student" in outcome.err


def test_workspace_that_is_a_file(run, tmp_path):
    (tmp_path / "file").write_text("precious")
    outcome = run("train-teacher", "-w", tmp_path / "file")
    assert outcome.code == 1
    assert "is a file" in outcome.err
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.slow
def test_real_process_says_only_its_own_lines(tmp_path):
    """Through a real process, at a path with spaces and non-ASCII letters: not a line but kdistill's own; no colour."""
    place = tmp_path / "ein schöner Ort"
    place.mkdir()
    said = []
    for command in (["train-teacher", *QUICK], ["soften", "--temperature", "20"], ["train-student", *QUICK], ["plot"]):
        done = subprocess.run(
            [*KDISTILL, *command],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "NO_COLOR": "1"},
        )
        assert done.returncode == 0
        assert done.stderr == ""
        said.append(done.stdout)
    assert "\x1b" not in "".join(said)
    assert len(re.findall(r"^epoch \d/5  loss [\d.]+  accuracy", said[0], re.MULTILINE)) == 5
    assert "64" in said[0]
    assert re.search(
        r"^wrote .*: \d+ errors of 360 test rows \([\d.]+%\) after 5 epochs; [\d.]+ s$", said[0], re.MULTILINE
    )
    assert "minimises 0.1 * CE(labels) + 0.9 * T^2 * KL(soft targets), T = 20" in said[2]
    assert (place / "workspace/plots/learning-curves.png").stat().st_size > 20_000
    assert (place / "workspace/plots/dark-knowledge.png").stat().st_size > 20_000


@pytest.mark.slow
def test_same_command_same_bytes(tmp_path, made):
    """Another process, the same command and seed: the SavedModel is the same, file by file."""
    subprocess.run([*KDISTILL, "train-teacher", *QUICK, "-q"], cwd=tmp_path, check=True)
    subprocess.run([*KDISTILL, "train-teacher", *QUICK, "-q", "-w", "other"], cwd=tmp_path, check=True)
    recorded = [
        json.loads((tmp_path / place / "teachers/teacher/manifest.json").read_text())["outputs"]["saved_model"]
        for place in ("workspace", "other")
    ]
    assert recorded[0] == recorded[1]


@pytest.mark.slow
def test_interrupt_leaves_the_workspace(workspace):
    """Ctrl-C exits 130 with one line; what stood before stands, and the same command goes on."""
    command = [*KDISTILL, "train-teacher", *QUICK, "--epochs", "100000", "--seed", "4"]
    before = stamps(workspace)
    process = subprocess.Popen(
        command,
        cwd=workspace.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in process.stdout:
        if line.startswith("epoch "):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(said.splitlines()) == 1
    assert "go on when run again" in said
    assert stamps(workspace) == before
    again = subprocess.run(
        [*KDISTILL, "train-teacher", *QUICK, "-w", "workspace"], cwd=workspace.parent, capture_output=True, check=False
    )
    assert again.returncode == 0
    assert b"up to date" in again.stdout


def test_completion_script_is_printed(tmp_path):
    """Shell completion works for the usual shells."""
    done = subprocess.run(
        [*KDISTILL, "--show-completion", "bash"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert "complete" in done.stdout
