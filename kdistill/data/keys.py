"""Row keys: identify a row by its contents, and decide things about rows by hash, independent of their order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.tasks import as_string, is_text
from kdistill.workspace import threads

LARGE_ROW = 1 << 15  # bytes; rows of this size are hashed by several threads


def row_keys(inputs: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the key of each row: BLAKE2b of its bytes, salted with the row's shape and type.

    Soft-target files are written and joined by these keys. Equal rows have equal keys.

    Args:
        inputs: (rows, ...) of any numeric type, or texts (rows,), whose bytes are those of UTF-8.

    Returns:
        (rows, 16) uint8.
    """
    inputs = np.asarray(inputs)
    if is_text(inputs):
        return _hashes([as_string(text).encode() for text in inputs.reshape(-1)], b"text")
    inputs = np.ascontiguousarray(inputs, dtype=inputs.dtype.newbyteorder("<"))
    rows, width = inputs.reshape(-1).view(np.uint8).data, inputs.dtype.itemsize * math.prod(inputs.shape[1:])
    kind = f"{inputs.dtype.str}{inputs.shape[1:]}".encode()
    return _hashes([rows[start : start + width] for start in range(0, len(rows), width)], kind)


def _hashes(rows: Sequence[bytes | memoryview], kind: bytes) -> NDArray[np.uint8]:
    salt = hashlib.blake2b(kind, digest_size=16).digest()

    def key(row: bytes | memoryview) -> bytes:
        return hashlib.blake2b(row, digest_size=16, salt=salt).digest()

    if rows and len(rows[0]) >= LARGE_ROW:
        with ThreadPoolExecutor(threads()) as pool:
            keys = list(pool.map(key, rows))
    else:
        keys = [key(row) for row in rows]
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)


def sortable(keys: NDArray[np.uint8]) -> NDArray[Any]:
    """Return keys (rows, 16) as (rows,) fixed-length strings, which NumPy sorts and compares as bytes."""
    return np.ascontiguousarray(keys).view("S16").ravel()


def positions(
    keys: NDArray[np.uint8], among: NDArray[np.uint8], order: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the position of each key among others: the first of equal keys, -1 for a missing key.

    Args:
        keys: (n, 16) from `row_keys`.
        among: (m, 16), at least one.
        order: (m,) the stable order that sorts `among`, if known.

    Returns:
        (n,) integers from -1 to m - 1.
    """
    names, wanted = sortable(among), sortable(keys)
    order = np.argsort(names, kind="stable") if order is None else order
    places = order[np.minimum(np.searchsorted(names, wanted, sorter=order), len(names) - 1)]
    return np.where(names[places] == wanted, places, -1)


def validation_rows(keys: NDArray[np.uint8], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows are held out for validation; every stage holds out the same ones.

    Args:
        keys: (rows, 16) from `row_keys`.
        fraction: the expected fraction of rows to hold out.
        seed: other seeds hold out other rows.

    Returns:
        (rows,) bool, equal for equal rows.
    """
    return np.asarray(uniform(keys, seed) < fraction)


def uniform(keys: NDArray[np.uint8], *seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each row, (rows,): a pure function of its key and of one or more seed numbers."""
    hashes = hash_keys(keys, np.random.SeedSequence(seed))
    return np.asarray((hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def hash_keys(keys: NDArray[np.uint8], seed: np.random.SeedSequence) -> NDArray[np.uint64]:
    """Return a hash of each key and a seed, (rows,), by the finalizer of SplitMix64."""
    hashes = np.ascontiguousarray(keys).view("<u8")[:, 0] ^ seed.generate_state(1, np.uint64)[0]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(hashes)
