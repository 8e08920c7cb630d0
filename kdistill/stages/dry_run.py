"""Dry runs: what one or more stages would do, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdistill.console import Reporter, SilentReporter
from kdistill.errors import KdistillError
from kdistill.settings import Settings
from kdistill.stages import stage
from kdistill.stages.configuration import Step
from kdistill.workspace import Artifact, Input, MissingArtifactError, Workspace, WouldWrite
from kdistill.workspace.kinds import INPUTS

MISSING = "it does not exist"  # as in `Artifact.out_of_date`


@dataclass(frozen=True)
class Planned:
    """What a stage would do.

    Attributes:
        artifact: what it writes.
        reason: why it must be written; None if it is up to date.
    """

    artifact: Artifact
    reason: str | None

    def __str__(self) -> str:
        if self.reason is None:
            return f"Up to date: {self.artifact.place}"
        again = self.artifact.path.exists() and not self.artifact.record.shared
        return f"Would {'re-run' if again else 'write'} {self.artifact.place}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """What stages would do, in order."""

    steps: tuple[Planned, ...]
    exit_status = 0

    def as_json(self) -> list[dict[str, Any]]:
        """Return an object per stage; the reason is null if its artifact is up to date."""
        return [
            {
                "kind": step.artifact.kind,
                "name": step.artifact.name,
                "path": str(step.artifact.path),
                "reason": step.reason,
            }
            for step in self.steps
        ]

    def show(self, reporter: Reporter) -> None:
        """Print a line per stage."""
        for step in self.steps:
            reporter.say(str(step))


def result_of(command: str, workspace: Workspace, settings: Settings, reporter: Reporter, **force: bool) -> Any:
    """Run a stage and return its result; in a dry run, what it would do."""
    try:
        return stage(command)(workspace, settings, reporter=reporter, **force)
    except WouldWrite as would:
        return Plan((Planned(would.artifact, would.reason),))


def plan(workspace: Workspace, steps: Iterable[Step], *, force: bool = False, reporter: Reporter | None = None) -> Plan:
    """Return what stages would do one after the other.

    A stage is expected to run if an earlier one replaces something that its artifact is made from.

    Args:
        workspace: Nothing is written to it.
        steps: The stages with their settings.
        force: Whether all stages run, even if their artifacts are up to date.
        reporter: Prints warnings, until the first stage that has work to do.

    Raises:
        KdistillError: As in the stages, unless an earlier one may mend the cause.
    """
    workspace = Workspace(workspace.root, dry_run=True)
    planned: list[Planned] = []
    written: dict[tuple[str, str], Artifact] = {}
    for step in steps:
        would = _look(workspace, step, written, force, SilentReporter() if written or not reporter else reporter)
        planned.append(would)
        if would.reason is not None:
            written[would.artifact.kind, would.artifact.name] = would.artifact
    return Plan(tuple(planned))


def _look(
    workspace: Workspace,
    step: Step,
    written: Mapping[tuple[str, str], Artifact],
    force: bool,
    reporter: Reporter,
) -> Planned:
    """Return what one stage would do, given what earlier ones would write, by kind and name."""
    artifact = workspace.made_by(step.command, step.settings)
    reason, changed = None, []
    try:
        stage(step.command)(workspace, step.settings, force=force, reporter=reporter)
    except WouldWrite as would:
        reason = would.reason
        changed = [written[key] for key in map(_key, would.inputs) if key in written]
    except KdistillError as error:
        changed = list(written.values())
        if isinstance(error, MissingArtifactError):
            missing = {each.whole or each for each in error.artifacts}
            changed = [each for each in changed if each in missing]
        if not changed:
            raise
        reason = None if artifact.path.exists() else MISSING
    if not getattr(step.settings, "networks", ()):  # all networks, those that earlier stages add included
        gathered = artifact.record.maker().gathers
        changed += [each for each in written.values() if each.kind in gathered and each not in changed]
    if reason not in (MISSING, "--force"):
        reason = "; ".join(filter(None, [reason, *(f"{each.place} changes" for each in changed)])) or None
    return Planned(artifact, reason)


def _key(made_from: Input) -> tuple[str, str]:
    """Return the kind and name of the artifact that an input is, or is a part of."""
    sweep, mark, _ = made_from.name.partition("/")
    kind = INPUTS[made_from.kind].artifact or ""
    return ("sweep", sweep) if kind == "student" and mark else (kind, made_from.name)
