"""Load the weights of a network from a file."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py

from kdistill.backend import keras
from kdistill.errors import KdistillError, first_line


def load_weights(network: keras.Model, file: Path) -> None:
    """Give a network the weights of a file that were saved from one like it.

    Keras loads a part of them without a word where the file has more (Keras 3.15.1), so what it has is compared first.

    Raises:
        KdistillError: if they are another network's.
    """
    try:
        has = _saved(file)
        with tempfile.TemporaryDirectory() as scratch:
            own = Path(scratch) / "own.weights.h5"
            network.save_weights(own)
            needs = _saved(own)
        if has == needs:
            network.load_weights(file)
            return
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, zipfile.BadZipFile) as error:
        raise KdistillError(
            f"--weights {file} can't be loaded: {first_line(error)}; save the weights again, by network.save_weights(FILE)"
        ) from error
    name = min(name for name in {**has, **needs} if has.get(name) != needs.get(name))
    there, here = (shapes.get(name, "missing") for shapes in (has, needs))
    raise KdistillError(
        f"--weights {file} has the weights of another network: {name} is {there} there, and {here} here"
    )


def _saved(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights in a `.weights.h5` or `.keras`, less those of an optimizer."""
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            found[name] = item.shape

    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive, archive.open("model.weights.h5") as stream, h5py.File(stream) as weights:
            weights.visititems(note)
    else:
        with h5py.File(file) as weights:
            weights.visititems(note)
    return found
