"""`kdistill sweep`: one soft-target file to students of many settings and seeds, and what they say together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data, teachers
from kdistill.console import Reporter
from kdistill.data.readers import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics, sweeps
from kdistill.evaluation.intervals import Estimate
from kdistill.evaluation.sweeps import Row, Setting, Summary
from kdistill.settings import Sweep, Training, TrainStudent
from kdistill.stages.result import Result
from kdistill.training import history
from kdistill.training.students import StudentInputs
from kdistill.workspace import Artifact, Input, Manifest, Workspace, unfinished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdistill.networks.saved_models import SavedNetwork

TABLE, SUMMARY, PICTURE = "table.csv", "summary.json", "errors.png"


@dataclass(frozen=True)
class SweepResult(Result):
    """A sweep and a summary per setting."""

    summaries: Sequence[Summary]

    def as_json(self) -> list[dict[str, Any]]:
        """Return a plain object per setting."""
        return as_json(self.summaries)

    def show(self, reporter: Reporter) -> None:
        show(self.summaries, reporter)


def run(
    workspace: Workspace, settings: Sweep = Sweep(), *, force: bool = False, reporter: Reporter = Reporter()
) -> SweepResult:
    """Train students of every setting by every seed, and those from hard labels beside them.

    Students are as `train-student` makes them, to the bit; those that are up to date are left alone, and one that was
    stopped goes on.

    Reads: `soft-targets/NAME.h5`, the dataset.
    Writes: `sweeps/NAME/`.

    Raises:
        KdistillError: as `train_student.run`, naming the student.
    """
    sweep = _Work.open(workspace, settings, reporter)
    artifact, identity = sweep.artifact, sweep.identity()
    if not force and (standing := sweep.up_to_date(identity)) is not None:
        unfinished.tidy(artifact, identity)
        reporter.say(f"{artifact} is up to date ({artifact.path}); --force makes it again")
        return SweepResult(artifact, artifact.require(), sweeps.summarise(standing))

    start = time.perf_counter()
    if not force:
        for setting in sweep.grid():
            for seed in settings.seeds:
                one = sweep.member(setting, seed)
                unfinished.protect(one.artifact, one.identity)
    with artifact.writing(keep=unfinished.SWEEP) as staging:
        rows: list[Row] = []
        members: list[_Member] = []
        digests: dict[str, str] = {}
        unfinished.write_sweep(staging.path, identity, 0, sweep.total)
        for one in sweep.members(rows):
            progress = f"{len(rows) + 1:>{len(str(sweep.total))}}/{sweep.total}"
            row, digests[one.artifact.name] = sweep.made(one, force=force, progress=progress)
            rows.append(row)
            members.append(one)
            unfinished.write_sweep(staging.path, identity, len(rows), sweep.total)
        if settings.controls:
            rows = list(_measured(sweep, members, rows))
        summaries = sweeps.summarise(rows)
        sweeps.write(staging.path / TABLE, rows)
        text = json.dumps(as_json(summaries), indent=2, ensure_ascii=False)
        (staging.path / SUMMARY).write_text(f"{text}\n", encoding="utf-8")
        _picture(summaries, settings, staging.path / PICTURE, _title(sweep, rows))
        (staging.path / unfinished.SWEEP).unlink()
        manifest = staging.commit_loose(identity, results={"students": digests}, seconds=time.perf_counter() - start)
    reporter.say(f"wrote {artifact.path}: {TABLE}, {SUMMARY}, {PICTURE}; {time.perf_counter() - start:.1f} s")
    return SweepResult(artifact, manifest, summaries)


@dataclass(frozen=True)
class _Member:
    """One student of a sweep: where it lies, what it is and comes from."""

    setting: Setting
    settings: TrainStudent
    sources: StudentInputs
    artifact: Artifact
    identity: Manifest


@dataclass(frozen=True, eq=False)
class _Work:
    """A sweep's settings, and what its students come from, opened once."""

    workspace: Workspace
    settings: Sweep
    sources: StudentInputs
    other: StudentInputs | None
    models: Sequence[tuple[str, str | None]]  # what each is called, and its name in a student's settings
    reporter: Reporter
    doubts: set[str] = field(default_factory=set)  # those that were said

    @classmethod
    def open(cls, workspace: Workspace, settings: Sweep, reporter: Reporter) -> _Work:
        named = settings.models
        objective = replace(settings.student.objective, alpha=settings.alphas[0])
        student = replace(settings.student, objective=objective, model=named[0] if named else None)
        sources = StudentInputs.open(workspace, student, reporter)
        models = [(sources.model(replace(student, model=model)).name, model) for model in named or (None,)]
        if twice := [called for called, _ in models if [one for one, _ in models].count(called) > 1]:
            raise KdistillError(f"--model: {twice[0]} is named twice")
        sweeps.check_names(settings, models)
        other = None
        if settings.other_soft_targets is not None:
            of_other = replace(student, soft_targets=settings.other_soft_targets, dataset=sources.source.name)
            other = replace(StudentInputs.open(workspace, of_other, reporter), dataset_of=sources)
        return cls(workspace, settings, sources, other, models, reporter)

    @property
    def artifact(self) -> Artifact:
        return self.workspace.sweep(self.settings.name)

    def identity(self) -> Manifest:
        """What the sweep is made from: what its students have in common, and the lists of what they differ in."""
        settings, every = self.settings, self.grid()
        first = self.sources.identity(every[1].student)
        own = settings.recorded() | {"model": [called for called, _ in self.models]}
        inputs = {role: made for role, made in first.inputs.items() if role not in ("model", "weights")}
        for number, setting in enumerate((one for one in every if one.kind == sweeps.HARD), 1):
            files = self.sources.model(setting.student).inputs()
            inputs |= {f"{role} {number}": made for role, made in files.items()}
        if self.other:
            assert self.other.soft is not None
            inputs["other_soft_targets"] = Input(str(settings.other_soft_targets), self.other.soft.digest)
        return Manifest(kind="sweep", settings=own, inputs=inputs)

    def grid(self) -> list[Setting]:
        return sweeps.grid(self.settings, self.models)

    def member(self, setting: Setting, seed: int) -> _Member:
        student = setting.of(seed)
        sources = self.other if setting.kind == sweeps.OTHER and self.other else self.sources
        artifact = self.workspace.sweep_student(self.settings.name, student.name)
        return _Member(setting, student, sources, artifact, sources.identity(student))

    def members(self, rows: Sequence[Row]) -> Iterator[_Member]:
        """All students; the controls come last, of what the rows say, to which the caller adds each student's."""
        grid, seeds = self.grid(), self.settings.seeds
        yield from (self.member(setting, seed) for setting in grid for seed in seeds)
        if self.settings.controls:
            yield from (self.member(setting, seed) for setting in self.controls(grid, rows) for seed in seeds)

    @property
    def total(self) -> int:
        """How many students there are."""
        controls = (3 if self.other else 2) * len(self.models) if self.settings.controls else 0
        return (len(self.grid()) + controls) * len(self.settings.seeds)

    def controls(self, grid: Sequence[Setting], rows: Sequence[Row]) -> list[Setting]:
        """Controls of each model's setting that is chosen from what the grid's students made of it."""
        choices = [sweeps.choice(rows, called) for called, _ in self.models]
        settings = [setting for setting in grid for _ in self.settings.seeds]
        of_row = {row.setting: setting for row, setting in zip(rows, settings, strict=True)}
        return sweeps.controls(self.settings, [of_row[choice] for choice in choices])

    def up_to_date(self, identity: Manifest) -> list[Row] | None:
        """The rows of the table as it stands, if all students stand as they were then; else None."""
        digests: dict[str, str] = {}
        rows: list[Row] = []
        for one in self.members(rows):
            if one.artifact.out_of_date(one.identity) is not None:
                return None
            row, digests[one.artifact.name] = _row(one)
            rows.append(row)
        if self.artifact.out_of_date(identity) is not None:
            return None
        manifest = self.artifact.require()
        if manifest.results.get("students") != digests:
            return None
        return sweeps.read(self.artifact.path / TABLE, self.artifact.remedy)

    def made(self, one: _Member, *, force: bool, progress: str) -> tuple[Row, str]:
        """A student's row and the digest of its network, made now if it is not up to date; says so in a line."""
        reason = one.artifact.out_of_date(one.identity)
        start, again = time.perf_counter(), one.artifact.path.exists()
        if reason or force:
            if not force:
                unfinished.protect(one.artifact, one.identity)
            if (doubt := one.sources.temperature_warning(one.settings)) and doubt not in self.doubts:
                self.doubts.add(doubt)
                self.reporter.warn(f"{one.artifact} {doubt}")
            try:
                one.sources.make(one.artifact, one.identity, one.settings, reporter=_Murmur(self.reporter))
            except KdistillError as error:
                raise type(error)(f"{one.artifact}: {error}") from error
        row, digest = _row(one)
        held = (
            ""
            if row.validation_errors is None
            else f"{row.validation_errors:,} of {row.validation_rows:,} validation, "
        )
        how = f"{time.perf_counter() - start:.1f} s" if reason or force else "up to date"
        why = f"; made again: {reason or '--force'}" if again and (reason or force) else ""
        errors = f"errors: {held}{row.test_errors:,} of {row.test_rows:,} test rows"
        self.reporter.say(f"{progress} {row.student}: {errors}; {how}{why}")
        return row, digest


