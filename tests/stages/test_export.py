"""Networks written for other runtimes: that they say there what they said here, and that the artifact is one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from helpers import KDISTILL, MNIST, QUICK, imports_of

from kdistill.backend import keras, tf
from kdistill.data.keys import row_keys
from kdistill.errors import UsageError
from kdistill.evaluation import metrics
from kdistill.networks import exports, saved_models
from kdistill.settings import Export
from kdistill.workspace import digest, schema

ALL = [(file_format, quantize) for file_format in ("tflite", "onnx") for quantize in ("none", "int8", "float16")]
tflite = pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="needs kdistill[tflite]")
onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in exports.FORMATS["onnx"].packages),
    reason="needs kdistill[onnx]",
)
EITHER = [pytest.param("tflite", marks=tflite), pytest.param("onnx", marks=onnx)]


def options(file_format, quantize):
    return ["--format", file_format, "--quantize", quantize]


def place(workspace, file_format, quantize):
    return workspace / "exports" / Export(format=file_format, quantize=quantize).name


def recorded(path):
    return json.loads((path / "manifest.json").read_text())


def in_plain_litert(file, inputs):
    """What the file says to a program that knows nothing of kdistill."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    (given,), (said,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == said["dtype"] == np.float32
    interpreter.resize_tensor_input(given["index"], inputs.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], inputs)
    interpreter.invoke()
    return interpreter.get_tensor(said["index"])


