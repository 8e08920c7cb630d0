"""`run` with a configuration file, settings of both networks apart, and dry runs of every stage."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
from helpers import QUICK, imports_of, mentions

from kdistill.cli import READ_ONLY
from kdistill.settings import COMMANDS, Run, build

REQUIRED = {"promote": ["--student", "sweep/one"], "predict": ["digits"]}
STAGES = ["teachers/teacher", "soft-targets/soft-targets.h5", "students/student", "plots"]


def files(place):
    """Return when each file and directory was last changed."""
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in (place / "workspace").rglob("*")}


def planned(run, *arguments):
    """Return the reasons that a dry run prints, by the path of each artifact in the workspace."""
    outcome = run(*arguments, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    return {step["path"].removeprefix("workspace/"): step["reason"] for step in json.loads(outcome.out)}


def configure(tmp_path, text):
    (tmp_path / "kdistill.toml").write_text(text)
    return "--config", "kdistill.toml"


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in READ_ONLY])
def test_dry_run_writes_nothing(workspace, tmp_path, command):
    """A dry run of any stage exits with 0, changes no file, and does not import TensorFlow."""
    shutil.copytree(workspace / "students/student", workspace / "sweeps/sweep/students/one")
    before = files(tmp_path)
    code, imported = imports_of(command, *REQUIRED.get(command, []), "--dry-run", "--force", cwd=tmp_path)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "path", "words"),
    [
        (["train-teacher", *QUICK, "--epochs", "7"], STAGES[0], ("epochs", 5, 7)),
        (["soften", "--temperature", "4"], STAGES[1], ("temperature", 20, 4)),
        (["train-student", *QUICK, "--temperature", "8"], STAGES[2], ("temperature", 20, 8)),
        (["train-student", *QUICK, "--name", "other"], "students/other", ("exist",)),
        (["plot", "--force"], STAGES[3], ("--force",)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_dry_run_says_why(run, workspace, arguments, path, words):
    (reason,) = planned(run, *arguments).values()
    assert mentions(reason, *words)
    assert mentions(run(*arguments, "--dry-run").out, path, *words)


def test_dry_run_of_what_is_up_to_date(run, workspace):
    assert planned(run, "soften") == {STAGES[1]: None}
    assert run("soften", "--dry-run").up_to_date


def test_dry_run_keeps_what_the_command_refuses(run, tmp_path):
    """A dry run fails as the command would."""
    assert run("soften", "--dry-run").code == 1
    assert run("soften", "--dry-run", "--views", "3").code == 2


def test_later_stages_follow_from_earlier_ones(run, workspace):
    """In a dry run of all stages, an artifact whose input is replaced is replaced too, and no other."""
    same = planned(run, "run", *QUICK)
    assert list(same) == STAGES
    assert set(same.values()) == {None}
    reasons = planned(run, "run", *QUICK, "--student-epochs", "6")
    assert [path for path, reason in reasons.items() if reason] == STAGES[2:]
    reasons = planned(run, "run", *QUICK, "--teacher-epochs", "6")
    assert mentions(reasons[STAGES[0]], "epochs", 5, 6)
    assert all(mentions(reasons[path], above) for above, path in itertools.pairwise(STAGES))
    assert all(planned(run, "run", "--workspace", "empty").values())


def test_hard_labels_follow_from_no_soft_targets(run, workspace, tmp_path):
    """New soft targets do not replace a student of hard labels, and a new student is drawn."""
    path = workspace / "students/student/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"] |= {"alpha": 1.0, "temperature": None, "loss": None}
    manifest["inputs"] = [each for each in manifest["inputs"] if each["kind"] == "dataset"]
    path.write_text(json.dumps(manifest))
    options = '\nmodel = "mlp-30"\nepochs = 5\nlearning-rate = 0.003\nxla = "off"\n'
    students = f'[[train-student]]{options}alpha = 1\n[[train-student]]\nname = "new"\n'
    reasons = planned(run, "run", *configure(tmp_path, f"[soften]\ntemperature = 5\n{students}[plot]"))
    assert reasons[STAGES[2]] is None
    assert mentions(reasons["students/new"], "exist")
    assert mentions(reasons["plots"], "students/new")


def test_teacher_and_student_apart():
    """Options of one network replace those of both, 0 included."""
    settings = build(Run, {"epochs": 3, "seed": 4, "student_epochs": 2, "teacher_seed": 0, "teacher_augment": "flip"})
    teacher, student = settings.teacher.training, settings.student.training
    assert (teacher.epochs, teacher.seed, teacher.augment) == (3, 0, "flip")
    assert (student.epochs, student.seed, student.augment) == (2, 4, None)


def test_written_configuration_is_up_to_date(run, workspace, tmp_path):
    """The configuration that is written for a workspace has all options, and replaces a file only with `--force`."""
    assert run("run", "--write-config").code == 0
    text = (tmp_path / "kdistill.toml").read_text()
    assert text == "\n".join(run("run", "--write-config", "--dry-run").out.splitlines()) + "\n"
    assert mentions(text, "learning-rate", "0.003")
    assert planned(run, "run", "--config", "kdistill.toml") == dict.fromkeys(STAGES)
    (tmp_path / "kdistill.toml").write_text("mine")
    outcome = run("run", "--write-config")
    assert (outcome.code, (tmp_path / "kdistill.toml").read_text()) == (1, "mine")
    assert mentions(outcome.err, "kdistill.toml", "--force")
    assert run("run", "--write-config", "--force").code == 0
    assert run("run", "--write-config", "--workspace", "empty", "--config", "other.toml").code == 1


@pytest.mark.slow
def test_configuration_of_every_kind(run, tmp_path):
    """A configuration with every stage runs, and the one that is written from its workspace is up to date."""
    short = 'model = "mlp-30"\nepochs = 1\nxla = "off"\n'
    text = f"""
