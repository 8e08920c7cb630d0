"""The inputs of artifacts: datasets as they were recorded or where they are now, and whether inputs have changed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from kdistill import data, teachers
from kdistill.errors import KdistillError
from kdistill.settings import ReadOptions
from kdistill.workspace import Artifact, Input, Manifest, Workspace, short_digest
from kdistill.workspace.kinds import INPUTS
from kdistill.workspace.staleness import Staleness


def staleness(workspace: Workspace, at_hand: Collection[str] = ()) -> Staleness:
    """Return a look at the staleness of artifacts.

    Args:
        workspace: where they are.
        at_hand: digests of datasets that the user gave, which need not be at the recorded place.
    """

    def digest_of(made_from: Input) -> str:
        name = made_from.name
        return data.resolve(name).digest() if INPUTS[made_from.kind].data else teachers.digest(name)

    return Staleness(workspace, digest_of, at_hand)


def require_inputs(workspace: Workspace, identity: Manifest) -> None:
    """Check, in a worker, that the inputs of an artifact are what they are for the process that it works for.

    Raises:
        KdistillError: naming what differs.
    """
    if reasons := staleness(workspace).reasons(identity, upstream=False):
        raise KdistillError(f"{'; '.join(reasons)}: copy what the other machines have to the same path")


def recorded_dataset(made_from: Input, given: str | None, artifact: Artifact) -> data.Source:
    """Find the dataset that an artifact was made from, at its recorded place or at another one.

    Args:
        made_from: the dataset, as the artifact's manifest records it.
        given: the value of `--dataset`, or None. It is read as the dataset was read, unless it has read options.
        artifact: for messages.

    Raises:
        KdistillError: if there is none, or what is given has another digest than recorded.
    """
    cache = Workspace(artifact.root).cache
    if given is None:
        return data.resolve(made_from.name, cache=cache)
    source, digest = given_dataset(made_from, given, cache)
    if digest == made_from.digest:
        return source
    raise KdistillError(
        f"--dataset {given} is not the data that {artifact} was made from: its digest is {short_digest(digest)} "
        f"(expected {short_digest(made_from.digest)})"
    )


def given_dataset(made_from: Input, given: str, cache: Path) -> tuple[data.Source, str]:
    """Return the dataset that the user gave, and its digest: the recorded one if it is the recorded dataset.

    Args:
        made_from: the recorded dataset. What is given is read as that was read, unless it has read options.
        given: the value of `--dataset`.
        cache: as for `data.resolve`.

    Raises:
        KdistillError: if there is none.
    """
    source = data.resolve(given, option="dataset", cache=cache)
    digest, options = source.digest(), ReadOptions.of(made_from.name)[1]
    if digest != made_from.digest and options.given() and not ReadOptions.of(given)[1].given():
        with contextlib.suppress(KdistillError):  # it has another format, or a file that an option names is gone
            moved = data.resolve(options.named(given), cache=cache)
            if moved.digest() == made_from.digest:
                return moved, made_from.digest
    return source, digest