def in_plain_onnx_runtime(file, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,), (said,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("inputs", "tensor(float)", ["rows", 28, 28])
    assert (said.name, said.type, said.shape) == ("logits", "tensor(float)", ["rows", 10])
    return session.run(None, {"inputs": inputs})[0]


@pytest.mark.parametrize(
    ("file_format", "quantize"), [pytest.param(*one, marks=tflite if one[0] == "tflite" else onnx) for one in ALL]
)
def test_export_says_what_the_network_says(run, workspace, digits, file_format, quantize):
    """Another program, in the file's own runtime, finds the recorded errors; they are close to the original's."""
    outcome = run("export", *options(file_format, quantize), "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    path = place(workspace, file_format, quantize)
    assert {**found, "path": str(path)} == {
        "export": path.name,
        "path": str(path),
        **recorded(path)["settings"],
        **recorded(path)["results"],
    }
    assert found["original_test_errors"] == recorded(workspace / "students/student")["results"]["test_errors"]
    assert found["test_rows"] == len(digits.test)

    file = path / f"model.{file_format}"
    runs = in_plain_litert if file_format == "tflite" else in_plain_onnx_runtime
    inputs = np.float32(digits.test.read()) / 255
    said = runs(file, inputs)
    assert metrics.errors(said, digits.test.labels) == found["test_errors"]
    np.testing.assert_allclose(runs(file, inputs[:1]), said[:1], atol=1e-4)

    original = saved_models.SavedNetwork.load(workspace / "students/student/saved_model").logits(inputs)
    assert found["agreement"] == metrics.agreement(said, original).mean()
    assert found["agreement"] >= {"none": 1.0, "float16": 0.997, "int8": 0.98}[quantize]
    assert abs(found["test_errors"] - found["original_test_errors"]) <= {"none": 0, "float16": 1, "int8": 5}[quantize]
    furthest = {"none": 1e-4, "float16": 0.05, "int8": 2.0}[quantize]
    np.testing.assert_allclose(said, original, atol=furthest)

    assert found["bytes"] == file.stat().st_size
    weights = 784 * 30 + 30 + 30 * 30 + 30 + 310
    assert found["bytes"] < {"none": 4, "float16": 2, "int8": 1}[quantize] * weights + 12_000
    assert 0 < found["latency_ms"] < 1000
    assert found["rows_per_second"] > 0
    assert [path.name for path in (workspace / "exports").iterdir()] == [path.name]
    assert {item.name for item in path.iterdir()} == {"manifest.json", file.name}


@tflite
def test_int8_computes_in_integers(run, workspace, digits):
    """Between the first step, which quantizes, and the last, which undoes it, nothing is a float."""
    run("export", "--quantize", "int8")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(place(workspace, "tflite", "int8") / "model.tflite"))
    floats = {item["index"] for item in interpreter.get_tensor_details() if item["dtype"] == np.float32}
    (given,), (said,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert floats == {given["index"], said["index"]}


@pytest.mark.parametrize("file_format", EITHER)
def test_up_to_date_needs_neither_tensorflow_nor_the_extra(run, workspace, monkeypatch, file_format):
    """Run again, it shows the recorded figures and writes nothing."""
    first = run("export", "--format", file_format)
    assert first.code == 0, first.err
    before = (place(workspace, file_format, "none") / "manifest.json").stat().st_mtime_ns
    missing = replace(exports.FORMATS[file_format], packages=("nosuch",))
    monkeypatch.setitem(exports.FORMATS, file_format, missing)
    second = run("export", "--format", file_format)
    assert (second.code, second.err) == (0, "")
    assert "Up to date" in second.out.splitlines()[0]
    assert second.out.splitlines()[1:] == first.out.splitlines()[2:]
    assert (place(workspace, file_format, "none") / "manifest.json").stat().st_mtime_ns == before
    code, imported = imports_of("export", "--format", file_format, cwd=workspace.parent)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)


@pytest.mark.parametrize("file_format", EITHER)
def test_same_network_same_bytes(run, workspace, file_format):
    """Names that a converter counts up as it goes are not in the file."""
    file = place(workspace, file_format, "int8") / f"model.{file_format}"
    seen = []
    for _ in range(2):
        assert run("export", *options(file_format, "int8"), "--force").code == 0
        seen.append(file.read_bytes())
    assert seen[0] == seen[1]


@tflite
def test_stale_with_its_network(run, workspace):
    """A retrained student makes its exports stale; status says so below it, and the command it names mends it."""
    shutil.rmtree(workspace / "plots")
    run("export", "--quantize", "int8")
    lines = run("status").out.splitlines()
    here = next(number for number, line in enumerate(lines) if "export student-tflite-int8: " in line)
    assert re.fullmatch(r" +export student-tflite-int8: \d+ errors of 360 test rows, [\d,]+ bytes", lines[here])
    assert lines[here - 1].strip().startswith("student student [")
    assert lines[here].index("export") == lines[here - 1].index("student") + 2
    assert run("train-student", *QUICK, "--seed", "3").code == 0
    said = run("status").out
    assert "stale: student 'student' has been made anew since" in said
    assert "next: kdistill export --quantize int8" in said
    outcome = run("export", "--quantize", "int8")
    assert "makes export 'student-tflite-int8' again: student changed" in outcome.out
    assert "stale" not in run("status").out
    assert run("verify").out == "checked 4 artifacts: no problems found\n"
    shutil.rmtree(workspace / "students/student")
    said = run("status").out
    assert "stale: student 'student' is gone" in said
    assert "next: kdistill train-student" in said


@tflite
def test_stale_network_is_named(run, workspace):
    run("train-teacher", *QUICK, "--seed", "2")
    outcome = run("export")
    assert outcome.code == 0
    assert "student 'student' is stale" in outcome.err


@pytest.mark.parametrize("file_format", EITHER)
def test_verify_runs_it_again(run, workspace, file_format):
    """Bytes that changed are found, and so are errors other than those recorded."""
    run("export", "--format", file_format)
    path = place(workspace, file_format, "none")
    command = "kdistill export" + (" --format onnx" if file_format == "onnx" else "")
    manifest = recorded(path)
    errors = manifest["results"]["test_errors"]
    manifest["results"]["test_errors"] += 1
    (path / "manifest.json").write_text(json.dumps(manifest))
    outcome = run("verify")
    assert outcome.code == 1
    assert outcome.out.splitlines()[0] == (
        f"export '{path.name}': model.{file_format} makes {errors} test errors, and {errors + 1} were recorded: "
        f"{command} --force"
    )
    (path / f"model.{file_format}").write_bytes(b"x")
    assert f"model.{file_format} is not what was written: {command} --force" in run("verify").out
    manifest["outputs"][f"model.{file_format}"] = digest(path / f"model.{file_format}")
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert f"export '{path.name}': its runtime refuses it: " in run("verify").out
    (path / "manifest.json").write_text("{")
    assert run("verify").code == 1
    assert run("export", "--format", file_format).code == 0
    assert run("verify").code == 0


@tflite
def test_teacher_of_the_workspace(run, workspace):
    """A teacher is exported by its name, and shown below it, unless a student has the name too."""
    outcome = run("export", "--network", "teacher")
    assert outcome.code == 0, outcome.err
    manifest = recorded(workspace / "exports/teacher-tflite")
    assert list(manifest["inputs"]) == ["dataset", "teacher"]
    lines = run("status").out.splitlines()
    depths = [
        line.index(what) for what in ("teacher teacher [", "export teacher-tflite: ") for line in lines if what in line
    ]
    assert depths[1] == depths[0] + 2
    shutil.copytree(workspace / "students/student", workspace / "students/teacher")
    assert "again: teacher teacher -> none; student none -> teacher" in run("export", "--network", "teacher").out


def test_missing_extra(run, workspace, monkeypatch):
    """One line with the command that installs it; nothing is written."""
    missing = replace(exports.FORMATS["onnx"], packages=("nosuch", "neither"))
    monkeypatch.setitem(exports.FORMATS, "onnx", missing)
    outcome = run("export", "--format", "onnx")
    assert outcome.code == 1
    assert outcome.err == (
        "error: --format onnx needs nosuch and neither, not installed here: pip install 'kdistill[onnx]'\n"
    )
    assert not (workspace / "exports").exists()


@pytest.mark.parametrize("wrong", [["--quantize", "int4"], ["--format", "pb"], ["--network", "../x"]])
def test_wrong_values(run, workspace, wrong):
    outcome = run("export", *wrong)
    assert outcome.code == 2
    assert wrong[1] in outcome.err
    with pytest.raises(UsageError, match=wrong[0]):
        Export(**{wrong[0].removeprefix("--"): wrong[1]})
    assert not (workspace / "exports").exists()


def test_no_such_network(run, tmp_path, workspace):
    outcome = run("export", "--network", "nosuch")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    for said in ("'nosuch'", "student, teacher", "kdistill export --network student"):
        assert said in outcome.err
    outcome = run("export", "-w", tmp_path / "empty")
    assert outcome.code == 1
    assert "kdistill train-student" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("network", ["a", "a-tflite", "b-int8", "c-onnx-float16", "d.1-", "sweep/a-tflite"])
@pytest.mark.parametrize(("file_format", "quantize"), ALL)
def test_name_says_all_settings(network, file_format, quantize):
    settings = Export(network=network, format=file_format, quantize=quantize)
    assert Export.named(settings.name) == settings
    assert "/" not in settings.name


@pytest.mark.parametrize("name", ["tflite", "-tflite", "a-int8", "a", ".a-onnx", "a@-tflite", "a@b@c-tflite"])
def test_other_names_are_no_exports(name):
    assert Export.named(name) is None


def fake(monkeypatch, write):
    """Exports of which `write` is all there is."""
    monkeypatch.setitem(exports.FORMATS, "tflite", replace(exports.FORMATS["tflite"], packages=(), write=write))


def test_calibrated_on_training_rows(run, workspace, digits, monkeypatch):
    """Ranges come from 500 training rows, the same each time, as the network takes them; of others from none."""
    seen = []

    def write(saved_model, file, quantize, calibration):
        seen.append(calibration)
        raise KeyboardInterrupt

    fake(monkeypatch, write)
    for quantize in ("int8", "int8", "float16", "none"):
        assert run("export", "--quantize", quantize).code == 130
    assert seen[2] is seen[3] is None
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0].shape, seen[0].dtype) == ((500, 28, 28), np.float32)
    train, test = (
        {key.tobytes() for key in row_keys(np.float32(part.read()) / 255)} for part in (digits.train, digits.test)
    )
    keys = {key.tobytes() for key in row_keys(seen[0])}
    assert len(keys) == 500
    assert keys <= train
    assert not keys & test
    assert not (workspace / "exports").exists()


