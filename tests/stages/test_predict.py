"""`predict`: the predictions for rows without labels, in every format, by networks and exports."""

from __future__ import annotations

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
from helpers import mentions

from kdistill import Predict, Workspace, predict
from kdistill.networks.saved_models import SavedNetwork
from kdistill.stages import prediction_files
from kdistill.tasks import Prediction

NAMES = [str(number) for number in range(10)]
SPECIAL = ["a,b", 'say "c"', "two\nlines", "=1+1", "", " d", "e\rf", "ü;x"]  # texts that CSV must quote, or not
FORMATS = ["csv", "parquet", "npz", "h5"]


@pytest.fixture
def pool(digits, tmp_path):
    """Return the path of 250 rows without labels."""
    np.savez(tmp_path / "pool.npz", x_train=digits.test.read()[:250])
    return tmp_path / "pool.npz"


def logits_of(workspace, rows, network="students/student"):
    return SavedNetwork.load(workspace / network / "saved_model").logits(rows)


def read(path):
    """Return the columns of a file of any format; in a table, the probabilities of all classes are one array."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: (values.asstr() if values.dtype == object else values)[()] for name, values in file.items()}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="kdistill[tables] is not installed")
        columns = {name: np.array(values) for name, values in parquet.read_table(path).to_pydict().items()}
    else:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        columns = {name: np.array(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}
    if every := [columns.pop(name) for name in NAMES if name in columns]:
        columns |= {"probabilities": np.stack(every, 1), "names": np.array(NAMES)}
    return columns


def succeed(run, *arguments):
    outcome = run("predict", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_formats(run, workspace, pool, tmp_path, suffix):
    """Each format has the row number, the class by name and its probability; with --all, that of each class."""
    with np.load(pool) as arrays:
        logits = logits_of(workspace, arrays["x_train"])
    expected = np.exp(logits - logits.max(axis=1, keepdims=True, initial=0))
    expected /= expected.sum(axis=1, keepdims=True)
    for options, more in ([], set()), (["--all"], {"probabilities", "names"}):
        succeed(run, pool, "--output", f"out.{suffix}", "--batch-size", "100", *options)
        columns = read(tmp_path / f"out.{suffix}")
        assert columns.keys() == {"row", "class", "probability"} | more
        assert columns["row"].astype(int).tolist() == list(range(250))
        assert columns["class"].tolist() == [NAMES[label] for label in logits.argmax(axis=1)]
        np.testing.assert_allclose(columns["probability"].astype(float), expected.max(axis=1), rtol=1e-5)
        if more:
            np.testing.assert_allclose(columns["probabilities"].astype(float), expected, rtol=1e-4, atol=1e-7)
            assert columns["names"].tolist() == NAMES
    assert run("predict", pool, "--output", f"out.{suffix}", "--batch-size", "100", "--all").up_to_date
    assert sorted(path.name for path in tmp_path.glob("*out*")) == [f"out.{suffix}", f"out.{suffix}.json"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_resuming(run, workspace, pool, tmp_path, monkeypatch, suffix):
    """The same command continues after an interruption, with the bytes of an uninterrupted run."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="kdistill[tables] is not installed")
    arguments = (pool, "--output", f"out.{suffix}", "--batch-size", "50")
    succeed(run, *arguments)
    whole = (tmp_path / f"out.{suffix}").read_bytes()
    for path in tmp_path.glob("out.*"):
        path.unlink()

    def interrupt(_outputs, _network, rows):
        if 150 in rows:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kdistill.stages.predict.check_usable", interrupt)
        assert run("predict", *arguments).code == 130
    assert not list(tmp_path.glob("out.*"))
    assert mentions(succeed(run, *arguments).out, "resuming", 150)
    assert (tmp_path / f"out.{suffix}").read_bytes() == whole


def test_files_of_others_stay(run, workspace, pool, tmp_path):
    """A file that kdistill did not write, or that was changed since, is only replaced with --force."""
    output, manifest = tmp_path / "out.csv", tmp_path / "out.csv.json"
    for change in (
        lambda: output.write_text("mine"),
        lambda: output.open("a").write("a note\n"),
        lambda: (output.unlink(), manifest.write_text("{}")),
    ):
        change()
        before = [path.read_bytes() for path in (output, manifest) if path.exists()]
        outcome = run("predict", pool, "--output", output)
        assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
        assert mentions(outcome.err, "--output", "--force")
        assert [path.read_bytes() for path in (output, manifest) if path.exists()] == before
        succeed(run, pool, "--output", output, "--force")
    assert run("predict", pool, "--output", output).up_to_date
    output.unlink()
    succeed(run, pool, "--output", output)
    assert mentions(succeed(run, pool, "--output", output, "--network", "teacher").out, "re-running", "student")


