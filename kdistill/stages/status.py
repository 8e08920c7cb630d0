"""`kdistill status`: what stands in a workspace, what is stale and why, what was interrupted, and what to run next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import NAME, Plot, Selection, Status, TrainStudent, TrainTeacher
from kdistill.workspace import Artifact, Input, Manifest, Workspace, commands, unfinished
from kdistill.workspace import staleness as freshness


@dataclass(frozen=True)
class Interrupted:
    """Half-finished work on an artifact.

    `done` of `total` `unit` (`epochs`, `rows` or `students`) are done, which took `seconds`; `command` resumes it.
    `writer` is the process that is at it now, None if it was stopped. `obstacles` say why it can't be resumed: what it
    is made from has changed.
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


@dataclass(frozen=True)
class Standing:
    """One artifact: `state` is `fresh`, `stale`, `damaged`, or `unfinished` where nothing but half-finished work stands.

    `reasons` say why it is not fresh. `made_from` has name and digest by role; `digest` is the one that what is made
    from this artifact records. `command` makes it again.
    """

    kind: str
    name: str
    path: str
    state: str
    reasons: tuple[str, ...]
    made_from: Mapping[str, Input]
    digest: str | None
    summary: str
    command: str
    interrupted: Interrupted | None = None


@dataclass(frozen=True)
class StatusResult:
    """All artifacts, upstream first, and the next command."""

    workspace: Workspace
    standings: Sequence[Standing]
    next: str
    exit_status: int = 0

    def as_json(self) -> dict[str, object]:
        """Return the same as a plain object."""
        return {"artifacts": [asdict(standing) for standing in self.standings], "next": self.next}

    def show(self, reporter: Reporter) -> None:
        """Print the artifacts, each below what it was made from."""
        show(self.workspace, self.standings, self.next, reporter)


def run(
    workspace: Workspace,
    settings: Status = Status(),  # noqa: ARG001 - all stages have it
    *,
    reporter: Reporter = Reporter(),  # noqa: ARG001
) -> StatusResult:
    """Look at every artifact, and at work that was interrupted.

    Reads: all manifests, and what they were made from.
    Writes: nothing.

    Returns:
        The artifacts, upstream first, and the next command to run.
    """
    artifacts = [
        *workspace.teachers(),
        *workspace.soft_target_files(),
        *workspace.students(),
        *workspace.sweeps(),
        *workspace.exports(),
    ]
    if workspace.plots.manifest_path.exists():
        artifacts.append(workspace.plots)
    look = freshness.Look(workspace)
    standings = [_look(look, artifact) for artifact in artifacts]
    begun = [artifact for artifact in workspace.begun() if artifact not in artifacts]
    standings += [_begun(artifact, *found) for artifact in begun if (found := _interrupted(look, artifact))]
    standings.sort(key=lambda standing: ORDER.index(standing.kind))  # stable: students of a sweep follow the others
    return StatusResult(workspace, standings, _next(workspace, look, standings))


ORDER = ("teacher", "soft targets", "student", "sweep", "export", "plots")


def _look(look: freshness.Look, artifact: Artifact) -> Standing:
    interrupted = found[1] if (found := _interrupted(look, artifact)) else None
    try:
        manifest = look.manifest(artifact)
        assert manifest is not None
        broken = artifact.broken(manifest) if artifact.path.is_dir() else None
        if broken:
            raise KdistillError(f"{artifact.path}: {broken}")
        reasons = tuple(look.stale(manifest))
        state, command = "stale" if reasons else "fresh", artifact.command_for(manifest)
        summary = _summary(manifest)
    except (KdistillError, OSError) as error:
        manifest, command = Manifest(kind=artifact.kind, settings={}, inputs={}), freshness.remedy(artifact)
        state, reasons, summary = "damaged", (str(error),), ""
    return Standing(
        kind=artifact.kind,
        name=artifact.name,
        path=str(artifact.path),
        state=state,
        reasons=reasons,
        made_from=manifest.inputs,
        digest=manifest.outputs.get(freshness.OUTPUT_OF.get(artifact.kind, "")),
        summary=summary,
        command=command,
        interrupted=interrupted,
    )


def _begun(artifact: Artifact, identity: Manifest, interrupted: Interrupted) -> Standing:
    return Standing(
        kind=artifact.kind,
        name=artifact.name,
        path=str(artifact.partial),
        state="unfinished",
        reasons=(),
        made_from=identity.inputs,
        digest=None,
        summary="",
        command=interrupted.command,
        interrupted=interrupted,
    )


def _interrupted(look: freshness.Look, artifact: Artifact) -> tuple[Manifest, Interrupted] | None:
    """Half-finished work on an artifact, and what it is made from."""
    left = unfinished.find(artifact)
    if left is None:
        return None
    writer = artifact.writer()
    return left.identity, Interrupted(
        unit=left.unit,
        done=left.done,
        total=left.total,
        seconds=round(left.seconds, 3),
        writer=writer,
        obstacles=() if writer else tuple(look.stale(left.identity, upstream=False)),
        command=left.command(artifact),
    )


