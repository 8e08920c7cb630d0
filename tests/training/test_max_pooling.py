"""Max pooling by slices: the same outputs and gradients as TensorFlow's, also under XLA."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.backend import keras, tf
from kdistill.training import max_pooling


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("MaxPooling2D", {"pool_size": 2}),
        ("MaxPooling2D", {"pool_size": 3, "strides": 2}),
        ("MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}),
        ("MaxPooling2D", {"pool_size": (3, 2), "strides": (1, 2), "padding": "same"}),
        ("MaxPooling2D", {"pool_size": 2, "strides": 3}),
        ("MaxPooling1D", {"pool_size": 3, "strides": 2, "padding": "same"}),
        ("MaxPooling3D", {"pool_size": 2}),
    ],
)
def test_outputs_and_gradients_are_the_same(kind, options):
    """Small integers, many of which are equal in a window, are pooled as by TensorFlow, to the bit; in 3-D, other ones."""
    shape = (13, 10, 5)[: int(kind[-2])]
    network = keras.Sequential([keras.Input((*shape, 3)), getattr(keras.layers, kind)(**options)])
    inputs = tf.constant(
        np.random.default_rng(0)
        .integers(-2, 1 << 24 if kind == "MaxPooling3D" else 3, (4, *shape, 3))
        .astype(np.float32)
    )

    def pool():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = network(inputs, training=True)
            weights = tf.reshape(tf.range(tf.size(outputs), dtype=tf.float32), outputs.shape)
            total = tf.reduce_sum(weights * outputs)
        return outputs, tape.gradient(total, inputs)

    expected = [each.numpy() for each in pool()]
    with max_pooling.as_slices(network):
        pooled = tf.function(pool, jit_compile=True)()
    for one, other in zip(pooled, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "call" not in network.layers[0].__dict__
