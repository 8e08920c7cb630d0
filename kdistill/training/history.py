"""`history.csv`: one row per epoch. Uses the standard library only."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdistill.errors import KdistillError

Row = Mapping[str, float]


def columns(held_out_name: str, *, student: bool) -> list[str]:
    """Return the names of the columns in order. `held_out_name` is `validation` or `test`."""
    held_out = [f"{held_out_name}_loss", f"{held_out_name}_accuracy"]
    parts = ["hard_loss", "soft_loss"] if student else []
    return ["epoch", "train_loss", "train_accuracy", *held_out, *parts, "learning_rate", "seconds"]


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


def read(path: Path, remedy: str) -> tuple[str, dict[str, list[float]]]:
    """Return the name of the held-out rows, `validation` or `test`, and the values by column.

    Raises:
        KdistillError: with the command `remedy`, if a column is missing or a value is not a number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
            held_out_name = "validation" if rows and "validation_loss" in rows[0] else "test"
            table = {
                name: [float(row[name]) if row[name] else math.nan for row in rows]
                for name in columns(held_out_name, student=bool(rows) and "hard_loss" in rows[0])
            }
    except KeyError as error:
        raise KdistillError(f"{path} has no column {error}: {remedy}") from None
    except (ValueError, TypeError, csv.Error):
        raise KdistillError(f"{path} is not a history that kdistill wrote: {remedy}") from None
    return held_out_name, table
