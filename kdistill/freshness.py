"""Whether what an artifact was made from still is what it was; staleness travels downstream."""

from __future__ import annotations

from pathlib import Path

from kdistill import data
from kdistill.errors import KdistillError
from kdistill.soft_targets import SoftTargets
from kdistill.workspace import Artifact, Input, Manifest, Workspace, digest

OUTPUT_OF = {"teacher": "saved_model", "student": "saved_model", "soft targets": "content"}  # what others are made of


def manifest_of(artifact: Artifact) -> Manifest | None:
    """The manifest of any artifact, None where nothing stands.

    Raises:
        KdistillError: if what stands there is damaged.
    """
    if artifact.kind == "soft targets":
        opened = SoftTargets.open(artifact)
        return opened.manifest if opened else None
    return artifact.manifest()


def _artifact(workspace: Workspace, role: str, name: str) -> Artifact:
    """What an input of a manifest names: soft targets, `teacher`, or, for plots, `teacher NAME` or `student NAME`."""
    if role.endswith("soft_targets"):
        return workspace.soft_targets(name)
    return workspace.teacher(name) if role.startswith("teacher") else workspace.student(name)


def stale(workspace: Workspace, manifest: Manifest) -> list[str]:
    """Why an artifact is no longer what its inputs would give, in words, with the command that mends each."""
    found = []
    for role, made_from in manifest.inputs.items():
        kind = role.split()[0]
        if kind in ("dataset", "transfer_set", "inputs"):
            found += _stale_data(made_from, kind.replace("_", " "))
        elif Path(made_from.name).is_absolute():
            found += _stale_file(made_from, kind if kind == "teacher" else f"{kind} file")
        else:
            output = "history.csv" if manifest.kind == "plots" and role != "soft_targets" else None
            found += _stale_artifact(workspace, _artifact(workspace, role, made_from.name), made_from, output)
    return list(dict.fromkeys(found))


def _stale_data(made_from: Input, role: str) -> list[str]:
    try:
        now = data.resolve(made_from.name).identity().digest
    except (KdistillError, OSError):
        return [f"the {role} {made_from.name} is gone"]
    return _changed(made_from, now, role)


def _stale_file(made_from: Input, role: str) -> list[str]:
    try:
        now = digest(Path(made_from.name))
    except OSError:
        return [f"the {role} {made_from.name} is gone"]
    return _changed(made_from, now, role)


def _changed(made_from: Input, now: str, role: str) -> list[str]:
    if now == made_from.digest:
        return []
    return [f"the {role} {made_from.name} has changed ({_change(made_from.digest, now)})"]


def _change(before: str, after: str) -> str:
    return f"digest {short(before)} -> {short(after)}"


def short(digest: str) -> str:
    """A digest as people compare it: its first eight hexadecimal digits."""
    return digest.removeprefix("sha256:")[:8]


def _stale_artifact(workspace: Workspace, artifact: Artifact, made_from: Input, output: str | None) -> list[str]:
    try:
        manifest = manifest_of(artifact)
    except KdistillError:
        return [f"{artifact} is damaged: {artifact.command} --force"]
    if manifest is None:
        return [f"{artifact} is gone: {artifact.command}"]
    now = manifest.outputs.get(output or OUTPUT_OF[artifact.kind], "nothing")
    if made_from.digest != now:
        return [f"{artifact} has been made anew since ({_change(made_from.digest, now)})"]
    return [f"{artifact} is stale: {artifact.command_for(manifest)}" for _ in stale(workspace, manifest)[:1]]
