"""Shifts of output biases that make each class predicted as often as it should be; NumPy alone.

A student whose transfer set lacked a class predicts it too seldom, though it knows it well: in section 3 of Hinton,
Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), one number added to such biases halves the test
errors and more. There it was chosen on the test set; here shifts come from inputs without labels and from class
frequencies, and `tuned` is the paper's number, to compare with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
PATIENCE = 100  # moves without coming closer, before what is left goes row by row
SLACK = 1.0  # logits beyond the last row, where there is no next one to stay halfway to
CENTRING = 100  # sweeps over all classes


def whole_counts(frequencies: Floats, rows: int) -> NDArray[np.int64]:
    """How many of `rows` rows are of each class: whole numbers (classes,), rounded so that they add up.

    Args:
        frequencies: (classes,), not negative, of any sum above 0.
        rows: how many there are.
    """
    exact = np.asarray(frequencies, np.float64) / np.sum(frequencies, dtype=np.float64) * rows
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: rows - counts.sum()]] += 1
    return counts


def predicted(logits: Floats, shifts: Floats) -> NDArray[np.int64]:
    """How many rows have each class for their largest logit, once `shifts` (classes,) are added: (classes,)."""
    return np.bincount(np.argmax(logits + shifts, axis=1), minlength=logits.shape[1])


def matching_shifts(logits: Floats, wanted: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Shifts with which each class is predicted as often as wanted.

    They minimise over b the convex, piecewise linear sum over rows of max_c(z_c + b_c), less the sum over classes of
    wanted_c b_c, of which the derivative is predicted less wanted counts: the dual of a transport problem. Where rows
    differ the counts then match exactly; rows that are alike can't be parted, and of what was tried the closest is
    returned. First the class whose count is furthest off is moved to where it matches, again and again; what is left
    goes row by row along shortest paths (the Hungarian method). At last each shift is put halfway between the rows that
    it must not pass, so that rounding changes none. Nothing is drawn at random.

    Args:
        logits: (rows, classes), finite.
        wanted: (classes,) whole numbers that add up to the rows, as of `whole_counts`.

    Returns:
        (classes,), in logits. They are known up to a constant: their median is 0. All are 0 where counts match as
        they are. A class that no row should have is lowered by no more than these rows need.
    """
    by_class = np.ascontiguousarray(logits.T, np.float64)
    none = np.zeros(len(by_class))
    if not _off(by_class, none, wanted):
        return none
    moved = _moved(by_class, wanted)
    centred = _centred(by_class, *_row_by_row(by_class, moved, wanted))
    best = min((none, centred, moved), key=lambda shifts: _off(by_class, shifts, wanted))
    return np.asarray(best - np.median(best))


def _given(by_class: Floats, shifts: Floats) -> NDArray[np.int64]:
    """The class that each row is given."""
    return np.asarray((by_class + shifts[:, None]).argmax(axis=0))


def _off(by_class: Floats, shifts: Floats, wanted: NDArray[np.integer[Any]]) -> int:
    """How far the counts are from those wanted, summed over classes."""
    return int(np.abs(np.bincount(_given(by_class, shifts), minlength=len(shifts)) - wanted).sum())


def _moved(by_class: Floats, wanted: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Coordinate descent: the class that is furthest off is moved to where it matches; the closest of all steps."""
    shifts = np.zeros(len(by_class))
    given, largest = by_class.argmax(axis=0), by_class.max(axis=0)
    closest, best, since = np.inf, shifts, 0
    while True:
        off = np.bincount(given, minlength=len(shifts)) - wanted
        since += 1
        if np.abs(off).sum() < closest:
            closest, best, since = np.abs(off).sum(), shifts.copy(), 0
        if closest == 0 or since == PATIENCE:
            return best
        moving = int(np.abs(off).argmax())
        mine = np.flatnonzero(given == moving)
        others = by_class[:, mine] + shifts[:, None]
        others[moving] = -np.inf
        given[mine], largest[mine] = others.argmax(axis=0), others.max(axis=0)  # without the class that moves
        margins = largest - by_class[moving]
        shifts[moving] = _between(margins, int(wanted[moving]))
        won = margins < shifts[moving]
        given[won], largest[won] = moving, by_class[moving, won] + shifts[moving]


def _between(margins: Floats, count: int) -> float:
    """A number that `count` of the margins are below, halfway between two; as near to that as equal ones allow."""
    at = np.partition(margins, min(count, len(margins) - 1))[min(count, len(margins) - 1)]
    below, above = margins[margins < at], margins[margins > at]
    if count - len(below) <= len(margins) - len(above) - count:
        return float((at + below.max(initial=at - 2 * SLACK if not len(below) else -np.inf)) / 2)
    return float((at + above.min(initial=at + 2 * SLACK if not len(above) else np.inf)) / 2)


def _row_by_row(
    by_class: Floats, shifts: NDArray[np.float64], wanted: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Lower the classes with rows too many, and those that these rows pass to, until one more row is where it lacks.

    Returns:
        The shifts, and the class each row has been given: among those with its largest shifted logit.
    """
    shifts, given = shifts.copy(), _given(by_class, shifts)
    room = np.array([_room(by_class, given, one) for one in range(len(shifts))])
    off = np.bincount(given, minlength=len(shifts)) - wanted
    while off.any():
        end, distances, before = _shortest_path(room + shifts[:, None] - shifts, off)
        shifts -= np.maximum(distances[end] - distances, 0.0)
        to, path = end, [end]
        while (start := before[to]) >= 0:
            rows = np.flatnonzero(given == start)
            given[rows[(by_class[start, rows] - by_class[to, rows]).argmin()]] = to
            path.append(start)
            to = start
        off[end] += 1
        off[to] -= 1
        for one in path:
            room[one] = _room(by_class, given, one)
    return shifts, given


def _room(by_class: Floats, given: NDArray[np.int64], one: int) -> NDArray[np.float64]:
    """By how much a class's shift may at most be below each other's for all of its rows to stay: (classes,)."""
    rows = by_class[:, given == one]
    return np.asarray((rows[one] - rows).min(axis=1, initial=np.inf))


def _shortest_path(lengths: Floats, off: NDArray[np.integer[Any]]) -> tuple[int, NDArray[np.float64], list[int]]:
    """Dijkstra, from all classes with rows too many to the nearest with too few.

    Returns:
        The class it ends at, the distance of each class that is nearer (of others infinity), and the one before each.
    """
    ahead = np.where(off > 0, 0.0, np.inf)
    distances = np.full(len(off), np.inf)
    before = np.full(len(off), -1)
    while True:
        here = int(ahead.argmin())
        distances[here], ahead[here] = ahead[here], np.inf
        if off[here] < 0:
            return here, distances, before.tolist()
        through = distances[here] + np.maximum(lengths[here], 0.0)
        nearer = (through < ahead) & np.isinf(distances)
        ahead[nearer], before[nearer] = through[nearer], here


def _centred(by_class: Floats, shifts: NDArray[np.float64], given: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each shift halfway between where its class would lose a row and where it would win one, in turn."""
    shifts = shifts.copy()
    room = np.array([_room(by_class, given, one) for one in range(len(shifts))])
    np.fill_diagonal(room, np.inf)
    for _ in range(CENTRING):
        for one, shift in enumerate(shifts):
            low, high = (shifts - room[one]).max(), (shifts + room[:, one]).min()
            if np.isinf(low):  # it has no row to lose
                low = min(2 * shift - high, high - 2 * SLACK)
            if np.isinf(high):  # there is none to win
                high = max(2 * shift - low, low + 2 * SLACK)
            shifts[one] = (low + high) / 2
    return shifts


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
