"""`kdistill status`: all artifacts, what is stale and why, what was interrupted, and the next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import NAME, Plot, Status, TrainStudent, TrainTeacher
from kdistill.stages.inputs import staleness
from kdistill.workspace import KINDS, Artifact, Input, Manifest, Workspace, commands, short_digest, unfinished
from kdistill.workspace.staleness import Staleness


@dataclass(frozen=True)
class Interrupted:
    """Interrupted work on an artifact.

    Attributes:
        unit: `epochs`, `rows` or `students`.
        done: how many are done.
        total: of how many.
        seconds: of work.
        writer: the process that does it now; None if it was stopped.
        obstacles: why it can't be resumed: what has changed since.
        command: that resumes it.
    """

    unit: str
    done: int
    total: int | None
    seconds: float
    writer: str | None
    obstacles: tuple[str, ...]
    command: str

    @property
    def resumable(self) -> bool:
        return not (self.writer or self.obstacles)

    def __str__(self) -> str:
        progress = unfinished.progress(self.done, self.total, self.unit, self.seconds)
        if self.writer:
            return f"being written by {self.writer}: {progress}"
        if self.obstacles:
            return f"interrupted: {progress}; can't be resumed: {', '.join(self.obstacles)}"
        return f"interrupted: {progress}; to resume: {self.command}"


@dataclass(frozen=True)
class ArtifactStatus:
    """The status of an artifact.

    Attributes:
        kind: of the artifact.
        name: of the artifact.
        path: of the artifact.
        state: `fresh`, `stale`, `damaged`, or `unfinished` if there is only interrupted work.
        reasons: why it is not fresh.
        made_from: its inputs.
        digest: the digest that artifacts made from this one record.
        summary: one line from its manifest.
        command: that makes it again.
        interrupted: work on it, if any.
    """

    kind: str
    name: str
    path: str
    state: str
    reasons: tuple[str, ...]
    made_from: tuple[Input, ...]
    digest: str | None
    summary: str
    command: str
    interrupted: Interrupted | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    @property
    def parent(self) -> tuple[str, str]:
        """The kind and name of what it is shown below: its soft targets, or else its network, teacher or dataset."""
        if KINDS[self.kind].single:  # made from many
            return "", ""
        names = {each.kind: each.name for each in reversed(self.made_from)}
        if "teacher" in names and not NAME.fullmatch(names["teacher"]):  # an external one
            del names["teacher"]
        kind = next((kind for kind in ("soft_targets", "student", "teacher", "dataset") if kind in names), "")
        if kind == "student" and "/" in names[kind]:
            return "sweep", names[kind].split("/")[0]
        return kind.replace("_", " "), names.get(kind, "")


@dataclass(frozen=True)
class StatusResult:
    """The status of all artifacts, upstream first, and the next command."""

    workspace: Workspace
    artifacts: Sequence[ArtifactStatus]
    next: str
    exit_status: int = 0

    def as_json(self) -> dict[str, object]:
        """Return the same as a plain object."""
        return {"artifacts": [asdict(status) for status in self.artifacts], "next": self.next}

    def show(self, reporter: Reporter) -> None:
        """Print the chain from dataset to export, each artifact below what it was made from."""
        reporter.say(f"workspace {self.workspace.root}{'' if self.artifacts else ' (empty)'}")
        children: dict[tuple[str, str], list[ArtifactStatus]] = {}
        for status in self.artifacts:
            children.setdefault(status.parent, []).append(status)
        for kind, name in [key for key in children if key[0] == "dataset"]:
            reporter.say(f"  {kind} {name}")
            _show_children((kind, name), children, reporter, depth=2)
        shown = {status.key for status in self.artifacts}
        for parent in children:
            if (
                parent[0] != "dataset" and parent not in shown
            ):  # plots, the report, and what is below a damaged or missing artifact
                _show_children(parent, children, reporter, depth=1)
        reporter.say(f"Next: {self.next}")


def _show_children(
    parent: tuple[str, str],
    children: Mapping[tuple[str, str], Sequence[ArtifactStatus]],
    reporter: Reporter,
    *,
    depth: int,
) -> None:
    indent = "  " * depth
    for status in children.get(parent, ()):
        mark = f" [{short_digest(status.digest)}]" if status.digest else ""
        reporter.say(f"{indent}{status.kind} {status.name}{mark}{f': {status.summary}' if status.summary else ''}")
        for reason in status.reasons:
            reporter.say(f"{indent}  {status.state}: {reason}")
        if status.interrupted:
            reporter.say(f"{indent}  {status.interrupted}")
        _show_children(status.key, children, reporter, depth=depth + 1)


def run(
    workspace: Workspace,
    settings: Status = Status(),
    *,
    reporter: Reporter = Reporter(),  # noqa: ARG001
) -> StatusResult:
    """Look at every artifact and at interrupted work.

    Reads: all manifests, and what the artifacts were made from.
    Writes: nothing.
    """
    artifacts, look = workspace.artifacts(), staleness(workspace)
    found = [describe(look, artifact) for artifact in artifacts]
    begun = [artifact for artifact in workspace.interrupted() if artifact not in artifacts]
    found += [_unfinished(artifact, *work) for artifact in begun if (work := _interrupted(look, artifact))]
    found.sort(key=lambda status: list(KINDS).index(status.kind))  # stable: students of a sweep follow the others
    current = bool(found) and all(status.state == "fresh" and not status.interrupted for status in found)
    following = _repair(workspace, found) or _next(workspace, look, found)
    return StatusResult(workspace, found, following, exit_status=int(settings.check and not current))


def describe(look: Staleness, artifact: Artifact) -> ArtifactStatus:
    """Return the status of an artifact."""
    work = _interrupted(look, artifact)
    digest = None
    try:
        manifest = look.manifest(artifact)
        assert manifest is not None
        if damage := artifact.damage(manifest):
            raise KdistillError(f"{artifact.path}: {damage}")
        reasons = tuple(look.reasons(manifest))
        state, command = "stale" if reasons else "fresh", artifact.command_for(manifest)
        summary, digest = artifact.record.summary(manifest), artifact.digest(manifest)
    except (KdistillError, OSError) as error:
        manifest, command = Manifest(kind=artifact.kind, settings={}), artifact.remedy
        state, reasons, summary = "damaged", (str(error),), ""
    return ArtifactStatus(
        kind=artifact.kind,
        name=artifact.name,
        path=str(artifact.path),
        state=state,
        reasons=reasons,
        made_from=manifest.inputs,
        digest=digest,
        summary=summary,
        command=command,
        interrupted=work[1] if work else None,
    )


def _unfinished(artifact: Artifact, identity: Manifest, work: Interrupted) -> ArtifactStatus:
    return ArtifactStatus(
        kind=artifact.kind,
        name=artifact.name,
        path=str(artifact.partial),
        state="unfinished",
        reasons=(),
        made_from=identity.inputs,
        digest=None,
        summary="",
        command=work.command,
        interrupted=work,
    )


def _interrupted(look: Staleness, artifact: Artifact) -> tuple[Manifest, Interrupted] | None:
    """Return interrupted work on an artifact, and what it is made from."""
    work = unfinished.find(artifact)
    if work is None:
        return None
    writer = artifact.writer()
    return work.identity, Interrupted(
        unit=work.unit,
        done=work.done,
        total=work.total,
        seconds=round(work.seconds, 3),
        writer=writer,
        obstacles=() if writer else tuple(look.reasons(work.identity, upstream=False)),
        command=artifact.command_for(work.identity),
    )


def _repair(workspace: Workspace, found: Sequence[ArtifactStatus]) -> str | None:
    """Return the command that resumes interrupted work, or repairs what is damaged or stale; None if nothing is."""
    present = {status.key for status in found}
    for status in found:
        if status.interrupted and status.interrupted.resumable:
            return status.interrupted.command
        if status.state == "damaged":
            return status.command
        if status.state == "stale":
            kind, name = status.parent
            if kind in KINDS and (kind, name) not in present:
                return Artifact(kind, name, workspace.root, "").command
            return status.command
    return None


def _next(workspace: Workspace, look: Staleness, found: Sequence[ArtifactStatus]) -> str:
    """Return the command of the next stage."""
    names = {kind: [status.name for status in found if status.kind == kind] for kind in KINDS}
    soft = _first(names["soft targets"], TrainStudent.soft_targets)
    teacher = _first(names["teacher"], TrainTeacher.name)
    if not names["student"]:
        manifest = look.manifest(workspace.soft_targets(soft)) if soft else None
        if soft and manifest:
            return commands.after_soften(workspace.root, soft, manifest.results)
        trained = look.manifest(workspace.teacher(teacher)) if teacher else None
        if teacher and trained:
            return commands.after_teacher(workspace.root, teacher, trained.results["task"])
        return commands.command(workspace.root, "train-teacher")
    for kind in KINDS.values():
        if kind.single and not names[kind.name]:  # plots, then the report
            return commands.command(workspace.root, kind.makers[0].command, soft_targets=soft or Plot.soft_targets)
    return commands.command(workspace.root, "evaluate")


def _first(names: Sequence[str], default: str) -> str | None:
    """Return the default if it is among the names, or else the first of them."""
    return default if default in names else next(iter(names), None)
