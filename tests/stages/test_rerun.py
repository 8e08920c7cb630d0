"""Running a stage again: what is up to date, what is stale or damaged, and which command mends it."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest
from helpers import QUICK, mentions, saved_weights, stamps, write_npz

from kdistill import SoftTargets

TEACHER, SOFT_TARGETS, STUDENT, PLOTS = (
    "teachers/teacher/manifest.json",
    "soft-targets/soft-targets.h5",
    "students/student/manifest.json",
    "plots/manifest.json",
)
STAGES = (["train-teacher", *QUICK], ["soften"], ["train-student", *QUICK], ["plot"])
MAKE_TEACHER = "kdistill train-teacher --model mlp-30 --epochs 5 --learning-rate 0.003 --xla off"


def status(run):
    return json.loads(run("status", "--json").out)


def states(run):
    return {artifact["name"]: artifact["state"] for artifact in status(run)["artifacts"]}


def test_twice_does_nothing(run, workspace):
    """A stage whose artifact is up to date writes nothing and prints one line."""
    before = stamps(workspace)
    assert set(before) == {TEACHER, SOFT_TARGETS, STUDENT, PLOTS}
    for command in STAGES:
        outcome = run(*command)
        assert outcome.up_to_date, outcome
        assert len(outcome.out.splitlines()) == 1
    assert stamps(workspace) == before


CHANGES = [  # the command, what it writes, and the change that it prints
    (["train-teacher", *QUICK, "--seed", "1"], TEACHER, ("seed", 0, 1)),
    (["train-teacher", *QUICK, "--epochs", "6"], TEACHER, ("epochs", 5, 6)),
    (["soften", "--temperature", "5"], SOFT_TARGETS, ("temperature", 20, 5)),
    (["train-student", *QUICK, "--alpha", "0.5"], STUDENT, ("alpha", "0.1", "0.5")),
    (["train-student", *QUICK, "--temperature", "3"], STUDENT, ("temperature", 20, 3)),
    (["train-student", *QUICK, "--precision", "mixed_bfloat16"], STUDENT, ("precision", "float32", "mixed_bfloat16")),
    (["train-student", *QUICK, "--loss", "jsd"], STUDENT, ("loss", "jsd")),
    (["train-student", *QUICK, "--standardize-logits"], STUDENT, ("standardize logits", True)),
    (["train-student", *QUICK, "--label-smoothing", "0.1"], STUDENT, ("label smoothing", "0.1")),
    (["plot", "--format", "svg"], PLOTS, ()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "written", "words"), CHANGES, ids=lambda value: " ".join(map(str, value[-2:])))
def test_changed_option_reruns_that_stage_only(run, workspace, command, written, words):
    """A changed option rewrites the artifact of that stage, and the change is printed."""
    before = stamps(workspace)
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    assert mentions(outcome.out, *words), outcome.out
    after = stamps(workspace)
    assert [name for name in after if after[name] != before[name]] == [written]


@pytest.mark.slow
def test_changed_data_makes_stages_stale(run, tmp_path, digits):
    """When the file of a dataset changes, `status` says so, and each stage reruns."""
    path = write_npz(tmp_path / "mine.npz", digits)
    stages = ["train-teacher", "--dataset", path, *QUICK], ["soften"], ["train-student", *QUICK]
    for command in stages:
        assert run(*command).code == 0
    assert status(run)["next"] == "kdistill plot"
    write_npz(path, digits, x_train=digits.train.read()[::-1], y_train=digits.train.labels[::-1])
    assert set(states(run).values()) == {"stale"}
    assert run("status").out.count(f"{path} ") >= 3
    assert status(run)["next"].startswith("kdistill train-teacher ")
    assert mentions(run("soften").err, "teacher", "stale")
    for command in stages:
        assert run(*command).code == 0
    assert set(states(run).values()) == {"fresh"}


@pytest.mark.slow
def test_retrained_teacher_makes_soft_targets_stale(run, workspace):
    """After a teacher is retrained, `status` and `train-student` name the soft targets and the command to run."""
    run("train-teacher", *QUICK, "--seed", "2")
    assert states(run)["soft-targets"] == "stale"
    assert status(run)["next"].startswith("kdistill soften")
    outcome = run("train-student", *QUICK, "--name", "other")
    assert outcome.code == 0
    assert mentions(outcome.err, "soft-targets", "stale", "kdistill soften")


@pytest.mark.slow
def test_student_needs_no_teacher(run, workspace):
    """A student trains without its teacher, and a warning names the missing teacher."""
    shutil.rmtree(workspace / "teachers")
    outcome = run("train-student", *QUICK, "--name", "other")
    assert outcome.code == 0
    assert mentions(outcome.err, "warning", "teacher 'teacher'")


def test_refused_command_keeps_interrupted_work(run, tmp_path, workspace):
    """A typo, or a dataset that does not fit the network, leaves the checkpoint of an interrupted run."""
    partial = workspace / "teachers/.teacher.partial"
    partial.mkdir()
    (partial / "checkpoint.npz").write_bytes(b"half")
    inputs = {"x_train": np.zeros((40, 3)), "x_test": np.zeros((2, 3))}
    np.savez(tmp_path / "flat.npz", **inputs, y_train=[0, 1] * 20, y_test=[0, 1])
    for wrong in (["--model", "mpl-30"], ["--dataset", "flat.npz", "--model", "cnn"]):
        assert run("train-teacher", *wrong).code in (1, 2)
        assert os.listdir(partial) == ["checkpoint.npz"]


@pytest.mark.slow
def test_status_commands_reproduce_artifacts(run, workspace):
    """The command that `status` shows for an artifact has all of its options: run again, it is up to date."""
    changed = "--name tiny --alpha 0.5 --temperature 3 --schedule cosine".split()
    assert run("train-student", *QUICK, *changed).code == 0
    found = {artifact["name"]: artifact["command"] for artifact in status(run)["artifacts"]}
    assert set(found["tiny"].split()) == {"kdistill", "train-student", *QUICK, *changed} - {"--batch-size", "32"}
    for name in ("teacher", "soft-targets", "student", "tiny"):
        assert run(*found[name].split()[1:]).up_to_date, found[name]


def test_status_json(run, workspace):
    """`status --json` has the state, the inputs and the command of each artifact."""
    teacher, soft_targets, student, _ = status(run)["artifacts"]
    assert set(states(run).values()) == {"fresh"}
    names = {each["kind"]: each["name"] for each in student["made_from"]}
    assert names == {"dataset": "digits", "soft_targets": "soft-targets"}
    assert (
        next(each["digest"] for each in student["made_from"] if each["kind"] == "soft_targets")
        == soft_targets["digest"]
    )
    (workspace / "teachers/teacher/model.keras").unlink()
    assert states(run)[teacher["name"]] == "damaged"
    assert status(run)["next"] == f"{MAKE_TEACHER} --force"


def test_status_names_each_next_command(run, made, tmp_path):
    """From an empty workspace to a full one, `status` names the command that comes next."""
    expected = ["train-teacher", "soften --temperature 20", "train-student --alpha 0.1", "plot", "report", "evaluate"]
    following = []
    for part in (None, "teachers", "soft-targets", "students", "plots", "report"):
        if part == "report":
            assert run("report").code == 0
        elif part:
            shutil.copytree(made / part, tmp_path / "workspace" / part)
        following.append(status(run)["next"])
        assert following[-1] in run("status").out
    assert following == [f"kdistill {command}" for command in expected]


@pytest.mark.slow
def test_more_epochs_resume(run, workspace):
    """Raising `--epochs` trains only the missing epochs, with the same result as training all of them."""
    outcome = run("train-student", *QUICK, "--epochs", "7")
    assert re.findall(r"^epoch (\d)/7", outcome.out, re.MULTILINE) == ["6", "7"]
    run("train-student", *QUICK, "--epochs", "7", "--name", "other")
    assert saved_weights(workspace / "students/student") == saved_weights(workspace / "students/other")


@pytest.mark.slow
def test_force_reruns(run, workspace):
    """`--force` writes the artifact again, and trains all epochs."""
    before = stamps(workspace)
    assert run("soften", "--force").code == 0
    after = stamps(workspace)
    assert [name for name in after if after[name] != before[name]] == [SOFT_TARGETS]
    outcome = run("train-teacher", *QUICK, "--force")
    assert len(re.findall(r"^epoch \d/5", outcome.out, re.MULTILINE)) == 5


def test_missing_dataset_is_named(run, workspace):
    """A recorded dataset that is gone is named; `--dataset` is, too, only if it was given."""
    manifest = workspace / TEACHER
    manifest.write_text(manifest.read_text().replace('"name": "digits"', '"name": "/gone.npz"'))
    outcome = run("soften", "--temperature", "3")
    line = outcome.err.splitlines()[-1]
    assert (outcome.code, "/gone.npz" in line, "--dataset" in line) == (1, True, False)
    outcome = run("soften", "--temperature", "3", "--dataset", "/gone.npz")
    assert mentions(outcome.err, "--dataset", "/gone.npz")


@pytest.mark.slow
def test_damaged_teacher_stops_soften(run, workspace):
    """A damaged teacher stops `soften` before it writes, and the command in the message mends the teacher."""
    before = stamps(workspace)
    (workspace / "teachers/teacher/saved_model/saved_model.pb").write_bytes(b"")
    outcome = run("soften", "--temperature", "3")
    assert outcome.code == 1
    assert stamps(workspace) == before
    assert mentions(outcome.err, "saved_model", f"{MAKE_TEACHER} --force")
    assert run(*MAKE_TEACHER.split()[1:], "--force").code == 0
    assert run("verify").code == 0


DAMAGE = [  # the file, its new contents, a command that reads it, and the word that names the damage
    ("teachers/teacher/manifest.json", b"", ["soften"], "manifest"),
    ("teachers/teacher/manifest.json", b"[1]", ["evaluate"], "manifest"),
    ("teachers/teacher/saved_model/saved_model.pb", b"text", ["soften", "--force"], "saved_model"),
    ("students/student/history.csv", b"epoch,loss\n1,2\n", ["plot"], "history.csv"),
    (SOFT_TARGETS, b"text, not HDF5", ["train-student", "--seed", "3"], "soft-targets"),
    (SOFT_TARGETS, b"", ["plot", "--force"], "soft-targets"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "contents", "command", "word"), DAMAGE, ids=[f"{c[2][0]} {c[0]}" for c in DAMAGE])
def test_damaged_artifact_is_one_line(run, workspace, name, contents, command, word):
    """A stage that reads a damaged file names it in one line, with a command, and writes nothing."""
    (workspace / name).write_bytes(contents)
    before = stamps(workspace)
    outcome = run(*command)
    assert outcome.code == 1, outcome.out
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert word in errors[0]
    assert "kdistill" in errors[0]
    assert stamps(workspace) == before
    assert run("verify").code == 1


@pytest.mark.slow
def test_damaged_manifest_is_replaced(run, workspace):
    """A stage whose artifact has a damaged manifest writes it again."""
    (workspace / TEACHER).write_text("{")
    assert run("verify").code == 1
    assert run("train-teacher", *QUICK).code == 0
    assert run("verify").code == 0


def test_permuted_soft_targets_train_no_student(run, workspace):
    """`train-student` refuses a file whose logits were moved to other rows."""
    import h5py

    with h5py.File(workspace / SOFT_TARGETS, "r+") as file:
        file["logits"][...] = np.roll(file["logits"][()], 1, axis=0)
    outcome = run("train-student", "--name", "other")
    assert outcome.code == 1
    assert mentions(outcome.err, "soft-targets")
    assert not (workspace / "students/other").exists()


def test_directories_and_files_in_the_wrong_place(run, workspace, tmp_path):
    """A directory in the place of a file is refused by its path, and so is a file in the place of a directory."""
    (workspace / SOFT_TARGETS).unlink()
    (workspace / SOFT_TARGETS).mkdir()
    for command in (["soften"], ["train-student", "--seed", "3"]):
        outcome = run(*command)
        assert outcome.code == 1
        assert mentions(outcome.err, f"workspace/{SOFT_TARGETS}", "directory")
    outcome = run("train-teacher", "--dataset", tmp_path)
    assert outcome.code == 1
    assert mentions(outcome.err, tmp_path)
    shutil.rmtree(workspace / "teachers/teacher")
    (workspace / "teachers/teacher").write_text("precious")
    outcome = run("train-teacher", *QUICK)
    assert outcome.code == 1
    assert mentions(outcome.err, "workspace/teachers/teacher", "file")
    assert (workspace / "teachers/teacher").read_text() == "precious"


def test_verify_reports_changes(run, workspace):
    """`verify` prints one line for each problem and exits with 1; without problems it exits with 0."""
    outcome = run("verify")
    assert outcome.code == 0
    assert mentions(outcome.out, 4)
    assert json.loads(run("verify", "--json").out) == []
    (workspace / "students/student/model.keras").write_bytes(b"x")
    outcome = run("verify")
    assert outcome.code == 1
    assert mentions(outcome.out, "student 'student'", "model.keras", "kdistill train-student", "--force")
    (problem,) = json.loads(run("verify", "--json").out)
    assert problem["artifact"] == "student 'student'"
    assert "model.keras" in problem["problem"]


def test_verify_compares_logits_with_the_teacher(run, workspace):
    """`verify` finds logits that agree with their own digest and accuracy, but not with their teacher."""
    from kdistill import soft_targets
    from kdistill.soft_targets import SoftTargets
    from kdistill.workspace import Workspace
    from kdistill.workspace.resume_log import BlockLog

    artifact = Workspace(workspace).soft_targets("soft-targets")
    soft = SoftTargets.open(artifact)
    ((keys, labels, logits),) = soft.blocks()
    soft.file.close()
    log = BlockLog(workspace / "log", soft.manifest, {"row_keys": ((16,), "u1"), **soft.storage.columns})
    log.append({"row_keys": keys, "logits": logits.values * np.float32(1.1)})
    results = dict(soft.manifest.results["teacher"])
    soft_targets.write(artifact.path, log, soft.manifest, labels, soft.storage, start_time=0.0, teacher=results)
    log.close()
    outcome = run("verify")
    assert outcome.code == 1
    assert mentions(outcome.out, "soft-targets", "logits", "teacher")


def test_plot_without_students(run, workspace):
    """`plot` draws what there is, and names the command for what is missing."""
    for name in ("students", "soft-targets", "plots"):
        shutil.rmtree(workspace / name)
    outcome = run("plot")
    assert outcome.code == 0, outcome.err
    assert "kdistill soften" in outcome.out
    assert set(os.listdir(workspace / "plots")) == {"learning-curves.png", "manifest.json"}


def test_unknown_network_to_plot(run, workspace):
    """An unknown network is refused with the names that exist."""
    outcome = run("plot", "--network", "nosuch")
    assert outcome.code == 1
    assert mentions(outcome.err, "--network", "nosuch", "teacher", "student")


def test_evaluate_json(run, workspace):
    """`evaluate --json` has an object for each network and split; null where a value does not apply."""
    found = json.loads(run("evaluate", "--json").out)
    keys = (
        "name role dataset split task rows errors error_rate accuracy nll ece brier agreement kl_to_teacher parameters bytes"
    ).split()
    assert [sorted(entry) for entry in found] == [sorted(keys)] * 4
    assert [(entry["name"], entry["split"], entry["rows"]) for entry in found] == [
        ("teacher", "train", 1437),
        ("teacher", "test", 360),
        ("student", "train", 1437),
        ("student", "test", 360),
    ]
    teacher, student = found[1], found[3]
    recorded = json.loads((workspace / STUDENT).read_text())["results"]
    assert student["errors"] == recorded["test_errors"] == round(student["error_rate"] * 360)
    assert teacher["agreement"] is None
    assert 0.5 < student["agreement"] <= 1.0
    assert student["kl_to_teacher"] > 0
    by_class = json.loads(run("evaluate", "--per-class", "--network", "student", "--json").out)[1]["per_class"]
    assert [entry["class"] for entry in by_class] == [str(number) for number in range(10)]
    assert sum(entry["errors"] for entry in by_class) == student["errors"]
    assert mentions(run("evaluate", "--per-class").out, "recall", "precision")
    table = run("evaluate").out
    assert mentions(table, "test", 360)
    assert max(map(len, table.splitlines())) < 100


@pytest.mark.slow
def test_file_without_soft_targets(run, workspace):
    """It is smaller, gives the same soft targets, passes all checks, and leaves students up to date."""
    path = workspace / "soft-targets/soft-targets.h5"
    before, size = SoftTargets(path), path.stat().st_size
    expected, digest = before.soft_targets(), before.digest
    assert run("soften", "--no-soft-targets").code == 0
    after = SoftTargets(path)
    assert "soft_targets" not in after.file
    assert path.stat().st_size < 0.75 * size
    assert after.digest == digest
    np.testing.assert_array_equal(after.soft_targets(), expected)
    assert run("train-student", *QUICK).up_to_date
    for command in ("soften --no-soft-targets", "plot", "verify"):
        assert run(*command.split()).code == 0
