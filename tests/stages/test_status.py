"""`status` and `verify` look at each artifact on its own, and print commands that can be pasted."""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil

import h5py
import numpy as np
import pytest
from helpers import QUICK

from kdistill.settings import CorrectBias, Export, Sweep
from kdistill.stages import status
from kdistill.workspace import Input, Manifest, Workspace

ODD = (None, [], ["x"], {}, "x", -1, 0.5, 10**400, float("inf"), True, "\ud800", "a\0b", "../../x", "/nosuch/x")
MANIFESTS = ("teachers/teacher/manifest.json", "students/student/manifest.json", "plots/manifest.json")


def mutants(manifest):
    """Yield the manifest with each value, at any depth, missing or replaced by odd ones."""
    for number, path in enumerate(paths(manifest)):
        for value in ("missing", *ODD[number % 3 :: 3]):
            changed = copy.deepcopy(manifest)
            *above, last = path
            place = changed
            for step in above:
                place = place[step]
            if value == "missing":
                del place[last]
            elif type(place[last]) is not type(value) or value != place[last]:
                place[last] = value
            yield f"{path} {value!r}"[:60], changed


def paths(value, above=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*above, key)
        yield from paths(inside, (*above, key))


def put_export_and_sweep(workspace):
    """Write artifacts of the other kinds, as far as their manifests go."""
    place = Workspace(workspace)
    student = place.student("student").require()
    network = student.outputs["saved_model"]
    made_from = (student.require_input("dataset"), Input("student", "student", network))
    rates = {"latency_ms": 1.0, "bytes": 1, "test_errors": 1}
    both = rates | {f"original_{name}": value for name, value in rates.items()}
    put(
        place.export(Export()),
        {"format": "tflite", "quantize": "none"},
        made_from,
        {**both, "task": "classification", "summary": "1 wrong", "test_rows": 1, "threads": 1},
    )
    put(
        place.corrected(CorrectBias()),
        {**student.settings, "frequencies": "training"},
        made_from,
        {
            **student.results,
            "classes": [{"name": "0", "wanted": 1, "before": 1, "after": 1, "shift": 0.5}],
            "inputs": 1,
            "student_test_errors": 1,
        },
    )
    put(
        place.sweep("sweep"),
        Sweep(models=("mlp-30",)).recorded(),
        student.inputs,
        {"task": "classification", "students": {"x": network}},
    )
    shutil.copytree(place.student("student").path, place.sweep_student("sweep", "x").path)


def put(artifact, settings, inputs, results):
    with artifact.writing() as staging:
        for name in ("saved_model", "table.csv", "README.md", "kdistill.json"):
            (staging.path / name).write_text("")
        identity = Manifest(kind=artifact.kind, settings=settings, inputs=inputs)
        staging.commit(identity, results=results, seconds=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        *MANIFESTS,
        *(
            f"{where}/manifest.json"
            for where in ("exports/student-tflite", "students/student-corrected", "sweeps/sweep")
        ),
    ],
)
def test_odd_manifest_affects_nothing_else(workspace, place, capsys):
    """Whatever one manifest holds, `status` shows all artifacts and names the file that it can't use."""
    from kdistill.console import Reporter

    put_export_and_sweep(workspace)
    where, path = Workspace(workspace), workspace / place
    expected = {each.key for each in status.run(where).artifacts}
    assert len(expected) == 7
    damaged = 0
    for mutation, changed in mutants(json.loads(path.read_text())):
        path.write_text(json.dumps(changed))
        result = status.run(where)
        result.show(Reporter())
        json.dumps(result.as_json())
        assert {each.key for each in result.artifacts} == expected, mutation
        odd = [each for each in result.artifacts if each.state == "damaged"]
        assert all(str(path.parent) in reason for each in odd for reason in each.reasons), mutation
        assert [each.path for each in odd] in ([], [str(path.parent)]), mutation
        assert bool(odd) == (f"damaged: {path.parent}" in capsys.readouterr().out), mutation
        damaged += len(odd)
    assert damaged > 50


