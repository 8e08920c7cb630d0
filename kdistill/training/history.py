"""`history.csv`: one row per epoch. Uses the standard library only."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kdistill.errors import KdistillError

Row = Mapping[str, float]


class History(NamedTuple):
    """The history of a network.

    Attributes:
        held_out: the name of the held-out rows, `validation` or `test`.
        metric: the name of the metric, e.g. `accuracy`.
        table: the values by column, one per epoch; NaN for an empty field.
    """

    held_out: str
    metric: str
    table: dict[str, list[float]]


def columns(held_out_name: str, *, student: bool, metric: str = "accuracy") -> list[str]:
    """Return the names of the columns in order. `held_out_name` is `validation` or `test`."""
    held_out = [f"{held_out_name}_loss", f"{held_out_name}_{metric}"]
    parts = ["hard_loss", "soft_loss"] if student else []
    return ["epoch", "train_loss", f"train_{metric}", *held_out, *parts, "learning_rate", "seconds"]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write one or more rows. NaN becomes an empty field."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_field(name, value) for name, value in row.items()] for row in rows)


def _field(name: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if name == "epoch" else f"{value:.9g}"


def read(path: Path, remedy: str) -> History:
    """Read what `write` wrote.

    Raises:
        KdistillError: with the command `remedy`, if a column is missing or a value is not a number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
            header = list(rows[0]) if rows else []
            held_out = "validation" if "validation_loss" in header else "test"
            metrics = [
                name.removeprefix("train_") for name in header if name.startswith("train_") and name != "train_loss"
            ]
            metric = metrics[0] if metrics else "accuracy"
            table = {
                name: [float(row[name]) if row[name] else math.nan for row in rows]
                for name in columns(held_out, student="hard_loss" in header, metric=metric)
            }
    except KeyError as error:
        raise KdistillError(f"{path} has no column {error}: {remedy}") from None
    except (ValueError, TypeError, csv.Error):
        raise KdistillError(f"{path} is not a history that kdistill wrote: {remedy}") from None
    return History(held_out, metric, table)
