"""Functions that XLA compiles if it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdistill.backend import tf

REFUSALS = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)


def refused(error: BaseException) -> bool:
    """Return whether an error means that XLA cannot compile a function."""
    return isinstance(error, REFUSALS) and "tf2xla" in str(error)


def compiled_if_possible(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that XLA compiles when it is first called. If XLA can't, TensorFlow runs it."""
    call = tf.function(function, jit_compile=True)

    def run(inputs: Any) -> Any:
        nonlocal call
        tried = call
        try:
            return tried(inputs)
        except REFUSALS as error:
            if tried is function or not refused(error):
                raise
            call = function
            return function(inputs)

    return run
