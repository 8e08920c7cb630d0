"""SavedModels of plain TensorFlow, as teachers from outside kdistill."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.backend import tf


class Linear(tf.Module):
    """A linear map of the pixels, with several signatures and outputs."""

    def __init__(self, classes=10):
        super().__init__()
        draw = np.random.default_rng(0)
        self.weights = tf.Variable(draw.normal(0, 0.1, (784, classes)).astype(np.float32))

    def logits(self, inputs):
        return tf.reshape(inputs, (-1, 784)) @ self.weights

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28), tf.float32)])
    def serve(self, inputs):
        return {"scores": self.logits(inputs)}

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28), tf.float32)])
    def both(self, inputs):
        logits = self.logits(inputs)
        return {"features": tf.nn.relu(logits), "probabilities": tf.nn.softmax(logits)}

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28), tf.uint8)])
    def bytes(self, inputs):
        return self.logits(tf.cast(inputs, tf.float32))

    @tf.function(input_signature=[tf.TensorSpec((100, 28, 28), tf.float32)])
    def hundred(self, inputs):
        return self.logits(inputs)


@pytest.fixture(scope="session")
def linear(tmp_path_factory):
    """Return a directory of SavedModels of one network, with different signatures, and the network."""
    place, network = tmp_path_factory.mktemp("linear"), Linear()
    tf.saved_model.save(network, place / "one", signatures={"serving_default": network.serve})
    many = {"a": network.serve, "b": network.both, "bytes": network.bytes, "hundred": network.hundred}
    tf.saved_model.save(network, place / "many", signatures=many)
    tf.saved_model.save(network, place / "none")
    tf.saved_model.save(small := Linear(3), place / "three", signatures=small.serve)
    return place, network


@pytest.fixture
def changing_teacher(tmp_path):
    """Return the path of a SavedModel, and a function that doubles its weights."""
    network, path = Linear(), tmp_path / "net"
    tf.saved_model.save(network, path, signatures=network.serve)

    def change():
        network.weights.assign(network.weights * 2)
        tf.saved_model.save(network, path, signatures=network.serve)

    return path, change
