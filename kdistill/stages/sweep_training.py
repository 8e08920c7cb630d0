"""Training the students of a sweep, in its own process or in workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from kdistill.cluster import ClusterError, Engine, Work
from kdistill.console import Reporter, SilentReporter
from kdistill.errors import KdistillError
from kdistill.evaluation.sweeps import Row, Setting
from kdistill.settings import Sweep
from kdistill.stages.inputs import require_inputs, staleness
from kdistill.stages.sweep_students import SweepPlan, SweepStudent
from kdistill.workspace import Artifact, Manifest, Workspace, digest, exchange, flush, unfinished

Job = tuple[Setting, int]  # a setting and a seed


@dataclass(frozen=True)
class TrainedStudent:
    """A student that a worker has trained: its manifest, all its files by their path, and the warnings."""

    manifest: Manifest
    files: Mapping[str, bytes]
    warnings: Sequence[str]

    def commit(self, artifact: Artifact) -> None:
        """Put the student in its place in the workspace."""
        with artifact.writing() as staging:
            for name, contents in self.files.items():
                path = staging.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents)
            if any(digest(staging.path / name) != recorded for name, recorded in self.manifest.outputs.items()):
                raise ClusterError(f"{artifact} arrived damaged from a worker: run the same command again")
            flush(staging.path)
            exchange(staging.path, artifact.path)


@dataclass(frozen=True)
class SweepTraining:
    """Trains the students of a sweep that are not up to date, and prints a line about each student.

    Attributes:
        plan: the sweep.
        engine: what trains them.
        force: whether students that are up to date are trained too.
        progress: called with the number of students that are done.
        rows: the rows of the students that are done, by name.
    """

    plan: SweepPlan
    engine: Engine
    force: bool
    progress: Callable[[int], None]
    rows: dict[str, Row] = field(default_factory=dict)

    def train(self, students: Sequence[SweepStudent]) -> list[Row]:
        """Train students, and return their rows of the table.

        Raises:
            KdistillError: with the name of the student, if it can't be trained.
        """
        plan, started = self.plan, list[tuple[SweepStudent, str]]()
        work = Work(
            partial(map, self._train_here), prepare, (plan.workspace.root.absolute(), plan.settings, plan.identity())
        )
        for number, trained in self.engine.run(work, self._jobs(students, started), self._note):
            student, rerun = started[number]
            if trained:
                trained.commit(student.artifact)
                for warning in trained.warnings:
                    plan.warn_once(warning, warning)
            self._finish(student, f"{student.manifest().seconds:.1f} s{rerun}")
        return [self.rows[student.artifact.name] for student in students]

    def _jobs(self, students: Sequence[SweepStudent], started: list[tuple[SweepStudent, str]]) -> Iterator[Job]:
        """Yield the students to train, and append each of them to `started`, with the reason if it is re-run."""
        for student in students:
            artifact = student.artifact
            reason = artifact.out_of_date(student.identity) or ("--force" if self.force else None)
            if not reason:
                self._finish(student, "up to date")
                continue
            if not self.force:
                unfinished.protect(artifact, student.identity, staleness(self.plan.workspace))
            _ = self.plan.inputs.dataset  # here, so that its warnings are printed once
            if warning := student.inputs.temperature_warning(student.settings):
                self.plan.warn_once(warning, f"{artifact} {warning}")
            started.append((student, f"; re-run: {reason}" if artifact.path.exists() else ""))
            yield student.setting, student.settings.training.seed

    def _train_here(self, job: Job) -> None:
        _train(self.plan.student(*job), _WarningReporter(self.plan.reporter))

    def _finish(self, student: SweepStudent, status: str) -> None:
        plan, row = self.plan, student.row()
        measured = student.manifest().results["summary"]
        if row.validation is not None:
            headline = plan.inputs.task.headline
            measured = f"validation {headline.label} {headline(row.validation)}; {measured}"
        self.rows[student.artifact.name] = row
        number = f"{len(self.rows):>{len(str(plan.total))}}/{plan.total}"
        plan.reporter.say(f"{number} {row.student}: {measured}; {status}")
        self.progress(len(self.rows))

    def _note(self, line: str, _: str) -> None:
        self.plan.reporter.say(line)


def prepare(root: Path, settings: Sweep, identity: Manifest) -> Callable[[Job], TrainedStudent]:
    """Return a function that trains a student in a worker, in a temporary directory.

    Args:
        root: the workspace.
        settings: of the sweep.
        identity: of the sweep; names the dataset, the soft targets and the networks.

    Raises:
        KdistillError: if this machine has others.
    """
    workspace, reporter = Workspace(root), _CollectingReporter()
    require_inputs(workspace, identity)
    plan = SweepPlan.open(workspace, settings, reporter)
    _ = plan.inputs.dataset  # here, since its warnings are not part of those of the first student

    def train_student(job: Job) -> TrainedStudent:
        reporter.warnings.clear()
        student = plan.student(*job)
        with TemporaryDirectory(prefix="kdistill-") as directory:
            artifact = replace(student.artifact, root=Path(directory))
            manifest = _train(replace(student, artifact=artifact), reporter)
            paths = [path for path in artifact.path.rglob("*") if path.is_file()]
            files = {path.relative_to(artifact.path).as_posix(): path.read_bytes() for path in paths}
        return TrainedStudent(manifest, files, list(reporter.warnings))

    return train_student


def _train(student: SweepStudent, reporter: Reporter) -> Manifest:
    artifact = student.artifact
    try:
        return student.inputs.train(artifact, student.identity, student.settings, reporter=reporter)
    except KdistillError as error:
        raise type(error)(f"{artifact}: {error}") from error


class _WarningReporter(Reporter):
    """Passes on warnings and the progress bar of a student, but not its lines."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(quiet=reporter.quiet)
        self.warn = reporter.warn  # type: ignore[method-assign]

    def say(self, text: str) -> None:
        pass


class _CollectingReporter(SilentReporter):
    """Collects warnings and prints nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)