@pytest.mark.slow
def test_odd_manifest_of_soft_targets_affects_nothing_else(workspace):
    """The same for the manifest inside a soft-target file."""
    where, path = Workspace(workspace), workspace / "soft-targets/soft-targets.h5"
    with h5py.File(path) as file:
        manifest = json.loads(file.attrs["manifest"])
    damaged = 0
    for mutation, changed in mutants(manifest):
        with h5py.File(shutil.copy(path, workspace / "changed"), "r+") as file:  # readers hold the other one open
            file.attrs["manifest"] = np.bytes_(json.dumps(changed))
        os.replace(workspace / "changed", path)
        artifacts = status.run(where).artifacts
        assert len(artifacts) == 4, mutation
        odd = [each for each in artifacts if each.state == "damaged"]
        assert [each.path for each in odd] in ([], [str(path)]), mutation
        assert all(str(path) in reason for each in odd for reason in each.reasons), mutation
        damaged += len(odd)
    assert damaged > 50


@pytest.mark.slow
@pytest.mark.parametrize("part", ["settings", "results", "inputs", "outputs", "kind", "format"])
@pytest.mark.parametrize(
    ("place", "commands"),
    [
        (MANIFESTS[0], [["soften", "--force"], ["plot"], ["evaluate"]]),
        (MANIFESTS[1], [["correct-bias"], ["plot"], ["evaluate"], ["export"]]),
    ],
    ids=["teacher", "student"],
)
def test_every_command_names_an_odd_manifest(run, workspace, place, commands, part):
    """Every command that reads the manifest prints one line with the file and the command that repairs it."""
    path = workspace / place
    manifest = json.loads(path.read_text())
    del manifest[part]
    path.write_text(json.dumps(manifest))
    for command in commands:
        outcome = run(*command)
        assert (outcome.code, len(outcome.err.splitlines())) == (1, 1), (command, outcome.err)
        assert f"workspace/{place}" in outcome.err
        assert ": kdistill train-" in outcome.err
        assert ("--model mlp-30" in outcome.err) == (part != "settings"), outcome.err


def test_unreadable_artifact_is_reported(workspace):
    """A directory in the place of a manifest is reported with its path; the other artifacts are shown."""
    (workspace / MANIFESTS[0]).unlink()
    (workspace / MANIFESTS[0]).mkdir()
    artifacts = status.run(Workspace(workspace)).artifacts
    assert [each.state for each in artifacts] == ["damaged", "stale", "stale", "stale"]
    assert MANIFESTS[0] in artifacts[0].reasons[0]


def test_missing_student_of_a_sweep(workspace):
    """A sweep is damaged without one of its students, and the same sweep trains it again."""
    put_export_and_sweep(workspace)
    where = Workspace(workspace)
    states = [each.state for each in status.run(where).artifacts if each.kind == "sweep"]
    shutil.rmtree(workspace / "sweeps/sweep/students/x")
    (damaged,) = (each for each in status.run(where).artifacts if each.kind == "sweep")
    assert (states, damaged.state) == (["fresh"], "damaged")
    assert "students/x" in damaged.reasons[0]
    assert damaged.command.startswith("kdistill sweep ")
    assert "--force" not in damaged.command


def test_each_input_is_read_once(workspace, monkeypatch):
    """However many artifacts are made from a dataset and from soft targets, these are read once per command."""
    from kdistill import data
    from kdistill.workspace import Artifact

    for number in range(3):
        shutil.copytree(workspace / "students/student", workspace / f"students/s{number}")
    reads, resolve, manifest = [], data.resolve, Artifact._text
    monkeypatch.setattr(data, "resolve", lambda name: reads.append(name) or resolve(name))
    monkeypatch.setattr(Artifact, "_text", lambda self: reads.append(str(self)) or manifest(self))
    status.run(Workspace(workspace))
    assert "digits" in reads
    assert sorted(reads) == sorted(set(reads))


