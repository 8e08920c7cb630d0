"""The manifest of an artifact that is a single HDF5 file: the text of an attribute."""

from __future__ import annotations

import contextlib
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


def recovered_text(path: Path) -> str | bytes:
    """Return the text of the manifest in an HDF5 file that may be damaged, "" if it cannot be read or is a link."""
    import h5py

    with contextlib.suppress(*DAMAGED):
        if not path.is_symlink():
            with h5py.File(path, "r", locking=False) as file:
                return manifest_text(file)
    return ""
