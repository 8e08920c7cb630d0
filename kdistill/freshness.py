"""Whether what an artifact was made from still is what it was; staleness travels downstream."""

from __future__ import annotations

from kdistill import data
from kdistill.errors import KdistillError
from kdistill.soft_targets import SoftTargets
from kdistill.workspace import Artifact, Input, Manifest, Workspace


def manifest_of(artifact: Artifact) -> Manifest | None:
    """The manifest of any artifact, None where nothing stands.

    Raises:
        KdistillError: if what stands there is damaged.
    """
    if artifact.kind == "soft targets":
        opened = SoftTargets.open(artifact)
        return opened.manifest if opened else None
    return artifact.manifest()


def source_artifact(workspace: Workspace, role: str, name: str) -> Artifact:
    """The artifact that an input of a manifest names; for any role but `dataset`."""
    return {"teacher": workspace.teacher, "soft_targets": workspace.soft_targets}[role](name)


def stale(workspace: Workspace, manifest: Manifest) -> list[str]:
    """Why an artifact is no longer what its inputs would give, in words, with the command that mends each."""
    found = []
    for role, made_from in manifest.inputs.items():
        if role == "dataset":
            found += _stale_dataset(made_from)
        elif role in ("teacher", "soft_targets"):
            artifact = source_artifact(workspace, role, made_from.name)
            found += _stale_artifact(workspace, artifact, made_from)
    return list(dict.fromkeys(found))


def _stale_dataset(made_from: Input) -> list[str]:
    try:
        now = data.resolve(made_from.name).identity().digest
    except (KdistillError, OSError):
        return [f"the dataset {made_from.name} is gone"]
    return [] if now == made_from.digest else [f"the dataset {made_from.name} has changed"]


def _stale_artifact(workspace: Workspace, artifact: Artifact, made_from: Input) -> list[str]:
    try:
        manifest = manifest_of(artifact)
    except KdistillError:
        return [f"{artifact} is damaged: {artifact.command} --force"]
    if manifest is None:
        return [f"{artifact} is gone: {artifact.command}"]
    if made_from.digest not in manifest.outputs.values():
        return [f"{artifact} has been made anew since"]
    return [f"{artifact} is stale: {artifact.command}" for _ in stale(workspace, manifest)[:1]]
