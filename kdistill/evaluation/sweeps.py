"""Sweeps: which students are trained, and statistics over their seeds. Standard library only."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from kdistill.errors import KdistillError, UsageError
from kdistill.evaluation.intervals import Estimate
from kdistill.settings import CLASSIFICATION, LOSSES, NAME, TASKS, Sweep, TrainStudent, default_loss, format_value

HARD, DISTILLED, SMOOTHED, PERMUTED, OTHER, SCALED = (
    "hard labels",
    "distilled",
    "label smoothing",
    "permuted soft targets",
    "other soft targets",
    "hard labels, scaled",
)
SMOOTHING = 0.1


@dataclass(frozen=True)
class Setting:
    """What the students of several seeds share.

    Attributes:
        kind: `HARD`, `DISTILLED` or a control.
        model: the name of the network.
        student: the settings, except for name and seed.
    """

    kind: str
    model: str
    student: TrainStudent

    def of(self, seed: int) -> TrainStudent:
        """Return the settings of the student of a seed."""
        return replace(self.student.seeded(seed), name=self.name(seed))

    def name(self, seed: int) -> str:
        """Return the name of the student of a seed, which can be too long: see `check_names`."""
        return f"{self.slug}-seed{seed}"

    @property
    def temperature(self) -> float | None:
        return None if self.student.objective.alpha == 1.0 else self.student.objective.temperature

    @property
    def slug(self) -> str:
        """The first part of the students' names. A network of the user's own is abbreviated, with a digest of its name."""
        model = self.model
        if not NAME.fullmatch(model):
            mark = hashlib.sha256(model.encode()).hexdigest()[:6]
            model = f"{re.sub(r'[^A-Za-z0-9]+', '-', Path(model).stem).strip('-')[-40:]}-{mark}"
        return "-".join([model, *self._parts()])

    def _parts(self) -> Iterable[str]:
        student = self.student
        if student.objective.alpha == 1.0:
            yield "hard" if self.kind == HARD else f"smoothed{student.objective.label_smoothing:g}"
            return
        if student.objective.loss is not None:
            yield student.objective.loss
        if student.objective.temperature is not None:
            yield f"T{format_value(student.objective.temperature)}"
        yield f"alpha{format_value(student.objective.alpha)}"
        if self.kind == PERMUTED:
            yield "permuted"
        if self.kind == OTHER:
            yield f"from-{student.soft_targets}"


def grid(settings: Sweep, models: Sequence[tuple[str, str | None]], task: str = CLASSIFICATION) -> list[Setting]:
    """Return the settings of a sweep, for each model first the one with hard labels.

    Args:
        settings: of the sweep.
        models: for each model its name and the value of `model` in a student's settings.
        task: that of the dataset.
    """
    found = []
    for called, model in models:
        student = replace(settings.student, model=model)
        if TASKS[task].hard_part:
            found.append(Setting(HARD, called, student.hard()))
        for loss in settings.losses or (None,):
            for temperature in settings.temperatures if LOSSES[loss or default_loss(task)].temperature else (None,):
                for alpha in settings.alphas if TASKS[task].hard_part else (0.0,):
                    objective = replace(student.objective, loss=loss, temperature=temperature, alpha=alpha)
                    chosen = replace(student, objective=objective)
                    found.append(Setting(DISTILLED, called, chosen))
    return found


def controls(settings: Sweep, chosen: Sequence[Setting], task: str = CLASSIFICATION) -> list[Setting]:
    """Return the controls of each model's chosen setting, except hard labels, which are part of the grid."""
    found = []
    for setting in chosen:
        student, hard = setting.student, setting.student.hard()
        if task == CLASSIFICATION:
            smoothed = replace(hard, objective=replace(hard.objective, label_smoothing=SMOOTHING))
            found.append(Setting(SMOOTHED, setting.model, smoothed))
        found.append(Setting(PERMUTED, setting.model, replace(student, permute_soft_targets=True)))
        if settings.other_soft_targets is not None:
            found.append(Setting(OTHER, setting.model, replace(student, soft_targets=settings.other_soft_targets)))
    return found


def check_names(settings: Sweep, models: Sequence[tuple[str, str | None]], task: str) -> None:
    """Check the names of all students, those of every possible control included, before any is trained.

    Raises:
        UsageError: if a name is too long.
    """
    every = grid(settings, models, task)
    if settings.controls:
        every += controls(settings, [setting for setting in every if setting.kind == DISTILLED], task)
    for setting, seed in product(every, settings.seeds):
        name = setting.name(seed)
        if not NAME.fullmatch(name):
            what = "values of --temperature and --alpha with fewer digits"
            if setting.kind == OTHER:
                what = f"soft targets with a shorter name than --other-soft-targets {settings.other_soft_targets}"
            raise UsageError(
                f"the name of student {name!r} has {len(name)} characters (expected at most 100): use {what}"
            )


@dataclass(frozen=True)
class Row:
    """One student: a row of `table.csv`. None means that a value does not apply or was not measured.

    `validation` and `test` are values of the measure by which networks of the task are compared, e.g. `errors`. NLL (nats),
    ECE and agreement with the teacher are those on test rows. `scaled_nll` and `scaled_ece` are those after division of the
    logits by `fitted_temperature`, which minimizes the NLL on validation rows.
    """

    student: str
    kind: str
    model: str
    loss: str | None
    temperature: float | None
    alpha: float
    seed: int
    measure: str
    lower_is_better: bool
    validation: float | None
    validation_rows: int | None
    test: float | None
    test_rows: int
    nll: float | None = None
    ece: float | None = None
    agreement: float | None = None
    fitted_temperature: float | None = None
    scaled_nll: float | None = None
    scaled_ece: float | None = None

    @property
    def setting(self) -> tuple[Any, ...]:
        """What it shares with the students of other seeds."""
        return self.model, self.kind, self.loss, self.temperature, self.alpha


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write `table.csv`, with empty cells for None."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        names = [field.name for field in fields(Row)]
        writer.writerow(names)
        writer.writerows(["" if (value := getattr(row, name)) is None else value for name in names] for row in rows)


