"""Data with a name: the digits that come with kdistill, and those of `keras.datasets`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data.readers import Array, Contents, Reader, check_file
from kdistill.data.readers.npz import Npz
from kdistill.errors import KdistillError, first_line

DIGITS = Path(__file__).parent / "digits" / "digits.npz"
CLASS_NAMES = {
    "fashion_mnist": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}


class Digits(Reader):
    """The digits that come with kdistill: 8x8 with values 0 to 16, as 28x28 with values 0 to 255."""

    format = "digits"

    def digest(self) -> str:
        return workspace.digest(DIGITS)

    def contents(self) -> Contents:
        small = Npz(str(DIGITS)).contents()
        assert small.test is not None
        train, test = (
            replace(part, inputs=Array(_enlarge(part.inputs.read()), "digits")) for part in (small.train, small.test)
        )
        return replace(small, train=train, test=test)


class KerasDataset(Reader):
    """What `keras.datasets` downloads, kept as an `.npz`."""

    format = "a dataset of Keras's"

    def __post_init__(self) -> None:
        super().__post_init__()
        _keras_file(self.place)

    def digest(self) -> str:
        return workspace.digest(_keras_file(self.place))

    def contents(self) -> Contents:
        contents = Npz(str(_keras_file(self.place))).contents()
        return replace(contents, class_names=contents.class_names or CLASS_NAMES.get(self.place, []))


def _keras_file(name: str) -> Path:
    """The file of a `keras.datasets` name in Keras's own cache, fetched and written there on first use."""
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    path = cache / ("mnist.npz" if name == "mnist" else f"kdistill-{name}.npz")
    if path.exists():
        check_file("dataset", str(path))
        return path
    from kdistill.backend import keras
    from kdistill.console.native_stderr import silent_stdout

    try:
        with silent_stdout():
            (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # noqa: BLE001 - Keras raises a bare Exception when the download fails
        raise KdistillError(
            f"{name} could not be downloaded ({first_line(error)}): without a network put it at {path}, "
            "or use --dataset digits or --dataset FILE.npz"
        ) from None
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        arrays = {"x_train": x_train, "y_train": y_train.ravel(), "x_test": x_test, "y_test": y_test.ravel()}
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
        os.replace(partial, path)
    return path


def _enlarge(images: NDArray[np.uint8], side: int = 28, full: int = 16) -> NDArray[np.uint8]:
    """(rows, 8, 8) to (rows, side, side); pixel centres at half-integers, edges repeated."""
    small = images.shape[1]
    position, unit = (2 * np.arange(side) + 1) * small - side, 2 * side  # in units of 1 / (2 * side) of a small pixel
    low = position // unit
    weight = position - low * unit
    low, high = np.clip(low, 0, small - 1), np.clip(low + 1, 0, small - 1)
    wide = images.astype(np.int64)
    wide = wide[:, low] * (unit - weight)[:, None] + wide[:, high] * weight[:, None]
    wide = wide[:, :, low] * (unit - weight) + wide[:, :, high] * weight
    scale = full * unit * unit
    return np.ascontiguousarray((wide * 255 + scale // 2) // scale, np.uint8)