@pytest.mark.parametrize("place", ["workspace", "a b/ws", "."])
def test_advice_can_be_pasted(run, made, tmp_path, place):
    """Each command that `status` and `verify` print is for the workspace that was looked at, with all its options."""
    where = tmp_path / place
    shutil.copytree(made, where, dirs_exist_ok=True)
    (where / "teachers/teacher/model.keras").unlink()
    (where / "students/student/manifest.json").write_text(
        (where / "students/student/manifest.json").read_text().replace('"test_rows"', '"rows"')
    )
    given = [] if place == "workspace" else ["--workspace", place]
    found = json.loads(run("status", "--json", *given).out)
    words = shlex.split(found["next"])
    assert words[:2] == ["kdistill", "train-teacher"]
    assert set(words[2:]) == {
        *given,
        *"--model mlp-30 --epochs 5 --learning-rate 0.003 --force".split(),
        "--xla",
        "off",
    }
    verified = json.loads(run("verify", "--json", *given).out)
    damaged = {one["path"]: one["command"] for one in found["artifacts"] if one["state"] == "damaged"}
    assert {one["path"]: one["command"] for one in verified} == damaged
    assert len(damaged) == 2
    assert all("--temperature 20" in command for path, command in damaged.items() if "students" in path)


def test_next_student_has_the_options_it_needs(run, workspace):
    """After soft targets of another name, from a teacher outside, `soften` and `status` name the same command."""
    shutil.move(workspace / "teachers/teacher/saved_model", "outside")
    for name in ("students", "plots", "soft-targets", "teachers"):
        shutil.rmtree(workspace / name)
    outcome = run("soften", "--teacher", "outside", "--dataset", "digits", "--name", "mine", "-w", "workspace/")
    assert outcome.code == 0, outcome.err
    expected = set("kdistill train-student --soft-targets mine --model mlp-800 --alpha 0.1".split())
    assert expected <= set(outcome.out.splitlines()[-1].split())
    assert expected <= set(run("status").out.splitlines()[-1].split())


def test_next_soften_names_the_teacher(run, workspace):
    for name in ("students", "plots", "soft-targets"):
        shutil.rmtree(workspace / name)
    (workspace / "teachers/teacher").rename(workspace / "teachers/big")
    assert run("status").out.splitlines()[-1].endswith("kdistill soften --teacher big --temperature 20")


def test_environment_variable_makes_the_default_explicit(run, workspace, monkeypatch):
    """Where KDISTILL_WORKSPACE gives another workspace, a command on the usual one says so."""
    monkeypatch.setenv("KDISTILL_WORKSPACE", "elsewhere")
    (workspace / "teachers/teacher/model.keras").unlink()
    assert "kdistill train-teacher --workspace workspace " in run("status", "-w", "workspace").out


@pytest.mark.parametrize("command", ["status", "evaluate", "verify"])
def test_force_is_not_for_commands_that_make_nothing(run, workspace, command):
    outcome = run(command, "--force")
    assert outcome.code == 2
    assert "--force" in outcome.err


@pytest.mark.slow
def test_up_to_date_returns_what_stands(workspace):
    """From Python the result is the same whether it was made just now or before."""
    import kdistill

    place, quiet = Workspace(workspace), kdistill.Reporter(quiet=True)
    for stage in (kdistill.soften, kdistill.plot):
        before = stage(place, reporter=quiet).manifest
        made = stage(place, force=True, reporter=quiet)
        assert made == stage(place, reporter=quiet)
        after = made.manifest
        assert (before.results, before.settings, list(before.outputs)) == (
            after.results,
            after.settings,
            list(after.outputs),
        )


def test_run_prints_its_table_when_quiet(run, workspace):
    """`--quiet` leaves out what happens, and not the result."""
    outcome = run("run", *QUICK, "--quiet")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("test split, 360 rows")
    assert "student" in outcome.out


def test_check_is_an_exit_status(run, workspace):
    """`status --check` exits with 0 only if there are artifacts, and all are current and finished."""
    assert run("status", "--check").code == 0
    partial = workspace / "students/.other.partial"
    shutil.copytree(workspace / "students/student", partial)
    (partial / "manifest.json").unlink()
    assert run("status", "--check").code == 1
    assert run("status").code == 0
    shutil.rmtree(partial)
    shutil.move(workspace / "teachers/teacher", workspace / "gone")
    assert run("status", "--check", "--json").code == 1
    shutil.move(workspace / "gone", workspace / "teachers/teacher")
    (workspace / "students/student/model.keras").unlink()
    assert run("status", "--check").code == 1
    assert run("status", "--check", "-w", "empty").code == 1
