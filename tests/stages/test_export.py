"""`export`: files for other runtimes give the same logits, and exports are artifacts."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers import KDISTILL, MNIST, QUICK, count_errors, imports_of, mentions, needs_mnist

from kdistill import data
from kdistill.backend import keras, tf
from kdistill.data.keys import row_keys
from kdistill.errors import UsageError
from kdistill.evaluation import metrics
from kdistill.networks import exports, saved_models
from kdistill.settings import Export
from kdistill.workspace import KINDS, digest

ALL = [(file_format, quantize) for file_format in ("tflite", "onnx") for quantize in ("none", "int8", "float16")]
tflite = pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="needs kdistill[tflite]")
onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in exports.FORMATS["onnx"].packages),
    reason="needs kdistill[onnx]",
)
EITHER = [pytest.param("tflite", marks=tflite), pytest.param("onnx", marks=onnx)]


def options(file_format, quantize):
    return ["--format", file_format, "--quantize", quantize]


def export_path(workspace, file_format, quantize):
    return workspace / "exports" / Export(format=file_format, quantize=quantize).name


def recorded(path):
    return json.loads((path / "manifest.json").read_text())


def status_entry(run, name):
    """Return what `status --json` shows of an artifact."""
    (entry,) = [entry for entry in json.loads(run("status", "--json").out)["artifacts"] if entry["name"] == name]
    return entry


def in_plain_litert(file, inputs):
    """Return the logits that a program without kdistill computes with the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert entry["dtype"] == result["dtype"] == np.float32
    interpreter.resize_tensor_input(entry["index"], inputs.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], inputs)
    interpreter.invoke()
    return interpreter.get_tensor(result["index"])


def in_plain_onnx_runtime(file, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (entry,), (result,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("inputs", "tensor(float)", ["rows", 28, 28])
    assert (result.name, result.type, result.shape) == ("logits", "tensor(float)", ["rows", 10])
    return session.run(None, {"inputs": inputs})[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "quantize"), [pytest.param(*case, marks=tflite if case[0] == "tflite" else onnx) for case in ALL]
)
def test_exported_network_gives_the_same_logits(run, workspace, digits, file_format, quantize):
    """Another program finds the recorded errors in the file's own runtime; they are close to the original's."""
    outcome = run("export", *options(file_format, quantize), "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    path = export_path(workspace, file_format, quantize)
    assert {**result, "path": str(path)} == {
        "export": path.name,
        "path": str(path),
        **recorded(path)["settings"],
        **recorded(path)["results"],
    }
    assert result["original_test_errors"] == recorded(workspace / "students/student")["results"]["test_errors"]
    assert result["test_rows"] == len(digits.test)

    file = path / f"model.{file_format}"
    runs = in_plain_litert if file_format == "tflite" else in_plain_onnx_runtime
    inputs = np.float32(digits.test.read()) / 255
    logits = runs(file, inputs)
    assert count_errors(logits, digits.test.labels) == result["test_errors"]
    np.testing.assert_allclose(runs(file, inputs[:1]), logits[:1], atol=1e-4)

    original = saved_models.SavedNetwork.load(workspace / "students/student/saved_model").logits(inputs)
    assert result["closeness"] == metrics.agreement(logits, original).mean()
    assert result["closeness"] >= {"none": 1.0, "float16": 0.997, "int8": 0.98}[quantize]
    assert abs(result["test_errors"] - result["original_test_errors"]) <= {"none": 0, "float16": 1, "int8": 5}[quantize]
    tolerance = {"none": 1e-4, "float16": 0.05, "int8": 2.0}[quantize]
    np.testing.assert_allclose(logits, original, atol=tolerance)

    assert result["bytes"] == file.stat().st_size
    weights = 784 * 30 + 30 + 30 * 30 + 30 + 310
    assert result["bytes"] < {"none": 4, "float16": 2, "int8": 1}[quantize] * weights + 12_000
    assert result["latency_ms"] > 0
    assert result["original_latency_ms"] > 0
    assert [path.name for path in (workspace / "exports").iterdir()] == [path.name]
    assert {item.name for item in path.iterdir()} == {"manifest.json", "README.md", "kdistill.json", file.name}


@pytest.mark.slow
@tflite
def test_int8_computes_in_integers(run, workspace, digits):
    """Only the input and the output are floats."""
    run("export", "--quantize", "int8")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(export_path(workspace, "tflite", "int8") / "model.tflite"))
    floats = {item["index"] for item in interpreter.get_tensor_details() if item["dtype"] == np.float32}
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert floats == {entry["index"], result["index"]}


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EITHER)
def test_up_to_date_needs_neither_tensorflow_nor_the_extra(run, workspace, monkeypatch, file_format):
    """A second run prints the recorded table and writes nothing."""
    first = run("export", "--format", file_format)
    assert first.code == 0, first.err
    before = (export_path(workspace, file_format, "none") / "manifest.json").stat().st_mtime_ns
    missing = replace(exports.FORMATS[file_format], packages=("nosuch",))
    monkeypatch.setitem(exports.FORMATS, file_format, missing)
    second = run("export", "--format", file_format)
    assert (second.code, second.err) == (0, "")
    assert second.up_to_date
    assert second.out.splitlines()[1:] == first.out.splitlines()[2:]
    assert (export_path(workspace, file_format, "none") / "manifest.json").stat().st_mtime_ns == before
    code, imported = imports_of("export", "--format", file_format, cwd=workspace.parent)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EITHER)