def _summary(manifest: Manifest) -> str:
    results, settings = manifest.results, manifest.settings
    if manifest.kind == "soft targets":
        parts = [f"T = {settings['temperature']:g}", f"{results['rows']:,} rows of {results['classes']} classes"]
        if results["labelled"] < results["rows"]:
            parts.append(f"{results['labelled']:,} labelled")
        if settings["top_k"] is not None:
            parts.append(f"the {settings['top_k']} largest logits")
        if chosen := str(Selection.of(settings)):
            parts.append(chosen)
        return ", ".join(parts)
    if manifest.kind == "plots":
        return ", ".join(manifest.outputs)
    if manifest.kind == "sweep":
        return f"{len(results['students'])} students"
    if manifest.kind == "export":
        errors, rows = results["test_errors"], results["test_rows"]
        return f"{errors:,} errors of {rows:,} test rows, {results['bytes']:,} bytes"
    chosen = f", {said}" if (said := str(Selection.of(settings))) else ""
    return f"{settings['model']}, {results['test_errors']:,} errors of {results['test_rows']:,} test rows{chosen}"


def _next(workspace: Workspace, look: freshness.Look, standings: Sequence[Standing]) -> str:
    """The command to run next: it resumes what was interrupted, mends what is damaged or stale, or goes one stage on."""
    return _mending(workspace, standings) or _going_on(workspace, look, standings)


def _mending(workspace: Workspace, standings: Sequence[Standing]) -> str | None:
    there = {(standing.kind, standing.name) for standing in standings}
    for standing in standings:
        if standing.interrupted and standing.interrupted.resumable:
            return standing.interrupted.command
        if standing.state == "damaged":
            return standing.command
        kind, name = _parent(standing)
        if standing.state == "stale" and kind not in ("dataset", "") and (kind, name) not in there:
            made_by = {
                "teacher": workspace.teacher,
                "soft targets": workspace.soft_targets,
                "student": workspace.student,
                "sweep": workspace.sweep,
            }
            return made_by[kind](name).command
        if standing.state == "stale":
            return standing.command
    return None


def _going_on(workspace: Workspace, look: freshness.Look, standings: Sequence[Standing]) -> str:
    names = {kind: [one.name for one in standings if one.kind == kind] for kind in ORDER}
    soft = _first(names["soft targets"], TrainStudent.soft_targets)
    teacher = _first(names["teacher"], TrainTeacher.name)
    if not names["student"]:
        manifest = look.manifest(workspace.soft_targets(soft)) if soft else None
        if soft and manifest:
            return commands.next_student(workspace.root, soft, manifest.results)
        return commands.next_soften(workspace.root, teacher) if teacher else workspace.command("train-teacher")
    if not names["plots"]:
        return commands.next_plot(workspace.root, soft or Plot.soft_targets)
    return workspace.command("evaluate")


def _first(names: Sequence[str], default: str) -> str | None:
    """The default if it is among the names, else the first of them."""
    return default if default in names else next(iter(names), None)


def show(workspace: Workspace, standings: Sequence[Standing], following: str, reporter: Reporter) -> None:
    """Print the chain from dataset to export, each artifact below what it was made from."""
    reporter.say(f"workspace {workspace.root}" + ("" if standings else ", where nothing stands yet"))
    below: dict[tuple[str, str], list[Standing]] = {}
    for standing in standings:
        below.setdefault(_parent(standing), []).append(standing)
    for dataset in dict.fromkeys(s.made_from["dataset"].name for s in standings if "dataset" in s.made_from):
        reporter.say(f"  dataset {dataset}")
        _show_below(("dataset", dataset), below, reporter, depth=2)
    there = {(standing.kind, standing.name) for standing in standings}
    for parent in below:
        if parent[0] != "dataset" and parent not in there:  # damaged, or what it was made from is gone; and plots
            _show_below(parent, below, reporter, depth=1)
    reporter.say(f"next: {following}")


def _parent(standing: Standing) -> tuple[str, str]:
    """What an artifact hangs below: its soft targets, else its network or teacher, else its dataset."""
    if standing.kind == "plots":  # made from many
        return "", ""
    roles = [role for role in ("soft_targets", "student", "teacher", "dataset") if role in standing.made_from]
    if "teacher" in roles and not NAME.fullmatch(standing.made_from["teacher"].name):  # it is from outside
        roles.remove("teacher")
    role = roles[0] if roles else ""
    name = standing.made_from[role].name if role else ""
    if role == "student" and "/" in name:
        return "sweep", name.split("/")[0]
    return role.replace("_", " "), name


def _show_below(
    parent: tuple[str, str], below: Mapping[tuple[str, str], Sequence[Standing]], reporter: Reporter, *, depth: int
) -> None:
    for standing in below.get(parent, ()):
        mark = f" [{freshness.short(standing.digest)}]" if standing.digest else ""
        summary = f": {standing.summary}" if standing.summary else ""
        reporter.say("  " * depth + f"{standing.kind} {standing.name}{mark}{summary}")
        for reason in standing.reasons:
            reporter.say("  " * depth + f"  {standing.state}: {reason}")
        if standing.interrupted:
            reporter.say("  " * depth + f"  {_told(standing.interrupted)}")
        _show_below((standing.kind, standing.name), below, reporter, depth=depth + 1)


def _told(work: Interrupted) -> str:
    """Half-finished work in a line."""
    how_far = unfinished.how_far(work.done, work.total, work.unit, work.seconds)
    if work.writer:
        return f"being written by {work.writer}: {how_far}"
    if work.obstacles:
        return f"interrupted: {how_far}; can't be resumed, as {', '.join(work.obstacles)}"
    return f"interrupted: {how_far}; to resume: {work.command}"
