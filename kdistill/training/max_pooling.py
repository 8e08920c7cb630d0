"""Max pooling that XLA can train deterministically: the maximum of shifted slices.

XLA refuses the gradient of TensorFlow's max pooling in deterministic mode. The layers remain Keras's, so a saved network
loads anywhere. Outputs and gradients are the same: of equal numbers in a window, the first one gets the gradient. (In
three dimensions, TensorFlow gives it to all of them on a CPU.)
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from functools import partial, reduce
from typing import Any

from kdistill.backend import keras, tf
from kdistill.networks.layers import operations_in

LAYERS = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)


@contextlib.contextmanager
def as_slices(model: keras.Model) -> Iterator[None]:
    """Make the max pooling layers of a network use slices, while a step is traced."""
    layers = [each for each in operations_in(model) if type(each) in LAYERS and each.data_format == "channels_last"]
    try:
        for layer in layers:
            layer.__dict__["call"] = partial(_pool, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("call", None)


def _pool(layer: Any, inputs: Any) -> Any:
    """Return the maxima of the windows of a layer, from inputs (rows, ..., channels)."""
    sizes = inputs.shape[1:-1]
    if None in sizes:
        return type(layer).call(layer, inputs)
    axes = []
    padding = [(0, 0)]
    for size, window, stride in zip(sizes, layer.pool_size, layer.strides, strict=True):
        outputs = math.ceil((size if layer.padding == "same" else size - window + 1) / stride)
        missing = max(0, (outputs - 1) * stride + window - size)
        padding.append((missing // 2, missing - missing // 2))
        axes.append([slice(first, first + (outputs - 1) * stride + 1, stride) for first in range(window)])
    inputs = tf.pad(inputs, [*padding, (0, 0)], constant_values=inputs.dtype.min)
    return reduce(tf.maximum, (inputs[(slice(None), *slices)] for slices in itertools.product(*axes)))