def test_same_network_same_bytes(run, workspace, file_format):
    """The file does not depend on how many conversions the process did before."""
    file = export_path(workspace, file_format, "int8") / f"model.{file_format}"
    contents = []
    for _ in range(2):
        assert run("export", *options(file_format, "int8"), "--force").code == 0
        contents.append([file.read_bytes(), (file.parent / "README.md").read_text()])
    assert contents[0] == contents[1]


@pytest.mark.slow
@tflite
def test_retrained_network_makes_exports_stale(run, workspace):
    """`status` shows an export below its student and marks it stale; the next command makes it fresh again."""
    shutil.rmtree(workspace / "plots")
    run("export", "--quantize", "int8")
    lines = run("status").out.splitlines()
    number = next(number for number, line in enumerate(lines) if "export student-tflite-int8" in line)
    assert mentions(lines[number], "export", 360, "test rows", "bytes")
    assert lines[number - 1].strip().startswith("student student [")
    assert lines[number].index("export") == lines[number - 1].index("student") + 2
    assert run("train-student", *QUICK, "--seed", "3").code == 0
    status = run("status").out
    assert mentions(status, "stale", "student 'student'")
    assert mentions(status, "next", "kdistill export --quantize int8")
    outcome = run("export", "--quantize", "int8")
    assert mentions(outcome.out, "re-running", "exports/student-tflite-int8", "student")
    assert "stale" not in run("status").out
    outcome = run("verify")
    assert (outcome.code, mentions(outcome.out, 4)) == (0, True)
    shutil.rmtree(workspace / "students/student")
    status = run("status").out
    assert mentions(status, "stale", "student 'student'")
    assert mentions(status, "next", "kdistill train-student")


@pytest.mark.slow
@tflite
def test_stale_network_is_named(run, workspace):
    """Exporting a stale student prints a warning with its name."""
    run("train-teacher", *QUICK, "--seed", "2")
    outcome = run("export")
    assert outcome.code == 0
    assert mentions(outcome.err, "warning", "student 'student'", "stale")


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EITHER)
def test_verify_runs_it_again(run, workspace, file_format):
    """`verify` finds changed bytes, other test errors than recorded, and a file that its runtime cannot load."""
    run("export", "--format", file_format)
    path = export_path(workspace, file_format, "none")
    command = "kdistill export" + (" --format onnx" if file_format == "onnx" else "")
    manifest = recorded(path)
    errors = manifest["results"]["test_errors"]
    manifest["results"]["test_errors"] += 1
    (path / "manifest.json").write_text(json.dumps(manifest))
    outcome = run("verify")
    assert outcome.code == 1
    assert mentions(
        outcome.out, f"export '{path.name}'", f"model.{file_format}", errors, errors + 1, f"{command} --force"
    )
    (path / f"model.{file_format}").write_bytes(b"x")
    assert mentions(run("verify").out, f"model.{file_format}", f"{command} --force")
    manifest["outputs"][f"model.{file_format}"] = digest(path / f"model.{file_format}")
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert mentions(run("verify").out, f"export '{path.name}'", "runtime")
    (path / "manifest.json").write_text("{")
    assert run("verify").code == 1
    assert run("export", "--format", file_format).code == 0
    assert run("verify").code == 0


