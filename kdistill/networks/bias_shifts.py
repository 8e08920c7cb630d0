"""Shifts of output biases that make each class predicted as often as it should be; NumPy alone.

A student whose transfer set lacked a class predicts it too seldom, though it knows it well: in section 3 of Hinton,
Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), one number added to such biases halves the test
errors and more. There it was chosen on the test set; here shifts come from inputs without labels and from class
frequencies, and `tuned` is the paper's number, to compare with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
BLOCK = 1 << 20  # logits in a block: temporary arrays stay small, however many rows there are
SWEEPS = 20  # sweeps of coordinate descent: later ones gain less than shortest paths do
PASSES = 100  # passes over all rows in each step, a bound that only data with many equal rows reaches
SPREAD = 1.5  # a search for shortest paths ends at this many times the classes that its last path took
SLACK = 1.0  # distance in logits to the last row, where there is no next row to stay halfway to
NEAREST = 32  # classes within reach of a class while shifts are centered, about
CENTERING = 300  # sweeps that center all shifts


def target_counts(frequencies: Floats, rows: int) -> NDArray[np.int64]:
    """How many of `rows` rows are of each class: whole numbers (classes,), rounded so that they add up.

    Args:
        frequencies: (classes,), not negative, of any sum above 0.
        rows: how many there are.
    """
    exact = np.asarray(frequencies, np.float64) / np.sum(frequencies, dtype=np.float64) * rows
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: rows - counts.sum()]] += 1
    return counts


def prediction_counts(logits: Floats, shifts: Floats) -> NDArray[np.int64]:
    """How many rows have each class for their largest logit, once `shifts` (classes,) are added: (classes,)."""
    return np.bincount(_given(logits, shifts), minlength=logits.shape[1])


def matching_shifts(logits: Floats, wanted: Ints) -> NDArray[np.float64]:
    """Return shifts with which each class is predicted as often as wanted.

    They minimize over b the convex, piecewise linear sum over rows of max_c(z_c + b_c), less the sum over classes of
    wanted_c b_c. Its derivative is predicted less wanted counts, and it is the dual of a transport problem. Counts
    match exactly where rows differ. Equal rows cannot be separated: the closest counts found are then returned. With
    10,000 classes and few rows of each, up to 1% of the rows can be too close to a tie for shifts rounded to float32.

    Coordinate descent moves one class after the other to where its count matches. The rows that are left over are
    reassigned along shortest paths (the Hungarian method). Finally each shift is centered between the rows that it must
    not pass, so that rounding changes no prediction. Nothing is random, and memory beyond the logits is small.

    Args:
        logits: (rows, classes), finite.
        wanted: (classes,) whole numbers that add up to the rows, as from `target_counts`.

    Returns:
        (classes,), in logits. They are unique up to a constant, chosen so that their median is 0. All are 0 where
        counts match without any. A class that no row should have is lowered only as far as its rows require.
    """
    none = np.zeros(logits.shape[1])
    if not _off(logits, none, wanted):
        return none
    moved = _moved(logits, wanted)
    centered = _centered(logits, *_reassigned(logits, moved, wanted))
    best = min((none, centered, moved), key=lambda shifts: _off(logits, shifts, wanted))
    return np.asarray(best - np.median(best))


def _blocks(rows: NDArray[Any], classes: int) -> list[NDArray[Any]]:
    """Cut rows into blocks of about `BLOCK` logits."""
    step = max(1, BLOCK // classes)
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _given(logits: Floats, shifts: Floats) -> NDArray[np.int64]:
    """Return the predicted class of each row, (rows,)."""
    return np.concatenate([(block + shifts).argmax(axis=1) for block in _blocks(logits, logits.shape[1])])


def _off(logits: Floats, shifts: Floats, wanted: Ints) -> int:
    """Return how far the counts are from those wanted, summed over classes."""
    return int(np.abs(prediction_counts(logits, shifts) - wanted).sum())


def _moved(logits: Floats, wanted: Ints) -> NDArray[np.float64]:
    """Return shifts from coordinate descent: each class whose count is off moves to where it matches, in turn."""
    shifts = best = np.zeros(logits.shape[1])
    given = _given(logits, shifts)
    largest = logits[np.arange(len(given)), given].astype(np.float64)
    closest, looked_at = np.inf, 0
    for _ in range(SWEEPS):
        off = np.bincount(given, minlength=len(shifts)) - wanted
        if np.abs(off).sum() < closest:
            closest, best = np.abs(off).sum(), shifts.copy()
        if closest == 0:
            break
        for one in np.flatnonzero(off):
            mine = np.flatnonzero(given == one)
            looked_at += len(mine)
            if len(mine) == wanted[one] or looked_at > PASSES * len(given):
                continue
            for rows in _blocks(mine, len(shifts)):
                others = logits[rows] + shifts
                others[:, one] = -np.inf
                given[rows], largest[rows] = others.argmax(axis=1), others.max(axis=1)
            margins = largest - logits[:, one]
            shifts[one] = _between(margins, int(wanted[one]))
            won = margins < shifts[one]
            given[won], largest[won] = one, logits[won, one] + shifts[one]
    return best


def _between(margins: Floats, count: int) -> float:
    """A number that `count` of the margins are below, halfway between two; as near to that as equal ones allow."""
    at = np.partition(margins, min(count, len(margins) - 1))[min(count, len(margins) - 1)]
    below, above = margins[margins < at], margins[margins > at]
    if count - len(below) <= len(margins) - len(above) - count:
        return float((at + below.max(initial=at - 2 * SLACK if not len(below) else -np.inf)) / 2)
    return float((at + above.min(initial=at + 2 * SLACK if not len(above) else np.inf)) / 2)


def _reassigned(
    logits: Floats, shifts: NDArray[np.float64], wanted: Ints
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Reassign rows along shortest paths from classes with too many to classes with too few, until none is left.

    Returns:
        The shifts, and the class each row is given: among those with its largest shifted logit.
    """
    shifts, given = shifts.copy(), _given(logits, shifts)
    off = np.bincount(given, minlength=len(shifts)) - wanted
    looked_at = 0
    while off.any() and looked_at < PASSES * len(given):
        paths, distances, rows = _shortest_paths(logits, shifts, given, off)
        shifts -= np.maximum(distances[paths[-1][0]] - distances, 0.0)
        looked_at += rows
        for path in paths:
            for to, start in pairwise(path):
                mine = np.flatnonzero(given == start)
                given[mine[(logits[mine, start].astype(np.float64) - logits[mine, to]).argmin()]] = to
            off[path[0]] += 1
            off[path[-1]] -= 1
    return shifts, given


