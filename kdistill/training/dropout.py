"""Dropout whose masks are drawn outside the compiled step, as random bits, eight units a draw.

Under XLA on a CPU, Keras's own `Dropout` takes most of a dense network's time. The layers stay Keras's: what is saved
of them loads anywhere. Masks are a pure function of a seed and a step's number, so that a run that was stopped draws
them again. A layer's rate is taken to the nearest 1/256.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from kdistill.backend import keras, tf
from kdistill.networks.layers import operations_in

LEVELS = 256


def drawn_here(layer: Any) -> bool:
    """Whether this room draws a layer's masks: a plain `Dropout`, on units of known shape."""
    if type(layer) is not keras.layers.Dropout or layer.noise_shape is not None:
        return False
    try:
        return None not in layer.output.shape[1:]
    except (AttributeError, ValueError):
        return False


class Masks:
    """The masks of all plain dropout layers of a network."""

    def __init__(self, model: keras.Model) -> None:
        layers = {id(layer): layer for layer in operations_in(model) if drawn_here(layer)}
        self.layers = [layer for layer in layers.values() if layer.rate > 0]
        self._widths = [math.prod(layer.output.shape[1:]) for layer in self.layers]

    def draw(self, rows: Any, seed: Any) -> Any:
        """Random bytes for one step.

        Args:
            rows: how many rows it has.
            seed: (2,) int32.

        Returns:
            (rows, units) uint8, of all layers' units side by side.
        """
        words = -(-sum(self._widths) // 8)
        if not words:
            return tf.zeros((rows, 0), tf.uint8)
        bits = tf.random.stateless_uniform((rows, words), seed, minval=None, maxval=None, dtype=tf.int64)
        return tf.reshape(tf.bitcast(bits, tf.uint8), (rows, 8 * words))

    @contextlib.contextmanager
    def given(self, drawn: Any) -> Iterator[None]:
        """Within it the layers drop what `draw` says; for the time of tracing a step.

        A layer that is called a second time has Keras draw for that.
        """
        start = 0
        try:
            for layer, width in zip(self.layers, self._widths, strict=True):
                layer.__dict__["call"] = partial(_dropped, layer, drawn[:, start : start + width])
                start += width
            yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("call", None)


def _dropped(layer: Any, drawn: Any, inputs: Any, training: bool = False) -> Any:
    """Units whose byte is below the threshold are 0, the others larger by what that takes off the mean."""
    if not training:
        return inputs
    del layer.__dict__["call"]
    threshold = min(round(layer.rate * LEVELS), LEVELS - 1)
    kept = tf.reshape(drawn >= threshold, tf.shape(inputs))
    return tf.where(kept, inputs * (LEVELS / (LEVELS - threshold)), tf.zeros_like(inputs))
