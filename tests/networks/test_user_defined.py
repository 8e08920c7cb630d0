"""Networks of the user's own: where they come from, mistakes in them, and how they train, resume and save."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import KDISTILL, InterruptAfter, stamps, write_npz

from kdistill.backend import keras, tf
from kdistill.console import Reporter
from kdistill.data import Split
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError, UsageError
from kdistill.networks import saved_models
from kdistill.networks.build import build_network
from kdistill.networks.layers import TABLE_ROWS, layer_table
from kdistill.settings import Objective, Training
from kdistill.training.checkpoint import Checkpoint
from kdistill.training.loop import train as train_network
from kdistill.training.training_rows import TrainingRows
from kdistill.training.xla import uses_xla
from kdistill.workspace import Manifest, Workspace

QUICK = ["--epochs", "2", "--batch-size", "64", "--learning-rate", "0.003"]
NETS = '''
import keras
from keras import layers as L

constant = 3

def image(x):
    return x if len(x.shape) == 4 else L.Reshape((*x.shape[1:], 1))(x)

def resnet(input_shape, classes):
    """Augmentation, batch normalization, dropout, branches."""
    inputs = keras.Input(input_shape)
    x = L.RandomFlip("horizontal")(image(inputs))
    x = L.RandomTranslation(0.1, 0.1)(x)
    x = L.Conv2D(4, 3, strides=3, use_bias=False)(x)
    for _ in range(2):
        y = L.ReLU()(L.BatchNormalization()(x))
        x = L.Add()([x, L.Dropout(0.2)(L.Conv2D(4, 3, padding="same", use_bias=False)(y))])
    return keras.Model(inputs, L.Dense(classes)(L.GlobalAveragePooling2D()(x)))

def dense(input_shape, classes):
    return keras.Sequential([keras.Input(input_shape), L.Flatten(), L.Dense(16, "relu"), L.Dense(classes)])

def unbuilt(input_shape, classes):
    return keras.Sequential([L.Flatten(), L.Dropout(0.2), L.Dense(classes)])

class Sub(keras.Model):
    """Draws random numbers in training only, and has layers in a list; Keras cannot save it."""

    def __init__(self, classes, thing):
        super().__init__()
        self.flat, self.parts, self.out = L.Flatten(), [L.Dropout(0.2), L.BatchNormalization()], L.Dense(classes)
        self.noise = keras.random.SeedGenerator(5)

    def call(self, x, training=False):
        x = self.flat(x)
        for part in self.parts:
            x = part(x, training=training)
        if training:
            x = x + keras.random.normal(keras.ops.shape(x), stddev=0.1, seed=self.noise)
        return self.out(x)

def sub(input_shape, classes):
    return Sub(classes, object())

def nested(input_shape, classes):
    """A nested network, a shared layer, regularizers, and operations besides layers; compiled with metrics."""
    inner = keras.Sequential([keras.Input((16,)), L.Dense(16, "relu", activity_regularizer="l2"), L.Dropout(0.1)])
    shared = L.Dense(16, kernel_regularizer="l2")
    inputs = keras.Input(input_shape)
    x = inner(shared(L.Flatten()(inputs)))
    both = keras.ops.concatenate([x, inner(x)], axis=-1) * 2.0
    model = keras.Model(inputs, L.Dense(classes)(both))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

def low(input_shape, classes):
    """Layers in several dtypes, and weights in bfloat16."""
    inputs = keras.Input(input_shape)
    x = L.Dense(16, "relu", dtype="bfloat16")(L.Flatten()(inputs))
    x = L.Dense(16, "relu", dtype="mixed_float16")(x)
    return keras.Model(inputs, L.Dense(classes, dtype="bfloat16")(x))

def augmented(input_shape, classes):
    inputs = keras.Input(input_shape)
    x = L.RandomBrightness(0.1, value_range=(0, 1))(L.RandomRotation(0.1)(image(inputs)))
    return keras.Model(inputs, L.Dense(classes)(L.Flatten()(L.RandomErasing(value_range=(0, 1))(x))))

def words(input_shape, classes):
    """Token ids: an embedding and a recurrent layer with dropout."""
    inputs = keras.Input(input_shape, dtype="int32")
    x = L.Embedding(50, 8, mask_zero=True)(inputs)
    x = L.LSTM(4, dropout=0.2, recurrent_dropout=0.2)(x)
    return keras.Model(inputs, L.Dense(classes)(x))

def unbuilt_words(input_shape, classes):
    return keras.Sequential([L.Embedding(1000, 8), L.GRU(4, dropout=0.1), L.Dense(classes)])

def lookup(input_shape, classes):
    """A lookup table, which is not a variable."""
    inputs = keras.Input(input_shape, dtype="int32")
    x = L.Embedding(4, 8)(L.IntegerLookup(vocabulary=[0, 1, 2])(inputs))
    return keras.Model(inputs, L.Dense(classes)(L.Flatten()(x)))

def softmax(input_shape, classes):
    return keras.Sequential([keras.Input(input_shape), L.Flatten(), L.Dense(classes, "softmax")])

def softmax_layer(input_shape, classes):
    return keras.Sequential([keras.Input(input_shape), L.Flatten(), L.Dense(classes), L.Softmax()])

def softmax_activation(input_shape, classes):
    return keras.Sequential([L.Flatten(), L.Dense(classes), L.Activation("softmax")])

def softmax_inside(input_shape, classes):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, softmax_layer(input_shape, classes)(inputs))

def softmax_operation(input_shape, classes):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, keras.ops.softmax(L.Dense(classes)(L.Flatten()(inputs))))

def softmax_in_disguise(input_shape, classes):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, softmax(input_shape, classes)(inputs) * 1.0)

def sigmoid(input_shape, classes):
    return keras.Sequential([keras.Input(input_shape), L.Flatten(), L.Dense(classes, "sigmoid")])

class SubSoftmax(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.flat, self.out = L.Flatten(), L.Dense(classes)

    def call(self, x):
        return keras.ops.softmax(self.out(self.flat(x)))

def sub_softmax(input_shape, classes):
    return SubSoftmax(classes)

class SubHinge(keras.Model):
    """Its last layer by attribute is a gate, but its output is not a sigmoid."""

    def __init__(self, classes):
        super().__init__()
        self.flat, self.out, self.gate = L.Flatten(), L.Dense(classes), L.Dense(classes, "sigmoid")

    def call(self, x):
        x = self.flat(x)
        return self.gate(x) * self.out(x)

def gated(input_shape, classes):
    return SubHinge(classes)

def no_model(input_shape, classes):
    return [input_shape, classes]

def one_argument(input_shape):
    return input_shape

def raises(input_shape, classes):
    return 1 // 0

def stops(input_shape, classes):
    raise SystemExit("no")

def bad_layer(input_shape, classes):
    return keras.Sequential([keras.Input(input_shape), L.Dense(-classes)])

def fails_when_called(input_shape, classes):
    class Fails(keras.Model):
        def call(self, x):
            return x @ "text"
    return Fails()

def two_inputs(input_shape, classes):
    inputs = [keras.Input(input_shape), keras.Input(input_shape)]
    return keras.Model(inputs, L.Dense(classes)(L.Flatten()(L.Add()(inputs))))

def two_outputs(input_shape, classes):
    inputs = keras.Input(input_shape)
    x = L.Flatten()(inputs)
    return keras.Model(inputs, [L.Dense(classes)(x), L.Dense(classes)(x)])

def named_output(input_shape, classes):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, {"logits": L.Dense(classes)(L.Flatten()(inputs))})

def other_rows(input_shape, classes):
    return keras.Sequential([keras.Input((7, 7, 3)), L.Flatten(), L.Dense(classes)])

def extra_axis(input_shape, classes):
    return keras.Sequential([keras.Input((*input_shape, 1)), L.Flatten(), L.Dense(classes)])

def fixed_batch(input_shape, classes):
    return keras.Sequential([keras.Input(batch_shape=(8, *input_shape)), L.Flatten(), L.Dense(classes)])

def bytes_in(input_shape, classes):
    return keras.Sequential([keras.Input(input_shape, dtype="uint8"), L.Rescaling(1.0), L.Flatten(), L.Dense(classes)])

def too_many(input_shape, classes):
    return keras.Sequential([keras.Input(input_shape), L.Flatten(), L.Dense(classes + 1)])

def unflattened(input_shape, classes):
    return keras.Sequential([keras.Input(input_shape), L.Dense(classes)])

def frozen(input_shape, classes):
    model = dense(input_shape, classes)
    model.trainable = False
    return model
'''


def line_of(text, of=NETS):
    """Return the number of the line with this text."""
    return of[: of.index(text)].count("\n") + 1


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """Write `nets.py` to an empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "nets.py").write_text(NETS)
    yield tmp_path / "nets.py"
    for name in [name for name in sys.modules if name.split(".")[0] in ("nets", "package", "broken")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def rows(digits):
    return digits.train.read()[:128, ::2, ::2], digits.train.labels[:128]


@pytest.fixture(scope="module")
def small(tmp_path_factory, digits):
    """The digits, with fewer rows and pixels."""
    parts = {}
    for split, count in (("train", 256), ("test", 64)):
        part = getattr(digits, split)
        parts |= {f"x_{split}": part.read()[:count, ::2, ::2], f"y_{split}": part.labels[:count]}
    return write_npz(tmp_path_factory.mktemp("small") / "small.npz", digits, **parts)


def build(model, shape=(14, 14), classes=10, *, precision="float32", dtype="uint8", seed=0, **options):
    return build_network(
        model, shape, classes, role="teacher", seed=seed, precision=precision, input_dtype=dtype, **options
    )


def train(place, network, inputs, labels, how, reporter=None):
    place.mkdir(exist_ok=True)
    identity = Manifest(kind="teacher", settings=asdict(how))
    return train_network(
        lambda: build(network, inputs.shape[1:], precision=how.precision, dtype=str(inputs.dtype)),
        TrainingRows(Split("train", ArrayRows(inputs, "some"), labels)),
        TrainingRows(Split("test", ArrayRows(inputs[:20], "some"), labels[:20])),
        objective=Objective(alpha=1.0),
        settings=how,
        role="teacher",
        checkpoint=Checkpoint(place / "checkpoint.npz", identity),
        reporter=reporter or Reporter(quiet=True),
    )


def weights(network):
    return [np.asarray(variable.numpy()).tobytes() for variable in network.variables]


ALL_KINDS = [
    ("nets:resnet", "uint8", {}),
    ("nets:resnet", "uint8", {"precision": "mixed_bfloat16"}),
    ("nets:unbuilt", "uint8", {"precision": "mixed_float16"}),
    ("nets:sub", "uint8", {"optimizer": "adamw"}),
    ("nets:nested", "float32", {"optimizer": "sgd"}),
    ("nets:low", "uint8", {}),
    ("nets:augmented", "uint8", {}),
    ("nets:words", "int64", {}),
    ("nets:unbuilt_words", "int32", {"precision": "mixed_bfloat16"}),
    ("nets:lookup", "int64", {}),
    ("nets:gated", "float64", {}),
]


def some_rows(rows, dtype):
    """Return images of a dtype, or token ids for an integer dtype."""
    if dtype.startswith("int"):
        return (rows[0][:, 0] % 50).astype(dtype)
    return rows[0] if dtype == "uint8" else rows[0].astype(dtype) / 255


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dtype", "changed"), ALL_KINDS, ids=[f"{m} {d} {c}" for m, d, c in ALL_KINDS])
def test_resumed_training_has_the_same_bits(tmp_path, rows, model, dtype, changed):
    """Training that is stopped after an epoch and resumed gives the weights of an uninterrupted run."""
    how = Training(**{"epochs": 3, "batch_size": 32, "seed": 4} | changed)
    inputs = some_rows(rows, dtype)
    uninterrupted, expected = train(tmp_path / "whole", model, inputs, rows[1], how)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", model, inputs, rows[1], how, InterruptAfter(1))
    counts = InterruptAfter(100)
    network, progress = train(tmp_path / "stopped", model, inputs, rows[1], how, counts)
    assert 100 - counts.left == 2, "only two epochs remained"
    assert weights(network) == weights(uninterrupted)
    assert progress.rows[-1]["train_loss"] == expected.rows[-1]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dtype", "changed"), ALL_KINDS, ids=[f"{m} {d} {c}" for m, d, c in ALL_KINDS])
def test_saved_network_has_the_same_logits(tmp_path, rows, model, dtype, changed):
    """The logits are float32 whatever dtype the network computes in, without augmentation and dropout."""
    inputs = some_rows(rows, dtype)[:5]
    network = build(model, inputs.shape[1:], dtype=dtype, precision=changed.get("precision", "float32"))
    saved_models.save(network, tmp_path)
    saved = saved_models.SavedNetwork.load(tmp_path / "saved_model")
    expected = network(inputs / np.float32(255) if dtype == "uint8" else inputs, training=False)
    np.testing.assert_allclose(saved.logits(inputs), tf.cast(expected, tf.float32), atol=1e-3)
    assert saved.input_dtype == (tf.int32 if dtype.startswith("int") else tf.float32)
    assert layer_table(network)[-1] == ("total", "", f"{network.count_params():,}")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp-20", *dict.fromkeys(model for model, _, _ in ALL_KINDS)])
def test_saved_bytes_depend_on_the_network_alone(tmp_path, rows, model):
    """A network that is saved after other networks were built has the same bytes, and loads."""
    dtype = next((dtype for name, dtype, _ in ALL_KINDS if name == model), "uint8")
    inputs = some_rows(rows, dtype)[:5]
    saves = []
    for place in (tmp_path / "first", tmp_path / "second"):
        place.mkdir()
        network = build(model, inputs.shape[1:], dtype=dtype)
        problem = saved_models.save(network, place)
        saves.append({str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()})
        logits = saved_models.SavedNetwork.load(place / "saved_model").logits(inputs)
        if not problem:
            loaded = saved_models.SavedNetwork.load(place / "model.keras")
            np.testing.assert_allclose(loaded.logits(inputs), logits, atol=1e-5)
        build("nets:resnet")(np.zeros((1, 14, 14), np.float32))
    assert saves[0].keys() == saves[1].keys()
    assert [name for name in saves[0] if saves[0][name] != saves[1][name]] == []


def test_lookup_tables_are_not_shared_by_networks(tmp_path, rows):
    """Two SavedModels with different vocabularies keep their own logits in one process."""
    inputs, networks = some_rows(rows, "int64")[:5] % 3, []
    for vocabulary in ([0, 1, 2], [2, 1, 0]):
        ids = keras.Input(inputs.shape[1:], dtype="int32")
        numbers = keras.layers.IntegerLookup(vocabulary=vocabulary)(ids)
        networks.append(keras.Model(ids, keras.ops.cast(numbers, "float32")))
    for number, network in enumerate(networks):
        (tmp_path / str(number)).mkdir()
        saved_models.save(network, tmp_path / str(number))
    loaded = [saved_models.SavedNetwork.load(tmp_path / str(number) / "saved_model") for number in (0, 1)]
    for saved, network in zip(loaded, networks, strict=True):
        np.testing.assert_array_equal(saved.logits(inputs), network(inputs))


def test_token_ids_keep_their_precision(rows):
    """Ids that are equal in bfloat16 stay different, even in a network without an input dtype."""
    network = build("nets:unbuilt_words", (6,), dtype="int64", precision="mixed_bfloat16")
    ids = np.full((2, 6), 700, np.int32)
    ids[1] += 1
    one, other = np.asarray(tf.cast(network(ids), tf.float32))
    assert (one != other).any()


def test_seed_determines_weights():
    """The initial weights of a function's network come from the seed."""
    assert weights(build("nets:dense")) == weights(build("nets:dense"))
    assert weights(build("nets:dense")) != weights(build("nets:dense", seed=1))


def test_precision_is_the_policy_while_the_function_runs():
    """The dtype policy of the process does not change."""
    network = build("nets:dense", precision="mixed_bfloat16")
    assert {layer.compute_dtype for layer in network.layers} == {"bfloat16"}
    assert keras.config.dtype_policy().name == "float32"


def test_module_in_a_package_is_found_without_importing_its_parents(tmp_path):
    """The code of parent packages runs when the network is built, not when its source is resolved."""
    from kdistill.networks.sources import resolve_model

    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "inner" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "package" / "inner" / "some.py").write_text("from .other import dense")
    (tmp_path / "package" / "inner" / "other.py").write_text(NETS)
    source = resolve_model("package.inner.some:dense")
    assert source.file == tmp_path / "package" / "inner" / "some.py"
    assert "package" not in sys.modules
    (tmp_path / "package" / "inner" / "__init__.py").write_text("")
    assert build("package.inner.some:dense").count_params() == build("nets:dense").count_params()