@pytest.mark.slow
@tflite
def test_teacher_of_the_workspace(run, workspace):
    """A teacher is exported by its name and shown below it, unless a student has the same name."""
    outcome = run("export", "--network", "teacher")
    assert outcome.code == 0, outcome.err
    manifest = recorded(workspace / "exports/teacher-tflite")
    assert [each["kind"] for each in manifest["inputs"]] == ["dataset", "teacher"]
    lines = run("status").out.splitlines()
    depths = [
        line.index(entry)
        for entry in ("teacher teacher [", "export teacher-tflite: ")
        for line in lines
        if entry in line
    ]
    assert depths[1] == depths[0] + 2
    shutil.copytree(workspace / "students/student", workspace / "students/teacher")
    assert mentions(run("export", "--network", "teacher").out, "teacher teacher -> none", "student none -> teacher")


def test_missing_extra(run, workspace, monkeypatch):
    """Missing packages give one line with the command that installs them, and nothing is written."""
    missing = replace(exports.FORMATS["onnx"], packages=("nosuch", "neither"))
    monkeypatch.setitem(exports.FORMATS, "onnx", missing)
    outcome = run("export", "--format", "onnx")
    assert outcome.code == 1
    assert mentions(outcome.err, "onnx", "nosuch", "neither", "pip install 'kdistill[onnx]'")
    assert len(outcome.err.splitlines()) == 1
    assert not (workspace / "exports").exists()


@pytest.mark.parametrize("wrong", [["--quantize", "int4"], ["--format", "pb"], ["--network", "../x"]])
def test_wrong_values(run, workspace, wrong):
    """Wrong options are usage errors, on the command line and in Python."""
    outcome = run("export", *wrong)
    assert outcome.code == 2
    assert wrong[1] in outcome.err
    with pytest.raises(UsageError, match=wrong[0]):
        Export(**{wrong[0].removeprefix("--"): wrong[1]})
    assert not (workspace / "exports").exists()


def test_no_such_network(run, tmp_path, workspace):
    """An unknown name gives one line with the known names and a command that works."""
    outcome = run("export", "--network", "nosuch")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert mentions(outcome.err, "'nosuch'", "student, teacher", "kdistill export")
    outcome = run("export", "-w", tmp_path / "empty")
    assert outcome.code == 1
    assert "kdistill train-student" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("network", ["a", "a-tflite", "b-int8", "c-onnx-float16", "d.1-", "sweep/a-tflite"])
@pytest.mark.parametrize(("file_format", "quantize"), ALL)
def test_names_hold_all_settings(network, file_format, quantize):
    settings = Export(network=network, format=file_format, quantize=quantize)
    assert Export.named(settings.name) == settings
    assert "/" not in settings.name


@pytest.mark.parametrize("name", ["tflite", "-tflite", "a-int8", "a", ".a-onnx", "a@-tflite", "a@b@c-tflite"])
def test_names_of_other_files(name):
    """Names that no export has are not parsed."""
    assert Export.named(name) is None


def fake(monkeypatch, write):
    """Replace the TFLite converter by a function."""
    monkeypatch.setitem(exports.FORMATS, "tflite", replace(exports.FORMATS["tflite"], packages=(), write=write))


def test_calibrated_on_training_rows(run, workspace, digits, monkeypatch):
    """int8 is calibrated on the same 500 training rows each time, scaled as the network takes them."""
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


@pytest.mark.slow
@tflite
def test_failed_export_changes_nothing(run, workspace, monkeypatch):
    """If a conversion fails or is interrupted, the previous export stays, and no other files."""
    run("export")
    before = digest(workspace)

    def refuse(*_):
        raise ValueError("unsupported operation\nat some place")

    def half(saved_model, file, *_):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    fake(monkeypatch, refuse)
    outcome = run("export", "--force")
    assert outcome.code == 1
    assert mentions(outcome.err, "student 'student'", "tflite", "unsupported operation")
    assert len(outcome.err.splitlines()) == 1
    assert digest(workspace) == before
    fake(monkeypatch, half)
    assert run("export", "--force").code == 130
    assert digest(workspace) == before


class Cholesky(keras.layers.Layer):
    def call(self, inputs):
        return tf.linalg.cholesky(inputs)[:, 0]


