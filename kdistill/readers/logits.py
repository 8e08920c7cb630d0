"""Files of logits or probabilities, (rows, classes), that another program wrote: `.npy`, `.npz` or HDF5."""

from __future__ import annotations

from pathlib import Path

from kdistill.errors import KdistillError
from kdistill.readers import Rows

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
        from kdistill.readers.npy import open_npy

        return open_npy(path)
    if path.suffix == ".npz":
        from kdistill.readers.npz import names, open_member

        return open_member(path, _choose(names(path), path))
    if path.suffix in (".h5", ".hdf5"):
        from kdistill.readers.hdf5 import names, open_dataset

        return open_dataset(path, _choose(names(path), path))
    raise KdistillError(f"--logits {path}: it needs an .npy, an .npz or an .h5 file")


def _choose(names: list[str], path: Path) -> str:
    known = [name for name in NAMES if name in names]
    if len(known) == 1 or (not known and len(names) == 1):
        return (known or names)[0]
    raise KdistillError(f"{path} holds {', '.join(names) or 'nothing'}: logits are in an array of the name logits")
