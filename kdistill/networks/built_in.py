"""The hidden layers of the built-in networks.

To add a network, write a function here and add its entry to `settings.catalog.NETWORKS`. A function takes the shape of a
row (of a text: the rows that its vocabulary is fitted on) and the numbers in the network's name, and returns all layers
between the input and the logits. A part that is not a sequence of layers, such as a residual block, is a small functional
network, which is a layer too.
"""

from __future__ import annotations

import re
from typing import Any

from kdistill.backend import keras
from kdistill.data.rows import BLOCK_ROWS, Rows
from kdistill.errors import KdistillError
from kdistill.settings import built_in

Shape = tuple[int, ...]

layers = keras.layers
MAX_WORDS = 20_000
MAX_TEXT_WORDS = 512


def hidden_layers(model: str, input_shape: Shape, texts: Rows | None = None) -> list[Any]:
    """Return new hidden layers of a built-in network.

    Args:
        model: the name of a built-in network, e.g. `mlp-800`.
        input_shape: the shape of a row.
        texts: the rows to fit a vocabulary on; None if the rows are numbers.

    Raises:
        KdistillError: if rows of this shape do not fit the network.
    """
    entry = built_in(model)
    assert entry is not None, model
    if entry.text != (texts is not None):
        takes, are, other = ("texts", "numbers", "mlp-800") if entry.text else ("numbers", "texts", "text-64")
        raise KdistillError(
            f"--model {model} takes {takes}, but the rows are {are}; pass another one, e.g. --model {other}"
        )
    match = re.fullmatch(entry.pattern, model)
    numbers = map(int, match.groups()) if match else ()
    return list(globals()[entry.function](texts if entry.text else input_shape, *numbers))


def cnn(input_shape: Shape) -> list[Any]:
    """Return the layers in the README of Tensorflow-Knowledge-Distillation: 64,570 parameters for 28x28 and 10 classes."""
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 10:
        raise KdistillError(
            f"--model cnn needs images of at least 10x10 pixels, but the rows have shape {input_shape}; pass a network for "
            "rows of any shape, e.g. --model mlp-800"
        )
    return [
        *_with_channels(input_shape),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        *(layers.Dense(56, activation="relu") for _ in range(4)),
    ]


def small(_: Shape) -> list[Any]:
    """Return the layers of the student in the README of Tensorflow-Knowledge-Distillation."""
    return [layers.Flatten(), layers.Dense(10, activation="relu")]


def mlp(_: Shape, units: int) -> list[Any]:
    """Return two dense layers with the given number of units."""
    return [layers.Flatten(), *(layers.Dense(units, activation="relu") for _ in range(2))]


def text(texts: Rows, units: int) -> list[Any]:
    """Return a vocabulary, the mean of the vectors of a text's words, and a dense layer, all with the given number of units.

    The vocabulary has the `MAX_WORDS` most frequent words of the texts. Of a longer text, the first `MAX_TEXT_WORDS` are read.
    """
    vectorization = layers.TextVectorization(max_tokens=MAX_WORDS)
    vectorization.adapt(texts.blocks(BLOCK_ROWS))
    words = keras.Input((None,), dtype="int64")
    first = words[:, :MAX_TEXT_WORDS]
    present = keras.ops.cast(first != 0, "float32")[..., None]  # 0 fills up shorter texts
    vectors = layers.Embedding(vectorization.vocabulary_size(), units)(first)
    count = keras.ops.maximum(keras.ops.sum(present, axis=1), 1.0)
    mean = keras.Model(words, keras.ops.sum(vectors * present, axis=1) / count, name="mean_of_word_vectors")
    return [vectorization, mean, layers.Dense(units, activation="relu")]


def resnet(input_shape: Shape, depth: int) -> list[Any]:
    """Return the layers of the residual networks for CIFAR-10 in He et al. 2016 (arXiv:1512.03385, section 4.2).

    Three stages of n blocks have 16, 32 and 64 filters; the second and the third stage begin by halving height and width.
    There are 6n + 2 layers with weights. As in the paper, shortcuts are without parameters (option A), and the initial
    weights of the convolutions are normal with variance 2 / fan-in.
    """
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 16 or input_shape[2:] not in ((), (1,), (3,)):
        raise KdistillError(
            f"--model resnet-{depth} needs images of at least 16x16 pixels with 1 or 3 channels, but the rows have shape "
            f"{input_shape}; pass another network, e.g. --model mlp-800"
        )
    first = [*_with_channels(input_shape), *_normalized_convolution(16), layers.ReLU()]
    shape, blocks = (*input_shape[:2], 16), []
    for stage in (1, 2, 3):
        for number in range(1, (depth - 2) // 6 + 1):
            halves = stage > 1 and number == 1
            blocks.append(_residual_block(f"block_{stage}_{number}", shape, halves=halves))
            shape = blocks[-1].output_shape[1:]
    return [*first, *blocks, layers.GlobalAveragePooling2D()]


def _residual_block(name: str, shape: Shape, *, halves: bool) -> keras.Model:
    """Return a block of two convolutions and a shortcut, for inputs of a shape.

    A block that halves height and width doubles the channels: its shortcut takes every other pixel, and pads with zeros.
    """
    filters = shape[-1] * (2 if halves else 1)
    inputs = keras.Input(shape)
    residual = inputs
    for layer in (
        *_normalized_convolution(filters, stride=2 if halves else 1),
        layers.ReLU(),
        *_normalized_convolution(filters),
    ):
        residual = layer(residual)
    padding = [(0, 0), (0, 0), (0, 0), (0, filters - shape[-1])]
    shortcut = keras.ops.pad(inputs[:, ::2, ::2], padding) if halves else inputs
    return keras.Model(inputs, layers.ReLU()(layers.Add()([shortcut, residual])), name=name)


def _normalized_convolution(filters: int, stride: int = 1) -> tuple[Any, Any]:
    """Return a 3x3 convolution and its batch normalization, whose averages have PyTorch's decay of 0.9 per step."""
    return (
        layers.Conv2D(filters, 3, stride, "same", use_bias=False, kernel_initializer="he_normal"),
        layers.BatchNormalization(momentum=0.9),
    )


def _with_channels(input_shape: Shape) -> list[Any]:
    """Return the layer that adds a channel axis to images without one."""
    return [layers.Reshape((*input_shape, 1))] if len(input_shape) == 2 else []
