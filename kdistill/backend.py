"""The one door to TensorFlow and Keras: the right backend, quiet, and deterministic where a stage computes.

Only rooms that compute with TensorFlow import it, and stages import those rooms late: nothing on the way to `--help`
or to an up-to-date stage comes through here.
"""

import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import absl.logging
import keras
import tensorflow as tf

from kdistill.errors import KdistillError

if keras.backend.backend() != "tensorflow":  # it was imported before, by a program that uses kdistill
    raise KdistillError(
        f"Keras runs on {keras.backend.backend()} here, and kdistill needs TensorFlow: set KERAS_BACKEND=tensorflow "
        "before anything imports keras"
    )

absl.logging.set_verbosity(absl.logging.ERROR)
tf.get_logger().setLevel("ERROR")

__all__ = ["deterministic", "keras", "tf"]


@functools.cache  # it seeds once, and leaves alone whoever draws later
def deterministic() -> None:
    """From here on the same machine and seed give the same bits; no measurable cost on a CPU.

    It holds for the whole process, where TensorFlow from then on refuses to draw without a seed. So it is for what
    trains or asks a network, not for importing, and it sets a seed: whoever uses kdistill from Python can go on.
    """
    tf.random.set_seed(0)
    tf.config.experimental.enable_op_determinism()
