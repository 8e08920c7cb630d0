"""Files of logits or probabilities (rows, classes) that another program wrote: `.npy`, `.npz` or HDF5."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdistill.data.readers import hdf5, npz
from kdistill.data.readers.npy import mapped_array
from kdistill.data.rows import ArrayRows, Rows
from kdistill.errors import KdistillError
from kdistill.settings import ReadOptions

NAMES = ("logits", "probabilities")
OPTIONAL = ("labels", "row_keys")


@dataclass(frozen=True)
class LogitsFile:
    """A file of `logits` (rows, classes), and optional arrays to check the order of its rows with.

    `labels` is (rows,) or (rows, 1), `row_keys` is (rows, 16); they are None if the file does not have them.
    """

    logits: Rows
    labels: Rows | None = None
    row_keys: Rows | None = None


def read(path: Path, option: str) -> LogitsFile:
    """Open a file and check the shapes and types of its arrays, without reading their values.

    The logits are the array named `logits` or `probabilities`, or the only array besides `labels` and `row_keys`.

    Args:
        path: an `.npy`, `.npz` or HDF5 file.
        option: the command-line option with the file, for messages.

    Raises:
        KdistillError: if the array is missing, or if an array has the wrong shape or type.
    """
    file = _open(path, option)
    logits, rows = file.logits, len(file.logits) if file.logits.shape else 0
    if len(logits.shape) != 2 or logits.dtype.kind != "f" or 0 in logits.shape:
        raise KdistillError(
            f"{path} contains {logits.shape} of {logits.dtype} (expected logits as floats of shape (rows, classes))"
        )
    if file.labels is not None and file.labels.shape not in ((rows,), (rows, 1)):
        raise KdistillError(
            f"{path}: labels has shape {file.labels.shape} (expected one label per row of logits, ({rows},))"
        )
    keys = file.row_keys
    if keys is not None and (keys.shape != (rows, 16) or keys.dtype != "u1"):
        raise KdistillError(
            f"{path}: row_keys is {keys.shape} of {keys.dtype} (expected ({rows}, 16) of uint8, from "
            "kdistill.row_keys(inputs))"
        )
    return file


def _open(path: Path, option: str) -> LogitsFile:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return LogitsFile(ArrayRows(mapped_array(str(path)), str(path)))
    if suffix == ".npz":
        with npz.readable(path), zipfile.ZipFile(path) as archive:
            names = _array_names(npz.array_names(archive), path)
            return LogitsFile(**{role: npz.open_array(archive, path, name) for role, name in names.items()})
    if suffix in (".h5", ".hdf5"):
        names = _array_names(hdf5.top_level_names(path), path)
        readers = {role: hdf5.Hdf5(str(path), ReadOptions(inputs=name)) for role, name in names.items()}
        return LogitsFile(**{role: reader.contents().train.inputs for role, reader in readers.items()})
    raise KdistillError(f"--{option} {path}: unrecognized extension {suffix!r} (expected .npy, .npz or .h5)")


def _array_names(names: Sequence[str], path: Path) -> dict[str, str]:
    """Return the name of the array of logits and of each optional array, by field of `LogitsFile`."""
    others = [name for name in names if name not in OPTIONAL]
    known = [name for name in NAMES if name in others] or others
    if len(known) != 1:
        raise KdistillError(f"{path} contains {', '.join(names) or 'no arrays'} (expected an array named logits)")
    return {"logits": known[0], **{name: name for name in OPTIONAL if name in names}}