class _Murmur(Reporter):
    """Says nothing of a student's own but warnings, and shows how far it is on a terminal."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(quiet=reporter.quiet)
        self.warn = reporter.warn  # type: ignore[method-assign]

    def say(self, text: str) -> None:
        pass


def _row(one: _Member) -> tuple[Row, str]:
    """A student that stands, as a row of the table, and the digest of its network.

    Validation errors are those of the epoch whose weights it has.
    """
    manifest = one.artifact.manifest()
    assert manifest is not None
    results, settings = manifest.results, manifest.settings
    held_out, table = history.read(one.artifact.path / "history.csv", one.artifact.remedy)
    errors = rows = None
    if held_out == "validation":
        rows = int(results["held_out_rows"])
        errors = round((1 - table["validation_accuracy"][results["best_epoch"] - 1]) * rows)
    distilled = one.settings.objective.alpha < 1.0
    row = Row(
        student=one.artifact.name,
        kind=one.setting.kind,
        model=settings["model"],
        loss=one.settings.objective.loss if distilled else None,
        temperature=settings["temperature"],
        alpha=settings["alpha"],
        seed=settings["seed"],
        validation_errors=errors,
        validation_rows=rows,
        test_errors=results["test_errors"],
        test_rows=results["test_rows"],
    )
    return row, manifest.outputs["saved_model"]


def _measured(sweep: _Work, members: Sequence[_Member], rows: Sequence[Row]) -> Iterator[Row]:
    """The rows, those that controls are shown with measured: on test rows, and scaled by what validation rows say."""
    from kdistill.networks import loading as networks

    chosen = [sweeps.choice(rows, called) for called, _ in sweep.models]
    dataset, asked = sweep.sources.dataset, _answers(sweep)
    for one, row in zip(members, rows, strict=True):
        if row.kind == sweeps.DISTILLED and row.setting not in chosen:
            yield row
            continue
        _, network = networks.load(one.artifact)
        logits, labels = _logits(network, dataset.test), dataset.test.labels
        found: dict[str, Any] = dict(zip(("nll", "ece"), _calibration(logits, labels), strict=True))
        if asked is not None:
            found["agreement"] = float((logits.argmax(axis=1) == asked).mean())
        if row.kind == sweeps.HARD and row.validation_rows:
            held_out = _validation(sweep.sources, one.settings.training)
            fitted = metrics.fitted_temperature(_logits(network, held_out), held_out.labels)
            scaled = dict(zip(("scaled_nll", "scaled_ece"), _calibration(logits / fitted, labels), strict=True))
            found |= {"fitted_temperature": fitted, **scaled}
        yield replace(row, **found)


def _answers(sweep: _Work) -> NDArray[np.int64] | None:
    """The class that the teacher gives each test row, (rows,), if it is still as it was."""
    sources = sweep.sources
    assert sources.soft is not None
    panel = teachers.reload(sweep.workspace, sources.soft.manifest)
    if panel is None:
        sweep.reporter.warn(
            f"no agreement is measured: the teacher of {sources.soft.path} is not as it was, or no network"
        )
        return None
    return np.concatenate([panel.logits(block).argmax(axis=1) for block in sources.dataset.test.blocks(BLOCK_ROWS)])


def _logits(network: SavedNetwork, rows: data.Split) -> NDArray[np.float32]:
    return np.concatenate([network.logits(block) for block in rows.blocks(BLOCK_ROWS)])


def _calibration(logits: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean NLL, and ECE."""
    right = logits.argmax(axis=1) == labels
    nll = float(metrics.negative_log_likelihood(logits, labels).mean())
    return nll, metrics.expected_calibration_error(metrics.confidence(logits), right)


