"""Networks of the user's own: made by a function, loaded from a `.keras` file, or from `keras.applications`.

Each is checked to be a Keras network from rows to logits. Errors of the user's code become one line with its location.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from kdistill.backend import keras, tf
from kdistill.data import user_code
from kdistill.data.rows import BLOCK_ROWS, Rows
from kdistill.errors import KdistillError, first_line
from kdistill.networks.keras_files import load_keras_file
from kdistill.networks.layers import operations_in
from kdistill.networks.sources import APPLICATIONS, ModelSource
from kdistill.settings import NEW_WEIGHTS

PROBABILITIES = ("softmax", "sigmoid")
PROBED_ROWS = 4


def build(source: ModelSource, rows: Any, classes: int, precision: str, texts: Rows | None = None) -> keras.Model:
    """Build a network of the user's own.

    Args:
        source: a source with a file or a network of `keras.applications`.
        rows: the `keras.Input` for the rows.
        classes: the number of logits.
        precision: the Keras dtype policy, which the caller has set.
        texts: the rows to fit the vocabularies of new `TextVectorization` layers on; None if the rows are numbers.

    Returns:
        A functional or sequential model with one input and one output.

    Raises:
        KdistillError: if the network cannot be built, does not fit the rows, or does not output logits.
    """
    if source.file is None:
        network = _application(source.name, rows, classes)
        _check_shapes(network, rows, classes, source.name)
        return network
    if source.name.endswith(".keras"):
        where, network = source.name, _from_file(source, source.file, precision)
    else:
        where, network = _from_function(source, source.file, tuple(rows.shape[1:]), classes)
    try:
        network = _with_known_shapes(network, rows)
        if texts is not None:
            _fit_vocabularies(network, texts)
        _check_shapes(network, rows, classes, where)
        output = network(_random_rows(rows), training=False)
    except KdistillError:
        raise
    except Exception as error:
        context = f"in the network of --model {source.name}, on rows of shape {tuple(rows.shape[1:])}"
        raise _user_error(error, context, source.file) from error
    _check_logits(network, output, where)
    if not network.trainable_variables:
        raise KdistillError(f"{where}: the network has no trainable weights; set trainable=True for some layers")
    return network


def _from_function(source: ModelSource, file: Path, input_shape: tuple[int, ...], classes: int) -> tuple[str, Any]:
    """Return the location of the user's function, and the network that it returns."""
    module, _, name = source.name.partition(":")
    try:
        namespace = vars(user_code.import_file(module, file))
    except (Exception, SystemExit) as error:
        raise _user_error(error, f"on importing {module} for --model {source.name}", file) from error
    function = namespace.get(name)
    if not callable(function):
        problem = f"{name} is of type {type(function).__name__}" if name in namespace else f"{name} is not defined"
        raise KdistillError(f"{file}: {problem}; --model {source.name} needs a function of (input_shape, classes)")
    code = getattr(inspect.unwrap(function), "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else str(file)
    try:
        network = function(input_shape, classes)
    except (Exception, SystemExit) as error:
        context = f"in {name}({input_shape}, {classes}) of --model {source.name}"
        raise _user_error(error, context, file, where) from error
    if not isinstance(network, keras.Model):
        kind = type(network)
        type_name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        raise KdistillError(f"{where}: {name} returns a {type_name}; --model {source.name} needs a keras.Model")
    return where, network


def _from_file(source: ModelSource, file: Path, precision: str) -> keras.Model:
    """Load the network of a `.keras` file, with its own or new weights."""
    network = load_keras_file(file, "if it needs code, write a function that loads it and pass --model MODULE:FUNCTION")
    dtypes = {getattr(operation, "compute_dtype", None) for operation in operations_in(network)}
    mixed = (f"mixed_{dtype}" for dtype in ("float16", "bfloat16") if dtype in dtypes)
    saved_precision = next(mixed, "float32")
    if saved_precision != precision:
        raise KdistillError(
            f"{source.name} was saved with dtype policy {saved_precision}; pass --precision {saved_precision}"
        )
    if source.weights != NEW_WEIGHTS:
        return network
    fresh = keras.models.clone_model(network)
    for trainable in (False, True):  # Keras only passes a changed value on to the layers
        fresh.trainable = trainable
    return fresh


def _application(model: str, rows: Any, classes: int) -> keras.Model:
    """Build a network of `keras.applications` with new weights, for rows that are scaled as for any other network.

    The network's own scaling, which is made for values from 0 to 255, is left out. EfficientNetB0 to B7 lack an option for
    that, so their inputs are multiplied by 255.
    """
    name = model.partition(":")[2]
    known = [attribute for attribute in dir(keras.applications) if attribute[0].isupper()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise KdistillError(f"--model {model} does not exist in {APPLICATIONS}; pass e.g. {', '.join(close)}")
    make = getattr(keras.applications, name)
    shape = tuple(rows.shape[1:])
    image = (*shape, 1) if len(shape) == 2 else shape
    has_preprocessing_option = "include_preprocessing" in inspect.signature(make).parameters
    try:
        pixels = rows if image == shape else keras.layers.Reshape(image)(rows)
        if name.startswith("EfficientNetB"):
            pixels = keras.layers.Rescaling(255.0)(pixels)
        network: keras.Model = make(
            input_tensor=pixels,
            input_shape=image,
            weights=None,
            classes=classes,
            classifier_activation=None,
            **({"include_preprocessing": False} if has_preprocessing_option else {}),
        )
    except Exception as error:
        raise KdistillError(f"--model {model} does not fit rows of shape {shape}: {first_line(error)}") from error
    return network


def _with_known_shapes(network: keras.Model, rows: Any) -> keras.Model:
    """Return a network with known input and output: itself, or one that calls it on symbolic rows."""
    if getattr(network, "inputs", None):
        return network
    if type(network) is keras.Sequential:  # otherwise its input would have the dtype of its first layer
        return keras.Sequential([rows, *network.layers], name=network.name)
    network(rows, training=True)  # finds errors that only occur in training
    return keras.Model(rows, network(rows), name=network.name)


def _fit_vocabularies(network: keras.Model, texts: Rows) -> None:
    """Fit the vocabularies of `TextVectorization` layers that have none."""
    for layer in operations_in(network):
        if isinstance(layer, keras.layers.TextVectorization) and not layer.get_vocabulary(include_special_tokens=False):
            layer.adapt(texts.blocks(BLOCK_ROWS))


def _random_rows(rows: Any) -> Any:
    """Return some rows: numbers in [0, 1), or zeros and ones for integers, which any vocabulary has, or short texts."""
    if rows.dtype == "string":
        return tf.fill((PROBED_ROWS, *rows.shape[1:]), "a text")
    values = np.random.default_rng(0).random((PROBED_ROWS, *rows.shape[1:]))
    return tf.constant(values.round() if keras.backend.is_int_dtype(rows.dtype) else values, rows.dtype)


def _check_shapes(network: keras.Model, rows: Any, classes: int, where: str) -> None:
    """Check that a network takes the rows and outputs one logit per class."""
    inputs, outputs = len(network.inputs), len(network.outputs)
    if (inputs, outputs) != (1, 1):
        raise KdistillError(f"{where}: the network has {inputs} inputs and {outputs} outputs (expected one of each)")
    entry = network.inputs[0]
    shape, actual = tuple(entry.shape), tuple(rows.shape)
    fits = len(shape) == len(actual) and all(size in (None, other) for size, other in zip(shape, actual, strict=True))
    if not fits or shape[0]:
        raise KdistillError(f"{where}: the network takes inputs of shape {shape}, but the rows have shape {actual}")
    if keras.backend.is_int_dtype(entry.dtype) and not keras.backend.is_int_dtype(rows.dtype):
        raise KdistillError(
            f"{where}: the network takes {entry.dtype}, but the rows are {rows.dtype} (uint8 is scaled to [0, 1]); use "
            "dtype float32 in its keras.Input"
        )
    output = tuple(network.outputs[0].shape)
    if output != (None, classes):
        raise KdistillError(f"{where}: the network outputs {output} (expected a logit per class, {(None, classes)})")


def _check_logits(network: keras.Model, output: Any, where: str) -> None:
    """Check that a network does not output probabilities, by its last operation and its output for a few rows."""
    if not tf.is_tensor(output):
        raise KdistillError(f"{where}: the network outputs a {type(output).__name__} (expected one tensor of logits)")
    last = network
    while getattr(last, "inputs", None) and isinstance(last, keras.Model):  # other models do not list layers in order
        last = getattr(last, "operations", last.layers)[-1]
    activation = getattr(last, "activation", None) or type(last)
    name = getattr(activation, "__name__", type(activation).__name__).lower()
    values = np.asarray(tf.cast(output, tf.float32))
    if (values >= 0).all() and (np.abs(values.sum(axis=1) - 1) < 1e-2).all():
        name = "softmax"
    if name in PROBABILITIES:
        raise KdistillError(
            f"{where}: the network ends in {name}, but distillation needs logits; set activation=None in its last layer"
        )


def _user_error(error: BaseException, context: str, file: Path, where: str | None = None) -> KdistillError:
    """Return an error of the user's code as one line that begins with the innermost location in that code."""
    location = user_code.error_location(error, file) or where or str(file)
    return KdistillError(f"{location}: {type(error).__name__}: {first_line(error)} ({context})")