def _shortest_paths(
    logits: Floats, shifts: NDArray[np.float64], given: NDArray[np.int64], off: Ints
) -> tuple[list[list[int]], NDArray[np.float64], int]:
    """Run Dijkstra's algorithm from all classes with too many rows to the nearest ones with too few.

    Returns:
        Paths without a class in common, nearest first, each from its end to its start; the distance of each class,
        infinite beyond the search; and how many rows were looked at.
    """
    ahead = np.where(off > 0, 0.0, np.inf)
    distances = np.full(len(off), np.inf)
    before = np.full(len(off), -1)
    paths: list[list[int]] = []
    taken: set[int] = set()
    reached = looked_at = 0
    most = float(len(off))
    while reached < most and np.isfinite(ahead[here := int(ahead.argmin())]):
        distances[here], ahead[here] = ahead[here], np.inf
        reached += 1
        if off[here] < 0:
            path = [here]
            while before[path[-1]] >= 0:
                path.append(int(before[path[-1]]))
            if taken.isdisjoint(path):
                taken.update(path)
                paths.append(path)
                most = SPREAD * reached
        mine = np.flatnonzero(given == here)
        looked_at += len(mine)
        through = distances[here] + np.maximum(_room(logits, mine, here) + shifts[here] - shifts, 0.0)
        nearer = (through < ahead) & np.isinf(distances)
        ahead[nearer], before[nearer] = through[nearer], here
    return paths, distances, looked_at


def _room(logits: Floats, mine: NDArray[np.int64], one: int) -> NDArray[np.float64]:
    """Return by how much a class's shift may be below each other class's before one of its rows leaves: (classes,)."""
    room = np.full(logits.shape[1], np.inf)
    for rows in _blocks(mine, len(room)):
        block = logits[rows].astype(np.float64)
        np.minimum(room, (block[:, one, None] - block).min(axis=0), out=room)
    return room


