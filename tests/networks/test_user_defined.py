"""Networks of the user's own: each form, each mistake, and that they train, resume and save like the built-in ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict

import h5py
import numpy as np
import pytest
from helpers import InterruptAfter, write_npz

from kdistill import data
from kdistill.backend import keras, tf
from kdistill.console import Reporter
from kdistill.data.readers import Array
from kdistill.errors import KdistillError
from kdistill.networks import built_in as models
from kdistill.networks import saved_models
from kdistill.settings import Training
from kdistill.training import loop as training
from kdistill.training.feed import Examples
from kdistill.workspace import Manifest, Workspace

KDISTILL = [sys.executable, "-m", "kdistill"]
QUICK = ["--epochs", "2", "--batch-size", "64", "--learning-rate", "0.003"]
NETS = '''
import keras
from keras import layers as L

constant = 3

def image(x):
    return x if len(x.shape) == 4 else L.Reshape((*x.shape[1:], 1))(x)

def resnet(input_shape, classes):
    """Augmentation, batch normalisation, dropout, branches."""
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
    """Draws of its own, in training alone, and layers in a list; Keras can't save it."""

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
    """A network in a network, a shared layer, a penalty, operations that are no layers; compiled with metrics."""
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
    """Token ids: an embedding, and a recurrence with dropout of its own."""
    inputs = keras.Input(input_shape, dtype="int32")
    x = L.Embedding(50, 8, mask_zero=True)(inputs)
    x = L.LSTM(4, dropout=0.2, recurrent_dropout=0.2)(x)
    return keras.Model(inputs, L.Dense(classes)(x))

def unbuilt_words(input_shape, classes):
    return keras.Sequential([L.Embedding(1000, 8), L.GRU(4, dropout=0.1), L.Dense(classes)])

def lookup(input_shape, classes):
    """A table that is no variable."""
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
    """Its last attribute is a gate, and not what it ends in."""

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
    """The number of the line with this text."""
    return of[: of.index(text)].count("\n") + 1


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """`nets.py` in an empty current directory."""
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
    """The digits again, few and small."""
    parts = {}
    for split, count in (("train", 256), ("test", 64)):
        part = getattr(digits, split)
        parts |= {f"x_{split}": part.read()[:count, ::2, ::2], f"y_{split}": part.labels[:count]}
    return write_npz(tmp_path_factory.mktemp("small") / "small.npz", digits, **parts)


def build(model, shape=(14, 14), classes=10, *, precision="float32", dtype="uint8", weights=None, seed=0):
    return models.build(
        model, shape, classes, role="teacher", seed=seed, precision=precision, input_dtype=dtype, weights=weights
    )


