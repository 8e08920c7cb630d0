"""Dropout that is drawn outside the step: its rates, and masks that depend on the seed and the step only."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from kdistill.backend import keras, tf
from kdistill.data import Split
from kdistill.data.rows import ArrayRows
from kdistill.errors import UsageError
from kdistill.networks.build import build_network
from kdistill.settings import Objective, Training, check_value
from kdistill.training.dropout import DropoutMasks
from kdistill.training.feed import Buffer
from kdistill.training.optimizers import make_optimizer
from kdistill.training.replicas import open_replicas
from kdistill.training.steps import Trainer
from kdistill.training.training_rows import TrainingRows
from kdistill.training.xla import uses_xla

ROWS = 4000


def network(rates="0.2,0.5", model="mlp-200", **options):
    return build_network(model, (28, 28), 10, role="teacher", seed=0, precision="float32", dropout=rates, **options)


def seed(step=0):
    return tf.constant([5, step], tf.int32)


def test_rates_and_means():
    """Each layer drops units at its rate, and scales the others so that the mean stays 1."""
    model = network()
    masks = DropoutMasks(model)
    drawn = masks.draw(ROWS, seed())
    with masks.applied(drawn):
        dropped = [layer(tf.ones((ROWS, *layer.output.shape[1:])), training=True).numpy() for layer in masks.layers]
    for layer, values in zip(masks.layers, dropped, strict=True):
        kept = values[values > 0]
        assert (values == 0).mean() == pytest.approx(layer.rate, abs=0.003)
        assert kept.min() == kept.max() == pytest.approx(1 / (1 - layer.rate), rel=0.003)
        assert values.mean() == pytest.approx(1, abs=0.01)
        units = (values == 0).reshape(ROWS, -1)
        assert units.mean(axis=0).std() < 0.02  # no unit is dropped more often than another
        assert units.mean(axis=1).std() < 0.05  # nor are those of a row
    assert [layer.rate for layer in masks.layers] == [0.2, 0.5, 0.5]
    assert not (dropped[1] == dropped[2]).all()


def test_masks_depend_on_seed_and_step():
    """The same seed and step give the same masks, another step gives others."""
    masks = DropoutMasks(network())
    one, same, other = (masks.draw(10, seed(step)).numpy() for step in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).mean() > 0.99


def test_layers_are_restored():
    """After a step, or an error in it, the layers draw their own masks again."""
    model = network()
    masks = DropoutMasks(model)
    inputs = tf.ones((8, 28, 28))
    before = model(inputs).numpy()
    with pytest.raises(ValueError, match="stop"), masks.applied(masks.draw(8, seed())):
        assert (model(inputs, training=False).numpy() == before).all()
        raise ValueError("stop")
    assert (model(inputs, training=True).numpy() != model(inputs, training=True).numpy()).any()  # drawn by Keras


def test_masks_that_keras_draws():
    """Keras draws those of a second call of a layer, and those with a noise shape; `--xla auto` leaves these out."""
    layer = keras.layers.Dropout(0.5)
    rows = keras.Input((400,))
    twice = keras.Model(rows, [layer(rows), layer(rows)])
    masks = DropoutMasks(twice)
    drawn = masks.draw(2, seed())
    with masks.applied(drawn):
        outputs = [each.numpy() > 0 for each in twice(tf.ones((2, 400)), training=True)]
    assert sorted((each == (drawn.numpy() >= 128)).all() for each in outputs) == [False, True]
    shaped = keras.Sequential([rows, keras.layers.Dropout(0.5, noise_shape=(None, 1)), keras.layers.Dense(2)])
    assert DropoutMasks(shaped).layers == []
    assert uses_xla(network(), "auto")
    if not tf.config.list_logical_devices("GPU"):
        assert not uses_xla(shaped, "auto")
        assert not uses_xla(network(model="cnn"), "auto")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("xla", "kind", "batch_size"), [("on", "CPU", 32), ("on", "CPU", 64), ("on", "GPU", 32), ("off", "CPU", 32)]
)
def test_step_uses_the_masks(xla, kind, batch_size):
    """The loss of a step is that of a network whose units are dropped by the masks, however XLA compiles it.

    With a batch size of 64, the step is one with the rest of the rows.
    """
    draw = np.random.default_rng(0)
    inputs, labels = draw.random((32, 28, 28)).astype(np.float32), draw.integers(0, 10, 32)
    model = network("0.25,0.5", model="mlp-30")
    first, second, last = (layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    masks = DropoutMasks(model)
    drawn = masks.draw(32, seed(3)).numpy()
    kept = [drawn[:, :784] >= 64, drawn[:, 784:814] >= 128, drawn[:, 814:844] >= 128]

    def dense(layer, values):
        return values @ layer.kernel.numpy() + layer.bias.numpy()

    hidden = inputs.reshape(32, -1) * kept[0] / 0.75
    hidden = np.maximum(dense(first, hidden), 0) * kept[1] * 2
    logits = dense(last, np.maximum(dense(second, hidden), 0) * kept[2] * 2)
    expected = -np.log(np.exp(logits)[np.arange(32), labels] / np.exp(logits).sum(axis=1)).sum()
    rows = TrainingRows(Split("train", ArrayRows(inputs, "inputs"), labels))
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    training, replicas = Training(xla=xla, batch_size=batch_size), replace(open_replicas(), kind=kind)
    trainer = Trainer(model, optimizer, rows, Objective(alpha=1.0), training, replicas)
    buffer = Buffer(tf.constant(inputs), tf.constant(labels, tf.int32))
    sums = trainer.train(buffer, np.arange(32)[None], (5, 3), Objective(alpha=1.0))
    assert sums[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_saved_network_loads_without_kdistill(tmp_path):
    """A `.keras` file of a network with dropout loads in a process without kdistill, and gives the same logits."""
    model = network(max_norm=3.0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "logits.npy", model(tf.ones((2, 28, 28))).numpy())
    code = (
        "import sys; sys.modules['kdistill'] = None; import keras, numpy as np\n"
        "model = keras.saving.load_model('model.keras')\n"
        "assert np.allclose(model(np.ones((2, 28, 28), 'f4')), np.load('logits.npy'), atol=1e-5)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_max_norm_and_weight_decay():
    """After a step, the weights into hidden units have at most the norm; biases do not decay."""
    model = network(None, model="mlp-30", max_norm=0.5)
    first, second, last = (layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    for layer in (first, second, last):
        layer.bias.assign(tf.ones_like(layer.bias))
    optimizer = make_optimizer(Training(optimizer="sgd", learning_rate=0.5, weight_decay=0.1), 1)
    optimizer.build(model.trainable_variables)
    before = last.kernel.numpy()
    optimizer.apply([tf.zeros_like(variable) for variable in model.trainable_variables], model.trainable_variables)
    for layer in (first, second):
        assert np.linalg.norm(layer.kernel.numpy(), axis=0).max() == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(last.kernel.numpy(), before * (1 - 0.5 * 0.1), rtol=1e-5)
    assert (first.bias.numpy() == 1).all()
    assert np.linalg.norm(before, axis=0).max() > 0.5


def test_residual_networks_have_no_hidden_dense_layers():
    """Their inputs can be dropped; a rate for hidden layers is refused, since it would have no effect."""
    assert [type(layer).__name__ for layer in network("0.2,0", "resnet-8").layers].count("Dropout") == 1
    with pytest.raises(UsageError, match=r"--dropout.*0\.2,0\.5.*resnet-8.*--dropout 0\.2,0$"):
        network("0.2,0.5", "resnet-8")


@pytest.mark.parametrize("text", ["", "0.5", "0.5,", "0.1,0.2,0.3", "-0.1,0", "0,0.95", "a,b", "nan,0"])
def test_wrong_rates(text):
    """Dropout takes two rates from 0 to 0.9."""
    with pytest.raises(UsageError, match="--dropout"):
        check_value(Training, "dropout", text)
