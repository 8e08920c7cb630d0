"""`kdistill sweep`: train students at many settings and seeds, and compare them with hard labels."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdistill import cluster, data, tasks
from kdistill.console import Reporter
from kdistill.evaluation import sweeps
from kdistill.evaluation.sweeps import Row, Summary
from kdistill.settings import Sweep
from kdistill.stages import sweep_report
from kdistill.stages.common import reason_to_run
from kdistill.stages.inputs import staleness
from kdistill.stages.result import Result
from kdistill.stages.sweep_students import SweepPlan, measure_controls
from kdistill.stages.sweep_training import SweepTraining
from kdistill.training.workers import Workers
from kdistill.workspace import Workspace, WouldWrite, unfinished
from kdistill.workspace.kinds import SWEEP

TABLE, SUMMARY, PICTURE = "table.csv", "summary.json", "errors.png"


@dataclass(frozen=True)
class SweepResult(Result):
    """A sweep, with a summary per setting."""

    summaries: Sequence[Summary]

    def as_json(self) -> list[dict[str, Any]]:
        """Return an object per setting, as `summary.json` has it."""
        return [asdict(summary) for summary in self.summaries]

    def show(self, reporter: Reporter) -> None:
        """Print a row per setting, and a table of the controls if there are any."""
        for table in sweep_report.tables(self.summaries, tasks.get(self.manifest.results["task"]).headline):
            reporter.table(*table)


def run(
    workspace: Workspace, settings: Sweep = Sweep(), *, force: bool = False, reporter: Reporter = Reporter()
) -> SweepResult:
    """Train a student for every setting and seed, and one from hard labels for every seed.

    Each student equals, to the bit, what `train-student` makes with the same settings. Students that are up to date are
    skipped, and an interrupted one resumes.

    Reads: `soft-targets/NAME.h5` and the dataset.
    Writes: `sweeps/NAME/`.

    Raises:
        KdistillError: As in `train_student.run`, with the name of the student.
        WouldWrite: In a dry run.
    """
    Workers.here().refuse("sweep")
    plan = SweepPlan.open(workspace, settings, reporter)
    artifact, identity = plan.artifact, plan.identity()
    if not force:
        if rows := plan.finished_rows(identity, TABLE):
            reason_to_run(artifact, identity, force=False, reporter=reporter)  # prints that there is none
            return SweepResult(artifact, artifact.require(), sweeps.summarize(rows))
        look = staleness(workspace)
        for student in plan.grid_students():
            unfinished.protect(student.artifact, student.identity, look)
    if workspace.dry_run:
        raise WouldWrite(artifact, "--force" if force else plan.out_of_date(identity), identity.inputs)

    start = time.perf_counter()
    with cluster.engine(settings.cluster) as engine, artifact.writing() as staging:

        def progress(done: int) -> None:
            unfinished.write_sweep(staging.path, identity, done, plan.total)

        progress(0)
        training = SweepTraining(plan, engine, force, progress)
        students = list(plan.grid_students())
        rows = training.train(students)
        if settings.controls:
            controls = list(plan.control_students(rows))
            students += controls
            rows = list(measure_controls(plan, students, rows + training.train(controls)))
        summaries = sweeps.summarize(rows)
        sweeps.write(staging.path / TABLE, rows)
        text = json.dumps([asdict(summary) for summary in summaries], indent=2, ensure_ascii=False)
        (staging.path / SUMMARY).write_text(f"{text}\n", encoding="utf-8")
        headline = plan.inputs.task.headline
        sweep_report.draw(summaries, settings, headline, staging.path / PICTURE, _title(plan, rows))
        (staging.path / SWEEP).unlink()
        manifest = staging.commit(
            identity,
            results={"task": plan.inputs.task.name, "students": plan.digests(students)},
            seconds=time.perf_counter() - start,
        )
    reporter.say(f"Wrote {artifact.path}: {TABLE}, {SUMMARY}, {PICTURE} in {time.perf_counter() - start:.1f} s")
    return SweepResult(artifact, manifest, summaries)


def _title(plan: SweepPlan, rows: Sequence[Row]) -> str:
    seeds = len(plan.settings.seeds)
    dataset = data.short_name(plan.inputs.source.name)
    label = plan.inputs.task.headline.label
    return f"{dataset}: {label} of {rows[0].test_rows:,} test rows, {seeds} seed{'s' * (seeds != 1)}"
