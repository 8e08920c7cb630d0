"""`kdistill status`: what stands in a workspace, what is stale and why, and what to run next."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kdistill import freshness
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.workspace import Artifact, Manifest, Workspace


@dataclass(frozen=True)
class Standing:
    """One artifact: `state` is `fresh`, `stale` or `damaged`; `reasons` say why it is not fresh."""

    kind: str
    name: str
    path: str
    state: str
    reasons: tuple[str, ...]
    made_from: dict[str, str]
    summary: str
    command: str


def run(workspace: Workspace) -> tuple[list[Standing], str]:
    """Look at every artifact.

    Reads: all manifests, and what they were made from.
    Writes: nothing.

    Returns:
        The artifacts, upstream first, and the next command to run.
    """
    artifacts = [*workspace.teachers(), *workspace.soft_target_files(), *workspace.students()]
    if workspace.plots.manifest_path.exists():
        artifacts.append(workspace.plots)
    standings = [_look(workspace, artifact) for artifact in artifacts]
    return standings, _next(standings)


def _look(workspace: Workspace, artifact: Artifact) -> Standing:
    try:
        manifest = freshness.manifest_of(artifact)
        assert manifest is not None
        broken = artifact.broken(manifest) if artifact.path.is_dir() else None
        if broken:
            raise KdistillError(broken)
    except KdistillError as error:
        return Standing(
            artifact.kind, artifact.name, str(artifact.path), "damaged", (str(error),), {}, "", artifact.command
        )
    reasons = tuple(freshness.stale(workspace, manifest))
    return Standing(
        kind=artifact.kind,
        name=artifact.name,
        path=str(artifact.path),
        state="stale" if reasons else "fresh",
        reasons=reasons,
        made_from={role: made_from.name for role, made_from in manifest.inputs.items()},
        summary=_summary(manifest),
        command=artifact.command,
    )


def _summary(manifest: Manifest) -> str:
    results, settings = manifest.results, manifest.settings
    if manifest.kind == "soft targets":
        return f"T = {settings['temperature']:g}, {results['rows']:,} rows of {results['classes']} classes"
    if manifest.kind == "plots":
        return ", ".join(manifest.outputs)
    return f"{settings['model']}, {results['test_errors']:,} errors of {results['test_rows']:,} test rows"


def _next(standings: list[Standing]) -> str:
    for standing in standings:
        if standing.state == "damaged":
            return f"{standing.command} --force"
        if standing.state == "stale":
            return standing.command
    kinds = {standing.kind for standing in standings}
    for kind, command in (
        ("teacher", "kdistill train-teacher"),
        ("soft targets", "kdistill soften --temperature 20"),
        ("student", "kdistill train-student --alpha 0.1"),
        ("plots", "kdistill plot"),
    ):
        if kind not in kinds and not (kind == "soft targets" and "student" in kinds):
            return command
    return "kdistill evaluate"


def show(workspace: Workspace, standings: list[Standing], following: str, reporter: Reporter) -> None:
    """Print the chain, a line an artifact, each below what it was made from."""
    reporter.say(f"workspace {workspace.root}" + ("" if standings else ", where nothing stands yet"))
    for standing in standings:
        made_from = ", ".join(name for name in standing.made_from.values())
        source = f" from {made_from}" if made_from else ""
        reporter.say(f"  {standing.state:8}{standing.kind} {standing.name}{source}: {standing.summary}".rstrip(": "))
        for reason in standing.reasons:
            reporter.say(f"          {reason}")
    reporter.say(f"next: {following}")


def as_json(standings: list[Standing], following: str) -> dict[str, object]:
    """The same as a plain object."""
    return {"artifacts": [asdict(standing) for standing in standings], "next": following}
