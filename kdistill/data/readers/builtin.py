"""Named datasets: the digits that kdistill ships, and those that `keras.datasets` downloads."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data.reader import Contents, Part, Reader, check_file
from kdistill.data.readers.npz import Npz
from kdistill.data.rows import ArrayRows
from kdistill.errors import one_line_errors

DIGITS = Path(__file__).parent / "digits" / "digits.npz"
CLASS_NAMES = {
    "fashion_mnist": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}


class Digits(Reader):
    """The digits that kdistill ships: 8x8 pixels with values 0 to 16, enlarged to 28x28 with values 0 to 255."""

    format = "digits"

    def digest(self) -> str:
        return workspace.digest(DIGITS)

    def contents(self) -> Contents:
        def enlarged(part: Part) -> Part:
            return replace(part, inputs=ArrayRows(enlarge(part.inputs.read()), "digits"))

        contents = Npz(str(DIGITS)).contents()
        assert contents.test
        return replace(contents, train=enlarged(contents.train), test=enlarged(contents.test))


class KerasDataset(Reader):
    """A dataset of `keras.datasets`, stored as an `.npz` in Keras's cache."""

    format = "a Keras dataset"

    def __post_init__(self) -> None:
        super().__post_init__()
        _cached_file(self.place)

    def digest(self) -> str:
        return workspace.digest(_cached_file(self.place))

    def contents(self) -> Contents:
        contents = Npz(str(_cached_file(self.place))).contents()
        return replace(contents, class_names=contents.class_names or CLASS_NAMES.get(self.place, []))


def _cached_file(name: str) -> Path:
    """Return the file of a dataset in Keras's cache, after downloading it if necessary."""
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    path = cache / ("mnist.npz" if name == "mnist" else f"kdistill-{name}.npz")
    if path.exists():
        check_file(f"--dataset {path}", str(path))
        return path
    from kdistill.backend import keras
    from kdistill.console.native_stderr import silent_stdout

    fix = f"if there is no network, copy the file to {path}, or use --dataset digits or --dataset FILE.npz"
    with one_line_errors(f"can't download {name}", fix=fix), silent_stdout():
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        with partial.open("wb") as stream:
            np.savez(stream, x_train=x_train, y_train=y_train.ravel(), x_test=x_test, y_test=y_test.ravel())
        os.replace(partial, path)
    return path


def enlarge(images: NDArray[np.uint8], side: int = 28, highest: int = 16) -> NDArray[np.uint8]:
    """Resize images bilinearly in integer arithmetic, which gives the same bits on every machine.

    Pixel centers are at half-integers, and edge pixels are repeated.

    Args:
        images: (rows, 8, 8) with values 0 to `highest`.
        side: height and width of the result.
        highest: the value that becomes 255.

    Returns:
        (rows, side, side).
    """
    small = images.shape[1]
    position, unit = (2 * np.arange(side) + 1) * small - side, 2 * side  # in 1 / (2 * side) of an input pixel
    low = position // unit
    weight = position - low * unit
    low, high = np.clip(low, 0, small - 1), np.clip(low + 1, 0, small - 1)
    values = images.astype(np.int64)
    values = values[:, low] * (unit - weight)[:, None] + values[:, high] * weight[:, None]
    values = values[:, :, low] * (unit - weight) + values[:, :, high] * weight
    scale = highest * unit * unit
    return np.ascontiguousarray((values * 255 + scale // 2) // scale, np.uint8)