def train(place, network, inputs, labels, how, reporter=None):
    place.mkdir(exist_ok=True)
    identity = Manifest(kind="teacher", settings=asdict(how), inputs={})
    return training.train(
        lambda: build(network, inputs.shape[1:], precision=how.precision, dtype=str(inputs.dtype)),
        Examples(Array(inputs, "some"), labels),
        Examples(Array(inputs[:20], "some"), labels[:20]),
        held_out_name="test",
        objective=training.Objective(),
        settings=how,
        role="teacher",
        checkpoint=training.Checkpoint(place / "checkpoint.npz", identity),
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
    """Images of a type, or, for whole numbers, token ids; their shape is the network's business."""
    if dtype.startswith("int"):
        return (rows[0][:, 0] % 50).astype(dtype)
    return rows[0] if dtype == "uint8" else rows[0].astype(dtype) / 255


@pytest.mark.parametrize(("model", "dtype", "changed"), ALL_KINDS, ids=[f"{m} {d} {c}" for m, d, c in ALL_KINDS])
def test_goes_on_to_the_same_bits(tmp_path, rows, model, dtype, changed):
    """Stopped after an epoch and run again, every kind of network ends with the bits of an uninterrupted run."""
    how = Training(**{"epochs": 3, "batch_size": 32, "seed": 4} | changed)
    inputs = some_rows(rows, dtype)
    whole, expected = train(tmp_path / "whole", model, inputs, rows[1], how)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", model, inputs, rows[1], how, InterruptAfter(1))
    counts = InterruptAfter(100)
    network, progress = train(tmp_path / "stopped", model, inputs, rows[1], how, counts)
    assert 100 - counts.left == 2, "it went on, and did not start over"
    assert weights(network) == weights(whole)
    assert progress.rows[-1]["train_loss"] == expected.rows[-1]["train_loss"]


@pytest.mark.parametrize(("model", "dtype", "changed"), ALL_KINDS, ids=[f"{m} {d} {c}" for m, d, c in ALL_KINDS])
def test_saved_network_says_what_the_network_says(tmp_path, rows, model, dtype, changed):
    """As float32 logits, whatever the network computes in, and without augmentation or dropout."""
    inputs = some_rows(rows, dtype)[:5]
    network = build(model, inputs.shape[1:], dtype=dtype, precision=changed.get("precision", "float32"))
    saved_models.save(network, tmp_path)
    saved = saved_models.SavedNetwork.load(tmp_path / "saved_model")
    expected = network(inputs / np.float32(255) if dtype == "uint8" else inputs, training=False)
    np.testing.assert_allclose(saved.logits(inputs), tf.cast(expected, tf.float32), atol=1e-3)
    assert saved.input_dtype == (tf.int32 if dtype.startswith("int") else tf.float32)
    assert models.table(network)[-1] == ("total", "", f"{network.count_params():,}")


@pytest.mark.parametrize("model", ["mlp-20", *dict.fromkeys(model for model, _, _ in ALL_KINDS)])
def test_saved_bytes_depend_on_the_network_alone(tmp_path, rows, model):
    """Saved again after other networks were built and traced, a network has the same bytes, and still loads."""
    dtype = next((dtype for name, dtype, _ in ALL_KINDS if name == model), "uint8")
    inputs = some_rows(rows, dtype)[:5]
    saved = []
    for place in (tmp_path / "first", tmp_path / "second"):
        place.mkdir()
        network = build(model, inputs.shape[1:], dtype=dtype)
        problem = saved_models.save(network, place)
        saved.append({str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()})
        said = saved_models.SavedNetwork.load(place / "saved_model").logits(inputs)
        if not problem:
            loaded = saved_models.SavedNetwork.load(place / "model.keras")
            np.testing.assert_allclose(loaded.logits(inputs), said, atol=1e-5)
        build("nets:resnet")(np.zeros((1, 14, 14), np.float32))
    assert saved[0].keys() == saved[1].keys()
    assert [name for name in saved[0] if saved[0][name] != saved[1][name]] == []


def test_lookup_tables_are_not_shared_by_networks(tmp_path, rows):
    """Two SavedModels with vocabularies of their own give their own logits in one process."""
    inputs, networks = some_rows(rows, "int64")[:5] % 3, []
    for vocabulary in ([0, 1, 2], [2, 1, 0]):
        taken = keras.Input(inputs.shape[1:], dtype="int32")
        numbers = keras.layers.IntegerLookup(vocabulary=vocabulary)(taken)
        networks.append(keras.Model(taken, keras.ops.cast(numbers, "float32")))
    for number, network in enumerate(networks):
        (tmp_path / str(number)).mkdir()
        saved_models.save(network, tmp_path / str(number))
    loaded = [saved_models.SavedNetwork.load(tmp_path / str(number) / "saved_model") for number in (0, 1)]
    for saved, network in zip(loaded, networks, strict=True):
        np.testing.assert_array_equal(saved.logits(inputs), network(inputs))


def test_token_ids_arrive_whole(rows):
    """Ids that bfloat16 can't tell apart are told apart, also by a network that names no input dtype."""
    network = build("nets:unbuilt_words", (6,), dtype="int64", precision="mixed_bfloat16")
    ids = np.full((2, 6), 700, np.int32)
    ids[1] += 1
    one, other = np.asarray(tf.cast(network(ids), tf.float32))
    assert (one != other).any()


def test_seed_decides(rows):
    """The function's weights come from the seed and the role."""
    assert weights(build("nets:dense")) == weights(build("nets:dense"))
    assert weights(build("nets:dense")) != weights(build("nets:dense", seed=1))


def test_precision_is_the_policy_while_the_function_runs():
    network = build("nets:dense", precision="mixed_bfloat16")
    assert {layer.compute_dtype for layer in network.layers} == {"bfloat16"}
    assert keras.config.dtype_policy().name == "float32"


def test_module_in_a_package_is_found_without_importing_its_parents(tmp_path):
    """Packages with and without `__init__.py`, whose code runs when the network is built and no sooner."""
    from kdistill.networks import sources as model_sources

    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "inner" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "package" / "inner" / "some.py").write_text("from .other import dense")
    (tmp_path / "package" / "inner" / "other.py").write_text(NETS)
    source = model_sources.resolve("package.inner.some:dense")
    assert source.file == tmp_path / "package" / "inner" / "some.py"
    assert "package" not in sys.modules
    (tmp_path / "package" / "inner" / "__init__.py").write_text("")
    assert build("package.inner.some:dense").count_params() == build("nets:dense").count_params()