def _validation(sources: StudentInputs, settings: Training) -> data.Split:
    from kdistill.training.artifact import held_out_rows

    return sources.dataset.train.chosen(held_out_rows(sources.training_keys, settings))


def _title(sweep: _Work, rows: Sequence[Row]) -> str:
    seeds = sweep.settings.seeds
    plural = "s" * (len(seeds) != 1)
    return f"{data.short_name(sweep.sources.source.name)}: errors of {rows[0].test_rows:,} test rows, {len(seeds)} seed{plural}"


def _picture(summaries: Sequence[Summary], settings: Sweep, path: Any, title: str) -> None:
    """A heat map a model and loss where both T and alpha vary; else errors over the one that does."""
    from kdistill.evaluation import figures

    figures.save(_figure(summaries, settings, title), path)


def _figure(summaries: Sequence[Summary], settings: Sweep, title: str) -> Figure:
    from kdistill.evaluation import figures

    grids: dict[tuple[str, str | None], list[Summary]] = {}
    for one in summaries:
        if one.kind == sweeps.DISTILLED:
            grids.setdefault((one.model, one.loss), []).append(one)
    hard = {one.model: one for one in summaries if one.kind == sweeps.HARD}
    names = {
        (model, loss): data.short_name(model) + (f", {loss}" if len(settings.losses) > 1 else "")
        for model, loss in grids
    }
    if len(settings.temperatures) > 1 and len(settings.alphas) > 1:
        maps = [
            figures.Heat(
                names[key],
                [f"{one.temperature:g}" if one.temperature is not None else "none" for one in grid],
                [f"{one.alpha:g}" for one in grid],
                [one.difference.mean if one.difference else 0.0 for one in grid],
                [one.best for one in grid],
            )
            for key, grid in grids.items()
        ]
        return figures.heat_maps(maps, f"{title}; difference to hard labels")
    over_alpha = len(settings.alphas) > 1
    lines = [
        figures.Line(
            names[key],
            [one.alpha if over_alpha else one.temperature for one in grid],
            [one.test_errors.mean for one in grid],
            [one.test_errors.sd or 0.0 for one in grid],
            hard[key[0]].test_errors.mean if key[1] == settings.losses[0] else None,
            hard[key[0]].test_errors.sd or 0.0,
        )
        for key, grid in grids.items()
    ]
    spread = "; bars and bands: one standard deviation" if len(settings.seeds) > 1 else ""
    return figures.errors_over("alpha" if over_alpha else "T", lines, f"{title}; dashed: hard labels{spread}")


