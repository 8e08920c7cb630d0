"""Steps that several stages share: finding networks, warning of stale inputs, and skipping what is up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdistill import data
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import Tracking
from kdistill.stages.inputs import recorded_dataset, staleness
from kdistill.workspace import Artifact, Manifest, MissingArtifactError, Workspace, WouldWrite, commands, unfinished
from kdistill.workspace.staleness import Staleness

if TYPE_CHECKING:
    from kdistill.networks.saved_models import SavedNetwork

LISTED_NAMES = 10


def find_networks(
    workspace: Workspace, name: str, command: str, option: str = "network", *, teachers: bool = True
) -> list[Artifact]:
    """Return the student and the teacher with a name, or the student of a sweep, `SWEEP/STUDENT`.

    Args:
        workspace: Where to look.
        name: A valid name.
        command: The subcommand that has the name, for messages.
        option: The option that has the name, for messages.
        teachers: Whether to look among teachers too.

    Raises:
        KdistillError: If no network has the name.
    """
    sweep = name.rpartition("/")[0]
    prefix = f"{sweep}/" if sweep else ""
    networks = workspace.sweep_students(sweep) if sweep else workspace.artifacts("student")
    if teachers and not sweep:
        networks += workspace.artifacts("teacher")
    if matches := [network for network in networks if prefix + network.name == name]:
        return [workspace.student(name)] if sweep else matches
    role = "network" if teachers and not sweep else "student"
    wanted = [workspace.student(name), *([workspace.teacher(name)] if role == "network" else [])]
    if not networks:
        missing, remedy = f"{role} for {command}", workspace.student("student").command
        if sweep:
            missing, remedy = f"students of a sweep {sweep!r}", workspace.sweep(sweep).command
        raise MissingArtifactError(f"{workspace.root} has no {missing}: {remedy}", *wanted)
    names = [prefix + network.name for network in networks]
    available = ", ".join(names[:LISTED_NAMES]) + ", ..." * (len(names) > LISTED_NAMES)
    example: dict[str, Any] = {option: names[0]}
    raise MissingArtifactError(
        f"there is no {role} {name!r} in {workspace.root} (available: {available}): "
        f"{commands.command(workspace.root, command, **example)}",
        *wanted,
    )


def select_networks(workspace: Workspace, names: Sequence[str], command: str) -> list[Artifact]:
    """Return the networks with some names, or all teachers and students; teachers come first.

    Raises:
        KdistillError: If there is no network with a name, or no network at all.
    """
    if names:
        networks = [network for name in names for network in find_networks(workspace, name, command)]
        return sorted(dict.fromkeys(networks), key=lambda network: network.kind != "teacher")
    if networks := workspace.artifacts("teacher", "student"):
        return networks
    raise KdistillError(
        f"{workspace.root} has no networks to {command}: {commands.command(workspace.root, 'train-teacher')}"
    )


def warn_if_stale(look: Staleness, artifact: Artifact, manifest: Manifest, reporter: Reporter) -> None:
    """Warn of each reason why an artifact is stale, with the command that makes it again."""
    for reason in look.reasons(manifest):
        reporter.warn(f"{artifact} is stale, {reason}: {artifact.command_for(manifest)}")


def open_network(
    workspace: Workspace, network: Artifact, dataset: str | None, reporter: Reporter
) -> tuple[Manifest, data.Source]:
    """Return the manifest of a trained network and its dataset, and warn if the network is stale.

    Args:
        workspace: Where the network is.
        network: A teacher or a student.
        dataset: Where the dataset is now, if it was moved.
        reporter: Prints the warnings.

    Raises:
        KdistillError: If the network is missing or damaged, or if the dataset has changed.
    """
    manifest = network.require()
    made_from = manifest.require_input("dataset")
    source = recorded_dataset(made_from, dataset, network)
    warn_if_stale(staleness(workspace, {made_from.digest} if dataset else ()), network, manifest, reporter)
    return manifest, source


def load_checked_network(network: Artifact, manifest: Manifest, dataset: data.Dataset) -> SavedNetwork:
    """Load a network that was opened before, and check that it fits a dataset.

    Raises:
        KdistillError: If it was replaced since then, is damaged, or does not fit.
    """
    from kdistill.networks import loading

    loaded, saved = loading.load_network(network)
    if loaded != manifest:
        raise KdistillError(f"{network} was replaced while this command ran: run the command again")
    saved.check(dataset.input_shape, dataset.input_dtype, dataset.outputs, dataset.name)
    return saved


def reason_to_run(
    artifact: Artifact,
    identity: Manifest,
    *,
    force: bool,
    reporter: Reporter,
    tracking: Tracking = Tracking(),
    out_of_date: Callable[[Artifact, Manifest], str | None] = Artifact.out_of_date,
) -> str | None:
    """Return why a stage has work to do; None if its artifact is up to date, and then print a line.

    Args:
        artifact: The artifact that the stage writes.
        identity: What the artifact is made from.
        force: Run even if it is up to date, and discard interrupted work with other settings.
        reporter: Prints the line.
        tracking: Event files for TensorBoard are written again if the artifact is up to date.
        out_of_date: Returns why the artifact is out of date.

    Raises:
        KdistillError: If the artifact is a symbolic link, or if interrupted work would be discarded.
        WouldWrite: In a dry run, with the reason.
    """
    artifact.refuse_links()
    reason = out_of_date(artifact, identity) or ("--force" if force else None)
    if reason and not force:
        unfinished.protect(artifact, identity, staleness(Workspace(artifact.root)))
    if artifact.dry_run:
        raise WouldWrite(artifact, reason, identity.inputs)
    if reason is None:
        unfinished.tidy(artifact, identity)
        reporter.say(f"Up to date: {artifact.place} (--force re-runs)")
        if tracking.tensorboard:
            from kdistill.training.tensorboard import write_events

            write_events(artifact, Workspace(artifact.root).events(artifact))
    return reason


def announce_rerun(artifact: Artifact, reason: str, reporter: Reporter) -> None:
    """Print why an existing artifact is re-run. Stages call this after every check that could refuse the work."""
    if artifact.path.exists() and not artifact.record.shared:
        reporter.say(f"Re-running {artifact.place}: {reason}")


def announce_data(reporter: Reporter, *parts: data.Dataset | data.Split) -> None:
    """Print the notes and warnings about datasets and transfer sets."""
    for part in parts:
        for note in part.notes:
            reporter.say(note)
        for warning in part.warnings:
            reporter.warn(warning)


def sample_rows(rows: data.Split, count: int) -> data.Split:
    """Return randomly chosen rows: always the same ones of the same rows, and all if there are not more than `count`."""
    mask = np.zeros(len(rows), np.bool_)
    mask[np.random.default_rng(0).permutation(len(rows))[:count]] = True
    return rows.select(mask)