def test_changed_source_is_used(nets, monkeypatch):
    """A change is noticed even if it keeps the size and modification time that Python checks byte code by."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = nets.stat()
    assert build("nets:dense").count_params() == 196 * 16 + 16 + 170
    nets.write_text(NETS.replace('L.Dense(16, "relu"), L.Dense(classes)', 'L.Dense(32, "relu"), L.Dense(classes)'))
    os.utime(nets, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build("nets:dense").count_params() == 196 * 32 + 32 + 330


AT = {name: line_of(f"def {name}(") for name in ("no_model", "one_argument", "two_inputs", "fails_when_called")}
MISTAKES = [
    ("nosuch:f", ["'nosuch'"]),
    ("nets.nosuch:f", ["'nets.nosuch'"]),
    ("nets.py:dense", ["--model nets:dense"]),
    ("sys:exit", ["'sys'"]),
    ("broken:f", ["broken.py:2: ModuleNotFoundError", "'nosuch'", "--model broken:f"]),
    ("broken.syntax:f", ["syntax.py:1: SyntaxError: "]),
    ("nets:nosuch", ["nets.py: nosuch"]),
    ("nets:constant", ["nets.py: constant", " int", "--model nets:constant", "(input_shape, classes)"]),
    ("nets:one_argument", [f"nets.py:{AT['one_argument']}: TypeError: "]),
    ("nets:raises", [f"nets.py:{line_of('1 // 0')}: ZeroDivisionError: ", "raises((14, 14), 10)"]),
    ("nets:stops", [f"nets.py:{line_of('SystemExit')}: SystemExit: no"]),
    ("nets:bad_layer", [f"nets.py:{line_of('-classes')}: ValueError: ", "`units`"]),
    ("nets:no_model", [f"nets.py:{AT['no_model']}: no_model", " list", "keras.Model"]),
    ("nets:fails_when_called", [f"nets.py:{line_of('x @')}: ", "(14, 14)"]),
    ("nets:two_inputs", [f"nets.py:{AT['two_inputs']}: ", "2 inputs", "1 outputs"]),
    ("nets:two_outputs", ["1 inputs", "2 outputs"]),
    ("nets:named_output", [" dict"]),
    ("nets:other_rows", ["(None, 7, 7, 3)", "(None, 14, 14)"]),
    ("nets:extra_axis", ["(None, 14, 14, 1)", "(None, 14, 14)"]),
    ("nets:fixed_batch", ["(8, 14, 14)", "(None, 14, 14)"]),
    ("nets:bytes_in", ["uint8", "float32"]),
    ("nets:too_many", ["(None, 11)", "(None, 10)"]),
    ("nets:unflattened", ["(None, 14, 10)", "(None, 10)"]),
    ("nets:frozen", ["trainable"]),
    ("nosuch.keras", ["--model nosuch.keras"]),
    ("text.keras", ["text.keras"]),
    ("lambda.keras", ["lambda.keras", "`Lambda`", "--model MODULE:FUNCTION"]),
    ("custom.keras", ["custom.keras", "--model MODULE:FUNCTION"]),
    ("low.keras", ["low.keras", "--precision mixed_bfloat16"]),
    ("keras.applications:MobilNet", ["--model keras.applications:MobilNet", " MobileNet,"]),
    ("keras.applications:vgg16", ["--model keras.applications:vgg16", "VGG16"]),
    ("keras.applications:MobileNetV2", ["--model keras.applications:MobileNetV2", "(14, 14)", "32x32"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "texts"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_mistake_is_one_line(run, small, tmp_path, model, texts):
    """The error has the location and the cause, and nothing is written."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken.py").write_text("import sys\nimport nosuch\n")
    (tmp_path / "broken" / "syntax.py").write_text("def f(:\n")
    if model.startswith("broken."):
        (tmp_path / "broken.py").unlink()
    layers = keras.layers
    if model == "text.keras":
        (tmp_path / model).write_text("no network")
    if model == "lambda.keras":
        keras.Sequential([keras.Input((14, 14)), layers.Lambda(lambda x: x), layers.Dense(10)]).save(model)
    if model == "custom.keras":
        mine = type("Mine", (layers.Flatten,), {})
        keras.Sequential([keras.Input((14, 14)), mine(), layers.Dense(10)]).save(model)
    if model == "low.keras":
        build("nets:dense", precision="mixed_bfloat16").save(model)
    before = sorted(tmp_path.iterdir())
    outcome = run("train-teacher", "--dataset", small, "--model", model, *QUICK)
    assert outcome.code == 1, outcome.out
    assert len(outcome.err.splitlines()) == 1
    assert all(text in outcome.err for text in texts), outcome.err
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