def show(summaries: Sequence[Summary], reporter: Reporter) -> None:
    """Print a row a setting, and below, if there are controls, the chosen setting of each model beside them."""
    grid = [one for one in summaries if one.kind in (sweeps.HARD, sweeps.DISTILLED)]
    held = any(one.validation_errors for one in grid)
    several = len({one.model for one in grid}) > 1
    rows = [
        (
            f"{data.short_name(one.model)}, {one}" if several else str(one),
            *([_mean(one.validation_errors) + (" *" if one.best else "  ")] if held else []),
            _mean(one.test_errors),
            _difference(one.difference),
        )
        for one in grid
    ]
    n = grid[0].test_errors.n
    of_seeds = f"mean ± standard deviation of {n} seeds" if n > 1 else "of one seed, which has no interval"
    brackets = "in brackets: 95% interval of the mean difference to the hard-label student of the same seed\n" * (n > 1)
    marked = (
        "* has the fewest validation errors" + (" of its model" if several else "")
        if held
        else "none is marked as best, since the test split is not for choosing: add --validation-fraction 0.1"
    )
    reporter.table(
        f"errors, {of_seeds}",
        ("student", *(["validation  "] if held else []), "test", "test, less hard labels"),
        rows,
        note=brackets + marked,
    )
    for model in dict.fromkeys(one.model for one in grid):
        _show_controls([one for one in summaries if one.model == model], reporter)


