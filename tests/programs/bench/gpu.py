"""Measure the speed of kdistill on a GPU: training against Keras and PyTorch, and `soften` against the peak of the GPU.

    python tests/programs/bench/gpu.py

All networks compute in mixed_bfloat16, on random images. Keras and PyTorch run in processes of their own.
"""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Row, Setup, Work, arguments, epoch, medians, print_table, reference_epoch, require_torch
from softening import soften, write_arrays

KDISTILL = ["--precision", "mixed_bfloat16", "--devices", 1]
# Peaks in TFLOP/s for bfloat16 without sparsity, by the name of the GPU, from NVIDIA's data sheets.
PEAKS = {"NVIDIA A100-.*": 312, "NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989}
SOFTEN_ROWS = 256


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    networks: tuple[str, ...] = ("mlp-800", "cnn")
    batches: tuple[int, ...] = (128, 1024)
    rows: int = 60_000
    epochs: int = 6
    pixels: int = 224
    few: int = 10 * SOFTEN_ROWS
    many: int = 100 * SOFTEN_ROWS


SMALL = Size(("mlp-800",), (128,), rows=256, epochs=2, pixels=32, few=16, many=64)


def measure_fit(setup: Setup, size: Size) -> Iterator[Row]:
    """An epoch against `fit` with XLA."""

    def fit(network: str, *options: object) -> Work:
        file = setup.scratch / "training/teachers" / network / "model.keras"
        return reference_epoch("keras_fit.py", file, setup.dataset(), "--xla", *options)

    return measure_epochs(setup, size, "`fit`", fit)


def measure_pytorch(setup: Setup, size: Size) -> Iterator[Row]:
    """An epoch against a PyTorch loop with `torch.compile`."""
    require_torch()
    compiled = [] if size == SMALL else ["--compile"]  # on a CPU, this needs a C++ compiler

    def pytorch(network: str, *options: object) -> Work:
        return reference_epoch("pytorch.py", network, setup.dataset(), "--bfloat16", *compiled, *options)

    return measure_epochs(setup, size, "PyTorch", pytorch)


def measure_epochs(setup: Setup, size: Size, name: str, reference: Callable[..., Work]) -> Iterator[Row]:
    """Training with hard labels. kdistill compiles mlp-800 with XLA, but not cnn, as `--xla auto` decides."""
    for network in size.networks:
        for batch in size.batches:
            how = ["--batch-size", batch, "--epochs", size.epochs]
            works = {
                "kdistill": epoch(setup, network, "--model", network, *KDISTILL, *how),
                "reference": reference(network, *how),
            }
            times = medians(setup.runs, works)
            yield Row(f"epoch, {network}, batches of {batch} / {name}", times["kdistill"], times["reference"], 1.0)


def measure_soften(setup: Setup, size: Size, device: str) -> Iterator[Row]:
    """`soften` with a ResNet-50 that has random weights. Its start is left out: few rows are subtracted from many."""
    from kdistill.backend import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    shape = (size.pixels, size.pixels, 3)
    teacher = keras.applications.ResNet50(weights=None, input_shape=shape, classifier_activation=None)
    teacher.save(setup.scratch / "resnet-50.keras")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (size.many, *shape), np.uint8)
    labels = np.arange(size.many) % 1000
    labels[-1] = 999  # so that there are 1,000 classes
    how = ["--teacher", setup.scratch / "resnet-50.keras", "--teacher-input", "raw", "--teacher-output", "logits"]
    works = {}
    for rows in (size.few, size.many):
        data = write_arrays(setup.scratch / f"images-{rows}", images[-rows:], labels[-rows:], images[:1], labels[:1])
        works[rows] = soften(setup.scratch / "soften", data, *how, "--batch-size", SOFTEN_ROWS)
    times = medians(setup.runs, works)
    rate = (size.many - size.few) / (times[size.many] - times[size.few])
    peak = next((peak for name, peak in PEAKS.items() if re.fullmatch(name, device)), None)
    title = f"`soften`, ResNet-50, {size.pixels} x {size.pixels}, batches of {SOFTEN_ROWS}"
    if peak is None:
        yield Row(title, rate, None, unit="rows/s")
    else:
        yield Row(f"{title} / the GPU's peak of {peak} TFLOP/s", rate, peak * 1e12 / operations(teacher), unit="rows/s")


def operations(network: Any) -> int:
    """Return the floating-point operations of one row in convolutions and dense layers: two per multiplication."""
    layers = [layer for layer in network.layers if hasattr(layer, "kernel")]
    return 2 * sum(math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape) for layer in layers)


def gpu() -> str | None:
    """Return the name of the GPU; None if TensorFlow sees none."""
    from kdistill.backend import tf

    devices = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU") if devices else None


def main() -> None:
    """Print a table, each row as soon as it is measured."""
    parser = arguments(__doc__)
    parser.add_argument("--small", action="store_true", help="measure little, also on a CPU, to try this program")
    options = parser.parse_args()
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # leaves memory for the other processes
    size, device = SMALL if options.small else Size(), gpu()
    if device is None and not options.small:
        sys.exit("error: TensorFlow finds no GPU on this machine (expected one); to measure on a CPU, run make bench")
    draw = np.random.default_rng(0)
    arrays = {
        f"{axis}_{split}": values
        for split, rows in (("train", size.rows), ("test", 128))
        for axis, values in (("x", draw.integers(0, 256, (rows, 28, 28), np.uint8)), ("y", np.arange(rows) % 10))
    }
    groups = {
        "fit": partial(measure_fit, size=size),
        "pytorch": partial(measure_pytorch, size=size),
        "soften": partial(measure_soften, size=size, device=device or ""),
    }
    with tempfile.TemporaryDirectory(prefix="kdistill-bench-") as scratch:
        setup = Setup(options.runs, Path(scratch) / "random.npz", Path(scratch))
        np.savez(setup.mnist, **arrays)
        print_table(groups, setup, f"{device or 'no GPU'}; ")


if __name__ == "__main__":
    main()
