"""Train a network of kdistill, a `.keras` file, with `keras.Model.fit`, and print the seconds of each epoch.

python tests/programs/bench/keras_fit.py workspace/teachers/teacher/model.keras mnist.npz
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import print_epochs

from kdistill.console.native_stderr import silence_native_stderr


def epoch(
    model: Any, floats: np.ndarray, labels: np.ndarray, batch_rows: int, *, xla: bool | str = "auto"
) -> Callable[[], object]:
    """Return a function that trains one epoch, without a progress bar."""
    from kdistill.backend import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"], jit_compile=xla)
    return lambda: model.fit(floats, labels, batch_size=batch_rows, verbose=0)


def prepare(options: Namespace, floats: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    from kdistill.backend import keras

    model = keras.models.load_model(options.network)
    return epoch(model, floats, labels, options.batch_size, xla=options.compile or "auto")


if __name__ == "__main__":
    silence_native_stderr()
    print_epochs(__doc__, prepare)
