"""Measure the speed of kdistill on a GPU: training against Keras and PyTorch, and `soften` against the peak of the GPU.

    python tests/programs/bench/gpu.py

All networks compute in mixed_bfloat16, on random images. Keras and PyTorch run in new processes.
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
from measuring import Group, Row, Setup, Work, arguments, epoch, medians, print_table, reference_epoch, require_torch
from softening import soften, write_arrays

from kdistill.console.native_stderr import silence_native_stderr

KDISTILL = ["--precision", "mixed_bfloat16", "--devices", 1]
# Peaks in TFLOP/s for bfloat16 without sparsity, by the name of the GPU, from NVIDIA's data sheets.
PEAKS = {"NVIDIA A100-.*": 312, "NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989}
SOFTEN_ROWS = 256
CLASSES = 1000  # of the teacher


@dataclass(frozen=True)
class GpuSetup(Setup):
    """Also how much is measured."""

    networks: tuple[str, ...] = ("mlp-800", "cnn")
    batches: tuple[int, ...] = (128, 1024)
    epochs: int = 6
    compile: bool = True  # by XLA in `fit`, and by `torch.compile`
    teacher: str = "ResNet50"
    pixels: int = 224
    few: int = 10 * SOFTEN_ROWS
    many: int = 100 * SOFTEN_ROWS


SMALL = partial(
    GpuSetup,
    networks=("mlp-800",),
    batches=(128,),
    epochs=2,
    compile=False,
    teacher="MobileNet",
    pixels=32,
    few=4,
    many=64,
)


def measure_fit(setup: GpuSetup) -> Iterator[Row]:
    """An epoch against `fit` with XLA."""

    def fit(network: str, *options: object) -> Work:
        file = setup.scratch / "training/teachers" / network / "model.keras"
        return reference_epoch("keras_fit.py", file, setup.dataset(), *options)

    return measure_epochs(setup, "`fit`", fit)


def measure_pytorch(setup: GpuSetup) -> Iterator[Row]:
    """An epoch against a PyTorch loop with `torch.compile`."""
    require_torch()

    def pytorch(network: str, *options: object) -> Work:
        return reference_epoch("pytorch.py", network, setup.dataset(), "--bfloat16", *options)

    return measure_epochs(setup, "PyTorch", pytorch)


def measure_epochs(setup: GpuSetup, name: str, reference: Callable[..., Work]) -> Iterator[Row]:
    """Training with hard labels. Both are compiled."""
    for network in setup.networks:
        for batch in setup.batches:
            how = ["--batch-size", batch, "--epochs", setup.epochs]
            works = {
                "kdistill": epoch(setup, network, "--model", network, *KDISTILL, *how),
                "reference": reference(network, *how, *["--compile"] * setup.compile),
            }
            times = medians(setup.runs, works)
            yield Row(f"epoch, {network}, batches of {batch} / {name}", times["kdistill"], times["reference"], 1.0)


def measure_soften(setup: GpuSetup) -> Iterator[Row]:
    """`soften` with random weights, for many rows less few, so that its start is left out."""
    from kdistill.backend import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    shape = (setup.pixels, setup.pixels, 3)
    teacher = getattr(keras.applications, setup.teacher)(weights=None, input_shape=shape, classifier_activation=None)
    teacher.save(setup.scratch / "teacher.keras")
    images = random_images(max(setup.many, CLASSES), *shape)
    labeled = images[:CLASSES], np.arange(CLASSES), images[:1], np.zeros(1, int)
    how = ["--dataset", write_arrays(setup.scratch / "images", *labeled), "--batch-size", SOFTEN_ROWS]
    how += ["--teacher", setup.scratch / "teacher.keras", "--teacher-input", "raw", "--teacher-output", "logits"]
    works = {}
    for rows in (setup.few, setup.many):
        transfer_set = setup.scratch / f"images-{rows}.npy"
        np.save(transfer_set, images[:rows])
        works[rows] = soften(setup.scratch / "soften", f"rows-{rows}", *how, "--transfer-set", transfer_set)
    times = medians(setup.runs, works)
    rate = (setup.many - setup.few) / (times[setup.many] - times[setup.few])
    peak = next((peak for name, peak in PEAKS.items() if re.fullmatch(name, gpu() or "")), None)
    title = f"`soften`, {setup.teacher}, {setup.pixels} x {setup.pixels}, batches of {SOFTEN_ROWS}"
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


def random_images(rows: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, *shape), np.uint8)


GROUPS: dict[str, Group] = {"fit": measure_fit, "pytorch": measure_pytorch, "soften": measure_soften}


def main() -> None:
    """Print a table, each row as soon as it is measured."""
    parser = arguments(__doc__, GROUPS)
    parser.add_argument("--small", action="store_true", help="measure little, also on a CPU, to try this program")
    options = parser.parse_args()
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # leaves memory for the other processes
    silence_native_stderr()
    device = gpu()
    if device is None and not options.small:
        sys.exit("error: TensorFlow finds no GPU on this machine (expected one); to measure on a CPU, run make bench")
    with tempfile.TemporaryDirectory(prefix="kdistill-bench-") as scratch:
        path, arrays = Path(scratch) / "random.npz", {}
        for split, rows in (("train", 256 if options.small else 60_000), ("test", 128)):
            arrays |= {f"x_{split}": random_images(rows, 28, 28), f"y_{split}": np.arange(rows) % 10}
        np.savez(path, **arrays)
        setup = (SMALL if options.small else GpuSetup)(options.runs, path, Path(scratch))
        print_table(GROUPS, options.only, setup, f"{device or 'no GPU'}; ")


if __name__ == "__main__":
    main()
