"""`kdistill run`: the four stages and evaluate, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdistill.console import Reporter
from kdistill.networks import sources
from kdistill.settings import Plot, Run, Soften
from kdistill.stages import evaluate, plot, soften, train_student, train_teacher
from kdistill.stages.evaluate import EvaluateResult
from kdistill.stages.result import Result
from kdistill.workspace import Workspace


@dataclass(frozen=True)
class RunResult:
    """The results of the four stages, in order, and the evaluation."""

    stages: tuple[Result, ...]
    evaluation: EvaluateResult
    exit_status: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the results as a plain object."""
        return {
            "stages": [result.as_json() for result in self.stages],
            "evaluation": self.evaluation.as_json(),
        }

    def show(self, reporter: Reporter) -> None:
        """Print the table of the evaluation."""
        self.evaluation.show(reporter)


def run(
    workspace: Workspace, settings: Run = Run(), *, force: bool = False, reporter: Reporter = Reporter()
) -> RunResult:
    """Run train-teacher, soften, train-student, plot and evaluate, skipping what is up to date.

    Raises:
        KdistillError: as the stages do. Settings are checked before any work.
    """
    student = settings.student
    if student.model is not None:
        sources.resolve(student.model)
    plan: list[tuple[Callable[..., Result], Any]] = [
        (train_teacher.run, settings.teacher),
        (soften.run, Soften(temperature=settings.temperature)),
        (train_student.run, student),
        (plot.run, Plot(formats=settings.formats)),
    ]
    results = tuple(stage(workspace, chosen, force=force, reporter=reporter) for stage, chosen in plan)
    return RunResult(results, evaluate.run(workspace, reporter=reporter))
