"""`kdistill status`: what stands in a workspace, what is stale and why, and what to run next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kdistill import freshness
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import NAME, Selection
from kdistill.workspace import Artifact, Input, Manifest, Workspace


@dataclass(frozen=True)
class Standing:
    """One artifact: `state` is `fresh`, `stale` or `damaged`; `reasons` say why it is not fresh.

    `made_from` has name and digest by role; `digest` is the one that what is made from this artifact records.
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


def run(workspace: Workspace) -> tuple[list[Standing], str]:
    """Look at every artifact.

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
    standings = [_look(workspace, artifact) for artifact in artifacts]
    return standings, _next(workspace, standings)


def _look(workspace: Workspace, artifact: Artifact) -> Standing:
    try:
        manifest = freshness.manifest_of(artifact)
        assert manifest is not None
        broken = artifact.broken(manifest) if artifact.path.is_dir() else None
        if broken:
            raise KdistillError(broken)
    except KdistillError as error:
        unreadable = Manifest(kind=artifact.kind, settings={}, inputs={})
        return _standing(artifact, unreadable, "damaged", (str(error),), "")
    reasons = tuple(freshness.stale(workspace, manifest))
    return _standing(artifact, manifest, "stale" if reasons else "fresh", reasons, _summary(manifest))


def _standing(artifact: Artifact, manifest: Manifest, state: str, reasons: tuple[str, ...], summary: str) -> Standing:
    return Standing(
        kind=artifact.kind,
        name=artifact.name,
        path=str(artifact.path),
        state=state,
        reasons=reasons,
        made_from=manifest.inputs,
        digest=manifest.outputs.get(freshness.OUTPUT_OF.get(artifact.kind, "")),
        summary=summary,
        command=artifact.command_for(manifest) if manifest.settings else artifact.command,
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


def _next(workspace: Workspace, standings: list[Standing]) -> str:
    there = {(standing.kind, standing.name) for standing in standings}
    for standing in standings:
        if standing.state == "damaged":
            return f"{standing.command} --force"
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
    kinds = {standing.kind for standing in standings}
    for kind, command in (
        ("teacher", workspace.command("train-teacher")),
        ("soft targets", f"{workspace.command('soften')} --temperature 20"),
        ("student", "kdistill train-student --alpha 0.1"),
        ("plots", workspace.command("plot")),
    ):
        if kind not in kinds and not (kind in ("teacher", "soft targets") and kinds & {"soft targets", "student"}):
            return command
    return workspace.command("evaluate")


def show(workspace: Workspace, standings: list[Standing], following: str, reporter: Reporter) -> None:
    """Print the chain from dataset to export, each artifact below what it was made from."""
    reporter.say(f"workspace {workspace.root}" + ("" if standings else ", where nothing stands yet"))
    for dataset in dict.fromkeys(s.made_from["dataset"].name for s in standings if "dataset" in s.made_from):
        reporter.say(f"  dataset {dataset}")
        for standing in standings:
            if _parent(standing) == ("dataset", dataset):
                _show_below(standing, standings, reporter, depth=2)
    there = {(standing.kind, standing.name) for standing in standings}
    for standing in standings:
        parent = _parent(standing)
        if parent[0] != "dataset" and parent not in there:  # damaged, or what it was made from is gone; and plots
            _show_below(standing, standings, reporter, depth=1)
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


def _show_below(standing: Standing, all_of: list[Standing], reporter: Reporter, *, depth: int) -> None:
    mark = f" [{freshness.short(standing.digest)}]" if standing.digest else ""
    summary = f": {standing.summary}" if standing.summary else ""
    reporter.say("  " * depth + f"{standing.kind} {standing.name}{mark}{summary}")
    for reason in standing.reasons:
        reporter.say("  " * depth + f"  {standing.state}: {reason}")
    for other in all_of:
        if _parent(other) == (standing.kind, standing.name):
            _show_below(other, all_of, reporter, depth=depth + 1)


def as_json(standings: list[Standing], following: str) -> dict[str, object]:
    """The same as a plain object."""
    return {"artifacts": [asdict(standing) for standing in standings], "next": following}
