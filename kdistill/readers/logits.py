"""Files of logits or probabilities, (rows, classes), that another program wrote: `.npy`, `.npz` or HDF5."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from kdistill.errors import KdistillError
from kdistill.readers import Array, Rows
from kdistill.readers.hdf5 import Hdf5, dataset_names
from kdistill.readers.npy import mapped
from kdistill.readers.npz import member
from kdistill.settings import Reading

NAMES = ("logits", "probabilities")


def read(path: Path) -> Rows:
    """Open a file: the array that is called `logits` or `probabilities`, or the only one.

    Raises:
        KdistillError: if there is no such array, or it is no (rows, classes) of floats.
    """
    rows = _open(path)
    if len(rows.shape) != 2 or rows.dtype.kind != "f" or 0 in rows.shape:
        raise KdistillError(f"{path} holds {rows.shape} of {rows.dtype}: logits are floats, (rows, classes)")
    return rows


def _open(path: Path) -> Rows:
    if path.suffix == ".npy":
        return Array(mapped(str(path)), str(path))
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
                return member(archive, path, _choose(names, path))
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise KdistillError(f"{path} is not a readable .npz: {error}") from None
    if path.suffix in (".h5", ".hdf5"):
        return Hdf5(str(path), Reading(inputs=_choose(dataset_names(path), path))).contents().train.inputs
    raise KdistillError(f"--logits {path}: it needs an .npy, an .npz or an .h5 file")


def _choose(names: list[str], path: Path) -> str:
    known = [name for name in NAMES if name in names]
    if len(known) == 1 or (not known and len(names) == 1):
        return (known or names)[0]
    raise KdistillError(f"{path} holds {', '.join(names) or 'nothing'}: logits are in an array of the name logits")
