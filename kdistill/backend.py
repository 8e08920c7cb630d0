"""The only module that imports TensorFlow and Keras: with the right backend, quiet, and deterministic on request.

Modules that compute with TensorFlow import it, and stages import those modules late: neither `--help` nor an up-to-date
stage needs it.
"""

import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import absl.logging
import keras
import tensorflow as tf

from kdistill.errors import KdistillError

if keras.backend.backend() != "tensorflow":  # a program imported it before kdistill
    raise KdistillError(
        f"Keras uses the backend {keras.backend.backend()} (expected tensorflow): set KERAS_BACKEND=tensorflow before keras "
        "is imported"
    )

absl.logging.set_verbosity(absl.logging.ERROR)
tf.get_logger().setLevel("ERROR")

__all__ = ["deterministic", "keras", "tf"]


@functools.cache  # seeds once and does not disturb later draws
def deterministic() -> None:
    """Make TensorFlow deterministic: the same machine and seed give the same bits. No measurable cost on a CPU.

    It applies to the whole process: TensorFlow then refuses to draw random numbers without a seed. So it is
    called before training and not on import, and it sets a seed, so that other code in the process can still draw.
    """
    tf.random.set_seed(0)
    tf.config.experimental.enable_op_determinism()
