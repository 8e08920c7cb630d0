"""Whether what an artifact was made from still is what it was; staleness travels downstream."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from kdistill import data
from kdistill.errors import KdistillError
from kdistill.settings import Reading
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


def source(made_from: Input, given: str | None, artifact: Artifact) -> data.Source:
    """The dataset that an artifact was made from, where it was then or at another place that is given.

    Args:
        made_from: the dataset, as the artifact's manifest has it.
        given: the value of `--dataset`. It is read as the dataset was read then, unless it says how.
        artifact: for messages.

    Raises:
        KdistillError: if there is none, or what is given has another digest than the one recorded.
    """
    if given is None:
        return data.resolve(made_from.name)
    candidates = [given]
    if not Reading.of(given)[1].given() and (reading := Reading.of(made_from.name)[1]).given():
        candidates.append(reading.named(given))
    digests = []
    for candidate in candidates:
        found = data.resolve(candidate)
        digests.append(found.identity().digest)
        if digests[-1] == made_from.digest:
            return found
    raise KdistillError(
        f"--dataset {given} is not the data that {artifact} was made from: its digest is {short(digests[0])}, and "
        f"{short(made_from.digest)} is recorded"
    )


def stale(workspace: Workspace, manifest: Manifest, at_hand: Collection[str] = ()) -> list[str]:
    """Why an artifact is no longer what its inputs would give, in words, with the command that mends each.

    Args:
        workspace: where its inputs are.
        manifest: of the artifact.
        at_hand: digests of data that the user has given. Such data is there, whatever became of the place where it was.
    """
    found = []
    for role, made_from in manifest.inputs.items():
        kind = role.split()[0]
        if kind in ("dataset", "transfer_set", "inputs"):
            if made_from.digest in at_hand:
                continue
            found += _stale_data(made_from, kind.replace("_", " "))
        elif Path(made_from.name).is_absolute():
            found += _stale_file(made_from, kind if kind == "teacher" else f"{kind} file")
        else:
            output = "history.csv" if manifest.kind == "plots" and role != "soft_targets" else None
            found += _stale_artifact(workspace, _artifact(workspace, role, made_from.name), made_from, output, at_hand)
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


def _stale_artifact(
    workspace: Workspace, artifact: Artifact, made_from: Input, output: str | None, at_hand: Collection[str]
) -> list[str]:
    try:
        manifest = manifest_of(artifact)
    except KdistillError:
        return [f"{artifact} is damaged: {artifact.command} --force"]
    if manifest is None:
        return [f"{artifact} is gone: {artifact.command}"]
    now = manifest.outputs.get(output or OUTPUT_OF[artifact.kind], "nothing")
    if made_from.digest != now:
        return [f"{artifact} has been made anew since ({_change(made_from.digest, now)})"]
    return [f"{artifact} is stale: {artifact.command_for(manifest)}" for _ in stale(workspace, manifest, at_hand)[:1]]