SOFTMAXES = ["softmax", "softmax_layer", "softmax_activation", "softmax_inside", "softmax_operation"]


@pytest.mark.parametrize("name", [*SOFTMAXES, "softmax_in_disguise", "sub_softmax"])
def test_softmax_is_refused(name):
    """Probabilities are found by the last operation or by the output for a few rows."""
    with pytest.raises(KdistillError, match=r"nets.py:\d+: .*softmax.*activation=None"):
        build(f"nets:{name}")


def test_softmax_is_refused_in_a_file_and_for_a_student(run, small):
    build("nets:dense").save("dense.keras")
    network = keras.models.load_model("dense.keras")
    network.layers[-1].activation = keras.activations.softmax
    network.save("soft.keras")
    outcome = run("train-student", "--alpha", 1, "--dataset", small, "--model", "soft.keras", *QUICK)
    assert outcome.code == 1
    assert all(text in outcome.err for text in ("soft.keras", "softmax", "activation=None"))


def test_sigmoid_is_refused():
    """A network that ends in a sigmoid is refused, one with a sigmoid gate is not."""
    with pytest.raises(KdistillError, match=r"sigmoid.*activation=None"):
        build("nets:sigmoid")
    build("nets:gated")


def saved_variables(place):
    with np.load(place / "checkpoint.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files if name != "head"}


def manifest(kind, name):
    return json.loads((Workspace(Path("workspace")).root / kind / name / "manifest.json").read_text())


def status_of(run):
    """Return the state, reasons and command of each artifact by its kind, and the next command."""
    status = json.loads(run("status", "--json").out)
    return {item["kind"]: item for item in status["artifacts"]}, status["next"]


def is_up_to_date(run, *command):
    """Return whether a command succeeds without writing anything."""
    before = stamps(Path("workspace"))
    assert run(*command).code == 0
    return stamps(Path("workspace")) == before


@pytest.mark.slow
def test_function_in_all_stages(run, small, nets):
    """Teacher and student of one function are stale after its source changes, and are made again in order."""
    stages = [
        ["train-teacher", "--dataset", small, "--model", "nets:resnet", *QUICK],
        ["soften"],
        ["train-student", *QUICK],
    ]
    for stage in stages:
        assert run(*stage).code == 0
    student = manifest("students", "student")
    assert student["settings"]["model"] == "nets:resnet"
    assert {each["kind"]: each["name"] for each in student["inputs"]}["model"] == str(nets)
    teacher_variables = saved_variables(Path("workspace/teachers/teacher"))
    assert saved_variables(Path("workspace/students/student")) != teacher_variables
    for stage in stages:
        assert is_up_to_date(run, *stage)
    nets.write_text(NETS + "\n# changed\n")
    artifacts, following = status_of(run)
    for kind in ("teacher", "student"):
        assert artifacts[kind]["state"] == "stale"
        assert str(nets) in "".join(artifacts[kind]["reasons"])
    assert following.startswith("kdistill train-teacher ")
    assert "--model nets:resnet" in following
    assert not is_up_to_date(run, *stages[0])
    assert is_up_to_date(run, "soften"), "a comment does not change the teacher's weights"
    assert not is_up_to_date(run, *stages[2])
    assert {item["state"] for item in status_of(run)[0].values()} == {"fresh"}
    nets.unlink()
    assert status_of(run)[0]["teacher"]["state"] == "stale"


@pytest.mark.slow
def test_up_to_date_runs_no_code(run, small, nets):
    """A command that is up to date imports neither TensorFlow nor the user's module."""
    command = ["train-teacher", "--dataset", str(small), "--model", "nets:dense", *QUICK]
    assert run(*command).code == 0
    code = (
        f"import sys; sys.argv = ['kdistill', *{command!r}]\n"
        "from kdistill.cli import main\n"
        "try: main()\n"
        "except SystemExit as exit: assert not exit.code\n"
        "print([name for name in ('tensorflow', 'keras', 'nets') if name in sys.modules])\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_l2_applies_to_kernels_without_a_regularizer(rows):
    """The penalty is half the rate times the sum of the squared kernels; a network with its own penalty is refused."""
    network = build("nets:resnet", l2=0.1)
    kernels = [weight.numpy() for weight in network.trainable_variables if weight.name == "kernel"]
    assert len(kernels) > 2
    assert sum(map(float, network.losses)) == pytest.approx(0.05 * sum((each**2).sum() for each in kernels), rel=1e-5)
    with pytest.raises(UsageError, match=r"--l2.*nets:nested.*kernel"):
        build("nets:nested", l2=0.1)


@pytest.mark.slow
def test_file_is_trained_further(run, small):
    """A `.keras` file keeps its weights whatever the seed; the student of such a teacher gets new ones."""
    build("nets:resnet").save("net.keras")
    saved = [variable.numpy() for variable in build("nets:resnet").trainable_variables]
    for seed in (0, 1):
        loaded = build("net.keras", seed=seed).trainable_variables
        assert all((one.numpy() == other).all() for one, other in zip(loaded, saved, strict=True))
    fresh = [build("net.keras", weights="new", seed=seed).trainable_variables for seed in (0, 0, 1)]
    assert [variable.shape for variable in fresh[0]] == [variable.shape for variable in saved]
    assert (fresh[0][0].numpy() == fresh[1][0].numpy()).all()
    assert not (fresh[0][0].numpy() == fresh[2][0].numpy()).all()
    assert not (fresh[0][0].numpy() == saved[0]).all()
    assert run("train-teacher", "--dataset", small, "--model", "net.keras", *QUICK).code == 0
    assert run("soften").code == 0
    assert run("train-student", *QUICK).code == 0
    teacher, student = manifest("teachers", "teacher"), manifest("students", "student")
    assert teacher["settings"]["model"] == student["settings"]["model"] == os.path.abspath("net.keras")
    assert ("weights" in teacher["settings"], student["settings"]["weights"]) == (False, "new")
    command = status_of(run)[0]["student"]["command"]
    assert f"--model {os.path.abspath('net.keras')} --weights new" in command
    assert is_up_to_date(run, *command.split()[1:])
    assert not is_up_to_date(run, "train-student", "--model", "net.keras", *QUICK)
    build("nets:dense").save("net.keras")
    assert os.path.abspath("net.keras") in "".join(status_of(run)[0]["student"]["reasons"])


def test_frozen_layers_stay_frozen_except_in_a_new_copy():
    """Frozen layers of a `.keras` file stay frozen; with new weights they are trained."""
    network = build("nets:resnet")
    network.layers[4].trainable = False
    network.save("net.keras")
    count = len(network.trainable_variables)
    assert len(build("net.keras").trainable_variables) == count
    assert len(build("net.keras", weights="new").trainable_variables) == count + 1


@pytest.mark.slow
def test_weights_of_a_file(run, small):
    """`--weights` loads both of Keras's files of weights; a changed file makes the teacher stale."""
    network = build("nets:resnet", seed=7)
    network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(np.zeros((2, 14, 14)), np.zeros(2), verbose=0)
    network.save_weights("some.weights.h5")
    network.save("some.keras")
    for file in ("some.weights.h5", "some.keras"):
        loaded = build("nets:resnet", weights=file)
        assert all((a.numpy() == b.numpy()).all() for a, b in zip(loaded.weights, network.weights, strict=True))
    command = ["train-teacher", "--dataset", small, "--model", "nets:resnet", *QUICK, "--weights", "some.weights.h5"]
    assert run(*command).code == 0
    assert [each["kind"] for each in manifest("teachers", "teacher")["inputs"]] == ["dataset", "model", "weights"]
    file = os.path.abspath("some.weights.h5")
    assert f"--weights {file}" in status_of(run)[0]["teacher"]["command"]
    assert is_up_to_date(run, *command)
    build("nets:resnet").save_weights("some.weights.h5")
    assert file in "".join(status_of(run)[0]["teacher"]["reasons"])
    assert not is_up_to_date(run, *command)


def test_weights_of_a_built_in_network():
    build("mlp-20", seed=7).save_weights("mlp.weights.h5")
    loaded = build("mlp-20", weights="mlp.weights.h5")
    assert (loaded.weights[0].numpy() == build("mlp-20", seed=7).weights[0].numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "code", "texts"),
    [
        ("nosuch.weights.h5", 1, []),
        ("some.h5", 2, [".weights.h5", ".keras"]),
        ("text.weights.h5", 1, ["network.save_weights(FILE)"]),
        ("text.keras", 1, ["network.save_weights(FILE)"]),
        ("linked.weights.h5", 1, ["network.save_weights(FILE)"]),
        ("damaged.weights.h5", 1, ["network.save_weights(FILE)"]),
        ("less.weights.h5", 1, ["layers/dense/vars/0", "(196, 10)", "(196, 20)"]),
        ("longer.weights.h5", 1, ["layers/dense_3/vars/0", "(10, 10)", "missing"]),
        ("more.weights.h5", 1, ["layers/dense_2/vars/0", "(20, 20)", "(20, 10)"]),
        ("wide.keras", 1, ["layers/dense_1/vars/0", "(20, 30)", "(20, 20)"]),
    ],
)
def test_weights_that_do_not_fit(run, small, weights, code, texts):
    """They are refused, even those of a network with more layers, which Keras would silently load in part."""
    for name in ("text.weights.h5", "text.keras"):
        Path(name).write_text("text")
    layers = keras.layers
    dense = {"less": [10], "more": [20, 20, 20, 10], "longer": [20, 20, 10, 10], "wide": [20, 30, 10]}
    for name, units in dense.items():
        network = keras.Sequential([keras.Input((14, 14)), layers.Flatten(), *[layers.Dense(n) for n in units]])
        network.save("wide.keras") if name == "wide" else network.save_weights(f"{name}.weights.h5")
    build("mlp-20").save_weights("linked.weights.h5")
    content = Path("linked.weights.h5").read_bytes()
    Path("damaged.weights.h5").write_bytes(content.replace(b"HEAP", b"HELP"))
    with h5py.File("linked.weights.h5", "r+") as file:
        file["layers/dense/vars/2"] = h5py.SoftLink("/nowhere")
    outcome = run("train-teacher", "--dataset", small, "--model", "mlp-20", "--weights", weights, *QUICK)
    assert outcome.code == code
    assert len(outcome.err.splitlines()) == 1
    assert all(text in outcome.err for text in ("--weights", weights, *texts)), outcome.err
    assert ":;" not in outcome.err
    assert "(--debug" not in outcome.err
    assert not Path("workspace").exists()


def test_unknown_student_is_refused_before_training(run, small):
    outcome = run("run", "--dataset", small, "--student-model", "nosuch:f", *QUICK)
    assert (outcome.code, outcome.out) == (1, "")
    assert "'nosuch'" in outcome.err


@pytest.mark.slow
def test_application_through_the_command_line(run):
    """MobileNetV3Small on color images; its table of layers is shortened."""
    draw = np.random.default_rng(0)
    inputs = {f"x_{split}": draw.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez("random.npz", **inputs, y_train=np.arange(24) % 3, y_test=np.arange(24) % 3)
    command = ["train-teacher", "--dataset", "random.npz", "--model", "keras.applications:MobileNetV3Small"]
    command += ["--epochs", "1", "--batch-size", "12"]
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    assert re.search(r"^\.\.\. \d+ more +[\d,]+$", outcome.out, re.MULTILINE)
    assert is_up_to_date(run, *command)


def test_application_on_rows_without_channels():
    """They get a channel, and the network's scaling of values from 0 to 255 is left out."""
    network = build("keras.applications:MobileNetV3Small", (32, 32), 3)
    assert network.input_shape == (None, 32, 32)
    assert not any(isinstance(layer, keras.layers.Rescaling) for layer in network.layers)
    assert len(layer_table(network)) == TABLE_ROWS + 2


@pytest.mark.slow
def test_efficientnet_sees_pixels_of_0_to_255():
    """Its scaling by 1/255 cannot be left out, so it is undone."""
    network = build("keras.applications:EfficientNetB0", (32, 32, 3), 3)
    scales = [layer.scale for layer in network.layers if isinstance(layer, keras.layers.Rescaling)]
    assert np.prod(scales) == pytest.approx(1)


@pytest.mark.slow
def test_network_that_keras_cannot_save(run, small):
    """A warning says that `model.keras` is missing; everything that needs only the SavedModel works."""
    outcome = run("train-teacher", "--dataset", small, "--model", "nets:sub", *QUICK)
    assert outcome.code == 0
    assert outcome.err.startswith("warning: model.keras ")
    assert len(outcome.err.splitlines()) == 1
    assert sorted(manifest("teachers", "teacher")["outputs"]) == ["checkpoint.npz", "history.csv", "saved_model"]
    for command in (["soften"], ["train-student", *QUICK], ["evaluate"], ["verify"]):
        assert run(*command).code == 0, command


@pytest.mark.slow
def test_killed_run_resumes_with_the_same_bits(tmp_path, small):
    """A process that is killed and run again writes the bytes of an uninterrupted one."""
    command = [*KDISTILL, "train-teacher", "--dataset", str(small), "--model", "nets:resnet", "--epochs", "12"]
    command += ["--batch-size", "8"]
    subprocess.run([*command, "-w", "whole"], check=True, capture_output=True)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in process.stdout:
        if line.startswith("epoch  2/12"):
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed_run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "epoch  1/12" not in resumed_run.stdout
    whole, resumed = (tmp_path / place / "teachers/teacher" for place in ("whole", "workspace"))
    assert saved_variables(whole) == saved_variables(resumed)
    outputs = [json.loads((place / "manifest.json").read_text())["outputs"] for place in (whole, resumed)]
    for output in ("saved_model", "model.keras"):
        assert outputs[0][output] == outputs[1][output]


def test_xla_is_used_where_it_is_faster(monkeypatch):
    """XLA is used for dense networks on a CPU, and for all of these on a GPU."""
    names = ["dense", "unbuilt", "resnet", "nested", "sub", "augmented"]
    networks = {name: build(f"nets:{name}") for name in names} | {"cnn": build("cnn", (28, 28)), "mlp": build("mlp-20")}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [])
    gain = [name for name, network in networks.items() if uses_xla(network, "auto")]
    assert gain == ["dense", "unbuilt", "mlp"]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert all(uses_xla(network, "auto") for network in networks.values())


@pytest.mark.slow
def test_xla_that_cannot_compile_is_one_line(run, small):
    outcome = run("train-teacher", "--dataset", small, "--model", "nets:augmented", *QUICK, "--xla", "on")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert "--xla off" in outcome.err


@pytest.mark.slow
def test_token_beyond_the_vocabulary_is_one_line(tmp_path, rows):
    inputs = np.full((64, 5), 1000, np.int32)
    with pytest.raises(KdistillError, match=r"^[^\n]*1000 is not in \[0, 1000\)[^\n]*$"):
        train(tmp_path / "place", "nets:unbuilt_words", inputs, rows[1][:64], Training(epochs=1))
