"""`kdistill plot`: draw the learning curves and the soft targets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kdistill import data, tasks
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import Plot
from kdistill.soft_targets import SoftTargets
from kdistill.stages.common import reason_to_run, select_networks, warn_if_stale
from kdistill.stages.inputs import staleness
from kdistill.stages.result import Result
from kdistill.stages.teacher_pictures import teacher_picture
from kdistill.tasks import Task
from kdistill.training import history
from kdistill.workspace import Artifact, Input, Manifest, MissingArtifactError, Workspace, commands

if TYPE_CHECKING:
    from kdistill.evaluation.figures import Curve


def run(
    workspace: Workspace, settings: Plot = Plot(), *, force: bool = False, reporter: Reporter = Reporter()
) -> Result:
    """Draw the learning curves of networks, and some rows of the soft targets.

    Reads: `history.csv` of each network; `soft-targets/NAME.h5` and its dataset if there are any.
    Writes: `plots/learning-curves.*`, and a picture of the teacher's outputs, e.g. `plots/dark-knowledge.*`.

    Raises:
        KdistillError: If there is no network to draw, or a named one is missing.
    """
    networks = _select_trained(workspace, settings, reporter)
    inputs: list[Input] = []
    look = staleness(workspace)
    for network, manifest in networks.items():
        warn_if_stale(look, network, manifest, reporter)
        inputs.append(Input(network.kind, network.name, manifest.outputs["history.csv"], len(inputs) + 1))
    soft = _open_soft_targets(workspace, settings.soft_targets)
    if soft:
        inputs.append(Input("soft_targets", settings.soft_targets, soft.digest))
    identity = Manifest(kind="plots", settings={"format": sorted(set(settings.formats))}, inputs=tuple(inputs))
    artifact = workspace.plots
    if reason_to_run(artifact, identity, force=force, reporter=reporter) is None:
        return Result(artifact, artifact.require())

    from kdistill.evaluation import figures

    start = time.perf_counter()
    datasets = dict.fromkeys(manifest.require_input("dataset").name for manifest in networks.values())
    title = ", ".join(map(data.short_name, datasets))
    pictures = {}
    by_task: dict[str, list[Artifact]] = {}
    for network, manifest in networks.items():
        by_task.setdefault(manifest.results["task"], []).append(network)
    for name, drawn in by_task.items():
        task, suffix = tasks.get(name), f"-{name}" if len(by_task) > 1 else ""
        curves = [curve(network, task) for network in drawn]
        pictures[f"learning-curves{suffix}"] = figures.learning_curves(curves, title, task.loss_title)
    if soft and (teacher := teacher_picture(workspace, soft)):
        pictures.update([teacher])
    with artifact.writing() as staging:
        for name, picture in pictures.items():
            for file_format in settings.formats:
                figures.save(picture, staging.path / f"{name}.{file_format}")
        manifest = staging.commit(identity, results={}, seconds=time.perf_counter() - start)
    files = ", ".join(str(artifact.path / name) for name in manifest.outputs)
    reporter.say(f"Wrote {files} in {manifest.seconds:.1f} s")
    if not soft:
        command = workspace.soft_targets(settings.soft_targets).command
        reporter.say(f"No picture of soft targets, since there are none yet: {command}")
    return Result(artifact, manifest)


def _select_trained(workspace: Workspace, settings: Plot, reporter: Reporter) -> dict[Artifact, Manifest]:
    """Return the networks to draw. A student with corrected biases is skipped, since it has no history."""
    networks = select_networks(workspace, settings.networks, "plot")
    networks.sort(key=lambda network: (network.kind != "teacher", network.name))
    manifests = {network: network.require() for network in networks}
    trained = {network: manifest for network, manifest in manifests.items() if "history.csv" in manifest.outputs}
    corrected = [network for network in networks if network not in trained]
    why = "has no learning curve, since only its biases were changed"
    if not trained:
        original = manifests[corrected[0]].require_input("student").name
        raise KdistillError(f"{corrected[0]} {why}: {commands.command(workspace.root, 'plot', network=[original])}")
    if settings.networks:
        for network in corrected:
            reporter.say(f"Skipping {network}: it {why}")
    return trained


def _open_soft_targets(workspace: Workspace, name: str) -> SoftTargets | None:
    artifact = workspace.soft_targets(name)
    soft = SoftTargets.open(artifact)
    if soft is None and name != Plot.soft_targets:
        raise MissingArtifactError(f"there are no soft targets {name!r}: {artifact.command}", artifact)
    return soft


def curve(network: Artifact, task: Task) -> Curve:
    """Return the history of a network as it is drawn."""
    from kdistill.evaluation.figures import Curve

    held_out, metric, table = history.read(network.path / "history.csv", network.remedy)
    return Curve(
        name=network.name,
        role=network.kind,
        held_out=held_out,
        metric=metric.replace("_", " "),
        epochs=table["epoch"],
        train_metric=table[f"train_{metric}"],
        held_out_metric=table[f"{held_out}_{metric}"],
        train_loss=table.get("hard_loss" if task.needs_labels else "soft_loss", table["train_loss"]),
        held_out_loss=table[f"{held_out}_loss"],
    )
