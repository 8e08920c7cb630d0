"""The built-in networks, one entry each. Importing this module does not import Keras.

To add a network, write a function that makes its hidden layers and add an entry to `BUILT_IN`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdistill.errors import KdistillError

Shape = tuple[int, ...]
UNITS = r"([1-9]\d{0,4})"  # what H in the name of a network stands for


@dataclass(frozen=True)
class BuiltIn:
    """A built-in network.

    Attributes:
        help: one line that describes the network.
        hidden_layers: takes the module `keras.layers`, the shape of a row, and the H of the name (0 for a name without
            H); returns all layers between the input and the logits.
        min_image_size: the smallest height and width of the rows, which must be images; None if rows of any shape fit.
    """

    help: str
    hidden_layers: Callable[[Any, Shape, int], list[Any]]
    min_image_size: int | None = None


def find(model: str) -> tuple[BuiltIn, int] | None:
    """Return the entry of a network's name and the H of the name, or None if no built-in network has the name."""
    for name, entry in BUILT_IN.items():
        if match := re.fullmatch(name.replace("H", UNITS), model):
            return entry, int(match[1]) if match.groups() else 0
    return None


def hidden_layers(model: str, input_shape: Shape) -> list[Any]:
    """Return new hidden layers of a built-in network.

    Args:
        model: the name of a built-in network.
        input_shape: the shape of a row.

    Raises:
        KdistillError: if the network needs images and the rows are not, or are too small.
    """
    from kdistill.backend import keras

    network = find(model)
    assert network is not None
    entry, units = network
    size = entry.min_image_size
    if size and (len(input_shape) not in (2, 3) or min(input_shape[:2]) < size):
        raise KdistillError(
            f"--model {model} needs images of at least {size}x{size} pixels, but the rows have shape {input_shape}; "
            "pass a network for rows of any shape, e.g. --model mlp-800"
        )
    return entry.hidden_layers(keras.layers, input_shape, units)


def _cnn(layers: Any, input_shape: Shape, _: int) -> list[Any]:
    """Return the layers in the README of Tensorflow-Knowledge-Distillation; 64,570 parameters for 28x28 and 10 classes."""
    return [
        *([layers.Reshape((*input_shape, 1))] if len(input_shape) == 2 else []),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        *(layers.Dense(56, activation="relu") for _ in range(4)),
    ]


def _small(layers: Any, _: Shape, __: int) -> list[Any]:
    return [layers.Flatten(), layers.Dense(10, activation="relu")]


def _mlp(layers: Any, _: Shape, units: int) -> list[Any]:
    return [layers.Flatten(), *(layers.Dense(units, activation="relu") for _ in range(2))]


BUILT_IN = {
    "cnn": BuiltIn("two convolutions and four dense layers of 56 units, for images", _cnn, min_image_size=10),
    "small": BuiltIn("one hidden layer of 10 units", _small),
    "mlp-H": BuiltIn("two hidden layers of H units each, e.g. mlp-800", _mlp),
}
