"""Load a network with shifted logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import keras
from kdistill.networks.keras_files import load_keras_file


def load_shifted(file: Path, shifts: NDArray[np.floating[Any]]) -> keras.Model:
    """Load a network that outputs its logits plus `shifts`, up to float32 rounding.

    If the last layer is a float32 `Dense` with a bias, as in the built-in networks, its bias changes. Otherwise the network
    gets a further layer, Keras's own `Rescaling`, so that it loads without kdistill.

    Args:
        file: the `model.keras` of a functional or sequential model with one input and one output.
        shifts: (classes,).

    Raises:
        KdistillError: if Keras cannot load the file without the code that made it.
    """
    network = load_keras_file(
        file, "biases can only be corrected in networks of Keras's own layers; train a student with another --model"
    )
    shifts = np.asarray(shifts, np.float32)
    (rows,), (logits,) = network.inputs, network.outputs
    last = logits._keras_history.operation  # noqa: SLF001 - Keras gives access to the layer of an output only in private
    if _is_shifted_by_bias(last):
        last.bias.assign(np.asarray(last.bias) + shifts)
        return network
    shift = keras.layers.Rescaling(1.0, offset=shifts.tolist(), dtype="float32", name="shifted_logits")
    return keras.Model(rows, shift(logits), name=network.name)


def _is_shifted_by_bias(layer: Any) -> bool:
    """Return whether adding to a layer's bias adds the same to its output, and only once."""
    return (
        type(layer) is keras.layers.Dense
        and layer.use_bias
        and layer.activation is keras.activations.linear
        and layer.compute_dtype == "float32"
        and len(layer._inbound_nodes) == 1  # noqa: SLF001 - it is called only here
    )
