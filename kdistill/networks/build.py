"""Build a new network by name: a built-in one or the user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import keras, tf
from kdistill.data.rows import Rows
from kdistill.errors import UsageError
from kdistill.networks import user_defined
from kdistill.networks.built_in import hidden_layers
from kdistill.networks.keras_files import load_weights
from kdistill.networks.layers import operations_in
from kdistill.networks.sources import resolve_model
from kdistill.settings import NEW_WEIGHTS, TrainTeacher, built_in, check_value, parse_dropout

Rescaling = tuple[NDArray[np.float32], NDArray[np.float32]]

layers = keras.layers
PROJECTION = "projection"
# The first layers of a network for texts. Dropout of the inputs comes after them.
WORDS_TO_VECTOR = (layers.TextVectorization, keras.Model)
WITH_KERNEL = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)


def build_network(
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
    l2: float | None = None,
    rescaling: Rescaling | None = None,
    projection: int | None = None,
    texts: Rows | None = None,
) -> keras.Model:
    """Build a network that outputs logits or values, with initial weights drawn from the role and the seed.

    Args:
        model: the name of a built-in network (`settings.catalog.NETWORKS`) or of the user's own (`sources.ModelSource`).
        input_shape: the shape of a row.
        classes: the number of outputs.
        role: `teacher` or `student`. It names the output layer, and gives a teacher and a student of the same seed
            different initial weights.
        seed: a whole number below 2^32.
        precision: a Keras dtype policy. Built-in networks output float32 logits under any policy.
        input_dtype: the dtype of the dataset. The network takes int32 for integers other than uint8, else float32.
        weights: a file with the initial weights, or `new` to initialize the network of a `.keras` file afresh.
        dropout: as in `settings.parse_dropout`; for built-in networks only, after the input and each hidden dense layer.
        max_norm: upper bound for the norm of the weights into each unit or filter, except those of the logits
            (Srivastava et al. 2014, Dropout, section 5.1).
        l2: the network's losses get l2 / 2 times the sum of the squared kernels. Biases and normalization layers are excluded.
        rescaling: offset and scale (classes,) of a fixed last layer. A `.keras` file with its own weights gets none.
        projection: the width of a linear layer after the outputs, which `without_projection` removes.
        texts: the rows to fit vocabularies on, if `input_dtype` is `string`: that of a built-in network, and those of
            `TextVectorization` layers without a vocabulary in the user's own.

    Returns:
        A functional or sequential model with one input and one output.

    Raises:
        KdistillError: if the network does not exist or does not fit the rows.
    """
    source = resolve_model(check_value(TrainTeacher, "model", model), weights)
    is_built_in = built_in(model) is not None
    if dropout and not is_built_in:
        raise UsageError(f"--dropout only applies to built-in networks; add keras.layers.Dropout to {model} instead")

    def build() -> keras.Model:
        keras.utils.set_random_seed(role_seed(seed, role))
        keras.config.set_dtype_policy(precision)
        is_integer = input_dtype != "uint8" and keras.backend.is_int_dtype(input_dtype)
        rows = keras.Input(input_shape, dtype="int32" if is_integer else "float32" if texts is None else "string")
        if not is_built_in:
            return user_defined.build(source, rows, classes, precision, texts)
        hidden = hidden_layers(model, input_shape, texts)
        if dropout:
            hidden = _with_dropout(hidden, *parse_dropout(dropout), model)
        logits = layers.Dense(classes, dtype="float32", name=f"{role}_logits")
        to_floats = [layers.Rescaling(1.0)] if is_integer else []  # convolutions do not take integers
        return keras.Sequential([rows, *to_floats, *hidden, logits], name=role)

    network = _in_new_thread(build)
    if source.weights_file:
        load_weights(network, source.weights_file)
    if max_norm is not None:
        _limit_norms(network, max_norm)
    if l2 is not None:
        _penalize_kernels(network, l2, model)
    pretrained = source.name.endswith(".keras") and source.weights != NEW_WEIGHTS
    if projection is None and (rescaling is None or pretrained):
        return network
    return _in_new_thread(
        functools.partial(_with_last_layers, network, None if pretrained else rescaling, projection, seed)
    )


def _with_last_layers(
    network: keras.Model, rescaling: Rescaling | None, projection: int | None, seed: int
) -> keras.Model:
    outputs = network.outputs[0]
    if rescaling is not None:
        offset, scale = (values.tolist() for values in rescaling)
        outputs = layers.Rescaling(scale, offset, dtype="float32", name="unit")(outputs)
    if projection is not None:
        weights = keras.initializers.GlorotUniform(seed)
        projected = layers.Dense(
            projection, use_bias=False, kernel_initializer=weights, dtype="float32", name=PROJECTION
        )
        outputs = projected(outputs)
    return keras.Model(network.inputs, outputs, name=network.name)


def without_projection(network: keras.Model) -> keras.Model:
    """Return a network without the linear layer that `build_network` added for training."""
    last = network.layers[-1]
    return keras.Model(network.inputs, last.input, name=network.name) if last.name == PROJECTION else network


def role_seed(seed: int, role: str) -> int:
    """Return the seed of a role, which differs between teacher and student."""
    return int(np.random.SeedSequence([seed, *role.encode()]).generate_state(1)[0])


def _in_new_thread(build: Callable[[], keras.Model]) -> keras.Model:
    """Build a network in a new thread, under the current distribution strategy.

    Keras keeps the dtype policy and the counters for the names of unnamed layers per thread. In a new thread the names,
    and thus the saved bytes, do not depend on the networks that the process has built before.
    """
    strategy = tf.distribute.get_strategy()

    def build_in_scope() -> keras.Model:
        with strategy.scope():
            return build()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build_in_scope).result()


def _with_dropout(hidden: list[Any], input_rate: float, hidden_rate: float, model: str) -> list[Any]:
    if hidden_rate and not any(isinstance(layer, layers.Dense) for layer in hidden):
        raise UsageError(
            f"--dropout {input_rate:g},{hidden_rate:g} would drop units of hidden dense layers, which {model} lacks: use --dropout "
            f"{input_rate or 0.2:g},0"
        )
    first = next(place for place, layer in enumerate(hidden) if not isinstance(layer, WORDS_TO_VECTOR))
    result = [*hidden[:first], *([layers.Dropout(input_rate)] if input_rate else [])]
    for layer in hidden[first:]:
        result.append(layer)
        if hidden_rate and isinstance(layer, layers.Dense):
            result.append(layers.Dropout(hidden_rate))
    return result


def _limit_norms(network: keras.Model, max_norm: float) -> None:
    with_kernel = [operation for operation in operations_in(network) if isinstance(operation, WITH_KERNEL)]
    for layer in with_kernel[:-1]:
        axes = list(range(len(layer.kernel.shape) - 1))
        layer.kernel.constraint = keras.constraints.MaxNorm(max_norm, axis=axes)


def _penalize_kernels(network: keras.Model, l2: float, model: str) -> None:
    for kernel in (weight for weight in network.trainable_variables if weight.name.endswith("kernel")):
        if kernel.regularizer is not None:
            raise UsageError(
                f"--l2 does not apply to {model}, where {kernel.path} already has a regularizer: remove --l2"
            )
        kernel.regularizer = keras.regularizers.L2(l2 / 2)
