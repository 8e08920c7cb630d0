"""Whether what an artifact was made from still is what it was; staleness travels downstream."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from pathlib import Path

from kdistill import data
from kdistill.errors import KdistillError
from kdistill.settings import ReadOptions
from kdistill.soft_targets import SoftTargets
from kdistill.workspace import Artifact, Input, Manifest, Workspace, commands, digest, hdf5_manifest, link_in

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


def recovered(artifact: Artifact) -> Manifest:
    """What the manifest of any artifact says of how it was made, however damaged it is."""
    if artifact.kind == "soft targets":
        return Manifest.recovered(hdf5_manifest.recovered_text(artifact.path), artifact.kind)
    return artifact.recovered()


def remedy(artifact: Artifact) -> str:
    """The command that makes a damaged artifact again as it was, as far as its manifest can be read."""
    link = link_in(artifact.root, artifact.path)
    return (f"rm {shlex.quote(str(link))} && " if link else "") + commands.remedy(artifact, recovered(artifact))


def source(made_from: Input, given: str | None, artifact: Artifact) -> data.Source:
    """The dataset that an artifact was made from, where it was then or at another place that is given.

    Args:
        made_from: the dataset, as the artifact's manifest has it.
        given: the value of `--dataset`. It is read as the dataset was read then, unless it says how.
        artifact: for messages.

    Raises:
        KdistillError: if there is none, or what is given has another digest than the one recorded.
    """
    cache = Workspace(artifact.root).cache
    if given is None:
        return data.resolve(made_from.name, cache=cache)
    candidates = [given]
    if not ReadOptions.of(given)[1].given() and (reading := ReadOptions.of(made_from.name)[1]).given():
        candidates.append(reading.named(given))
    digests = []
    for candidate in candidates:
        found = data.resolve(candidate, option="dataset", cache=cache)
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
    return Look(workspace, at_hand).stale(manifest)


class Look:
    """One look at a workspace: each artifact, dataset and file is read once, whatever depends on it.

    It lasts for one command at most, as it does not see what changes meanwhile. Data whose digest is `at_hand` is there,
    whatever became of the place where it was.
    """

    def __init__(self, workspace: Workspace, at_hand: Collection[str] = ()) -> None:
        self.workspace, self._at_hand = workspace, at_hand
        self._manifests: dict[Artifact, Manifest | KdistillError | OSError | None] = {}
        self._digests: dict[tuple[str, str], str | None] = {}  # of data and files, by kind and name; None if gone
        self._doubts: dict[Artifact, list[str]] = {}

    def manifest(self, artifact: Artifact) -> Manifest | None:
        """As `manifest_of`.

        Raises:
            KdistillError: if what stands there is damaged.
            OSError: if it can't be read.
        """
        if artifact not in self._manifests:
            try:
                self._manifests[artifact] = manifest_of(artifact)
            except (KdistillError, OSError) as error:
                self._manifests[artifact] = error
        found = self._manifests[artifact]
        if isinstance(found, Exception):
            raise found
        return found

    def stale(self, manifest: Manifest, *, upstream: bool = True) -> list[str]:
        """As the function `stale`; without `upstream`, only why it can't be made from the same things again."""
        found = []
        for role, made_from in manifest.inputs.items():
            kind = role.split()[0]
            if kind in ("dataset", "transfer_set", "inputs"):
                found += self._stale_data(made_from, kind.replace("_", " "))
            elif Path(made_from.name).is_absolute():
                found += self._stale_file(made_from, kind if kind == "teacher" else f"{kind} file")
            else:
                output = "history.csv" if manifest.kind == "plots" and role != "soft_targets" else None
                found += self._stale_artifact(self._artifact(role, made_from.name), made_from, output, upstream)
        return list(dict.fromkeys(found))

    def _artifact(self, role: str, name: str) -> Artifact:
        """What an input of a manifest names: soft targets, `teacher`, or, for plots, `teacher NAME` or `student NAME`."""
        if role.endswith("soft_targets"):
            return self.workspace.soft_targets(name)
        return self.workspace.teacher(name) if role.startswith("teacher") else self.workspace.student(name)

    def _stale_data(self, made_from: Input, role: str) -> list[str]:
        if made_from.digest in self._at_hand:
            return []
        now = self._digest("data", made_from.name, lambda: data.resolve(made_from.name).identity().digest)
        return _changed(made_from, now, role)

    def _stale_file(self, made_from: Input, role: str) -> list[str]:
        return _changed(made_from, self._digest("file", made_from.name, lambda: digest(Path(made_from.name))), role)

    def _digest(self, kind: str, name: str, of: Callable[[], str]) -> str | None:
        if (kind, name) not in self._digests:
            try:
                self._digests[kind, name] = of()
            except (KdistillError, OSError, ValueError):  # ValueError: a name that no file can have
                self._digests[kind, name] = None
        return self._digests[kind, name]

    def _stale_artifact(self, artifact: Artifact, made_from: Input, output: str | None, upstream: bool) -> list[str]:
        try:
            manifest = self.manifest(artifact)
        except (KdistillError, OSError):
            return [f"{artifact} is damaged: {remedy(artifact)}"]
        if manifest is None:
            return [f"{artifact} is gone: {artifact.command}"]
        now = manifest.outputs.get(output or OUTPUT_OF[artifact.kind], "nothing")
        if made_from.digest != now:
            return [f"{artifact} has been made anew since ({_change(made_from.digest, now)})"]
        if upstream and artifact not in self._doubts:
            self._doubts[artifact] = []  # for a damaged manifest that is made from itself
            self._doubts[artifact] = self.stale(manifest)
        doubts = self._doubts[artifact] if upstream else []
        return [f"{artifact} is stale: {artifact.command_for(manifest)}" for _ in doubts[:1]]


def _changed(made_from: Input, now: str | None, role: str) -> list[str]:
    if now is None:
        return [f"the {role} {made_from.name} is gone"]
    if now == made_from.digest:
        return []
    return [f"the {role} {made_from.name} has changed ({_change(made_from.digest, now)})"]


def _change(before: str, after: str) -> str:
    return f"digest {short(before)} -> {short(after)}"


def short(digest: str) -> str:
    """A digest as people compare it: its first eight hexadecimal digits."""
    return digest.removeprefix("sha256:")[:8]