def test_changed_source_is_what_runs(nets, monkeypatch):
    """Even where the change shows in neither the size nor the whole second by which Python knows its byte code."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = nets.stat()
    assert build("nets:dense").count_params() == 196 * 16 + 16 + 170
    nets.write_text(NETS.replace('L.Dense(16, "relu"), L.Dense(classes)', 'L.Dense(32, "relu"), L.Dense(classes)'))
    os.utime(nets, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build("nets:dense").count_params() == 196 * 32 + 32 + 330


AT = {name: line_of(f"def {name}(") for name in ("no_model", "one_argument", "two_inputs", "fails_when_called")}
MISTAKES = [
    ("nosuch:f", "there is no module 'nosuch'"),
    ("nets.nosuch:f", "there is no module 'nets.nosuch'"),
    ("nets.py:dense", "a module goes without .py: --model nets:dense"),
    ("sys:exit", "no module with Python source"),
    ("broken:f", "broken.py:2: ModuleNotFoundError: No module named 'nosuch' (on importing broken"),
    ("broken.syntax:f", "syntax.py:1: SyntaxError: "),
    ("nets:nosuch", "nets.py: there is no nosuch here"),
    ("nets:constant", "nets.py: constant is a int: --model nets:constant needs a function of (input_shape, classes)"),
    ("nets:one_argument", f"nets.py:{AT['one_argument']}: TypeError: one_argument() takes 1 positional argument"),
    ("nets:raises", f"nets.py:{line_of('1 // 0')}: ZeroDivisionError: integer division or modulo by zero (in raises"),
    ("nets:stops", f"nets.py:{line_of('SystemExit')}: SystemExit: no"),
    ("nets:bad_layer", f"nets.py:{line_of('-classes')}: ValueError: Received an invalid value for `units`"),
    ("nets:no_model", f"nets.py:{AT['no_model']}: no_model returns a list: --model nets:no_model needs a keras.Model"),
    ("nets:fails_when_called", f"nets.py:{line_of('x @')}: "),
    ("nets:two_inputs", f"nets.py:{AT['two_inputs']}: the network has 2 inputs and 1 outputs"),
    ("nets:two_outputs", "the network has 1 inputs and 2 outputs"),
    ("nets:named_output", "the network gives a dict: it needs a single tensor of logits"),
    ("nets:other_rows", "the network takes (None, 7, 7, 3), and the rows here are (None, 14, 14)"),
    ("nets:extra_axis", "the network takes (None, 14, 14, 1), and the rows here are (None, 14, 14)"),
    ("nets:fixed_batch", "the network takes (8, 14, 14)"),
    ("nets:bytes_in", "the network takes uint8, and would see float32 here"),
    ("nets:too_many", "the network gives (None, 11): it needs a logit a class, (None, 10)"),
    ("nets:unflattened", "the network gives (None, 14, 10)"),
    ("nets:frozen", "none of its weights is trainable"),
    ("nosuch.keras", "there is no such file"),
    ("text.keras", "text.keras can't be loaded: "),
    ("lambda.keras", "lambda.keras can't be loaded: Requested the deserialization of a `Lambda` layer"),
    ("custom.keras", "custom.keras can't be loaded: "),
    ("low.keras", "low.keras computes in mixed_bfloat16 and keeps to it: --precision mixed_bfloat16"),
    ("keras.applications:MobilNet", "there is none of this name in keras.applications, but MobileNet"),
    ("keras.applications:vgg16", "but VGG16"),
    ("keras.applications:MobileNetV2", "takes no rows of (14, 14): Input size must be at least 32x32"),
]


@pytest.mark.parametrize(("model", "said"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_mistake_is_one_line(run, small, tmp_path, model, said):
    """Where, what, and nothing written."""
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
    assert said in outcome.err
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


SOFTMAXES = ["softmax", "softmax_layer", "softmax_activation", "softmax_inside", "softmax_operation"]


@pytest.mark.parametrize("name", [*SOFTMAXES, "softmax_in_disguise", "sub_softmax"])
def test_softmax_is_refused(name):
    with pytest.raises(KdistillError, match=r"nets.py:\d+: the network ends in softmax.*activation=None"):
        build(f"nets:{name}")


def test_softmax_is_refused_in_a_file_and_for_a_student(run, small):
    build("nets:dense").save("dense.keras")
    network = keras.models.load_model("dense.keras")
    network.layers[-1].activation = keras.activations.softmax
    network.save("soft.keras")
    outcome = run("train-student", "--alpha", 1, "--dataset", small, "--model", "soft.keras", *QUICK)
    assert outcome.code == 1
    assert "soft.keras: the network ends in softmax" in outcome.err


def test_sigmoid_is_refused_and_a_gate_is_not():
    with pytest.raises(KdistillError, match="ends in sigmoid"):
        build("nets:sigmoid")
    build("nets:gated")


def saved_variables(place):
    with np.load(place / "checkpoint.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files if name != "head"}


def manifest(kind, name):
    return json.loads((Workspace(data.Path("workspace")).root / kind / name / "manifest.json").read_text())


def test_function_through_all_stages(run, small, nets):
    """Teacher, soft targets and student of one function; stale once its source changes, and made again in order."""
    stages = [
        ["train-teacher", "--dataset", small, "--model", "nets:resnet", *QUICK],
        ["soften"],
        ["train-student", *QUICK],
    ]
    for stage in stages:
        assert run(*stage).code == 0
    student = manifest("students", "student")
    assert student["settings"]["model"] == "nets:resnet"
    assert student["inputs"]["model"]["name"] == str(nets)
    assert saved_variables(data.Path("workspace/students/student")) != saved_variables(
        data.Path("workspace/teachers/teacher")
    )
    for stage in stages:
        assert "is up to date" in run(*stage).out
    assert "stale" not in run("status").out
    nets.write_text(NETS + "\n# changed\n")
    said = run("status").out
    assert said.count(f"stale: the model file {nets} has changed (digest ") == 2
    assert "next: kdistill train-teacher --model nets:resnet --epochs 2" in said.replace(f" --dataset {small}", "")
    for stage in stages[:1]:
        assert "again: model changed" in run(*stage).out
    run("soften")
    assert "model changed" in run(*stages[2]).out
    assert "stale" not in run("status").out
    nets.unlink()
    assert f"the model file {nets} is gone" in run("status").out


def test_up_to_date_runs_no_code(run, small, nets):
    """What is up to date is so without TensorFlow, and without the user's module."""
    command = ["train-teacher", "--dataset", str(small), "--model", "nets:dense", *QUICK]
    assert run(*command).code == 0
    code = (
        f"import sys; sys.argv = ['kdistill', *{command!r}]\n"
        "from kdistill.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('tensorflow', 'keras', 'nets') if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "is up to date" in said
    assert said.splitlines()[-1] == "[]"


def test_file_is_trained_on(run, small):
    """A `.keras` keeps its weights, whatever the seed; a student of its teacher has its architecture, drawn anew."""
    build("nets:resnet").save("net.keras")
    kept = [variable.numpy() for variable in build("nets:resnet").trainable_variables]
    for seed in (0, 1):
        loaded = build("net.keras", seed=seed).trainable_variables
        assert all((one.numpy() == other).all() for one, other in zip(loaded, kept, strict=True))
    fresh = [build("net.keras", weights="new", seed=seed).trainable_variables for seed in (0, 0, 1)]
    assert [variable.shape for variable in fresh[0]] == [variable.shape for variable in kept]
    assert (fresh[0][0].numpy() == fresh[1][0].numpy()).all()
    assert not (fresh[0][0].numpy() == fresh[2][0].numpy()).all()
    assert not (fresh[0][0].numpy() == kept[0]).all()
    assert run("train-teacher", "--dataset", small, "--model", "net.keras", *QUICK).code == 0
    assert run("soften").code == 0
    assert run("train-student", *QUICK).code == 0
    teacher, student = manifest("teachers", "teacher"), manifest("students", "student")
    assert teacher["settings"]["model"] == student["settings"]["model"] == os.path.abspath("net.keras")
    assert ("weights" in teacher["settings"], student["settings"]["weights"]) == (False, "new")
    artifact = Workspace(data.Path("workspace")).student("student")
    command = artifact.command_for(artifact.manifest())
    assert f"--model {os.path.abspath('net.keras')} --weights new" in command
    assert "is up to date" in run(*command.split()[1:]).out
    assert "is up to date" not in run("train-student", "--model", "net.keras", *QUICK).out
    build("nets:dense").save("net.keras")
    assert "the model file" in run("status").out


def test_frozen_layers_stay_frozen_but_not_in_a_fresh_copy():
    network = build("nets:resnet")
    network.layers[4].trainable = False
    network.save("net.keras")
    count = len(network.trainable_variables)
    assert len(build("net.keras").trainable_variables) == count
    assert len(build("net.keras", weights="new").trainable_variables) == count + 1


def test_weights_of_a_file(run, small):
    """`--weights` begins with them, whichever of Keras's two files they lie in; a changed file makes it stale."""
    network = build("nets:resnet", seed=7)
    network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(np.zeros((2, 14, 14)), np.zeros(2), verbose=0)
    network.save_weights("some.weights.h5")
    network.save("some.keras")
    for file in ("some.weights.h5", "some.keras"):
        loaded = build("nets:resnet", weights=file)
        assert all((a.numpy() == b.numpy()).all() for a, b in zip(loaded.weights, network.weights, strict=True))
    command = ["train-teacher", "--dataset", small, "--model", "nets:resnet", *QUICK]
    assert run(*command, "--weights", "some.weights.h5").code == 0
    made_from = manifest("teachers", "teacher")["inputs"]
    assert list(made_from) == ["dataset", "model", "weights"]
    assert f"--weights {os.path.abspath('some.weights.h5')}" in run("status", "--json").out
    assert "is up to date" in run(*command, "--weights", "some.weights.h5").out
    build("nets:resnet").save_weights("some.weights.h5")
    assert "the weights file" in run("status").out
    assert "weights changed" in run(*command, "--weights", "some.weights.h5").out


def test_weights_of_a_built_in_network():
    build("mlp-20", seed=7).save_weights("mlp.weights.h5")
    loaded = build("mlp-20", weights="mlp.weights.h5")
    assert (loaded.weights[0].numpy() == build("mlp-20", seed=7).weights[0].numpy()).all()


@pytest.mark.parametrize(
    ("weights", "code", "said"),
    [
        ("nosuch.weights.h5", 1, "--weights nosuch.weights.h5: there is no such file"),
        ("some.h5", 2, "--weights is some.h5: it needs a .weights.h5 or .keras"),
        ("text.weights.h5", 1, "can't be loaded"),
        ("text.keras", 1, "can't be loaded"),
        ("linked.weights.h5", 1, "network.save_weights"),
        ("damaged.weights.h5", 1, "network.save_weights"),
        ("less.weights.h5", 1, "layers/dense/vars/0 is (196, 10) there, and (196, 20) here"),
        ("longer.weights.h5", 1, "layers/dense_3/vars/0 is (10, 10) there, and missing here"),
        ("more.weights.h5", 1, "layers/dense_2/vars/0 is (20, 20) there, and (20, 10) here"),
        ("wide.keras", 1, "has the weights of another network"),
    ],
)
def test_weights_that_do_not_fit(run, small, weights, code, said):
    """Also those of a network with more layers, a part of which Keras would load without a word."""
    for name in ("text.weights.h5", "text.keras"):
        data.Path(name).write_text("text")
    layers = keras.layers
    dense = {"less": [10], "more": [20, 20, 20, 10], "longer": [20, 20, 10, 10], "wide": [20, 30, 10]}
    for name, units in dense.items():
        network = keras.Sequential([keras.Input((14, 14)), layers.Flatten(), *[layers.Dense(n) for n in units]])
        network.save("wide.keras") if name == "wide" else network.save_weights(f"{name}.weights.h5")
    build("mlp-20").save_weights("linked.weights.h5")
    whole = data.Path("linked.weights.h5").read_bytes()
    data.Path("damaged.weights.h5").write_bytes(whole.replace(b"HEAP", b"HELP"))
    with h5py.File("linked.weights.h5", "r+") as file:
        file["layers/dense/vars/2"] = h5py.SoftLink("/nowhere")
    outcome = run("train-teacher", "--dataset", small, "--model", "mlp-20", "--weights", weights, *QUICK)
    assert outcome.code == code
    assert len(outcome.err.splitlines()) == 1
    assert said in outcome.err
    assert ":;" not in outcome.err
    assert "(--debug" not in outcome.err
    assert not data.Path("workspace").exists()


def test_unknown_student_is_known_before_any_work(run, small):
    outcome = run("run", "--dataset", small, "--student-model", "nosuch:f", *QUICK)
    assert (outcome.code, outcome.out) == (1, "")
    assert "there is no module 'nosuch'" in outcome.err


@pytest.mark.slow
def test_application_through_the_command_line(run):
    """MobileNetV3Small, on colour images; its table is kept short."""
    draw = np.random.default_rng(0)
    made = {f"x_{split}": draw.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez("random.npz", **made, y_train=np.arange(24) % 3, y_test=np.arange(24) % 3)
    command = ["train-teacher", "--dataset", "random.npz", "--model", "keras.applications:MobileNetV3Small"]
    outcome = run(*command, "--epochs", 1, "--batch-size", 12)
    assert outcome.code == 0, outcome.err
    assert re.search(r"^\.\.\. \d+ more +[\d,]+$", outcome.out, re.MULTILINE)
    assert "is up to date" in run(*command, "--epochs", 1, "--batch-size", 12).out


def test_application_on_rows_without_channels():
    """They get one; and the network goes without the scaling that it has for values to 255."""
    network = build("keras.applications:MobileNetV3Small", (32, 32), 3)
    assert network.input_shape == (None, 32, 32)
    assert not any(isinstance(layer, keras.layers.Rescaling) for layer in network.layers)
    assert len(models.table(network)) == models.TABLE_ROWS + 2


@pytest.mark.slow
def test_efficientnet_sees_pixels_of_0_to_255():
    """It divides by 255 whatever it is told, so it is given that many times as much."""
    network = build("keras.applications:EfficientNetB0", (32, 32, 3), 3)
    scales = [layer.scale for layer in network.layers if isinstance(layer, keras.layers.Rescaling)]
    assert np.prod(scales) == pytest.approx(1)


def test_what_keras_cannot_save_is_left_out_with_a_warning(run, small):
    """The SavedModel is there, and everything that needs no `model.keras` goes on."""
    outcome = run("train-teacher", "--dataset", small, "--model", "nets:sub", *QUICK)
    assert outcome.code == 0
    assert "warning: model.keras is left out" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert sorted(manifest("teachers", "teacher")["outputs"]) == ["checkpoint.npz", "history.csv", "saved_model"]
    for command in (["soften"], ["train-student", *QUICK], ["evaluate"], ["verify"]):
        assert run(*command).code == 0, command


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_bits(tmp_path, small):
    """A real process, killed outright, and the same command again."""
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
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "goes on after epoch" in done.stdout
    whole, resumed = (tmp_path / place / "teachers/teacher" for place in ("whole", "workspace"))
    assert saved_variables(whole) == saved_variables(resumed)
    outputs = [json.loads((place / "manifest.json").read_text())["outputs"] for place in (whole, resumed)]
    for output in ("saved_model", "model.keras"):
        assert outputs[0][output] == outputs[1][output]


def test_xla_is_for_networks_that_gain_by_it(monkeypatch):
    """On a CPU those of dense layers and their like, with dropout drawn outside; on a GPU all but what it can't compile."""
    names = ["dense", "unbuilt", "resnet", "nested", "sub", "augmented"]
    networks = {name: build(f"nets:{name}") for name in names} | {"cnn": build("cnn", (28, 28)), "mlp": build("mlp-20")}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [])
    gain = [name for name, network in networks.items() if training.uses_xla(network, "auto")]
    assert gain == ["dense", "unbuilt", "mlp"]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    refused = [name for name, network in networks.items() if not training.uses_xla(network, "auto")]
    assert refused == ["resnet", "augmented", "cnn"]


@pytest.mark.parametrize("model", ["nets:resnet", "cnn"])
def test_xla_that_cannot_compile_is_one_line(run, small, model):
    outcome = run("train-teacher", "--dataset", small, "--model", model, *QUICK, "--xla", "on")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert "XLA can't compile this network, " in outcome.err
    assert outcome.err.endswith(": --xla off\n")


def test_token_beyond_the_vocabulary_is_one_line(tmp_path, rows):
    inputs = np.full((64, 5), 1000, np.int32)
    said = r"^the network fails on these rows: indices\[\S+\] = 1000 is not in \[0, 1000\)$"
    with pytest.raises(KdistillError, match=said):
        train(tmp_path / "place", "nets:unbuilt_words", inputs, rows[1][:64], Training(epochs=1))
