"""`promote`: a student of a sweep becomes a student of the workspace."""

from __future__ import annotations

import json
import shutil

from helpers import mentions

from kdistill.workspace import digest


def add_sweep_student(workspace):
    """Add a copy of the student to a sweep, as if the sweep had trained it."""
    return shutil.copytree(workspace / "students/student", workspace / "sweeps/s/students/one")


def test_promote(run, workspace):
    """`promote` copies all files of a sweep's student, and train-student finds the copy up to date."""
    original = add_sweep_student(workspace)
    shutil.rmtree(workspace / "students/student")
    outcome = run("promote", "--student", "s/one", "--name", "best")
    assert outcome.code == 0, outcome.err
    assert digest(workspace / "students/best") == digest(original)
    assert [item.name for item in (workspace / "students").iterdir()] == ["best"]
    (entry,) = [entry for entry in json.loads(run("status", "--json").out)["artifacts"] if entry["name"] == "best"]
    assert (entry["state"], entry["kind"]) == ("fresh", "student")
    assert mentions(entry["command"], "kdistill train-student", "--name best")
    assert run(*entry["command"].split()[1:]).up_to_date
    assert run("verify").code == 0
    assert run("promote", "--student", "s/one", "--name", "best").up_to_date
    assert run("promote", "--student", "s/one").code == 0
    assert digest(workspace / "students/one") == digest(original)


def test_promote_overwrites_nothing(run, workspace):
    """Another student with the name stays without --force, and a damaged student of a sweep is not copied."""
    add_sweep_student(workspace)
    manifest = json.loads((workspace / "students/student/manifest.json").read_text()) | {"created": "before"}
    (workspace / "students/student/manifest.json").write_text(json.dumps(manifest))
    before = digest(workspace / "students")
    outcome = run("promote", "--student", "s/one", "--name", "student")
    assert outcome.code == 1
    assert "kdistill promote --student s/one --name student --force" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    (workspace / "sweeps/s/students/one/model.keras").write_bytes(b"x")
    outcome = run("promote", "--student", "s/one", "--name", "student", "--force")
    assert (outcome.code, "model.keras" in outcome.err) == (1, True)
    assert digest(workspace / "students") == before
    shutil.rmtree(workspace / "sweeps")
    original = add_sweep_student(workspace)
    assert run("promote", "--student", "s/one", "--name", "student", "--force").code == 0
    assert digest(workspace / "students/student") == digest(original)
