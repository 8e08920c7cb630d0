"""Sweeps: the names of students, the grid of settings, the table and its summary."""

from __future__ import annotations

import pytest

from kdistill import Sweep, TrainStudent
from kdistill.errors import UsageError
from kdistill.evaluation import sweeps
from kdistill.evaluation.sweeps import DISTILLED, HARD, Row, summarize
from kdistill.settings import CLASSIFICATION, Objective


def test_names_are_file_names():
    """The names of user-defined networks are safe file names, also if two files have the same name."""
    slugs = {
        sweeps.Setting(HARD, model, TrainStudent(objective=Objective(alpha=1.0))).slug
        for model in ("nets:make", "/a/net.keras", "/b/net.keras", "keras.applications:MobileNetV3Small")
    }
    assert len(slugs) == 4
    assert all("/" not in slug and ":" not in slug and slug.endswith("-hard") for slug in slugs)
    chosen = TrainStudent(objective=Objective(temperature=1 + 1e-9))
    assert (
        sweeps.Setting(DISTILLED, "mlp-30", chosen).slug
        != sweeps.Setting(DISTILLED, "mlp-30", TrainStudent(objective=Objective(temperature=1.0))).slug
    )
    chosen = TrainStudent(objective=Objective(temperature=2.5, alpha=0.25))
    assert sweeps.Setting(DISTILLED, "mlp-30", chosen).of(7).name == "mlp-30-T2.5-alpha0.25-seed7"


def test_names_that_are_too_long():
    """All names are checked before training, including those of the longest seed and of controls."""
    model = [(f"/a/{'n' * 60}.keras", None)]
    digits = {"temperatures": (1.0, 1 / 3), "alphas": (0.1, 0.5), "losses": ("kd", "reverse-kl")}
    sweeps.check_names(Sweep(**digits), model, CLASSIFICATION)
    for longer in ({"seeds": (0, 2**32 - 1)}, {"controls": True}):
        with pytest.raises(UsageError, match="--temperature and --alpha"):
            sweeps.check_names(Sweep(**digits, **longer), model, CLASSIFICATION)


def test_loss_without_temperature_is_one_setting():
    """A loss that has no temperature is in the grid once per alpha."""
    grid = sweeps.grid(Sweep(losses=("kd", "mse"), alphas=(0.1, 0.5)), [("small", "small")])
    assert len(grid) == 1 + 5 * 2 + 2
    assert len({setting.slug for setting in grid}) == len(grid)
    assert {setting.student.objective.loss for setting in grid if setting.temperature is None} == {None, "mse"}


def row(kind, seed, validation, test, temperature=None):
    """Return a row with some errors of the validation and test rows."""
    loss = None if kind == HARD else "kd"
    alpha = 1.0 if kind == HARD else 0.1
    rows = None if validation is None else 100
    return Row(
        f"{kind}{temperature}{seed}",
        kind,
        "m",
        loss,
        temperature,
        alpha,
        seed,
        "errors",
        True,
        validation,
        rows,
        test,
        360,
    )


def test_best_setting_has_the_fewest_validation_errors():
    """Test errors do not count. Without validation rows no setting is best, and the first one is chosen for controls."""
    rows = [row(HARD, 0, 9, 9), row(DISTILLED, 0, 8, 1, 1.0), row(DISTILLED, 0, 7, 20, 2.0)]
    assert [summary.best for summary in summarize(rows)] == [False, False, True]
    blind = [row(HARD, 0, None, 9), row(DISTILLED, 0, None, 8, 1.0), row(DISTILLED, 0, None, 1, 2.0)]
    assert [summary.best for summary in summarize(blind)] == [False] * 3
    assert [summary.chosen for summary in summarize(blind)] == [False, True, False]
    better = [row(HARD, 0, 1, 9), *rows[1:]]
    assert [summary.best for summary in summarize(better)] == [True, False, False]
    assert [summary.chosen for summary in summarize(better)] == [False, False, True]


def test_table_is_read_as_written(tmp_path):
    """Reading a table returns the rows that were written, with all digits."""
    rows = [row(HARD, 0, None, 9), row(DISTILLED, 1, 3, 8, 0.1 + 0.2)]
    sweeps.write(tmp_path / "table.csv", rows)
    assert sweeps.read(tmp_path / "table.csv", "") == rows
