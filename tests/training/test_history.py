"""`history.csv`, and the errors of damaged files."""

from __future__ import annotations

import math

import pytest

from kdistill.errors import KdistillError
from kdistill.training import history


def row(epoch, **changes):
    names = history.columns("test", student=True)
    return {name: 0.1 * epoch for name in names} | {"epoch": epoch} | changes


def test_columns():
    """The columns are the documented ones, in order."""
    assert (
        history.columns("validation", student=True)
        == (
            "epoch train_loss train_accuracy validation_loss validation_accuracy hard_loss soft_loss learning_rate seconds"
        ).split()
    )
    assert "soft_loss" not in history.columns("test", student=False)


def test_round_trip(tmp_path):
    """What is written is read, also NaN."""
    history.write(tmp_path / "h.csv", [row(1, soft_loss=math.nan), row(2)])
    held_out, metric, table = history.read(tmp_path / "h.csv", "remedy")
    assert (held_out, metric) == ("test", "accuracy")
    assert list(table) == history.columns("test", student=True)
    assert table["epoch"] == [1, 2]
    assert math.isnan(table["soft_loss"][0])
    assert table["train_loss"] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("text", ["epoch,train_loss\n1,2\n", "epoch,train_loss\n1\n", "hello\nworld\n"])
def test_missing_column_is_named(tmp_path, text):
    """The error has the file, the column and the command that makes the file again."""
    (tmp_path / "h.csv").write_text(text)
    with pytest.raises(KdistillError, match=r"h\.csv .* '\w+': remedy"):
        history.read(tmp_path / "h.csv", "remedy")


def test_value_that_is_not_a_number(tmp_path):
    """The error has the file and the command that makes it again."""
    names = history.columns("test", student=False)
    (tmp_path / "h.csv").write_text(",".join(names) + "\n" + ",".join("x" for _ in names) + "\n")
    with pytest.raises(KdistillError, match=r"h\.csv .*: remedy"):
        history.read(tmp_path / "h.csv", "remedy")
