"""A network whose logits are shifted: the same in Keras, with another last bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import keras
from kdistill.errors import KdistillError, first_line


def load_shifted(file: Path, shifts: NDArray[np.floating[Any]]) -> keras.Model:
    """The network of a `model.keras`, which gives its logits plus `shifts`, to the rounding of float32.

    Where the last layer is a `Dense` in float32 with a bias, as in every network of kdistill's own, that bias is
    changed. Any other network gets one more layer, Keras's own `Rescaling`, so that it loads wherever it did.

    Args:
        file: of a functional or sequential model with one input and one output.
        shifts: (classes,).

    Raises:
        KdistillError: if Keras can't load it without the code that made it.
    """
    try:
        network = keras.saving.load_model(file, compile=False)
    except Exception as error:  # whatever a layer raises
        raise KdistillError(
            f"{file} can't be loaded as it needs code, and its bias can't be shifted: {first_line(error).partition('. ')[0]}; "
            "train a student whose --model has layers of Keras's alone"
        ) from error
    added = np.asarray(shifts, np.float32)
    (rows,), (logits,) = network.inputs, network.outputs
    last = logits._keras_history.operation  # noqa: SLF001 - the one way from an output to what gives it
    if _has_last_bias(last):
        last.bias.assign(np.asarray(last.bias) + added)
        return network
    shift = keras.layers.Rescaling(1.0, offset=added.tolist(), dtype="float32", name="shifted_logits")
    return keras.Model(rows, shift(logits), name=network.name)


def _has_last_bias(layer: Any) -> bool:
    """Whether what a layer's bias is changed by, its output is changed by, once and with no rounding but float32's."""
    return (
        type(layer) is keras.layers.Dense
        and layer.use_bias
        and layer.activation is keras.activations.linear
        and layer.compute_dtype == "float32"
        and len(layer._inbound_nodes) == 1  # noqa: SLF001 - it is used nowhere else
    )