def test_kill_between_file_and_manifest(run, workspace, pool, tmp_path, monkeypatch):
    """If a process dies after it has put the file in its place, the file is still one of kdistill's."""
    import os

    place = os.replace

    def die(source, target):
        if str(target).endswith("out.csv.json"):
            shutil.copytree(tmp_path / ".out.csv.partial", tmp_path / "killed")
            raise KeyboardInterrupt
        place(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", die)
        assert run("predict", pool, "--output", "out.csv").code == 130
    shutil.rmtree(tmp_path / ".out.csv.partial", ignore_errors=True)
    (tmp_path / "killed").rename(tmp_path / ".out.csv.partial")
    assert not (tmp_path / "out.csv.json").exists()
    assert run("predict", pool, "--output", "out.csv").up_to_date
    assert (tmp_path / "out.csv.json").exists()
    assert not (tmp_path / ".out.csv.partial").exists()


def test_dataset_of_the_network_is_not_needed(run, workspace, pool, tmp_path, digits):
    """The manifest and the SavedModel are enough, and labels of the data are ignored."""
    path = workspace / "students/student/manifest.json"
    manifest = json.loads(path.read_text())
    next(each for each in manifest["inputs"] if each["kind"] == "dataset")["name"] = "/gone.npz"
    path.write_text(json.dumps(manifest))
    with np.load(pool) as arrays:
        np.savez(tmp_path / "labeled.npz", x_train=arrays["x_train"], y_train=np.full(250, 77))
    result = predict(Workspace(workspace), Predict(data=str(tmp_path / "labeled.npz"), output=str(tmp_path / "a.csv")))
    assert result.manifest.results["rows"] == 250
    succeed(run, pool, "--output", "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    succeed(run, "digits", "--split", "test", "--output", "c.csv")
    assert len(read(tmp_path / "c.csv")["row"]) == len(digits.test)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": np.zeros((5, 8, 8), np.uint8)}, ["(8, 8)", "(28, 28)"]),
        ({"x_train": np.zeros((5, 28, 28), np.float32)}, ["float32", "uint8"]),
        ({"x_train": np.zeros((0, 28, 28), np.uint8)}, ["empty"]),
        ({"x": np.zeros((5, 28, 28), np.uint8)}, ["x_train"]),
    ],
    ids=["shape", "type", "empty", "name"],
)
def test_rows_that_do_not_fit(run, workspace, tmp_path, arrays, words):
    np.savez(tmp_path / "data.npz", **arrays)
    outcome = run("predict", "data.npz")
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert mentions(outcome.err, "data.npz", *words)
    assert not list(tmp_path.glob("*predictions*"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nosuch.npz"], 1, ["nosuch.npz"]),
        (["digits", "--output", "x.xlsx"], 2, ["--output", ".csv", ".parquet"]),
        (["digits", "--network", "../x"], 2, ["--network", "../x"]),
        (["digits", "--network", "nosuch"], 1, ["nosuch", "student", "teacher"]),
        (["digits", "--network", "nosuch-tflite"], 1, ["nosuch-tflite"]),
        (["digits", "--network", "nosuch.onnx"], 1, ["--network", "nosuch.onnx"]),
        (["digits", "--network", "a@b-onnx"], 1, ["a@b-onnx", "kdistill export --network a/b --format onnx"]),
        (["pool.npz", "--split", "test"], 2, ["pool.npz", "--split"]),
        (["pool.npz", "--missing", "drop"], 2, ["--missing drop", "--missing mean"]),
        (["pool.npz", "--output", "pool.npz", "--force"], 2, ["--output", "pool.npz"]),
        (["pool.npz", "--output", "folder.csv", "--force"], 2, ["--output", "folder.csv"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(run, workspace, pool, tmp_path, arguments, code, words):
    (tmp_path / "folder.csv").mkdir()
    outcome = run("predict", *arguments)
    assert (outcome.code, len(outcome.err.splitlines())) == (code, 1), outcome.err
    assert mentions(outcome.err, *words), outcome.err
    assert not list(tmp_path.glob("*predictions*"))


@pytest.mark.slow
def test_table(run, tmp_path):
    """A table gets the columns and the standardization of the training rows; its other columns are ignored."""
    pandas = pytest.importorskip("pandas", reason="kdistill[tables] is not installed")
    draw = np.random.default_rng(0)
    frame = pandas.DataFrame({"age": draw.normal(50, 9, 300), "size": draw.normal(3e4, 900, 300)})
    frame["kind"] = np.array(["house", "flat"])[np.arange(300) % 2]
    frame["price"] = 100 * frame["age"] + frame["size"] + 5000 * (frame["kind"] == "house")
    frame.to_csv("homes.csv", index=False)
    dataset = ["--dataset", "homes.csv", "--labels", "price", "--test-fraction", "0.2"]
    train = ["--model", "mlp-16", "--epochs", "40", "--learning-rate", "0.01", "--xla", "off"]
    assert run("train-teacher", *dataset, *train).code == 0
    new = frame[["kind", "size", "age"]].iloc[:20].assign(price=None, note="x")
    new.to_csv("new.csv", index=False)
    succeed(run, "new.csv", "--network", "teacher", "--output", "out.csv")
    columns = read(tmp_path / "out.csv")
    assert list(columns) == ["row", "price"]
    predicted = columns["price"].astype(float)
    assert np.corrcoef(predicted, frame["price"][:20])[0, 1] > 0.9
    new.iloc[::-1].to_parquet("new.parquet")
    succeed(run, "new.parquet", "--network", "teacher", "--output", "out.npz")
    np.testing.assert_allclose(read(tmp_path / "out.npz")["values"][::-1, 0], predicted, rtol=1e-5)
    new.drop(columns="age").to_csv("less.csv", index=False)
    np.savez("arrays.npz", x_train=np.zeros((5, 2), np.float32))
    new.assign(age=None).to_csv("missing.csv", index=False)
    succeed(run, "missing.csv", "--network", "teacher", "--output", "mean.csv", "--missing", "mean")
    assert len(read(tmp_path / "mean.csv")["row"]) == 20
    for data, words in (("less.csv", ["age"]), ("arrays.npz", ["age", "size"]), ("missing.csv", ["age", "--missing"])):
        outcome = run("predict", data, "--network", "teacher", "--output", "no.csv")
        assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
        assert mentions(outcome.err, data, *words)


@pytest.mark.slow
@pytest.mark.parametrize(("file_format", "package"), [("tflite", "ai_edge_litert"), ("onnx", "onnxruntime")])
def test_exports(run, workspace, pool, tmp_path, file_format, package):
    """An export is found by its name or its file, also far from its workspace, and predicts as its network does."""
    pytest.importorskip(package)
    assert run("export", "--format", file_format).code == 0
    name, file = f"student-{file_format}", f"exports/student-{file_format}/model.{file_format}"
    shutil.copyfile(workspace / file, tmp_path / f"moved.{file_format}")
    succeed(run, pool, "--output", "network.npz", "--all")
    expected = read(tmp_path / "network.npz")
    for network in (name, file, f"workspace/{file}", f"moved.{file_format}"):
        succeed(run, pool, "--output", "export.npz", "--all", "--network", network, "--batch-size", "100")
        columns = read(tmp_path / "export.npz")
        assert columns["class"].tolist() == expected["class"].tolist()
        np.testing.assert_allclose(columns["probabilities"], expected["probabilities"], atol=1e-5)
    (tmp_path / f"bad.{file_format}").write_bytes(b"no network")
    outcome = run("predict", pool, "--network", f"bad.{file_format}", "--output", "bad.csv")
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert mentions(outcome.err, f"bad.{file_format}")


def test_texts_and_names(tmp_path):
    """Every format keeps texts as they are; a name of a value that another column has gets an underscore."""
    texts = np.array(SPECIAL, object)
    values = np.arange(2 * len(texts), dtype=np.float32).reshape(-1, 2) / 3
    block = [
        Prediction("row", np.arange(len(texts))),
        Prediction("class", texts),
        Prediction("all", values, ["row", "x,y"]),
    ]
    for suffix in FORMATS:
        if suffix == "parquet":
            pytest.importorskip("pyarrow", reason="kdistill[tables] is not installed")
        path = tmp_path / f"out.{suffix}"
        prediction_files.write(path, iter([block, block]), 2 * len(texts))
        columns = read(path)
        assert columns["class"].tolist() == 2 * SPECIAL
        if suffix in ("npz", "h5"):
            assert columns["names"].tolist() == ["row", "x,y"]
            np.testing.assert_array_equal(columns["all"], np.concatenate([values, values]))
        else:
            assert list(columns) == ["row", "class", "row_", "x,y"]
            np.testing.assert_array_equal(columns["x,y"].astype(np.float32), np.tile(values[:, 1], 2))


def test_row_groups(tmp_path, monkeypatch):
    """A Parquet file has as few row groups as the memory for one allows."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="kdistill[tables] is not installed")
    monkeypatch.setattr(prediction_files, "GROUP_BYTES", 2000)
    blocks = ([Prediction("row", np.arange(start, start + 100))] for start in range(0, 1000, 100))
    prediction_files.write(tmp_path / "out.parquet", blocks, 1000)
    file = parquet.ParquetFile(tmp_path / "out.parquet")
    assert file.num_row_groups == 4
    assert file.read()["row"].to_pylist() == list(range(1000))
