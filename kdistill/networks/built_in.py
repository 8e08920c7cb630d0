"""Networks to train, by name: the built-in ones here, the user's own from the room of theirs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kdistill.backend import keras, tf
from kdistill.errors import KdistillError, UsageError
from kdistill.networks import sources as model_sources
from kdistill.networks import user_defined as own_networks
from kdistill.settings import TrainTeacher, check_value, parse_dropout
from kdistill.settings import built_in as built_in_entry

TABLE_ROWS = 40

layers = keras.layers
WEIGHTED = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)


def build(
    model: str,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    role: str,
    seed: int,
    precision: str,
    input_dtype: str = "float32",
    weights: str | None = None,
    dropout: str | None = None,
    max_norm: float | None = None,
) -> keras.Model:
    """A new network that gives logits, with weights drawn from the role and the seed.

    Args:
        model: `cnn` (the teacher of Tensorflow-Knowledge-Distillation), `small` (its student), `mlp-H`, or one of the
            user's own, as in `model_sources.ModelSource`.
        input_shape: of one row.
        classes: how many logits.
        role: `teacher` or `student`; names the last layer, and keeps the two from starting alike at one seed.
        seed: a whole number below 2^32.
        precision: a Keras dtype policy; built-in networks give logits in float32 under any.
        input_dtype: of the dataset. The network takes int32 for whole numbers but uint8, and float32 for the rest.
        weights: a file of weights to begin with, or `new` for a `.keras` whose own are not wanted.
        dropout: as in `settings.parse_dropout`; of built-in networks, after the inputs and each hidden dense layer.
        max_norm: the most that the weights into one unit or filter may have for a norm, but for those of the logits
            (Srivastava et al. 2014, Dropout, section 5.1).

    Returns:
        A functional or sequential model with one input and one output.

    Raises:
        KdistillError: if there is no such network, or none for such inputs.
    """
    source = model_sources.resolve(check_value(TrainTeacher, "model", model), weights)
    built_in = built_in_entry(model) is not None
    if dropout and not built_in:
        raise UsageError(f"--dropout is for built-in networks: put keras.layers.Dropout into {model} instead")

    def layered() -> keras.Model:
        keras.utils.set_random_seed(role_seed(seed, role))
        keras.config.set_dtype_policy(precision)
        token_ids = input_dtype != "uint8" and keras.backend.is_int_dtype(input_dtype)
        rows = keras.Input(input_shape, dtype="int32" if token_ids else "float32")
        if not built_in:
            return own_networks.build(source, rows, classes, precision)
        body = _with_dropout(_body(model, input_shape), *parse_dropout(dropout or "0,0"))
        logits = layers.Dense(classes, dtype="float32", name=f"{role}_logits")
        return keras.Sequential([rows, *body, logits], name=role)

    network = _in_new_thread(layered)
    if source.weights_file:
        own_networks.load_weights(network, source.weights_file)
    if max_norm is not None:
        weighted = [each for each in own_networks.operations_in(network) if isinstance(each, WEIGHTED)]
        for layer in weighted[:-1]:
            layer.kernel.constraint = keras.constraints.MaxNorm(max_norm, axis=list(range(len(layer.kernel.shape) - 1)))
    return network


def _in_new_thread(build: Callable[[], keras.Model]) -> keras.Model:
    """Build a network in a thread of its own, under the current distribution strategy.

    Keras keeps the dtype policy and the numbers in the names of unnamed layers per thread. In a new thread the names, and
    so the saved bytes, do not depend on which networks the process built before.
    """
    strategy = tf.distribute.get_strategy()

    def build_in_scope() -> keras.Model:
        with strategy.scope():
            return build()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build_in_scope).result()


def role_seed(seed: int, role: str) -> int:
    """A seed of its own for each role."""
    return int(np.random.SeedSequence([seed, *role.encode()]).generate_state(1)[0])


def _body(model: str, input_shape: tuple[int, ...]) -> list[Any]:
    if model == "cnn":
        return _cnn(input_shape)
    if model == "small":
        return [layers.Flatten(), layers.Dense(10, activation="relu")]
    units = int(model.removeprefix("mlp-"))
    return [layers.Flatten(), *(layers.Dense(units, activation="relu") for _ in range(2))]


def _with_dropout(body: list[Any], inputs: float, hidden: float) -> list[Any]:
    """A network's layers, with dropout where it belongs."""
    found = [layers.Dropout(inputs)] if inputs else []
    for layer in body:
        found.append(layer)
        if hidden and isinstance(layer, layers.Dense):
            found.append(layers.Dropout(hidden))
    return found


def _cnn(input_shape: tuple[int, ...]) -> list[Any]:
    """The network of Tensorflow-Knowledge-Distillation's README; 64,570 parameters on 28x28 inputs of 10 classes."""
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 10:
        raise KdistillError(
            f"the network cnn needs images of at least 10x10, and rows here have shape {input_shape}: --model mlp-800"
        )
    channel = [layers.Reshape((*input_shape, 1))] if len(input_shape) == 2 else []
    convolutions = [
        layer for _ in range(2) for layer in (layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D())
    ]
    return [*channel, *convolutions, layers.Flatten(), *(layers.Dense(56, activation="relu") for _ in range(4))]


def table(model: keras.Model) -> list[tuple[str, str, str]]:
    """Name and type, output shape, and number of parameters of each layer, and the total.

    Of a deep network some layers in the middle are one row.
    """
    rows = [(f"{layer.name} ({type(layer).__name__})", _output(layer), layer.count_params()) for layer in model.layers]
    if len(rows) > TABLE_ROWS:
        head, middle, tail = rows[: TABLE_ROWS // 2], rows[TABLE_ROWS // 2 : -TABLE_ROWS // 2], rows[-TABLE_ROWS // 2 :]
        rows = [*head, (f"... {len(middle)} more", "", sum(row[2] for row in middle)), *tail]
    return [(name, shape, f"{count:,}") for name, shape, count in [*rows, ("total", "", model.count_params())]]


def _output(layer: keras.Layer) -> str:
    """The shape of what a layer gives; nothing where it is called more than once, or gives more than one tensor."""
    try:
        return " x ".join(map(str, layer.output.shape[1:]))
    except (AttributeError, ValueError):
        return ""