@pytest.mark.parametrize("file_format", EITHER)
def test_unsupported_operation(run, workspace, file_format):
    """A network with an operation that the format lacks is refused in one line that names the operation."""
    student = workspace / "students/student"
    layers = [keras.Input((28, 28)), Cholesky(), keras.layers.Dense(10)]
    shutil.rmtree(student / "saved_model")
    saved_models.save(keras.Sequential(layers), student)
    manifest = recorded(student)
    manifest["outputs"] |= {name: digest(student / name) for name in ("saved_model", "model.keras")}
    (student / "manifest.json").write_text(json.dumps(manifest))
    outcome = run("export", "--format", file_format)
    assert outcome.code == 1
    assert mentions(outcome.err, "student 'student'", file_format)
    assert "Cholesky" in outcome.err
    assert "partial" not in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (workspace / "exports").exists()


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EITHER)
def test_mixed_precision(run, workspace, file_format):
    """A network that was trained in mixed precision is exported in float32."""
    trained = run("train-student", *QUICK, "--epochs", "1", "--name", "mixed", "--precision", "mixed_bfloat16")
    assert trained.code == 0, trained.err
    outcome = run("export", "--network", "mixed", "--format", file_format, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["closeness"] >= 0.98
    assert (workspace / f"exports/mixed-{file_format}/model.{file_format}").exists()


@pytest.mark.slow
@tflite
@needs_mnist
def test_int8_on_mnist(run, tmp_path):
    """On 2,000 MNIST test images, quantization changes the number of errors by at most 10."""
    with np.load(MNIST) as arrays:
        np.savez(
            tmp_path / "mnist.npz",
            x_train=arrays["x_train"][:10_000],
            y_train=arrays["y_train"][:10_000],
            x_test=arrays["x_test"][:2000],
            y_test=arrays["y_test"][:2000],
        )
    model = ["--model", "mlp-100", "--epochs", "2", "--batch-size", "128", "--alpha", "1"]
    assert run("train-student", "--dataset", tmp_path / "mnist.npz", *model).code == 0
    outcome = run("export", "--quantize", "int8", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["test_rows"] == 2000
    assert result["original_test_errors"] < 300
    assert abs(result["test_errors"] - result["original_test_errors"]) <= 10
    assert result["closeness"] > 0.99
    assert result["bytes"] < result["original_bytes"] / 3


def description_in(file):
    """Return the description in the file's metadata, read with the format's own schema."""
    if file.suffix == ".onnx":
        import onnx

        return json.loads({entry.key: entry.value for entry in onnx.load(file).metadata_props}["kdistill.json"])
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    (buffer,) = [model.buffers[entry.buffer] for entry in model.metadata if entry.name == b"kdistill.json"]
    return json.loads(bytes(buffer.data))


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EITHER)
def test_class_names_and_preprocessing_are_in_the_file(run, tmp_path, file_format):
    """For a table, both manifests and the file have the class names and the statistics of each column."""
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
        "task": "classification",
        "class_names": results["class_names"],
        "preprocessing": results["preprocessing"],
        "input": {"shape": [2], "dtype": "float32", "data_dtype": "float32", "divide_by": 1},
    }
    for results in (recorded(place)["results"], json.loads(outcome.out)):
        assert {name: results[name] for name in described} == described


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "quantize"),
    [pytest.param(*case, marks=tflite if case[0] == "tflite" else onnx) for case in ALL if case[1] != "float16"],
)
def test_description_changes_no_output(workspace, tmp_path, digits, file_format, quantize):
    """A description changes no bit of the logits, and describing a file twice gives the same bytes."""
    converter, plain, described = exports.FORMATS[file_format], tmp_path / "plain", tmp_path / "described"
    inputs = np.float32(digits.test.read()[:50]) / 255
    converter.write(workspace / "students/student/saved_model", plain, quantize, inputs if quantize == "int8" else None)
    text = json.dumps({"class_names": ["ä"] * 10})
    described.write_bytes(converter.describe(plain.read_bytes(), text))
    assert described.read_bytes() == converter.describe(plain.read_bytes(), text) != plain.read_bytes()
    for rows in (inputs, inputs[:1]):
        np.testing.assert_array_equal(converter.run(described, 1)(rows), converter.run(plain, 1)(rows))


def test_long_lists_of_classes_are_not_recorded(digits):
    """Class names are recorded for at most 10,000 classes."""
    names = tuple(map(str, range(10_001)))
    dataset = replace(digits, classes=10_000, class_names=names[:-1])
    assert dataset.description["class_names"] == list(names[:-1])
    assert replace(digits, classes=10_001, class_names=names).description["class_names"] is None


