"""Files of logits or probabilities, (rows, classes), that another program wrote: `.npy`, `.npz` or HDF5."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdistill.data.readers.hdf5 import Hdf5, dataset_names
from kdistill.data.readers.npy import mapped
from kdistill.data.readers.npz import member
from kdistill.data.rows import ArrayRows, Rows
from kdistill.errors import KdistillError
from kdistill.settings import ReadOptions

NAMES = ("logits", "probabilities")
OPTIONAL = ("labels", "row_keys")


@dataclass(frozen=True)
class LogitsFile:
    """A file of `logits` (rows, classes), with the arrays by which its order can be checked.

    `labels` (rows,) or (rows, 1) and `row_keys` (rows, 16) are None where the file has none.
    """

    logits: Rows
    labels: Rows | None = None
    row_keys: Rows | None = None


def read(path: Path) -> LogitsFile:
    """Open a file and check the shapes and types of its arrays; their values are not read.

    The logits are the array called `logits` or `probabilities`, or the only one besides `labels` and `row_keys`.

    Raises:
        KdistillError: if there is no such array, or an array has the wrong shape or type.
    """
    arrays = _arrays(path)
    logits, labels, keys = (arrays.get(name) for name in ("logits", *OPTIONAL))
    assert logits is not None
    if len(logits.shape) != 2 or logits.dtype.kind != "f" or 0 in logits.shape:
        raise KdistillError(f"{path} holds {logits.shape} of {logits.dtype}: logits are floats, (rows, classes)")
    rows = len(logits)
    if labels is not None and labels.shape not in ((rows,), (rows, 1)):
        raise KdistillError(
            f"{path}: labels has shape {labels.shape} (expected one label per row of logits, ({rows},))"
        )
    if keys is not None and (keys.shape != (rows, 16) or keys.dtype != "u1"):
        raise KdistillError(
            f"{path}: row_keys is {keys.shape} of {keys.dtype} (expected ({rows}, 16) of uint8, from "
            "kdistill.row_keys(inputs))"
        )
    return LogitsFile(logits, labels, keys)


def _arrays(path: Path) -> Mapping[str, Rows]:
    """The logits, and those of the optional arrays that the file has, by name."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"logits": ArrayRows(mapped(str(path)), str(path))}
    if suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
                return {role: member(archive, path, name) for role, name in _roles(names, path).items()}
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
            raise KdistillError(f"{path} is not a readable .npz: {error}") from None
    if suffix in (".h5", ".hdf5"):
        roles = _roles(dataset_names(path), path)
        return {role: Hdf5(str(path), ReadOptions(inputs=name)).contents().train.inputs for role, name in roles.items()}
    raise KdistillError(f"--logits {path}: it needs an .npy, an .npz or an .h5 file")


def _roles(names: list[str], path: Path) -> dict[str, str]:
    """The name of the array of logits, and of each optional array that is there."""
    others = [name for name in names if name not in OPTIONAL]
    known = [name for name in NAMES if name in others] or others
    if len(known) != 1:
        raise KdistillError(f"{path} holds {', '.join(names) or 'nothing'}: logits are in an array of the name logits")
    return {"logits": known[0], **{name: name for name in OPTIONAL if name in names}}