def _groups(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The groups that are not empty, and where each begins, of values that are sorted by group."""
    return np.flatnonzero(counts), (np.cumsum(counts) - counts)[counts > 0]


def _centered(logits: Floats, shifts: NDArray[np.float64], given: NDArray[np.int64]) -> NDArray[np.float64]:
    """Move each shift towards halfway between where its class would lose a row and where it would win one.

    Only pairs of classes within reach of each other are looked at, and no shift moves so far that others could matter.
    """
    classes = len(shifts)

    def left(one: int) -> NDArray[np.float64]:
        room = _room(logits, np.flatnonzero(given == one), one) + shifts[one] - shifts
        room[one] = np.inf
        return np.asarray(np.maximum(room, 0.0))

    kept = min(NEAREST, classes - 1)
    some = range(0, classes, max(1, classes // NEAREST))
    reach = float(np.median([np.partition(left(one), kept)[kept] for one in some]))
    near = [(np.flatnonzero(room < reach), room[room < reach]) for room in map(left, range(classes))]
    to, room = (np.concatenate(parts) for parts in zip(*near, strict=True))
    counts = np.array([len(others) for others, _ in near])
    start, by_end = np.repeat(np.arange(classes), counts), np.argsort(to, kind="stable")
    starts, ends = _groups(counts), _groups(np.bincount(to, minlength=classes))
    moved = np.zeros(classes)
    for _ in range(CENTERING):  # all shifts at once, by half of the way, so that no two pass each other
        low, high = np.full(classes, np.inf), np.full(classes, np.inf)
        left_over = room + moved[start] - moved[to]
        low[starts[0]] = np.minimum.reduceat(left_over, starts[1])
        high[ends[0]] = np.minimum.reduceat(left_over[by_end], ends[1])
        alone = np.isinf(low) & np.isinf(high)
        low[alone] = high[alone] = SLACK
        low = np.where(np.isinf(low), np.maximum(high, 2 * SLACK - high), low)  # it has no row to lose
        high = np.where(np.isinf(high), np.maximum(low, 2 * SLACK - low), high)  # there is none to win
        moved = np.clip(moved + (high - low) / 4, -reach / 4, reach / 4)
    return shifts + moved


@dataclass(frozen=True)
class Tuned:
    """One number, in logits, added to the biases of some classes, and the errors that are left."""

    shift: float
    errors: int


def raised(shifts: Floats) -> NDArray[np.bool_]:
    """The classes to tell from the others, (classes,): those on the upper side of the widest gap between shifts.

    Where a transfer set lacks one class that is this class; where it has but two, all others.
    """
    order = np.argsort(shifts, kind="stable")
    gaps = np.diff(np.asarray(shifts)[order])
    found = np.zeros(len(order), bool)
    if gaps.max() > 0:
        found[order[gaps.argmax() + 1 :]] = True
    return found


def tuned(blocks: Iterable[tuple[Floats, NDArray[np.integer[Any]]]], classes: NDArray[np.bool_]) -> Tuned:
    """The one number that, added to the logits of some classes, leaves the fewest errors; the nearest to 0 of several.

    Args:
        blocks: logits (rows, classes) and labels (rows,), one block after the other.
        classes: (classes,), not all alike, which those are.
    """
    margins, gains, errors = [], [], 0
    some, rest = np.flatnonzero(classes), np.flatnonzero(~classes)
    for logits, labels in blocks:
        one, other = some[logits[:, some].argmax(axis=1)], rest[logits[:, rest].argmax(axis=1)]
        rows = np.arange(len(labels))
        margins.append(logits[rows, other].astype(np.float64) - logits[rows, one])
        gains.append((one == labels).astype(np.int64) - (other == labels))
        errors += int((other != labels).sum())
    at, where = np.unique(np.concatenate(margins), return_inverse=True)
    steps = np.bincount(where.reshape(-1), weights=np.concatenate(gains), minlength=len(at)).astype(np.int64)
    left = errors - np.concatenate([[0], steps.cumsum()])  # between one margin and the next
    edges = np.concatenate([[at[0] - 2 * SLACK], at, [at[-1] + 2 * SLACK]])
    halfway = (edges[:-1] + edges[1:]) / 2
    inside = (edges[:-1] < 0) & (edges[1:] > 0)
    halfway[inside] = 0.0
    fewest = np.flatnonzero(left == left.min())
    best = fewest[np.abs(halfway[fewest]).argmin()]
    return Tuned(float(halfway[best]), int(left[best]))