def _show_controls(summaries: Sequence[Summary], reporter: Reporter) -> None:
    rows = [one for one in summaries if one.chosen or one.kind != sweeps.DISTILLED]
    if len(rows) == len([one for one in rows if one.kind in (sweeps.HARD, sweeps.DISTILLED)]):
        return
    order = [sweeps.DISTILLED, sweeps.HARD, sweeps.SCALED, sweeps.SMOOTHED, sweeps.PERMUTED, sweeps.OTHER]
    rows.sort(key=lambda one: order.index(one.kind))
    chosen = next(one for one in rows if one.chosen)
    why = "of those distilled with the fewest validation errors" if chosen.validation_errors else "the first setting"
    table = [
        (
            f"distilled, {one}" if one.chosen else str(one),
            _mean(one.test_errors),
            "" if one.kind == sweeps.SCALED else _difference(one.difference),
            _mean(one.nll, 3),
            _mean(one.ece, 3),
            _share(one.agreement),
        )
        for one in rows
    ]
    scaled = any(one.kind == sweeps.SCALED for one in rows)
    reporter.table(
        f"controls of {data.short_name(chosen.model)}, {chosen} ({why})",
        ("student", "test errors", "less hard labels", "NLL", "ECE", "agree"),
        table,
        note="NLL, ECE, agree: on test rows; agree: with the teacher\n"
        + (
            "scaled: logits divided by the T that has the lowest NLL on validation rows"
            if scaled
            else "temperature scaling of the hard-label student needs --validation-fraction"
        ),
    )


def _mean(found: Estimate | None, digits: int = 1) -> str:
    if found is None:
        return ""
    if found.sd is None:
        return f"{found.mean:,.{digits if digits > 1 else 0}f}"
    return f"{found.mean:,.{digits}f} ± {found.sd:.{digits}f}"


def _share(found: Estimate | None) -> str:
    return "" if found is None else f"{found.mean:.1%}"


def _difference(found: Estimate | None) -> str:
    if found is None:
        return ""
    if found.low is None:
        return f"{found.mean:+,.0f}"
    return f"{found.mean:+,.1f} [{found.low:+,.1f}, {found.high:+,.1f}]"


def as_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """A list of plain objects, one a setting."""
    return [asdict(one) for one in summaries]
