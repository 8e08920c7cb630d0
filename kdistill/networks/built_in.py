"""The hidden layers of the built-in networks.

To add a network, write a function here and add its entry to `settings.catalog.NETWORKS`. A function takes the shape of a
row and the numbers in the network's name, and returns all layers between the input and the logits.
"""

from __future__ import annotations

import re
from typing import Any

from kdistill.backend import keras
from kdistill.errors import KdistillError
from kdistill.settings import built_in

Shape = tuple[int, ...]

layers = keras.layers


def hidden_layers(model: str, input_shape: Shape) -> list[Any]:
    """Return new hidden layers of a built-in network.

    Args:
        model: the name of a built-in network, e.g. `mlp-800`.
        input_shape: the shape of a row.

    Raises:
        KdistillError: if rows of this shape do not fit the network.
    """
    entry = built_in(model)
    assert entry is not None, model
    match = re.fullmatch(entry.pattern, model)
    numbers = map(int, match.groups()) if match else ()
    return list(globals()[entry.function](input_shape, *numbers))


def cnn(input_shape: Shape) -> list[Any]:
    """Return the layers in the README of Tensorflow-Knowledge-Distillation: 64,570 parameters for 28x28 and 10 classes."""
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 10:
        raise KdistillError(
            f"--model cnn needs images of at least 10x10 pixels, but the rows have shape {input_shape}; pass a network for "
            "rows of any shape, e.g. --model mlp-800"
        )
    return [
        *([layers.Reshape((*input_shape, 1))] if len(input_shape) == 2 else []),
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
