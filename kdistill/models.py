"""Networks to train: the built-in ones, by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdistill.backend import keras
from kdistill.errors import KdistillError
from kdistill.settings import check_model

layers = keras.layers


def build(
    model: str, input_shape: tuple[int, ...], classes: int, *, role: str, seed: int, precision: str
) -> keras.Model:
    """A new network that gives logits, with weights drawn from the role and the seed.

    Args:
        model: `cnn` (the teacher of Tensorflow-Knowledge-Distillation), `small` (its student) or `mlp-H`.
        input_shape: of one row.
        classes: how many logits.
        role: `teacher` or `student`; names the last layer, and keeps the two from starting alike at one seed.
        seed: a whole number below 2^32.
        precision: a Keras dtype policy; logits are float32 under any.

    Raises:
        KdistillError: if there is no such network, or none for such inputs.
    """
    keras.utils.set_random_seed(role_seed(seed, role))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        body = _body(model, input_shape)
        logits = layers.Dense(classes, dtype="float32", name=f"{role}_logits")
        return keras.Sequential([keras.Input(input_shape), *body, logits], name=role)
    finally:
        keras.config.set_dtype_policy(before)


def role_seed(seed: int, role: str) -> int:
    """A seed of its own for each role."""
    return int(np.random.SeedSequence([seed, *role.encode()]).generate_state(1)[0])


def _body(model: str, input_shape: tuple[int, ...]) -> list[Any]:
    if model == "cnn":
        return _cnn(input_shape)
    if model == "small":
        return [layers.Flatten(), layers.Dense(10, activation="relu")]
    check_model("model", model)
    units = int(model.removeprefix("mlp-"))
    return [layers.Flatten(), *(layers.Dense(units, activation="relu") for _ in range(2))]


def _cnn(input_shape: tuple[int, ...]) -> list[Any]:
    """The network of Tensorflow-Knowledge-Distillation's README; 64,570 parameters on 28x28 inputs of 10 classes."""
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 10:
        raise KdistillError(
            f"--model cnn needs images of at least 10x10, and the rows here have shape {input_shape}: --model mlp-800"
        )
    channel = [layers.Reshape((*input_shape, 1))] if len(input_shape) == 2 else []
    convolutions = [
        layer for _ in range(2) for layer in (layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D())
    ]
    return [*channel, *convolutions, layers.Flatten(), *(layers.Dense(56, activation="relu") for _ in range(4))]


def table(model: keras.Model) -> list[tuple[str, str, str]]:
    """Name and type, output shape, and number of parameters of each layer, and the total."""
    rows = [
        (
            f"{layer.name} ({type(layer).__name__})",
            " x ".join(map(str, layer.output.shape[1:])),
            f"{layer.count_params():,}",
        )
        for layer in model.layers
    ]
    return [*rows, ("total", "", f"{model.count_params():,}")]
