"""Networks of the user's own: from a function, from a `.keras` file, or one of `keras.applications`.

Whatever comes of these, or goes wrong in them, is one network that gives logits, or one line that says where.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from kdistill.backend import keras, tf
from kdistill.data import user_code
from kdistill.errors import KdistillError, first_line
from kdistill.networks.layers import operations_in
from kdistill.networks.sources import APPLICATIONS, ModelSource
from kdistill.settings import NEW_WEIGHTS

PROBABILITIES = ("softmax", "sigmoid")
PROBED_ROWS = 4


def build(source: ModelSource, rows: Any, classes: int, precision: str) -> keras.Model:
    """A network of the user's own.

    Args:
        source: what it is made of; it has a file, or is one of `keras.applications`.
        rows: `keras.Input` of the rows it will see.
        classes: how many logits it must give.
        precision: the Keras dtype policy, which is set already.

    Returns:
        A functional or sequential model with one input and one output.

    Raises:
        KdistillError: if it can't be made, takes other rows, or gives something else than logits.
    """
    if source.file is None:
        network = _application(source.name, rows, classes)
        _check_shapes(network, rows, classes, source.name)
        return network
    if source.name.endswith(".keras"):
        where, network = source.name, _file(source, precision)
    else:
        where, network = _function(source, tuple(rows.shape[1:]), classes)
    try:
        network = _called(network, rows)
        _check_shapes(network, rows, classes, where)
        said = network(_sample(rows), training=False)
    except KdistillError:
        raise
    except Exception as error:
        what = f"in the network of --model {source.name}, on rows of {tuple(rows.shape[1:])}"
        raise _failure(error, what, source.file) from error
    _check_logits(network, said, where)
    if not network.trainable_variables:
        raise KdistillError(f"{where}: none of its weights is trainable")
    return network


def _function(source: ModelSource, input_shape: tuple[int, ...], classes: int) -> tuple[str, Any]:
    """Where the user's function stands, and what it returns."""
    assert source.file is not None
    module, _, name = source.name.partition(":")
    try:
        namespace = vars(user_code.imported(module, source.file))
    except (Exception, SystemExit) as error:
        raise _failure(error, f"on importing {module} for --model {source.name}", source.file) from error
    function = namespace.get(name)
    if not callable(function):
        what = f"{name} is a {type(function).__name__}" if name in namespace else f"there is no {name} here"
        raise KdistillError(f"{source.file}: {what}: --model {source.name} needs a function of (input_shape, classes)")
    code = getattr(inspect.unwrap(function), "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else str(source.file)
    try:
        network = function(input_shape, classes)
    except (Exception, SystemExit) as error:
        raise _failure(
            error, f"in {name}({input_shape}, {classes}) of --model {source.name}", source.file, where
        ) from error
    if not isinstance(network, keras.Model):
        kind = type(network)
        given = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        raise KdistillError(f"{where}: {name} returns a {given}: --model {source.name} needs a keras.Model")
    return where, network


def _file(source: ModelSource, precision: str) -> keras.Model:
    """The network of a `.keras` file, with its weights, or with new ones."""
    try:
        loaded = keras.models.load_model(source.file, compile=False, safe_mode=True)
    except Exception as error:
        raise KdistillError(
            f"{source.name} can't be loaded: {first_line(error)}; if it needs code, let a function load it: "
            "--model MODULE:FUNCTION"
        ) from error
    computes = {getattr(each, "compute_dtype", None) for each in operations_in(loaded)}
    mixed = (f"mixed_{dtype}" for dtype in ("float16", "bfloat16") if dtype in computes)
    saved_in = next(mixed, "float32")
    if saved_in != precision:
        raise KdistillError(f"{source.name} computes in {saved_in} and keeps to it: --precision {saved_in}")
    if source.weights != NEW_WEIGHTS:
        return loaded
    fresh = keras.models.clone_model(loaded)
    for trainable in (False, True):  # all of it; layers pass on only what is a change
        fresh.trainable = trainable
    return fresh


def _application(model: str, rows: Any, classes: int) -> keras.Model:
    """One of `keras.applications` with new weights, which sees rows as every network here does.

    Its own scaling, made for values to 255, is left out; EfficientNetB0 to B7 can't leave it out, and have it undone.
    """
    name = model.partition(":")[2]
    known = [each for each in dir(keras.applications) if each[0].isupper()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise KdistillError(f"--model {model}: there is none of this name in {APPLICATIONS}, but {', '.join(close)}")
    make = getattr(keras.applications, name)
    shape = tuple(rows.shape[1:])
    image = (*shape, 1) if len(shape) == 2 else shape
    can_leave_out = "include_preprocessing" in inspect.signature(make).parameters
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
            **({"include_preprocessing": False} if can_leave_out else {}),
        )
    except Exception as error:
        raise KdistillError(f"--model {model} takes no rows of {shape}: {first_line(error)}") from error
    return network


def _called(network: keras.Model, rows: Any) -> keras.Model:
    """A network whose input and output are known: itself, or else what it makes of symbolic rows."""
    if getattr(network, "inputs", None):
        return network
    if type(network) is keras.Sequential:  # the input it would make has its first layer's dtype, for token ids too
        return keras.Sequential([rows, *network.layers], name=network.name)
    network(rows, training=True)  # what is wrong in training alone is found here
    outputs = network(rows)
    return keras.Model(rows, outputs, name=network.name)


def _sample(rows: Any) -> Any:
    """Some rows such as a network might see: zeros and ones for whole numbers, which any vocabulary has."""
    draw = np.random.default_rng(0).random((PROBED_ROWS, *rows.shape[1:]))
    return tf.constant(draw.round() if keras.backend.is_int_dtype(rows.dtype) else draw, rows.dtype)


def _check_shapes(network: keras.Model, rows: Any, classes: int, where: str) -> None:
    """Refuse a network of other inputs than these rows, or of other outputs than logits."""
    inputs, outputs = len(network.inputs), len(network.outputs)
    if (inputs, outputs) != (1, 1):
        raise KdistillError(f"{where}: the network has {inputs} inputs and {outputs} outputs: it needs one of each")
    takes, shape = network.inputs[0], tuple(rows.shape)
    its = tuple(takes.shape)
    if len(its) != len(shape) or its[0] or any(one not in (None, other) for one, other in zip(its, shape, strict=True)):
        raise KdistillError(f"{where}: the network takes {its}, and the rows here are {shape}")
    if keras.backend.is_int_dtype(takes.dtype) and not keras.backend.is_int_dtype(rows.dtype):
        raise KdistillError(
            f"{where}: the network takes {takes.dtype}, and would see {rows.dtype} here (uint8 is scaled to [0, 1]): "
            "give its Input dtype float32"
        )
    gives = tuple(network.outputs[0].shape)
    if gives != (None, classes):
        raise KdistillError(f"{where}: the network gives {gives}: it needs a logit a class, {(None, classes)}")


def _check_logits(network: keras.Model, said: Any, where: str) -> None:
    """Refuse probabilities, by the name of the last operation or by how they look on a few rows."""
    if not tf.is_tensor(said):
        raise KdistillError(f"{where}: the network gives a {type(said).__name__}: it needs a single tensor of logits")
    last = network
    while getattr(last, "inputs", None) and isinstance(last, keras.Model):  # of others the order of layers says nothing
        last = getattr(last, "operations", last.layers)[-1]
    kind = getattr(last, "activation", None) or type(last)
    ends_in = getattr(kind, "__name__", type(kind).__name__).lower()
    values = np.asarray(tf.cast(said, tf.float32))
    if (values >= 0).all() and (np.abs(values.sum(axis=1) - 1) < 1e-2).all():
        ends_in = "softmax"
    if ends_in in PROBABILITIES:
        raise KdistillError(
            f"{where}: the network ends in {ends_in}, and logits are what is distilled: give its last layer activation=None"
        )


def _failure(error: BaseException, what: str, file: Path, where: str | None = None) -> KdistillError:
    """An error of the user's code in one line, which begins with the innermost place in it."""
    place = user_code.failed_at(error, file) or where or str(file)
    return KdistillError(f"{place}: {type(error).__name__}: {first_line(error)} ({what})")
