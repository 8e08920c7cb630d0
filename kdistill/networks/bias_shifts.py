"""Compute shifts of output biases that make each class predicted a given number of times. NumPy only.

A student whose transfer set lacks a class knows the class well but predicts it too seldom. In section 3 of Hinton, Vinyals
and Dean, Distilling the Knowledge in a Neural Network (2015), one number added to the biases of such classes more than
halves the test errors. They chose the number on the test set. Here the shifts are computed from unlabeled inputs and class
frequencies.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.rounding import round_to_total

Logits = NDArray[np.floating[Any]]
Counts = NDArray[np.integer[Any]]
Labels = NDArray[np.int64]
Shifts = NDArray[np.float64]

BLOCK_LOGITS = 1 << 20  # temporary arrays have about this size, whatever the number of rows
SWEEPS = 20  # sweeps of coordinate descent: further sweeps gain less than shortest paths do
PASSES = 100  # passes over all rows in each phase: a bound that only data with many equal rows reaches
SEARCH_RATIO = 1.5  # a search for paths ends after this many times the classes that it had visited at its last path
END_GAP = 1.0  # distance in logits to keep from the last row where there is no next row to be halfway to
NEIGHBORS = 32  # approximate number of other classes that limit a shift while shifts are centered
CENTERING_STEPS = 300


def target_counts(frequencies: NDArray[np.floating[Any]], rows: int) -> Labels:
    """Return how often each class should be predicted for a number of rows, as integers that add up to it.

    Args:
        frequencies: (classes,), not negative, with any sum above 0.
        rows: the number of rows.
    """
    frequencies = np.asarray(frequencies, np.float64)
    return round_to_total(frequencies / frequencies.sum() * rows, rows)


def prediction_counts(logits: Logits, shifts: NDArray[np.floating[Any]]) -> Labels:
    """Return how often each class has the largest logit after `shifts` (classes,) are added, (classes,)."""
    return np.bincount(_predictions(logits, shifts), minlength=logits.shape[1])


def matching_shifts(logits: Logits, targets: Counts) -> Shifts:
    """Return shifts that make each class predicted as often as its target says.

    The shifts b minimize the convex, piecewise linear function

        sum over rows of max_c(z_c + b_c)  -  sum over classes of targets_c b_c,

    whose gradient is predicted minus target counts. It is the dual of a transport problem. Counts match exactly unless
    rows are equal: equal rows cannot be separated, and the closest counts found are returned. With 10,000 classes and few
    rows per class, up to 1% of the rows can be too close to a tie for shifts that are rounded to float32.

    Coordinate descent first moves one class after another to where its count matches. The remaining surplus rows are
    reassigned along shortest paths (the Hungarian method). Finally each shift is centered between the rows that it must
    not pass, so that rounding changes no prediction. The result is deterministic, and needs little memory besides the
    logits.

    Args:
        logits: (rows, classes), finite.
        targets: (classes,) integers that add up to the number of rows, e.g. from `target_counts`.

    Returns:
        (classes,), in logits, with a median of 0 (shifts are unique up to a constant), and all 0 if the counts match
        without shifts. A class with target 0 is lowered only as far as necessary.
    """
    zeros = np.zeros(logits.shape[1])
    if not _mismatch(logits, zeros, targets):
        return zeros
    descended = _descend(logits, targets)
    centered = _center(logits, *_reassign(logits, descended, targets))
    best = min((zeros, centered, descended), key=lambda shifts: _mismatch(logits, shifts, targets))
    return np.asarray(best - np.median(best))


def _blocks(rows: NDArray[Any], classes: int) -> list[NDArray[Any]]:
    """Split rows into blocks of about `BLOCK_LOGITS` logits."""
    step = max(1, BLOCK_LOGITS // classes)
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _predictions(logits: Logits, shifts: NDArray[np.floating[Any]]) -> Labels:
    """Return the class with the largest shifted logit of each row, (rows,)."""
    return np.concatenate([(block + shifts).argmax(axis=1) for block in _blocks(logits, logits.shape[1])])


def _mismatch(logits: Logits, shifts: Shifts, targets: Counts) -> int:
    """Return the sum over classes of |predicted - target count|."""
    return int(np.abs(prediction_counts(logits, shifts) - targets).sum())


def _descend(logits: Logits, targets: Counts) -> Shifts:
    """Return shifts from coordinate descent: each class whose count is wrong moves to where it is right, in turn."""
    classes = len(targets)
    shifts = best = np.zeros(classes)
    assigned = _predictions(logits, shifts)
    largest = logits[np.arange(len(assigned)), assigned].astype(np.float64)
    smallest_mismatch, visited_rows = np.inf, 0
    for _ in range(SWEEPS):
        surplus = np.bincount(assigned, minlength=classes) - targets
        if np.abs(surplus).sum() < smallest_mismatch:
            smallest_mismatch, best = np.abs(surplus).sum(), shifts.copy()
        if smallest_mismatch == 0:
            break
        for label in np.flatnonzero(surplus):
            own_rows = np.flatnonzero(assigned == label)
            visited_rows += len(own_rows)
            if len(own_rows) == targets[label] or visited_rows > PASSES * len(assigned):
                continue
            for rows in _blocks(own_rows, classes):
                others = logits[rows] + shifts
                others[:, label] = -np.inf
                assigned[rows], largest[rows] = others.argmax(axis=1), others.max(axis=1)
            margins = largest - logits[:, label]
            shifts[label] = _threshold(margins, int(targets[label]))
            won = margins < shifts[label]
            assigned[won], largest[won] = label, logits[won, label] + shifts[label]
    return best


def _threshold(margins: NDArray[np.floating[Any]], count: int) -> float:
    """Return a number halfway between two margins that has `count` margins below it, or as near as equal ones allow."""
    place = min(count, len(margins) - 1)
    pivot = np.partition(margins, place)[place]
    below, above = margins[margins < pivot], margins[margins > pivot]
    if count - len(below) <= len(margins) - len(above) - count:
        neighbor = below.max() if len(below) else pivot - 2 * END_GAP
    else:
        neighbor = above.min() if len(above) else pivot + 2 * END_GAP
    return float((pivot + neighbor) / 2)


def _reassign(logits: Logits, shifts: Shifts, targets: Counts) -> tuple[Shifts, Labels]:
    """Move rows along shortest paths from classes with a surplus to classes with a deficit, until the counts match.

    Returns:
        The shifts (classes,), and the class that each row is assigned to (rows,): one with the largest shifted logit.
    """
    shifts, assigned = shifts.copy(), _predictions(logits, shifts)
    surplus = np.bincount(assigned, minlength=len(shifts)) - targets
    visited_rows = 0
    while surplus.any() and visited_rows < PASSES * len(assigned):
        paths, distances, rows = _shortest_paths(logits, shifts, assigned, surplus)
        visited_rows += rows
        shifts -= np.maximum(distances[paths[-1][0]] - distances, 0.0)
        for path in paths:
            for target, origin in pairwise(path):
                own_rows = np.flatnonzero(assigned == origin)
                margins = logits[own_rows, origin].astype(np.float64) - logits[own_rows, target]
                assigned[own_rows[margins.argmin()]] = target
            surplus[path[0]] += 1
            surplus[path[-1]] -= 1
    return shifts, assigned


def _shortest_paths(
    logits: Logits, shifts: Shifts, assigned: Labels, surplus: Counts
) -> tuple[list[list[int]], NDArray[np.float64], int]:
    """Run Dijkstra's algorithm from all classes with a surplus to the nearest classes with a deficit.

    Returns:
        Paths that share no class, nearest first, each from its end to its start; the distance of each class (classes,),
        infinite beyond the search; and the number of rows visited.
    """
    tentative = np.where(surplus > 0, 0.0, np.inf)
    distances = np.full(len(surplus), np.inf)
    previous = np.full(len(surplus), -1)
    paths: list[list[int]] = []
    on_paths: set[int] = set()
    visited = visited_rows = 0
    limit = float(len(surplus))
    while visited < limit and np.isfinite(tentative[label := int(tentative.argmin())]):
        distances[label], tentative[label] = tentative[label], np.inf
        visited += 1
        if surplus[label] < 0:
            path = [label]
            while previous[path[-1]] >= 0:
                path.append(int(previous[path[-1]]))
            if on_paths.isdisjoint(path):
                on_paths.update(path)
                paths.append(path)
                limit = SEARCH_RATIO * visited
        own_rows = np.flatnonzero(assigned == label)
        visited_rows += len(own_rows)
        margins = _smallest_margins(logits, own_rows, label) + shifts[label] - shifts
        through = distances[label] + np.maximum(margins, 0.0)
        nearer = (through < tentative) & np.isinf(distances)
        tentative[nearer], previous[nearer] = through[nearer], label
    return paths, distances, visited_rows


def _smallest_margins(logits: Logits, own_rows: Labels, label: int) -> NDArray[np.float64]:
    """Return the smallest margin of a class over each class in its rows, (classes,); infinite without rows."""
    smallest = np.full(logits.shape[1], np.inf)
    for rows in _blocks(own_rows, len(smallest)):
        block = logits[rows].astype(np.float64)
        np.minimum(smallest, (block[:, label, None] - block).min(axis=0), out=smallest)
    return smallest


def _center(logits: Logits, shifts: Shifts, assigned: Labels) -> Shifts:
    """Move each shift toward the middle between where its class would lose a row and where it would win one.

    Only pairs of classes close to each other are considered, and no shift moves so far that other pairs could matter.
    """
    classes = len(shifts)

    def margins_of(label: int) -> NDArray[np.float64]:
        margins = _smallest_margins(logits, np.flatnonzero(assigned == label), label) + shifts[label] - shifts
        margins[label] = np.inf
        return np.asarray(np.maximum(margins, 0.0))

    neighbors = min(NEIGHBORS, classes - 1)
    sample = range(0, classes, max(1, classes // NEIGHBORS))
    reach = float(np.median([np.partition(margins_of(label), neighbors)[neighbors] for label in sample]))
    pairs = [(np.flatnonzero(margins < reach), margins[margins < reach]) for margins in map(margins_of, range(classes))]
    winners, margins = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    losses, wins = np.array([len(others) for others, _ in pairs]), np.bincount(winners, minlength=classes)
    losers, by_winner = np.repeat(np.arange(classes), losses), np.argsort(winners, kind="stable")
    moves = np.zeros(classes)
    for _ in range(CENTERING_STEPS):
        moved_margins = margins + moves[losers] - moves[winners]
        down, up = _group_minima(moved_margins, losses), _group_minima(moved_margins[by_winner], wins)
        isolated = np.isinf(down) & np.isinf(up)
        down[isolated] = up[isolated] = END_GAP
        down = np.where(np.isinf(down), np.maximum(up, 2 * END_GAP - up), down)  # nothing to lose
        up = np.where(np.isinf(up), np.maximum(down, 2 * END_GAP - down), up)  # nothing to win
        # All shifts move at once, by half of the way to the middle, so that no two pass each other.
        moves = np.clip(moves + (up - down) / 4, -reach / 4, reach / 4)
    return shifts + moves


def _group_minima(values: NDArray[np.float64], sizes: Counts) -> NDArray[np.float64]:
    """Return the minimum of each group of consecutive values, (groups,); infinite for an empty group."""
    minima = np.full(len(sizes), np.inf)
    minima[sizes > 0] = np.minimum.reduceat(values, (np.cumsum(sizes) - sizes)[sizes > 0])
    return minima
