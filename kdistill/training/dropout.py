"""Dropout with masks that are drawn outside the compiled step, as random bytes.

On a CPU under XLA, Keras's own `Dropout` takes most of the time of a dense network. The layers remain Keras's, so a
saved network loads anywhere. The masks are a pure function of a seed and the number of the step, so a resumed run draws
the same ones. Rates are rounded to a multiple of 1/256.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from kdistill.backend import keras, tf
from kdistill.networks.layers import operations_in

LEVELS = 256  # of a random byte


def is_plain_dropout(layer: Any) -> bool:
    """Return whether a layer is a `Dropout` without a noise shape, whose output has a known shape."""
    if type(layer) is not keras.layers.Dropout or layer.noise_shape is not None:
        return False
    try:
        return None not in layer.output.shape[1:]
    except (AttributeError, ValueError):
        return False


class DropoutMasks:
    """The masks of all plain dropout layers of a network."""

    def __init__(self, model: keras.Model) -> None:
        layers = {id(layer): layer for layer in operations_in(model) if is_plain_dropout(layer)}
        self.layers = [layer for layer in layers.values() if layer.rate > 0]
        self._widths: list[int] = [math.prod(layer.output.shape[1:]) for layer in self.layers]

    @property
    def width(self) -> int:
        """The number of random bytes per row."""
        return 8 * math.ceil(sum(self._widths) / 8)

    def draw(self, rows: Any, seed: Any) -> Any:
        """Return the random bytes of one step.

        Args:
            rows: number of rows.
            seed: (2,) int32.

        Returns:
            (rows, units) uint8, the units of all layers side by side.
        """
        if not self.width:
            return tf.zeros((rows, 0), tf.uint8)
        shape = rows, self.width // 8
        bits = tf.random.stateless_uniform(shape, seed, None, None, tf.int64, alg="philox")  # the same on any device
        return tf.reshape(tf.bitcast(bits, tf.uint8), (rows, self.width))

    @contextlib.contextmanager
    def applied(self, random_bytes: Any) -> Iterator[None]:
        """Make the layers drop units by what `draw` returned, while a step is traced.

        Keras draws the mask itself if a layer is called a second time.
        """
        start = 0
        try:
            for layer, width in zip(self.layers, self._widths, strict=True):
                layer.__dict__["call"] = partial(_drop, layer, random_bytes[:, start : start + width])
                start += width
            yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("call", None)


def _drop(layer: Any, random_bytes: Any, inputs: Any, training: bool = False) -> Any:
    """Set units with a low byte to 0, and scale the others so that the mean stays the same."""
    if not training:
        return inputs
    del layer.__dict__["call"]
    threshold = min(round(layer.rate * LEVELS), LEVELS - 1)
    keep = tf.reshape(random_bytes >= threshold, tf.shape(inputs))
    return tf.where(keep, inputs * (LEVELS / (LEVELS - threshold)), tf.zeros_like(inputs))