@tflite
def test_what_stood_stands(run, workspace, monkeypatch):
    """Whatever happens while an export is made, what stood before stands, and nothing else is left."""
    run("export")
    before = digest(workspace)

    def refuse(*_):
        raise ValueError("no word for it\nat some place")

    def half(saved_model, file, *_):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    fake(monkeypatch, refuse)
    outcome = run("export", "--force")
    assert outcome.code == 1
    assert outcome.err == "error: student 'student' can't be written as tflite: no word for it\n"
    assert digest(workspace) == before
    fake(monkeypatch, half)
    assert run("export", "--force").code == 130
    assert digest(workspace) == before


class Cholesky(keras.layers.Layer):
    def call(self, inputs):
        return tf.linalg.cholesky(inputs)[:, 0]


@pytest.mark.parametrize(
    ("file_format", "why"),
    [
        pytest.param("tflite", "'tf.Cholesky' op is neither a custom op nor a flex op", marks=tflite),
        pytest.param("onnx", ".*Cholesky.*", marks=onnx),
    ],
)
def test_operation_that_a_format_lacks(run, workspace, file_format, why):
    """A network with such an operation in it is refused in one line that names the operation."""
    student = workspace / "students/student"
    layers = [keras.Input((28, 28)), Cholesky(), keras.layers.Dense(10)]
    shutil.rmtree(student / "saved_model")
    saved_models.save(keras.Sequential(layers), student)
    manifest = recorded(student)
    manifest["outputs"] |= {name: digest(student / name) for name in ("saved_model", "model.keras")}
    (student / "manifest.json").write_text(json.dumps(manifest))
    outcome = run("export", "--format", file_format)
    assert outcome.code == 1
    pattern = rf"error: student 'student' can't be written as {file_format}: {why}\n"
    assert re.fullmatch(pattern, outcome.err), outcome.err
    assert "partial" not in outcome.err
    assert not (workspace / "exports").exists()


