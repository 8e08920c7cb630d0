"""The built-in networks, and how they are saved and loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from kdistill.backend import keras, tf
from kdistill.data.rows import ArrayRows
from kdistill.data.texts import TextRows
from kdistill.errors import KdistillError
from kdistill.networks import saved_models
from kdistill.networks.build import build_network
from kdistill.networks.layers import layer_table
from kdistill.settings import NETWORKS

TEXTS = TextRows(ArrayRows(np.array(["some words", "more words"]), "texts"), "texts")


def build(model, shape=(28, 28), classes=10, precision="float32", role="teacher", texts=None):
    return build_network(model, shape, classes, role=role, seed=0, precision=precision, texts=texts)


def test_cnn_has_the_layers_of_the_original():
    """The layers, shapes and 64,570 parameters are those in the README of the original, with logits as output."""
    network = build("cnn")
    table = [(type(layer).__name__, layer.output.shape[1:], layer.count_params()) for layer in network.layers]
    assert table == [
        ("Reshape", (28, 28, 1), 0),
        ("Conv2D", (26, 26, 32), 320),
        ("MaxPooling2D", (13, 13, 32), 0),
        ("Conv2D", (11, 11, 32), 9248),
        ("MaxPooling2D", (5, 5, 32), 0),
        ("Flatten", (800,), 0),
        ("Dense", (56,), 44856),
        *[("Dense", (56,), 3192)] * 3,
        ("Dense", (10,), 570),
    ]
    assert network.count_params() == 64570
    assert network.layers[-1].name == "teacher_logits"
    assert network.layers[-1].activation is keras.activations.linear
    activations = [layer.activation for layer in network.layers[1:-1] if hasattr(layer, "activation")]
    assert set(activations) == {keras.activations.relu}


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("mlp-30", 784 * 30 + 30 + 30 * 30 + 30 + 310),
        ("mlp-800", 784 * 800 + 800 + 800 * 800 + 800 + 8010),
        ("small", 784 * 10 + 10 + 110),
    ],
)
def test_dense_networks(model, parameters):
    assert build(model, role="student").count_params() == parameters


def test_table_adds_up():
    rows = layer_table(build("cnn"))
    assert rows[-1] == ("total", "", "64,570")
    assert sum(int(row[2].replace(",", "")) for row in rows[:-1]) == 64570


@pytest.mark.parametrize("model", ["resnet", "mlp-", "mlp-0", "mlp-x", "CNN", ""])
def test_unknown_model_lists_the_networks(model):
    with pytest.raises(KdistillError, match=r"--model.*cnn.*small.*mlp-H"):
        build(model)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (2, 3, 4, 5)])
def test_cnn_needs_images(shape):
    with pytest.raises(KdistillError, match="--model mlp-800"):
        build("cnn", shape)


@pytest.mark.parametrize("model", ["cnn", "resnet-8", "mlp-30"])
def test_integers_are_inputs(model):
    """Networks take integers other than uint8 as int32, with the logits of the same numbers as floats."""
    inputs = np.arange(28 * 28, dtype=np.int32).reshape(1, 28, 28) % 5
    build_for = partial(build_network, model, (28, 28), 10, role="teacher", seed=0, precision="float32")
    network = build_for(input_dtype="int64")
    assert network.inputs[0].dtype == "int32"
    np.testing.assert_allclose(network(inputs), build_for()(inputs.astype(np.float32)), rtol=1e-5)


def test_networks_in_settings_have_functions():
    """Each network in the settings can be built; H in a name stands for a number, and | separates choices."""
    for name, network in NETWORKS.items():
        rows = {"shape": (), "texts": TEXTS} if network.text else {}
        assert build(name.replace("H", "7").partition("|")[0], **rows).output_shape == (None, 10)


@pytest.mark.parametrize(("depth", "parameters"), [(8, 75_290), (14, 172_506), (20, 269_722)])
def test_residual_networks(depth, parameters):
    """They have as many layers with weights as their names say, and the parameters of option A (0.27 million for 20)."""
    network = build(f"resnet-{depth}", (32, 32, 3))
    assert sum(weight.name == "kernel" for weight in network.weights) == depth
    assert sum(weight.shape.num_elements() for weight in network.trainable_variables) == parameters
    assert [layer.output.shape[1:] for layer in network.layers[2 :: (depth - 2) // 6][:4]] == [
        *[(32, 32, 16)] * 2,
        (16, 16, 32),
        (8, 8, 64),
    ]


def test_shortcut_takes_every_other_pixel_and_pads_with_zeros():
    """A block whose convolutions give 0 passes on its inputs, smaller and with channels of zeros."""
    network = build("resnet-8", (17, 18))
    same, halved = (network.get_layer(f"block_{stage}_1") for stage in (1, 2))
    for block in (same, halved):
        *_, last = (layer for layer in block.layers if isinstance(layer, keras.layers.BatchNormalization))
        last.gamma.assign(np.zeros(last.gamma.shape))
    inputs = np.random.default_rng(0).random((2, 17, 18, 16), np.float32)
    np.testing.assert_array_equal(same(inputs), inputs)
    shortcut = np.concatenate([inputs[:, ::2, ::2], np.zeros((2, 9, 9, 16))], axis=-1)
    np.testing.assert_array_equal(halved(inputs), shortcut)


@pytest.mark.parametrize("shape", [(64,), (15, 16), (16, 15, 3), (16, 16, 2), (3, 32, 32), (16, 16, 1, 1)])
def test_residual_networks_need_images(shape):
    with pytest.raises(KdistillError, match=r"--model resnet-14 .*16x16"):
        build("resnet-14", shape)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_logits_are_float32_under_any_precision(precision):
    """Only the logits are float32, and the dtype policy of the process does not change."""
    network = build("mlp-30", precision=precision)
    assert network.layers[1].compute_dtype == precision.removeprefix("mixed_")
    assert network(np.zeros((1, 28, 28), np.float32)).dtype == tf.float32
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("cnn", (28, 28)),
        ("cnn", (28, 28, 1)),
        ("cnn", (32, 32, 3)),
        ("mlp-30", (64,)),
        ("resnet-8", (16, 17)),
        ("resnet-8", (32, 32, 3)),
    ],
)
def test_saved_network_has_the_same_logits(tmp_path, model, shape):
    """The logits are the same for any number of rows; uint8 inputs are scaled to [0, 1], floats are not."""
    network = build(model, shape, 4)
    saved_models.save(network, tmp_path)
    saved = saved_models.SavedNetwork.load(tmp_path / "saved_model")
    inputs = np.random.default_rng(0).integers(0, 256, (7, *shape)).astype(np.uint8)
    for rows in (1, 7):
        expected = network(inputs[:rows].astype(np.float32) / 255)
        np.testing.assert_allclose(saved.logits(inputs[:rows]), expected, atol=1e-5)
    np.testing.assert_allclose(saved.logits(np.float64(inputs) / 255), network(np.float32(inputs) / 255), atol=1e-5)


@pytest.mark.parametrize("known_to_xla", [True, False])
def test_saved_network_on_a_gpu(tmp_path, monkeypatch, known_to_xla):
    """XLA compiles it for one number of rows, if it can, and the logits are the same for any number of rows."""
    network = build("mlp-30", classes=4)
    saved_models.save(network, tmp_path)
    saved = saved_models.SavedNetwork.load(tmp_path / "saved_model")
    inputs = np.random.default_rng(0).integers(0, 256, (7, 28, 28)).astype(np.uint8)
    expected, shapes = saved.logits(inputs), []
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: ["a GPU"])

    def call(rows):
        shapes.append(rows.shape)
        if not known_to_xla:
            rows += tf.raw_ops.UniqueWithCounts(x=tf.zeros(9)).y[0]
        return saved.call(rows)

    compiled = replace(saved, call=call).compiled(4)
    for rows in (7, 4, 3):
        np.testing.assert_allclose(compiled.logits(inputs[:rows]), expected[:rows], atol=1e-5)
    assert shapes[0] == (4, 28, 28)
    assert (len(shapes) == 1) == known_to_xla


def test_dataset_that_does_not_fit(tmp_path):
    """The error names both shapes, or both numbers of classes."""
    saved_models.save(build("small"), tmp_path)
    saved = saved_models.SavedNetwork.load(tmp_path / "saved_model")
    with pytest.raises(KdistillError, match=r"\(28, 28\) float32.* some .*\(32, 32, 3\) uint8"):
        saved.check((32, 32, 3), "uint8", 10, "some")
    with pytest.raises(KdistillError, match=r"\b10\b.* some .*\b3\b"):
        saved.check((28, 28), "uint8", 3, "some")


def test_directory_without_saved_model(tmp_path):
    with pytest.raises(KdistillError, match=re.escape(str(tmp_path))):
        saved_models.SavedNetwork.load(tmp_path)


@pytest.mark.slow
def test_saved_model_needs_no_kdistill(made, digits):
    """TensorFlow loads it without kdistill and Keras objects, and computes the recorded accuracy."""
    place = made / "teachers" / "teacher"
    recorded = json.loads((place / "manifest.json").read_text())["results"]
    np.save(made.parent / "x.npy", digits.test.read())
    np.save(made.parent / "y.npy", digits.test.labels)
    code = f"""
