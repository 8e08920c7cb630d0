"""Load networks and weights from Keras's own files."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py

from kdistill.backend import keras
from kdistill.errors import KdistillError, first_line


def load_keras_file(file: Path, advice: str) -> keras.Model:
    """Load the network of a `.keras` file.

    Args:
        file: the file.
        advice: what to do if Keras cannot load it, for the error message.

    Raises:
        KdistillError: if the file is damaged or needs custom code.
    """
    if not zipfile.is_zipfile(file):
        raise KdistillError(f"{file} is not a .keras file or is damaged; save the network again with model.save(FILE)")
    try:
        return keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # whatever a layer raises
        reason = first_line(error).partition(". ")[0]
        raise KdistillError(f"cannot load {file}: {reason}; {advice}") from error


def load_weights(network: keras.Model, file: Path) -> None:
    """Load weights that were saved from a network with the same layers.

    Keras silently loads some of the weights if the file has more than the network (Keras 3.15.1), so names and shapes are
    compared first.

    Args:
        network: the network.
        file: a `.weights.h5` or `.keras` file.

    Raises:
        KdistillError: if the file is damaged or has the weights of another network.
    """
    try:
        actual = _weight_shapes(file)
        with tempfile.TemporaryDirectory() as directory:
            saved = Path(directory) / "network.weights.h5"
            network.save_weights(saved)
            expected = _weight_shapes(saved)
        if actual == expected:
            network.load_weights(file)
            return
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, zipfile.BadZipFile) as error:
        raise KdistillError(
            f"cannot load --weights {file}: {first_line(error)}; save the weights again with network.save_weights(FILE)"
        ) from error
    name = min(name for name in actual | expected if actual.get(name) != expected.get(name))
    raise KdistillError(
        f"--weights {file} has the weights of another network: {name} is {actual.get(name, 'missing')} in the file, but "
        f"{expected.get(name, 'missing')} in the network"
    )


def _weight_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all weights in a file, without those of an optimizer."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            shapes[name] = item.shape

    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive, archive.open("model.weights.h5") as stream, h5py.File(stream) as weights:
            weights.visititems(add)
    else:
        with h5py.File(file) as weights:
            weights.visititems(add)
    return shapes
