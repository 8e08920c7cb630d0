"""The one door to TensorFlow and Keras: the right backend, quiet, deterministic.

Only rooms that compute with TensorFlow import it, and stages import those rooms late: nothing on the way to `--help`
or to an up-to-date stage comes through here.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import absl.logging
import keras
import tensorflow as tf

absl.logging.set_verbosity(absl.logging.ERROR)
tf.get_logger().setLevel("ERROR")
tf.config.experimental.enable_op_determinism()  # same machine and seed: same bits; no measurable cost on a CPU

__all__ = ["keras", "tf"]
