"""Row keys: what says which row is which, whatever its place."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.rounding import round_to_total


def row_keys(inputs: NDArray[Any]) -> NDArray[np.uint8]:
    """What identifies each row: BLAKE2b of its bytes, salted with its shape and type.

    The one function that makes keys, for the file's writer and its readers; equal rows have equal keys, whatever
    their place.

    Args:
        inputs: (rows, ...) of any numeric type.

    Returns:
        (rows, 16) uint8.
    """
    inputs = np.asarray(inputs)
    inputs = np.ascontiguousarray(inputs, dtype=inputs.dtype.newbyteorder("<"))
    salt = hashlib.blake2b(f"{inputs.dtype.str}{inputs.shape[1:]}".encode(), digest_size=16).digest()
    rows, width = memoryview(inputs.tobytes()), inputs.dtype.itemsize * math.prod(inputs.shape[1:])
    starts = range(0, len(rows), width)
    keys = b"".join([hashlib.blake2b(rows[i : i + width], digest_size=16, salt=salt).digest() for i in starts])
    return np.frombuffer(keys, np.uint8).reshape(-1, 16)


def sortable(keys: NDArray[np.uint8]) -> NDArray[Any]:
    """Keys (rows, 16) as (rows,) strings of fixed length, which NumPy sorts and compares as bytes."""
    return np.ascontiguousarray(keys).view("S16").ravel()


def positions(
    keys: NDArray[np.uint8], among: NDArray[np.uint8], order: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the place of each key among others: the first of equal ones, -1 where there is none.

    Args:
        keys: (n, 16), from `row_keys`.
        among: (m, 16), at least one.
        order: (m,), the stable order that sorts `among`, where it is known already.

    Returns:
        (n,) whole numbers from -1 to m - 1.
    """
    names, wanted = sortable(among), sortable(keys)
    order = np.argsort(names, kind="stable") if order is None else order
    places = order[np.minimum(np.searchsorted(names, wanted, sorter=order), len(names) - 1)]
    return np.where(names[places] == wanted, places, -1)


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
    """A number in [0, 1) for each row, a pure function of its key and of a seed of one number or more, (rows,)."""
    mixed = _mixed(keys, np.random.SeedSequence(seed))
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def fraction_rows(keys: NDArray[np.uint8], labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which rows a fraction keeps: of each class those with the lowest hash of key and seed, whatever their order.

    There are round(fraction * rows) of them. Each class has its share, rounded by the method of the largest remainder;
    one left without a row takes one from the class that keeps most, unless there are more classes than rows to keep.
    So a class's rows at a smaller fraction are among its rows at a larger one, as far as rounding lets them. Which rows
    `validation_rows` holds out by the same seed is another matter.

    Args:
        keys: (rows, 16), from `row_keys`.
        labels: (rows,) class numbers; rows without a label, -1, count as a class of their own.
        fraction: above 0, at most 1.
        seed: another seed keeps other rows.

    Returns:
        (rows,) bool. Of equal rows of a class the first are kept.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    mixed = _mixed(keys, np.random.SeedSequence(seed, spawn_key=(1,)))
    order = np.lexsort((sortable(keys), mixed, classes))
    rank = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.zeros(len(keys), bool)
    kept[order] = rank < np.repeat(_shares(counts, fraction), counts)
    return kept


def _shares(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """How many rows of each class a fraction keeps."""
    total = round(fraction * int(counts.sum()))
    shares = round_to_total(fraction * counts, total)
    while total >= len(shares) and not shares.all():
        shares[shares.argmax()] -= 1
        shares[shares.argmin()] += 1
    return shares


def _mixed(keys: NDArray[np.uint8], seed: np.random.SeedSequence) -> NDArray[np.uint64]:
    """A hash of each key and a seed, (rows,)."""
    mixed = np.ascontiguousarray(keys).view("<u8")[:, 0] ^ seed.generate_state(1, np.uint64)[0]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed)
