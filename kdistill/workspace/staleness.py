"""Staleness: whether the inputs of an artifact are still what they were. It travels downstream."""

from __future__ import annotations

from collections.abc import Callable, Collection

from kdistill.errors import KdistillError
from kdistill.workspace.artifact import Artifact
from kdistill.workspace.files import short_digest
from kdistill.workspace.kinds import INPUTS, KINDS
from kdistill.workspace.layout import Workspace
from kdistill.workspace.manifest import Manifest
from kdistill.workspace.schema import Input


class Staleness:
    """One look at a workspace: each artifact, dataset and file is read once.

    It lasts for one command at most, since it does not see what changes meanwhile.

    Args:
        workspace: whose artifacts are looked at.
        digest_of: returns the current digest of an input that is not an artifact, or raises KdistillError if it is gone.
        at_hand: digests of datasets that the user gave: these exist, whatever became of the recorded place.
    """

    def __init__(self, workspace: Workspace, digest_of: Callable[[Input], str], at_hand: Collection[str] = ()) -> None:
        self.workspace, self._digest_of, self._at_hand = workspace, digest_of, at_hand
        self._manifests: dict[Artifact, Manifest | KdistillError | OSError | None] = {}
        self._digests: dict[tuple[bool, str], str | None] = {}  # by whether it is data, and name; None if it is gone
        self._reasons: dict[Artifact, list[str]] = {}

    def manifest(self, artifact: Artifact) -> Manifest | None:
        """Return the manifest of an artifact, or None if there is none.

        Raises:
            KdistillError: if it is damaged.
            OSError: if it can't be read.
        """
        if artifact not in self._manifests:
            try:
                self._manifests[artifact] = artifact.manifest()
            except (KdistillError, OSError) as error:
                self._manifests[artifact] = error
        found = self._manifests[artifact]
        if isinstance(found, Exception):
            raise found
        return found

    def reasons(self, manifest: Manifest, *, upstream: bool = True) -> list[str]:
        """Return why an artifact is stale, in words, with the command that repairs each cause.

        Args:
            manifest: of the artifact.
            upstream: whether it is also stale if an artifact upstream is; otherwise only if its inputs have changed.
        """
        found: list[str] = []
        for made_from in manifest.inputs:
            record = INPUTS[made_from.kind]
            if record.artifact and record.is_artifact(made_from.name):
                output = KINDS[manifest.kind].outputs_used.get(record.artifact)
                artifact = self.workspace.artifact(record.artifact, made_from.name)
                found += self._artifact_reasons(artifact, made_from, output, upstream)
            elif made_from.digest not in self._at_hand:
                found += self._file_reasons(made_from, data=record.data)
        return list(dict.fromkeys(found))

    def _file_reasons(self, made_from: Input, *, data: bool) -> list[str]:
        key = data, made_from.name
        if key not in self._digests:
            try:
                self._digests[key] = self._digest_of(made_from)
            except (KdistillError, OSError, ValueError):  # ValueError: no file can have such a name
                self._digests[key] = None
        now = self._digests[key]
        what = f"{made_from.kind.replace('_', ' ')}{'' if data or made_from.kind == 'teacher' else ' file'}"
        if now is None:
            return [f"the {what} {made_from.name} is gone"]
        if now == made_from.digest:
            return []
        return [f"the {what} {made_from.name} has changed ({_change(made_from.digest, now)})"]

    def _artifact_reasons(self, artifact: Artifact, made_from: Input, output: str | None, upstream: bool) -> list[str]:
        try:
            manifest = self.manifest(artifact)
        except (KdistillError, OSError):
            return [f"{artifact} is damaged: {artifact.remedy}"]
        if manifest is None:
            return [f"{artifact} is gone: {artifact.command}"]
        now = (manifest.outputs.get(output) if output else artifact.digest(manifest)) or "nothing"
        if made_from.digest != now:
            return [f"{artifact} has been replaced since ({_change(made_from.digest, now)})"]
        if not upstream:
            return []
        if artifact not in self._reasons:
            self._reasons[artifact] = []  # ends the recursion if a damaged manifest names itself
            self._reasons[artifact] = self.reasons(manifest)
        return [f"{artifact} is stale: {artifact.command_for(manifest)}"] if self._reasons[artifact] else []


def _change(before: str, after: str) -> str:
    return f"digest {short_digest(before)} -> {short_digest(after)}"
