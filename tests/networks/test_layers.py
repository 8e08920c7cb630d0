"""Layers: the work of a network."""

from __future__ import annotations

from kdistill.backend import keras
from kdistill.networks.layers import multiply_adds


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution, self.flatten = keras.layers.Conv2D(4, 3, use_bias=False), keras.layers.Flatten()

    def call(self, inputs):
        return self.flatten(self.convolution(inputs))


def test_multiply_adds():
    """Each weight counts once per position of the larger side of its layer."""
    layers = keras.layers
    convolution = [keras.Input((9, 9, 3)), layers.Conv2D(5, 3, use_bias=False), layers.Flatten(), layers.Dense(2)]
    assert multiply_adds(keras.Sequential(convolution)) == 81 * 3 * 3 * 3 * 5 + (7 * 7 * 5 + 1) * 2
    steps = [keras.Input((6, 3)), layers.LSTM(4), layers.Dense(2)]
    assert multiply_adds(keras.Sequential(steps)) == 6 * 4 * 4 * (3 + 4 + 1) + (4 + 1) * 2
    words = [keras.Input((6,), dtype="int32"), layers.Embedding(1000, 8), layers.Dense(2)]
    assert multiply_adds(keras.Sequential(words)) == 6 * (8 + 1) * 2
    row = keras.Input((7, 4))
    attention = keras.Model(row, layers.MultiHeadAttention(2, 3)(row, row))
    assert multiply_adds(attention) == 7 * attention.count_params()
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4)])
    assert multiply_adds(keras.Sequential([keras.Input((5,)), inner, layers.Dense(2)])) == 6 * 4 + 5 * 2


class Tokens(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding, self.dense = keras.layers.Embedding(100, 3), keras.layers.Dense(4)

    def call(self, inputs):
        return self.dense(self.embedding(inputs))


def test_multiply_adds_of_a_subclass():
    """The shapes inside of it are not known, so each weight counts once per pixel or token of the input."""
    tokens = keras.Input((6,), dtype="int32")
    assert multiply_adds(keras.Model(tokens, Tokens()(tokens))) == 6 * (3 + 1) * 4
    inputs = keras.Input((6, 6, 1))
    assert multiply_adds(keras.Model(inputs, Subclass()(inputs))) == 36 * 3 * 3 * 4
