"""Row keys: what says which row is which, whatever its place."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def row_keys(inputs: NDArray[Any]) -> NDArray[np.uint8]:
    """What identifies each row: BLAKE2b of its bytes, salted with its shape and type.

    The one function that makes keys, for the file's writer and its readers; equal rows have equal keys, whatever
    their place.

    Args:
        inputs: (rows, ...) of any numeric type.

    Returns:
        (rows, 16) uint8.
    """
    inputs = np.ascontiguousarray(inputs, dtype=inputs.dtype.newbyteorder("<"))
    salt = hashlib.blake2b(f"{inputs.dtype.str}{inputs.shape[1:]}".encode(), digest_size=16).digest()
    rows, width = memoryview(inputs.tobytes()), inputs.dtype.itemsize * math.prod(inputs.shape[1:])
    starts = range(0, len(rows), width)
    keys = b"".join([hashlib.blake2b(rows[i : i + width], digest_size=16, salt=salt).digest() for i in starts])
    return np.frombuffer(keys, np.uint8).reshape(-1, 16)


def sortable(keys: NDArray[np.uint8]) -> NDArray[Any]:
    """Keys (rows, 16) as (rows,) strings of fixed length, which NumPy sorts and compares as bytes."""
    return np.ascontiguousarray(keys).view("S16").ravel()


def validation_rows(keys: NDArray[np.uint8], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out: a row's key and the seed alone decide, so every stage holds out the same ones.

    Args:
        keys: (rows, 16), from `row_keys`.
        fraction: the share to hold out, in expectation.
        seed: another seed holds out other rows.

    Returns:
        (rows,) bool. Equal rows fall on the same side.
    """
    return np.asarray(uniform(keys, seed) < fraction)


def uniform(keys: NDArray[np.uint8], *seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each row, a pure function of its key and of a seed of one number or more.

    Args:
        keys: (rows, 16), from `row_keys`.
        seed: whole numbers.

    Returns:
        (rows,).
    """
    mixed = np.ascontiguousarray(keys).view("<u8")[:, 0] ^ np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)