[train-teacher]
{short}dropout = [0.1, 0.2]
name = "big"
[soften]
teacher = "big"
omit-class = 3
[[train-student]]
{short}
[[train-student]]
{short}name = 'a.b'
alpha = 1
[sweep]
{short.replace("mlp-30", "small")}temperature = [2, 8]
seeds = 0
[correct-bias]
student = "a.b"
frequencies = "uniform"
[plot]
network = "student"
format = ["svg", "pdf"]
"""
    outcome = run("run", *configure(tmp_path, text))
    assert outcome.code == 0, outcome.err
    made = planned(run, "run", "--config", "kdistill.toml")
    assert set(made.values()) == {None}
    assert list(made) == [
        *("teachers/big", *STAGES[1:3], "students/a.b", "sweeps/sweep", "students/a.b-corrected", "plots")
    ]
    assert run("run", "--write-config", "--config", "written.toml").code == 0
    assert planned(run, "run", "--config", "written.toml") == made
    outcome = run("run", "--config", "written.toml", "--json")
    assert len(json.loads(outcome.out)["stages"]) == 7


WRONG = [  # the file, and words that the error must have besides its name
    ("[train-techer]", ("train-techer", "train-teacher")),
    ("[evaluate]", ("evaluate", "train-teacher")),
    ("epochs = 5", ("epochs", "[train-teacher]")),
    ("[train-teacher]\nepoch = 5", ("[train-teacher]", "epoch", "epochs")),
    ("[train-teacher]\nlearning_rate = 5", ("learning_rate", "learning-rate")),
    ("[train-teacher]\nepochs = 0", ("[train-teacher]", "--epochs is '0'", "1")),
    ("[train-teacher]\nepochs = 2.5", ("--epochs is '2.5'",)),
    ("[train-teacher]\nepochs = true", ("--epochs",)),
    ("[train-teacher]\nepochs = {a = 1}", ("--epochs",)),
    ("[train-teacher]\nname = 1979-05-27", ("--name",)),
    ('[train-student]\nstandardize-logits = "yes"', ("--standardize-logits", "true")),
    ("[train-teacher]\nearly-stopping = 3", ("--early-stopping", "--validation-fraction")),
    ("[[train-student]]\n[[train-student]]\nname = 'x'\nalpha = 2", ("[[train-student]] 2", "--alpha", "2")),
    ("[[train-student]]\n[[train-student]]", ("[train-student]", "students/student")),
    ("[train-teacher\nepochs = 1", ("line 1",)),
    ("", ("[train-teacher]",)),
    ("[soften]\n" + "x = " + "[" * 5000, ()),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text[:40] for text, _ in WRONG])
def test_wrong_configuration_is_one_line(run, tmp_path, text, words):
    """A wrong configuration is refused in one line that names the file and the key, before any work."""
    outcome = run("run", *configure(tmp_path, text))
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "kdistill.toml" in outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--config", "nosuch.toml"], 2, ["--config", "nosuch.toml"]),
        (["--config", "."], 2, ["--config"]),
        (["--config", "kdistill.toml", "--teacher-epochs", "3"], 2, ["--teacher-epochs", "--config"]),
        (["--write-config", "--model", "small"], 2, ["--model", "--write-config"]),
        (["--teacher-epochs", "0"], 2, ["--teacher-epochs", "0", "1"]),
        (["--config", "kdistill.toml"], 1, ["'teachr'", "kdistill train-teacher"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_before_the_first_stage(run, tmp_path, arguments, code, words):
    """What a later stage would refuse, such as a name that no stage makes, stops the first one."""
    configure(tmp_path, '[train-teacher]\n[soften]\nteacher = "teachr"')
    outcome = run("run", *arguments)
    assert outcome.code == code
    assert mentions(outcome.err, *words), outcome.err
    assert not (tmp_path / "workspace").exists()
