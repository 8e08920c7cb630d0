"""The command line: help, exit statuses, one-line errors, and what a real process prints."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import KDISTILL, QUICK, commands, imports_of, mentions, stamps


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], *[[command, "--help"] for command in commands()], ["--version"]])
def test_help_imports_nothing_heavy(tmp_path, arguments):
    """Help and version need none of the heavy libraries."""
    assert imports_of(*arguments, cwd=tmp_path) == (0, [])


@pytest.mark.slow
def test_up_to_date_imports_no_tensorflow(workspace):
    """A stage that has nothing to do imports neither TensorFlow nor Matplotlib."""
    for command in (["train-teacher", *QUICK], ["soften"], ["train-student", *QUICK], ["plot"], ["status"]):
        code, imported = imports_of(*command, cwd=workspace.parent)
        assert code == 0
        assert not {"tensorflow", "keras", "matplotlib"} & set(imported), command


def test_every_command_and_option_has_help(run):
    """`--help` lists each command with a whole sentence, and each command and option has a help text."""
    overview = " ".join(run("--help").out.split())
    assert len(commands()) >= 12
    for name, command in commands().items():
        sentence = " ".join(command.help.split()).partition(". ")[0]
        assert f" {name} {sentence.removesuffix('.')}. " in f"{overview} "
        assert len(sentence) > 20
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)


def test_usage_errors_exit_with_2(run):
    """An unknown command or option exits with 2, and control characters in it are escaped."""
    assert run("nosuch").code == 2
    assert run("train-teacher", "--nosuch").code == 2
    wrong = "no\x1b\u202esuch"
    for arguments in ([wrong], [f"--{wrong}"], ["train-teacher", f"--{wrong}"], ["plot", "\u202e"]):
        outcome = run(*arguments)
        assert (outcome.code, "\u202e" in outcome.err) == (2, False)
        assert r"\u202e" in outcome.err


def test_version(run):
    assert re.fullmatch(r"kdistill \d+\.\d+\.\d+\n", run("--version").out)


@pytest.mark.slow
def test_quiet_prints_nothing(run, workspace):
    """With `--quiet`, stages print nothing, whether or not they have work to do."""
    for command in (["train-teacher", *QUICK, "--seed", "9"], ["soften"], ["train-student", *QUICK], ["plot"]):
        for _ in range(2):
            outcome = run(*command, "--quiet")
            assert (outcome.code, outcome.out) == (0, "")


WRONG_VALUES = [  # the arguments, and words that the error must have besides the last two of them
    ["train-teacher", "--epochs", "0"],
    ["train-teacher", "--batch-size", "-1"],
    ["train-teacher", "--learning-rate", "nan"],
    ["train-teacher", "--seed", "4294967296"],
    ["train-teacher", "--seed", "-1"],
    ["train-teacher", "--validation-fraction", "1"],
    ["train-teacher", "--label-smoothing", "0"],
    ["train-teacher", "--label-smoothing", "nan"],
    ["train-teacher", "--model", "nosuch"],
    ["train-teacher", "--name", "../x"],
    ["soften", "--temperature", "0"],
    ["soften", "--temperature", "-1"],
    ["soften", "--temperature", "nan"],
    ["soften", "--temperature", "1e-12"],
    ["soften", "--temperature", "1e+12"],
    ["soften", "--fraction", "0"],
    ["soften", "--fraction", "1.5"],
    ["soften", "--fraction", "nan"],
    ["soften", "--fraction", "0.5", "--rows-seed", "-1"],
    ["soften", "--omit-class", "3,"],
    ["soften", "--omit-class", "3, 4,3"],
    ["train-student", "--alpha", "1.5"],
    ["train-student", "--alpha", "-0.1"],
    ["train-student", "--alpha", "nan"],
    ["train-student", "--fraction", "-1"],
    ["train-student", "--label-smoothing", "1"],
    ["train-student", "--only-classes", "7,7"],
    ["train-student", "--alpha", "1", "--omit-class", "x"],
    ["run", "--student-model", "nosuch"],
    ["run", "--temperature", "0"],
    ["plot", "--format", "gif"],
    ["evaluate", "--network", "../x"],
    ["evaluate", "--network", "sweep/../x"],
    ["export", "--network", "a/b/c"],
    ["promote", "--student", "student"],
    ["promote", "--student", "sweep/.."],
    ["promote", "--student", "sweep/x", "--name", "../x"],
]
REFUSALS = [  # the arguments, the exit status, and words that one line of the error must have
    (["soften"], 1, ["'teacher'", "workspace", "kdistill train-teacher"]),
    (["train-student"], 1, ["'soft-targets'", "kdistill soften"]),
    (["plot"], 1, ["kdistill train-teacher"]),
    (["evaluate"], 1, ["workspace", "kdistill train-teacher"]),
    (["train-teacher", "--dataset", "nosuch"], 1, ["--dataset", "nosuch"]),
    (["train-teacher", "--dataset", "no\x1b[31m\u202e\nsuch"], 2, ["--dataset", r"no\x1b[31m\u202e\nsuch"]),
    (["train-teacher", "--dataset", "no\u202esuch"], 2, ["--dataset", r"no\u202esuch"]),
    (["train-teacher", "--batch-size", "2000"], 1, ["--batch-size", "1,437"]),
    (["train-teacher", "--early-stopping", "3"], 2, ["--early-stopping", "--validation-fraction"]),
    (["train-teacher", "--name", ""], 2, ["--name", "''"]),
    (["soften", "--rows-seed", "1"], 2, ["--rows-seed", "--fraction"]),
    (["soften", "--omit-class", ""], 2, ["--omit-class", "''"]),
    (["soften", "--omit-class", "3", "--only-classes", "4"], 2, ["--omit-class", "--only-classes"]),
    (["train-student", "--alpha", "1", "--omit-class", "x"], 2, ["--omit-class x", "digits", "0, 1"]),
    (["train-student", "--alpha", "1", "--fraction", "0.0001"], 1, ["1,437"]),
    (["train-student", "--alpha", "1", "--loss", "dkd"], 2, ["--loss", "--alpha 1"]),
    (["run", "--alpha", "1", "--loss", "jsd"], 2, ["--loss", "--alpha 1"]),
    (["train-student", "--alpha", "1", "--standardize-logits"], 2, ["--standardize-logits", "--alpha 1"]),
    (["train-student", "--loss", "mse", "--temperature", "4"], 2, ["--temperature", "--loss mse"]),
    (["train-student", "--label-smoothing", "0.1", "--alpha", "0"], 2, ["--label-smoothing", "--alpha 0"]),
    (["evaluate", "--network", "nosuch"], 1, ["workspace", "kdistill train-student"]),
    (["evaluate", "--network", "nosuch/student"], 1, ["kdistill sweep --name nosuch"]),
    (["evaluate", "--labels", "y"], 2, ["--labels", "--dataset"]),
    (["promote", "--student", "sweep/x"], 1, ["kdistill sweep"]),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [*((arguments, 2, arguments[-2:]) for arguments in WRONG_VALUES), *REFUSALS],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(run, tmp_path, arguments, code, words):
    """A refused command prints one line that names the option and the value, and writes nothing."""
    outcome = run(*arguments)
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("error: ")
    assert mentions(outcome.err, *words), outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "..", ".x", "a/b", "a\x00b", "a\nb", "ä", "x" * 101, "-x"])
@pytest.mark.parametrize(
    ("command", "option"), [("train-teacher", "--name"), ("soften", "--name"), ("train-student", "--soft-targets")]
)
def test_names_cannot_leave_the_workspace(run, tmp_path, command, option, name):
    """Names with separators, control characters or a leading dot are refused."""
    outcome = run(command, f"{option}={name}")
    assert outcome.code == 2
    assert mentions(outcome.err, option, 100)
    assert len(outcome.err.splitlines()) == 1
    assert os.listdir(tmp_path) == []


class ResourceExhaustedError(Exception):
    """Stands for TensorFlow's error of this name."""


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("status", OSError(errno.ENOSPC, "Can't write (time = now\n, errno = 28)"), ["No space left on device"]),
        ("status", OSError(errno.EACCES, "why", "a/file"), ["a/file", "Permission denied"]),
        ("status", OSError("one\ntwo"), ["one"]),
        ("status", MemoryError(), ["memory"]),
        ("soften", MemoryError("3 GiB"), ["memory", "--batch-size"]),
        ("train-student", ResourceExhaustedError("OOM"), ["memory", "--batch-size", "--model"]),
        ("plot", ResourceExhaustedError("x; No space left on device"), ["workspace", "No space left on device"]),
        ("plot", ValueError(""), ["ValueError", "--debug"]),
    ],
)
def test_unexpected_error_is_one_line(run, tmp_path, monkeypatch, command, error, words):
    """Any error is one line, which names the place if there is one, and only options that the command has."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"kdistill.stages.{command.replace('-', '_')}.run", fail)
    outcome = run(command)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert mentions(outcome.err, *words), outcome.err
    options = {option for parameter in commands()[command].params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", outcome.err)) <= options | {"--debug"}
    assert os.listdir(tmp_path) == []


def test_workspace_that_is_a_file(run, tmp_path):
    """A file given as the workspace is refused and left as it is."""
    (tmp_path / "file").write_text("precious")
    outcome = run("train-teacher", "--workspace", tmp_path / "file")
    assert outcome.code == 1
    assert mentions(outcome.err, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_diverging_training_writes_nothing(run, tmp_path):
    """Training that reaches an infinite loss fails and leaves no file."""
    outcome = run("train-teacher", *QUICK, "--optimizer", "sgd", "--learning-rate", "1e30")
    assert outcome.code == 1
    assert mentions(outcome.err, "epoch", "loss")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["train-teacher", "--dataset", "empty.npz"],
        ["soften", "--top-k", "10"],
        ["train-student", "--only-classes", "nosuch"],
    ],
    ids=" ".join,
)
def test_refused_command_announces_no_work(run, workspace, arguments):
    """A refused command prints only its error."""
    np.savez("empty.npz", x_train=np.zeros((0, 3)), y_train=np.zeros(0, int))
    outcome = run(*arguments)
    assert outcome.code > 0
    assert outcome.out == ""


def process(*arguments, cwd, **environment):
    return subprocess.run(
        [*KDISTILL, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_real_process_prints_only_its_own_lines(tmp_path):
    """At a path with spaces and non-ASCII letters, each stage prints only its own lines, without color."""
    place = tmp_path / "ein schöner Ort"
    place.mkdir()
    printed = {}
    how = [*QUICK, "--xla", "auto"]
    for command in (["train-teacher", *how], ["soften", "--temperature", "20"], ["train-student", *how], ["plot"]):
        done = process(*command, cwd=place, NO_COLOR="1")
        assert (done.returncode, done.stderr) == (0, "")
        printed[command[0]] = done.stdout
    assert "\x1b" not in "".join(printed.values())
    assert len(re.findall(r"^epoch \d/5 ", printed["train-teacher"], re.MULTILINE)) == 5
    results = json.loads((place / "workspace/teachers/teacher/manifest.json").read_text())["results"]
    assert mentions(printed["train-teacher"], "teachers/teacher", results["test_errors"], 360)
    objective = json.loads((place / "workspace/students/student/manifest.json").read_text())["results"]["objective"]
    assert objective in printed["train-student"]
    assert mentions(objective, "0.1", "0.9", "20")
    for name in ("learning-curves.png", "dark-knowledge.png"):
        assert (place / "workspace/plots" / name).stat().st_size > 20_000


@pytest.mark.slow
def test_same_command_same_bytes(tmp_path):
    """The same command and seed give the same SavedModel, byte for byte, in another process."""
    outputs = []
    for name in ("one", "two"):
        assert process("train-teacher", *QUICK, "--workspace", name, cwd=tmp_path).returncode == 0
        manifest = json.loads((tmp_path / name / "teachers/teacher/manifest.json").read_text())
        outputs.append(manifest["outputs"]["saved_model"])
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_interrupt_leaves_the_workspace(workspace):
    """Ctrl-C exits with 130 and one line, and leaves the artifacts as they were."""
    before = stamps(workspace)
    running = subprocess.Popen(
        [*KDISTILL, "train-teacher", *QUICK, "--epochs", "5000", "--seed", "4"],
        cwd=workspace.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert any(re.match(r"epoch +1/", line) for line in running.stdout)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    assert running.returncode == 130
    assert len(errors.splitlines()) == 1
    assert stamps(workspace) == before
    assert process("train-teacher", *QUICK, cwd=workspace.parent).returncode == 0
    assert stamps(workspace) == before


def test_completion_script_is_printed(tmp_path):
    """Shell completion works for the usual shells."""
    done = process("--show-completion", "bash", cwd=tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kdistill sof", "soften"),
        ("kdistill soften --temp", "--temperature"),
        ("kdistill train-teacher --precision mixed_b", "mixed_bfloat16"),
    ],
)
def test_completion(tmp_path, words, expected):
    """Commands, options and values are completed."""
    script = Path(sys.executable).with_name("kdistill")  # the shell completes its name
    variables = {"_KDISTILL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [script], cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    assert expected in done.stdout.split()
