"""`history.csv`: one row an epoch of training. Standard library only."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdistill.errors import KdistillError

Row = Mapping[str, float]


def columns(held_out: str, *, student: bool) -> list[str]:
    """The columns, in order; `held_out` is `validation`, or `test` where no validation part is cut."""
    parts = ["hard_loss", "soft_loss"] if student else []
    held = [f"{held_out}_loss", f"{held_out}_accuracy"]
    return ["epoch", "train_loss", "train_accuracy", *held, *parts, "learning_rate", "seconds"]


def write(path: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Write rows; a value that is not there (NaN) is left empty."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([_text(name, row[name]) for name in names])


def _text(name: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if name == "epoch" else f"{value:.9g}"


def read(path: Path, remedy: str) -> tuple[str, dict[str, list[float]]]:
    """Read what `write` wrote.

    Returns:
        `validation` or `test`, whichever was held out, and the values by column.

    Raises:
        KdistillError: if columns are missing, or a value is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
            held_out = "validation" if rows and "validation_loss" in rows[0] else "test"
            table = {
                name: [float(row[name]) if row[name] else math.nan for row in rows]
                for name in columns(held_out, student=bool(rows) and "hard_loss" in rows[0])
            }
    except KeyError as error:
        raise KdistillError(f"{path} has no column {error}: {remedy}") from None
    except (ValueError, TypeError, csv.Error):
        raise KdistillError(f"{path} is no history that kdistill wrote: {remedy}") from None
    return held_out, table
