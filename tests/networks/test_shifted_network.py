"""Networks whose logits are shifted by another bias or a last layer."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.backend import keras
from kdistill.errors import KdistillError
from kdistill.networks.shifted_network import load_shifted


def networks():
    """Return names, networks, and whether the shift goes into the bias of the last layer."""
    layers, rows = keras.layers, keras.Input((6,))
    dense = layers.Dense(4, name="logits")
    called_twice = layers.Dense(6)
    return [
        ("Sequential", keras.Sequential([rows, layers.Dense(5, "relu"), layers.Dense(4)]), True),
        ("functional", keras.Model(rows, dense(layers.Dense(5, "relu")(rows))), True),
        ("no bias", keras.Sequential([rows, layers.Dense(4, use_bias=False)]), False),
        ("bfloat16", keras.Sequential([rows, layers.Dense(4, dtype="mixed_bfloat16")]), False),
        ("Add", keras.Model(rows, layers.Add()([layers.Dense(4)(rows), layers.Dense(4)(rows)])), False),
        ("nested", keras.Sequential([rows, keras.Sequential([keras.Input((6,)), layers.Dense(4)])]), False),
        ("tanh", keras.Sequential([rows, layers.Dense(4, "tanh")]), False),
        ("called twice", keras.Model(rows, called_twice(layers.ReLU()(called_twice(rows)))), False),
    ]


@pytest.mark.parametrize(
    ("name", "network", "in_bias"), networks(), ids=lambda value: value if value is str(value) else ""
)
def test_logits_are_shifted(tmp_path, name, network, in_bias):
    """The logits are those of the original plus the shifts, and the network loads without kdistill."""
    network.save(tmp_path / "model.keras")
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    shifts = np.linspace(-3, 2, network.output_shape[-1]).astype(np.float32)
    load_shifted(tmp_path / "model.keras", shifts).save(tmp_path / "shifted.keras")
    shifted = keras.saving.load_model(tmp_path / "shifted.keras")
    np.testing.assert_allclose(np.float32(shifted(rows)), np.float32(network(rows)) + shifts, atol=2e-6)
    assert isinstance(shifted.layers[-1], keras.layers.Rescaling) is not in_bias
    assert shifted.count_params() == network.count_params()
    assert (shifted.input_shape, shifted.output_shape) == (network.input_shape, network.output_shape)


def test_network_with_custom_layers(tmp_path):
    """A network that needs the user's code is refused, with the file and what to do."""

    class Custom(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    keras.Sequential([keras.Input((3,)), Custom(), keras.layers.Dense(2)]).save(tmp_path / "model.keras")
    with pytest.raises(KdistillError, match=r"model\.keras.*--model"):
        load_shifted(tmp_path / "model.keras", np.zeros(2))