import sys, numpy as np, tensorflow as tf
x, y = np.load({str(made.parent / "x.npy")!r}), np.load({str(made.parent / "y.npy")!r})
model = tf.saved_model.load({str(place / "saved_model")!r})
logits = model.signatures["serving_default"](inputs=tf.constant(x / 255, tf.float32))["logits"].numpy()
assert not any(name.startswith("kdistill") for name in sys.modules)
print((logits.argmax(axis=1) == y).mean())
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=made.parent)
    assert float(output.stdout) == pytest.approx(recorded["test_accuracy"], abs=1e-12)


@pytest.mark.slow
def test_saved_model_cli_runs_it(made, digits, tmp_path):
    """TensorFlow's own tool shows its input and output, and computes its logits for any number of rows."""
    place = made / "students/student/saved_model"
    inputs = np.float32(digits.test.read()[:7]) / 255
    np.save(tmp_path / "rows.npy", inputs)
    main = "from tensorflow.python.tools.saved_model_cli import main; main()"
    signature = ["--dir", str(place), "--tag_set", "serve", "--signature_def", "serving_default"]
    run = ["run", *signature, "--inputs", f"inputs={tmp_path / 'rows.npy'}", "--outdir", str(tmp_path / "out")]
    outputs = [
        subprocess.run([sys.executable, "-c", main, *arguments], capture_output=True, text=True, check=True).stdout
        for arguments in (["show", *signature], run)
    ]
    assert re.search(
        r"inputs\['inputs'\].*DT_FLOAT.*\(-1, 28, 28\).*outputs\['logits'\].*\(-1, 10\)", outputs[0], re.DOTALL
    )
    expected = saved_models.SavedNetwork.load(place).logits(digits.test.read()[:7])
    np.testing.assert_allclose(np.load(tmp_path / "out/logits.npy"), expected, atol=1e-5)


@pytest.mark.slow
def test_keras_file_of_a_residual_network(tmp_path):
    """It loads in Keras's safe mode and has the same logits, with averages that differ from the initial ones."""
    network = build("resnet-8", (16, 16, 3))
    inputs = np.random.default_rng(0).random((8, 16, 16, 3), np.float32)
    network(inputs, training=True)
    assert saved_models.save(network, tmp_path) is None
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(inputs), network(inputs), atol=1e-5)


def test_keras_file_is_the_same_network(made, digits):
    """`model.keras` loads in Keras's safe mode and has the logits of the SavedModel."""
    place = made / "students" / "student"
    network = keras.models.load_model(place / "model.keras", safe_mode=True)
    saved = saved_models.SavedNetwork.load(place / "saved_model")
    inputs = digits.test.read()[:50]
    np.testing.assert_allclose(network(np.float32(inputs) / 255), saved.logits(inputs), atol=1e-4)
