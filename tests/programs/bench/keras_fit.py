"""Train a network of kdistill with `keras.Model.fit`, and print the seconds of each epoch.

python tests/programs/bench/keras_fit.py workspace/teachers/teacher/model.keras mnist.npz
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdistill.console.native_stderr import silence_native_stderr


def epoch(
    model: Any, inputs: np.ndarray, labels: np.ndarray, batch_rows: int, *, xla: bool | str = "auto"
) -> Callable[[], float]:
    """Return the work of one epoch, without a progress bar, on inputs that are scaled beforehand."""
    from kdistill.backend import keras

    floats = inputs.astype(np.float32) / np.float32(255.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"], jit_compile=xla)

    def work() -> float:
        start = time.perf_counter()
        model.fit(floats, labels, batch_size=batch_rows, verbose=0)
        return time.perf_counter() - start

    return work


def main() -> None:
    """Load the network, train it, and print the seconds of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help=".keras file, whose dtype policy is kept")
    parser.add_argument(
        "data", type=Path, help=".npz file with x_train (rows, height, width) uint8 and y_train (rows,)"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile with XLA")
    options = parser.parse_args()
    silence_native_stderr()
    from kdistill.backend import keras

    with np.load(options.data, allow_pickle=False) as arrays:
        inputs, labels = arrays["x_train"], arrays["y_train"]
    work = epoch(
        keras.models.load_model(options.network), inputs, labels, options.batch_size, xla=options.compile or "auto"
    )
    for _ in range(options.epochs):
        print(work(), flush=True)


if __name__ == "__main__":
    main()
