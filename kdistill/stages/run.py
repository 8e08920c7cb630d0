"""`kdistill run`: train-teacher, soften, train-student, plot and evaluate, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdistill.console import Reporter
from kdistill.networks.sources import resolve_model
from kdistill.settings import Plot, Run, Soften
from kdistill.stages import evaluate, plot, soften, train_student, train_teacher
from kdistill.stages.evaluate import EvaluateResult
from kdistill.stages.result import Result
from kdistill.workspace import Workspace


@dataclass(frozen=True)
class RunResult:
    """The results of train-teacher, soften, train-student and plot, in order, and that of evaluate."""

    stages: tuple[Result, ...]
    evaluation: EvaluateResult
    exit_status = 0

    def as_json(self) -> dict[str, Any]:
        """Return the results of all stages as an object that JSON can hold."""
        return {"stages": [result.as_json() for result in self.stages], "evaluation": self.evaluation.as_json()}

    def show(self, reporter: Reporter) -> None:
        """Print the table of the evaluation."""
        self.evaluation.show(reporter)


def run(
    workspace: Workspace, settings: Run = Run(), *, force: bool = False, reporter: Reporter = Reporter()
) -> RunResult:
    """Run train-teacher, soften, train-student, plot and evaluate; what is up to date is skipped.

    Raises:
        KdistillError: As in the stages. All settings are checked before the first stage starts.
    """
    student = settings.student
    if student.model is not None:
        resolve_model(student.model)
    results = (
        train_teacher.run(workspace, settings.teacher, force=force, reporter=reporter),
        soften.run(workspace, Soften(temperature=settings.temperature), force=force, reporter=reporter),
        train_student.run(workspace, student, force=force, reporter=reporter),
        plot.run(workspace, Plot(formats=settings.formats), force=force, reporter=reporter),
    )
    return RunResult(results, evaluate.run(workspace, reporter=reporter))