@pytest.mark.slow
@tflite
def test_student_of_a_sweep(run, workspace):
    """A student of a sweep is exported, shown below its sweep, and stale after it changes."""
    shutil.copytree(workspace / "students/student", workspace / "sweeps/s/students/one")
    outcome = run("export", "--network", "s/one")
    assert outcome.code == 0, outcome.err
    place = workspace / "exports/s@one-tflite"
    assert recorded(place)["inputs"][1]["name"] == "s/one"
    assert run("export", "--network", "s/one").up_to_date
    entry = status_entry(run, "s@one-tflite")
    assert (entry["state"], entry["command"]) == ("fresh", "kdistill export --network s/one")
    assert run("verify").code == 0
    manifest = recorded(workspace / "students/student")
    sweep = {
        "kind": "sweep",
        "settings": {},
        "outputs": {},
        "results": {"task": "classification", "students": {"one": "sha256:0"}},
    }
    (workspace / "sweeps/s/manifest.json").write_text(json.dumps(manifest | sweep))
    lines = run("status").out.splitlines()
    depths = [line.index(entry) for entry in ("sweep s", "export s@one-tflite") for line in lines if entry in line]
    assert depths[1] == depths[0] + 2
    manifest = recorded(workspace / "sweeps/s/students/one")
    manifest["outputs"]["saved_model"] = "sha256:0"
    (workspace / "sweeps/s/students/one/manifest.json").write_text(json.dumps(manifest))
    assert status_entry(run, "s@one-tflite")["state"] == "stale"
    shutil.rmtree(workspace / "sweeps")
    assert status_entry(run, "s@one-tflite")["state"] == "stale"


@pytest.mark.parametrize("name", ["../../../outside", "/outside", "s/../../outside"])
def test_names_in_manifests_cannot_leave_the_workspace(run, workspace, tmp_path, name):
    """A manifest that names a network outside the workspace is damaged, even if there is one."""
    for place in (tmp_path / "outside", workspace / "sweeps/outside"):
        shutil.copytree(workspace / "students/student", place)
    export = workspace / "exports/student-tflite"
    export.mkdir(parents=True)
    manifest = recorded(workspace / "students/student")
    digits, settings = manifest["inputs"][0], {"format": "tflite", "quantize": "none"}
    schema = KINDS["export"].makers[0].results
    results = {name: "text" if kind is str else 1 for name, kind in schema.items()} | {"task": "classification"}
    for input_name, state in ((name, "damaged"), ("student", "fresh")):
        network = {"kind": "student", "name": input_name, "digest": manifest["outputs"]["saved_model"], "index": 1}
        inputs = [digits, network]
        outputs = {}
        for output in KINDS["export"].makers[0].outputs:
            (export / output).write_text("")
            outputs[output] = digest(export / output)
        fields = {"kind": "export", "inputs": inputs, "results": results, "settings": settings, "outputs": outputs}
        (export / "manifest.json").write_text(json.dumps(manifest | fields))
        assert status_entry(run, "student-tflite")["state"] == state


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EITHER)
def test_new_process_prints_nothing_of_libraries(run, workspace, file_format):
    """Converters and runtimes print nothing, and other processes write the same bytes."""
    assert run("train-student", "--alpha", "1", "--model", "cnn", "--epochs", "1").code == 0
    contents = []
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
        lines = [line.split() for line in done.stdout.splitlines() if not line.startswith("Re-running ")]
        firsts = [words[0] for words in lines]
        assert firsts[:4] == ["Converting", "Wrote", "student", "network"]
        assert firsts[5:] == ["SavedModel", file_format, "agree:", "ms/row:"]
        contents.append((workspace / f"exports/student-{file_format}-int8/model.{file_format}").read_bytes())
    assert contents[0] == contents[1]