def read(path: Path, remedy: str) -> list[Row]:
    """Read what `write` wrote.

    Raises:
        KdistillError: if it is not such a table.
    """
    kinds: dict[str, Callable[[str], Any]] = {
        "int": int,
        "float": float,
        "str": str,
        "bool": lambda text: text == "True",
    }
    parse = {field.name: kinds[str(field.type).split(" ")[0]] for field in fields(Row)}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            table = list(csv.DictReader(stream))
        return [_parsed(row, parse) for row in table]
    except (KeyError, ValueError, TypeError, csv.Error):
        raise KdistillError(f"{path} is not a table of kdistill: {remedy}") from None


def _parsed(row: Mapping[str, str], parse: Mapping[str, Callable[[str], Any]]) -> Row:
    values: dict[str, Any] = {name: None if row[name] == "" else of(row[name]) for name, of in parse.items()}
    return Row(**values)


@dataclass(frozen=True)
class Summary:
    """One setting over all seeds.

    Attributes:
        measure: the measure by which networks of the task are compared, e.g. `errors`.
        best: whether it is the best of its model on validation rows; False without validation rows.
        chosen: whether the controls are those of its temperature, alpha and loss.
        test: the measure on test rows; None if it is unknown.
        validation: the same on validation rows.
        difference: in the measure on test rows, to the hard-label student of the same model and seed.
    """

    model: str
    kind: str
    loss: str | None
    temperature: float | None
    alpha: float
    measure: str
    best: bool
    chosen: bool
    test: Estimate | None
    validation: Estimate | None
    difference: Estimate | None
    nll: Estimate | None
    ece: Estimate | None
    agreement: Estimate | None
    nll_difference: Estimate | None
    ece_difference: Estimate | None

    def __str__(self) -> str:
        """Return its name in a table, without the model."""
        if self.kind not in (DISTILLED, PERMUTED, OTHER):
            return f"{self.kind} {SMOOTHING:g}" if self.kind == SMOOTHED else self.kind
        loss = [self.loss] if self.loss is not None else []
        at = [f"T = {self.temperature:g}"] if self.temperature is not None else []
        said = ", ".join([*(str(one) for one in loss), *at, f"alpha {self.alpha:g}"])
        return said if self.kind == DISTILLED else self.kind


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Return the summaries of all settings in the order of the rows, those with temperature scaling last."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    hard = {(row.model, row.seed): row for row in rows if row.kind == HARD}
    best = [best_setting(rows, model, (HARD, DISTILLED)) for model in dict.fromkeys(row.model for row in rows)]
    chosen = [choice(rows, model) for model in dict.fromkeys(row.model for row in rows)]
    found = [_summary(group, hard, setting in best, setting in chosen) for setting, group in groups.items()]
    for group in groups.values():
        if group[0].kind == HARD and group[0].scaled_nll is not None:
            scaled = [replace(row, kind=SCALED, nll=row.scaled_nll, ece=row.scaled_ece) for row in group]
            found.append(_summary(scaled, hard, best=False, chosen=False))
    return found


def _summary(group: Sequence[Row], hard: dict[tuple[str, int], Row], best: bool, chosen: bool) -> Summary:
    one = group[0]

    def over_seeds(name: str, *, paired: bool = False) -> Estimate | None:
        values = [getattr(row, name) for row in group]
        if paired:
            others = [getattr(hard[row.model, row.seed], name) if hard else None for row in group]
            values = [None if None in pair else pair[0] - pair[1] for pair in zip(values, others, strict=True)]
        return None if None in values or (paired and one.kind == HARD) else Estimate.of(values)

    return Summary(
        model=one.model,
        kind=one.kind,
        loss=one.loss,
        temperature=one.temperature,
        alpha=one.alpha,
        measure=one.measure,
        best=best,
        chosen=chosen,
        test=over_seeds("test"),
        validation=over_seeds("validation"),
        difference=over_seeds("test", paired=True),
        nll=over_seeds("nll"),
        ece=over_seeds("ece"),
        agreement=over_seeds("agreement"),
        nll_difference=over_seeds("nll", paired=True),
        ece_difference=over_seeds("ece", paired=True),
    )


def best_setting(rows: Sequence[Row], model: str, kinds: Sequence[str]) -> tuple[Any, ...] | None:
    """Return the setting of a model that is best on validation rows over all seeds, the first of equals.

    None without validation rows, since test rows never choose.
    """
    totals: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row.model == model and row.kind in kinds:
            if row.validation is None:
                return None
            sign = 1 if row.lower_is_better else -1
            totals[row.setting] = totals.get(row.setting, 0) + sign * row.validation
    return min(totals, key=lambda setting: totals[setting], default=None)


def choice(rows: Sequence[Row], model: str) -> tuple[Any, ...]:
    """Return the setting of a model that gets controls: the best distilled one, or the first without validation rows."""
    first = next(row.setting for row in rows if row.model == model and row.kind == DISTILLED)
    return best_setting(rows, model, (DISTILLED,)) or first
