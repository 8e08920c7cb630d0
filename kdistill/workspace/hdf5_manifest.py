"""The manifest inside an HDF5 file."""

from __future__ import annotations

from pathlib import Path

ATTRIBUTE = "manifest"


def read(path: Path) -> str | bytes:
    """Return the text of the manifest in an HDF5 file.

    Raises:
        OSError: if the file or its manifest can't be read.
    """
    import h5py
    import numpy as np

    try:
        with h5py.File(path, "r", locking=False) as file:
            text: str | bytes = np.asarray(file.attrs[ATTRIBUTE]).item()
            return text if isinstance(text, (str, bytes)) else ""
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise OSError(f"{path} has no manifest") from error