def run_program(place, *arguments):
    """Run Python in an export's directory without kdistill on its path, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-B", *arguments], cwd=place, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example_in(place):
    (code,) = re.findall(r"^```python\n(.*?)^```$", (place / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return code


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EITHER)
def test_model_card(run, workspace, file_format):
    """The example runs as it is written, measures are those of the manifest, and the card names no directory."""
    outcome = run("export", "--format", file_format)
    assert outcome.code == 0, outcome.err
    place = export_path(workspace, file_format, "none")
    assert len(re.findall(r"-?\d+\.\d*", run_program(place, "-c", example_in(place)))) == 2 * 10
    card = (place / "README.md").read_text()
    assert str(workspace.parent) not in card + (place / "kdistill.json").read_text()
    results = recorded(place)["results"]
    assert mentions(card, "value:", results["test_accuracy"])
    assert mentions(card, "errors", results["test_errors"], results["original_test_errors"])
    assert json.loads((place / "kdistill.json").read_text()) == description_in(place / f"model.{file_format}")
    (place / "README.md").write_text("changed")
    assert mentions(run("verify").out, "README.md", "kdistill export")


@pytest.fixture
def people(tmp_path):
    """Return the path of a table with missing values, texts, booleans and a category that is rare."""
    draw = np.random.default_rng(2)
    age, city = draw.integers(18, 90, 120), draw.choice(["Oslo", 'São "P"', "07", "a,b"], 120)
    lines = ["age,city,member,income,group"]
    for i in range(120):
        quoted = '"' + str(city[i]).replace('"', '""') + '"'
        fields = ("" if i % 7 == 0 else age[i], "" if i % 11 == 0 else quoted, i % 3 == 0)
        lines.append(f"{fields[0]},{fields[1]},{fields[2]},{age[i] * 1000.5 + i},{['low', 'high'][int(age[i] > 50)]}")
    path = tmp_path / "people.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["group", "income"])
@pytest.mark.parametrize("file_format", EITHER)
def test_program_that_predicts_a_table(run, tmp_path, people, file_format, labels):
    """`predict.py` prepares rows of a CSV or dicts as kdistill does, and predicts what the SavedModel predicts."""
    read = ["--dataset", people, "--labels", labels, "--inputs", "age,city,member", "--test-inputs", people]
    train = ["--alpha", "1", "--model", "mlp-8", "--epochs", "2", "--batch-size", "16", "--xla", "off"]
    outcome = run("train-student", *read, "--missing", "mean", *train)
    assert outcome.code == 0, outcome.err
    assert run("export", "--format", file_format).code == 0
    place = tmp_path / f"workspace/exports/student-{file_format}"
    test = data.resolve(recorded(place)["inputs"][0]["name"]).load().test.read()
    outputs = saved_models.SavedNetwork.load(tmp_path / "workspace/students/student/saved_model").logits(test)
    printed = list(csv.DictReader(run_program(place, "predict.py", str(people)).splitlines()))
    names = recorded(place)["results"]["class_names"]
    values = np.array([[float(row[name]) for name in names] for row in printed])
    if labels == "group":
        np.testing.assert_allclose(values, metrics.softmax(outputs, 1), atol=1e-5)
        assert [row["prediction"] for row in printed] == [names[number] for number in outputs.argmax(axis=1)]
    else:
        np.testing.assert_allclose(values, outputs, rtol=1e-5)
    assert run_program(place, "-c", example_in(place)).count(":") == len(printed[0])
    code = "import predict; print(predict.network_inputs([{}], predict.load_description()['preprocessing']))"
    for row in (
        "{}",
        "{'age': 'old', 'city': '07', 'member': True}",
        "{'age': float('inf'), 'city': 'x', 'member': 0}",
    ):
        with pytest.raises(AssertionError, match=r"ValueError: row 0, column 'age'"):
            run_program(place, "-c", code.replace("{}", row, 1))
    unknown = code.replace("{}", "{'age': None, 'city': 'x', 'member': False}", 1)
    assert re.findall(r"-?\d\.\d*", run_program(place, "-c", unknown))[:5] == ["0."] * 5


@pytest.mark.slow
@tflite
def test_program_refuses_missing_values(run, tmp_path, people):
    """Values may be missing only if the network was trained with `--missing mean`."""
    read = ["--dataset", people, "--labels", "group", "--missing", "drop", "--test-fraction", "0.2"]
    outcome = run("train-student", *read, "--alpha", "1", "--model", "mlp-8", "--epochs", "1", "--xla", "off")
    assert outcome.code == 0, outcome.err
    assert run("export").code == 0
    with pytest.raises(AssertionError, match=r"^error: row 0, column 'age'.*"):
        run_program(tmp_path / "workspace/exports/student-tflite", "predict.py", str(people))