@pytest.mark.parametrize("file_format", EITHER)
def test_mixed_precision(run, workspace, file_format):
    """A network that was trained in mixed precision is exported in float32, with the same weights."""
    trained = run("train-student", *QUICK, "--epochs", "1", "--name", "mixed", "--precision", "mixed_bfloat16")
    assert trained.code == 0, trained.err
    outcome = run("export", "--network", "mixed", "--format", file_format, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["agreement"] >= 0.98
    assert {item.name for item in (workspace / f"exports/mixed-{file_format}").iterdir()} == {
        "manifest.json",
        f"model.{file_format}",
    }


@tflite
@pytest.mark.skipif(not MNIST.exists(), reason="needs mnist.npz")
def test_int8_on_mnist(run, tmp_path):
    """On 2,000 MNIST test images a quantized student makes within 10 errors of what it made before."""
    with np.load(MNIST) as whole:
        np.savez(
            tmp_path / "mnist.npz",
            x_train=whole["x_train"][:10_000],
            y_train=whole["y_train"][:10_000],
            x_test=whole["x_test"][:2000],
            y_test=whole["y_test"][:2000],
        )
    model = ["--model", "mlp-100", "--epochs", "2", "--batch-size", "128", "--alpha", "1"]
    assert run("train-student", "--dataset", tmp_path / "mnist.npz", *model).code == 0
    outcome = run("export", "--quantize", "int8", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["test_rows"] == 2000
    assert found["original_test_errors"] < 300
    assert abs(found["test_errors"] - found["original_test_errors"]) <= 10
    assert found["agreement"] > 0.99
    assert found["bytes"] < found["original_bytes"] / 3


def description_in(file):
    """What the file's metadata says of the network, read with the format's own schema."""
    if file.suffix == ".onnx":
        import onnx

        return json.loads({entry.key: entry.value for entry in onnx.load(file).metadata_props}["kdistill.json"])
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    (buffer,) = [model.buffers[entry.buffer] for entry in model.metadata if entry.name == b"kdistill.json"]
    return json.loads(bytes(buffer.data))


@pytest.mark.parametrize("file_format", EITHER)
def test_class_names_and_preprocessing_are_in_the_file(run, tmp_path, file_format):
    """Of a table, the network's manifest, the export's and the file have class names and each column's numbers."""
    rows = ["size,weight,kind", *(f"{i % 7},{i * 3},{'grün' if i % 2 else 'red'}" for i in range(40))]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    read = ["--dataset", "table.csv", "--labels", "kind", "--test-fraction", "0.2"]
    outcome = run("train-student", *read, "--alpha", "1", "--model", "small", "--epochs", "1", "--batch-size", "8")
    assert outcome.code == 0, outcome.err
    results = recorded(tmp_path / "workspace/students/student")["results"]
    assert results["class_names"] == ["grün", "red"]
    assert list(results["preprocessing"]["standardised"]) == ["size", "weight"]
    outcome = run("export", "--format", file_format, "--json")
    assert outcome.code == 0, outcome.err
    place = tmp_path / f"workspace/exports/student-{file_format}"
    described = description_in(place / f"model.{file_format}")
    assert described == {
        "class_names": results["class_names"],
        "preprocessing": results["preprocessing"],
        "input": {"shape": [2], "dtype": "float32", "data_dtype": "float32", "divide_by": 1},
    }
    for found in (recorded(place)["results"], json.loads(outcome.out)):
        assert {name: found[name] for name in described} == described


@pytest.mark.parametrize(
    ("file_format", "quantize"),
    [pytest.param(*one, marks=tflite if one[0] == "tflite" else onnx) for one in ALL if one[1] != "float16"],
)
def test_description_changes_no_output(workspace, tmp_path, digits, file_format, quantize):
    """A described file says to the bit what it said before, and describing it twice gives the same bytes."""
    made, plain, described = exports.FORMATS[file_format], tmp_path / "plain", tmp_path / "described"
    inputs = np.float32(digits.test.read()[:50]) / 255
    made.write(workspace / "students/student/saved_model", plain, quantize, inputs if quantize == "int8" else None)
    text = json.dumps({"class_names": ["ä"] * 10})
    described.write_bytes(made.describe(plain.read_bytes(), text))
    assert described.read_bytes() == made.describe(plain.read_bytes(), text) != plain.read_bytes()
    for rows in (inputs, inputs[:1]):
        np.testing.assert_array_equal(made.run(described, 1)(rows), made.run(plain, 1)(rows))


def test_long_lists_of_classes_are_not_recorded(digits):
    names = tuple(map(str, range(10_001)))
    whole = replace(digits, classes=10_000, class_names=names[:-1])
    assert whole.description["class_names"] == list(names[:-1])
    assert replace(digits, classes=10_001, class_names=names).description["class_names"] is None


@tflite
def test_student_of_a_sweep(run, workspace):
    """It is exported and shown below its sweep; made anew, it makes the export stale; its name stays in its directory."""
    swept(workspace)
    outcome = run("export", "--network", "s/one")
    assert outcome.code == 0, outcome.err
    place = workspace / "exports/s@one-tflite"
    assert recorded(place)["inputs"]["student"]["name"] == "s/one"
    assert "Up to date" in run("export", "--network", "s/one").out
    found = {one["name"]: one for one in json.loads(run("status", "--json").out)["artifacts"]}
    assert found["s@one-tflite"]["state"] == "fresh"
    assert found["s@one-tflite"]["command"] == "kdistill export --network s/one"
    assert run("verify").code == 0
    manifest = recorded(workspace / "students/student")
    whole = {"kind": "sweep", "settings": {}, "outputs": {}, "results": {"students": {"one": "sha256:0"}}}
    (workspace / "sweeps/s/manifest.json").write_text(json.dumps(manifest | whole))
    lines = run("status").out.splitlines()
    depths = [line.index(what) for what in ("sweep s", "export s@one-tflite") for line in lines if what in line]
    assert depths[1] == depths[0] + 2
    manifest = recorded(workspace / "sweeps/s/students/one")
    manifest["outputs"]["saved_model"] = "sha256:0"
    (workspace / "sweeps/s/students/one/manifest.json").write_text(json.dumps(manifest))
    assert "student 's/one' has been made anew" in run("status").out
    shutil.rmtree(workspace / "sweeps")
    assert "student 's/one' is gone" in run("status").out


@pytest.mark.parametrize("name", ["../../../outside", "/outside", "s/../../outside"])
def test_names_in_manifests_cannot_leave_the_workspace(run, workspace, tmp_path, name):
    """A manifest that names a network elsewhere is damaged, whatever lies there."""
    for place in (tmp_path / "outside", workspace / "sweeps/outside"):
        shutil.copytree(workspace / "students/student", place)
    export = workspace / "exports/student-tflite"
    export.mkdir(parents=True)
    manifest = recorded(workspace / "students/student")
    digits, settings = manifest["inputs"]["dataset"], {"format": "tflite", "quantize": "none"}
    results = dict.fromkeys(schema.RESULTS["export"], 1)
    for named, state in ((name, "damaged"), ("student", "fresh")):
        inputs = {"dataset": digits, "student": {"name": named, "digest": manifest["outputs"]["saved_model"]}}
        fields = {"kind": "export", "inputs": inputs, "results": results, "settings": settings, "outputs": {}}
        (export / "manifest.json").write_text(json.dumps(manifest | fields))
        found = json.loads(run("status", "--json").out)["artifacts"]
        assert [one["state"] for one in found if one["kind"] == "export"] == [state]


def swept(workspace, sweep="s", *names):
    """A sweep with copies of the student, as if it had trained them."""
    for name in names or ("one",):
        shutil.copytree(workspace / "students/student", workspace / "sweeps" / sweep / "students" / name)


def test_promote(run, workspace):
    """A sweep's student becomes one of the workspace's: fresh, the same files, up to date for its command."""
    swept(workspace)
    origin, place = workspace / "sweeps/s/students/one", workspace / "students/best"
    shutil.rmtree(workspace / "students/student")
    outcome = run("promote", "--student", "s/one", "--name", "best")
    assert outcome.code == 0, outcome.err
    assert digest(place) == digest(origin)
    assert [item.name for item in (workspace / "students").iterdir()] == ["best"]
    found = {one["name"]: one for one in json.loads(run("status", "--json").out)["artifacts"]}["best"]
    assert (found["state"], found["kind"]) == ("fresh", "student")
    assert found["command"].startswith("kdistill train-student --name best ")
    assert "Up to date" in run(*found["command"].split()[1:]).out
    assert run("verify").code == 0
    assert "Up to date" in run("promote", "--student", "s/one", "--name", "best").out
    assert run("promote", "--student", "s/one").code == 0
    assert digest(workspace / "students/one") == digest(origin)


def test_promote_loses_nothing(run, workspace):
    """Another student of the name stays unless --force is given; a damaged student of a sweep is not copied."""
    swept(workspace)
    manifest = recorded(workspace / "students/student") | {"created": "before"}
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
    swept_again = workspace / "sweeps/s/students/one"
    shutil.copytree(workspace / "students/student", swept_again)
    assert run("promote", "--student", "s/one", "--name", "student", "--force").code == 0
    assert digest(workspace / "students/student") == digest(swept_again)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EITHER)
def test_real_process_says_only_its_own_lines(run, workspace, file_format):
    """Not a line of the converters', nor of the runtimes'; and other processes write the same bytes."""
    assert run("train-student", "--alpha", "1", "--model", "cnn", "--epochs", "1").code == 0
    seen = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [*KDISTILL, "export", *options(file_format, "int8"), "--force"],
            cwd=workspace.parent,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "NO_COLOR": "1", "PYTHONHASHSEED": seed},
        )
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line for line in done.stdout.splitlines() if not line.startswith("makes export ")]
        expected = [
            rf"writes student 'student' as {file_format}, quantized: int8, calibrated on 500 training rows",
            rf"wrote workspace/exports/student-{file_format}-int8/model.{file_format}; [\d.]+ s",
            r"student on the test split, 360 rows",
            r"network +errors +agree +bytes ms a row +rows/s",
            r"─+",
            r"SavedModel +\d+ +[\d,]+ +[\d.]+ +[\d,]+",
            rf"{file_format} int8 +\d+ +[\d.]+% +[\d,]+ +[\d.]+ +[\d,]+",
            r"agree: .*",
            r"ms a row: .* in batches of 360; CPU, \d+ threads? for either",
        ]
        assert len(lines) == len(expected), done.stdout
        for line, pattern in zip(lines, expected, strict=True):
            assert re.fullmatch(pattern, line.rstrip()), line
        seen.append((workspace / f"exports/student-{file_format}-int8/model.{file_format}").read_bytes())
    assert seen[0] == seen[1]
