"""`kdistill run`: train-teacher, soften, train-student, plot and evaluate, or the stages of a configuration file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdistill.console import Reporter
from kdistill.errors import KdistillError, UsageError
from kdistill.networks.sources import resolve_model
from kdistill.settings import Cluster, Plot, Run, Soften
from kdistill.stages import configuration, evaluate, stage
from kdistill.stages.configuration import Step
from kdistill.stages.dry_run import Plan, plan
from kdistill.stages.evaluate import EvaluateResult
from kdistill.stages.result import Result
from kdistill.training.workers import Workers
from kdistill.workspace import Workspace, commands


@dataclass(frozen=True)
class RunResult:
    """The results of the stages in order, and that of evaluate."""

    stages: tuple[Result, ...]
    evaluation: EvaluateResult
    exit_status = 0

    def as_json(self) -> dict[str, Any]:
        """Return the results of all stages as an object that JSON can hold."""
        return {"stages": [result.as_json() for result in self.stages], "evaluation": self.evaluation.as_json()}

    def show(self, reporter: Reporter) -> None:
        """Print the table of the evaluation."""
        self.evaluation.show(reporter)


@dataclass(frozen=True)
class Configuration:
    """A configuration file that was written, or in a dry run would be.

    Attributes:
        path: Its path.
        text: Its content.
        written: Whether it was written.
    """

    path: Path
    text: str
    written: bool
    exit_status = 0

    def as_json(self) -> dict[str, Any]:
        """Return the path and the content."""
        return {"path": str(self.path), "text": self.text}

    def show(self, reporter: Reporter) -> None:
        """Print the path; in a dry run, the content."""
        for line in [f"Wrote {self.path}"] if self.written else self.text.splitlines():
            reporter.say(line)


def run(
    workspace: Workspace, settings: Run = Run(), *, force: bool = False, reporter: Reporter = Reporter()
) -> RunResult | Plan | Configuration:
    """Run train-teacher, soften, train-student and plot, or the stages of a configuration file; then evaluate.

    What is up to date is skipped.

    Returns:
        The results; in a dry run, what would be done; with `write_config`, the configuration file.

    Raises:
        KdistillError: As in the stages. All settings are checked before the first stage starts.
    """
    Workers.here().refuse("run")
    if settings.write_config:
        return _write_configuration(workspace, Path(settings.config or configuration.DEFAULT_FILE), force=force)
    steps = _steps(workspace, settings)
    planned = plan(workspace, steps, force=force, reporter=reporter if workspace.dry_run else None)
    if workspace.dry_run:
        return planned
    results = tuple(stage(step.command)(workspace, step.settings, force=force, reporter=reporter) for step in steps)
    return RunResult(results, evaluate.run(workspace, reporter=reporter))


def _steps(workspace: Workspace, settings: Run) -> tuple[Step, ...]:
    """Return the stages to run.

    Raises:
        KdistillError: If two of them make the same artifact, or a network does not exist.
    """
    steps = (
        configuration.read(settings.config)
        if settings.config is not None
        else (
            Step("train-teacher", settings.teacher),
            Step("soften", Soften(temperature=settings.temperature)),
            Step("train-student", settings.student),
            Step("plot", Plot(formats=settings.formats)),
        )
    )
    if settings.cluster.ray is not None:
        steps = tuple(_on_cluster(step, settings.cluster) for step in steps)
    places: set[str] = set()
    for step in steps:
        place = workspace.made_by(step.command, step.settings).place
        if place in places:
            raise UsageError(f"{settings.config}, [{step.command}]: {place} is made twice (expected different names)")
        places.add(place)
        if model := getattr(step.settings, "model", None):
            resolve_model(model, getattr(step.settings, "weights", None))
    return steps


def _on_cluster(step: Step, cluster: Cluster) -> Step:
    """Return a stage that works on a cluster, if it can and the file does not name another one.

    Trainings do not, since the cluster would need to write to the workspace, unless the file says so.
    """
    own = getattr(step.settings, "cluster", None)
    if type(own) is not Cluster or own.ray is not None or getattr(step.settings, "logits", None) is not None:
        return step
    settings: Any = step.settings
    return replace(step, settings=replace(settings, cluster=cluster))


def _write_configuration(workspace: Workspace, path: Path, *, force: bool) -> Configuration:
    text = configuration.of_workspace(workspace)
    if not workspace.dry_run:
        if path.exists() and not force:
            again = commands.command(workspace.root, "run", config=str(path), write_config=True)
            raise KdistillError(f"{path} exists: pass another --config, or replace it with {again} --force")
        path.write_text(text, encoding="utf-8")
    return Configuration(path, text, not workspace.dry_run)
