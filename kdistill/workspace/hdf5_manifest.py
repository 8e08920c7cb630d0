"""The manifest of an artifact that is a single HDF5 file: the text of an attribute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ATTRIBUTE = "manifest"
DAMAGED = (OSError, KeyError, ValueError, TypeError, RuntimeError)  # what h5py raises for a damaged file


def manifest_text(file: Any) -> str | bytes:
    """Return the text of the manifest in an open `h5py.File`.

    Raises:
        OSError, KeyError, ValueError, TypeError or RuntimeError: if the file is damaged (`DAMAGED`).
    """
    import numpy as np

    text: str | bytes = np.asarray(file.attrs[ATTRIBUTE]).item()
    return text


def read(path: Path) -> str | bytes:
    """Return the text of the manifest in an HDF5 file.

    Raises:
        OSError: if the file is damaged or lacks a manifest.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            return manifest_text(file)
    except PermissionError:
        raise
    except DAMAGED as error:
        raise OSError(f"{path} lacks a readable manifest") from error
