"""`kdistill plot`: histories to learning curves, soft targets to a picture of the dark knowledge."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdistill import data, freshness, history, metrics, soft_targets
from kdistill.console import Reporter
from kdistill.data import NO_LABEL
from kdistill.errors import KdistillError
from kdistill.readers import BLOCK_ROWS
from kdistill.settings import Plot
from kdistill.soft_targets import Joined, SoftTargets, transfer_set, transfer_sources
from kdistill.stages import up_to_date
from kdistill.workspace import Artifact, Input, Manifest, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdistill.figures import Curve, Example

EXAMPLES = 8


def run(
    workspace: Workspace, settings: Plot = Plot(), *, force: bool = False, reporter: Reporter = Reporter()
) -> Manifest:
    """Draw what the workspace holds.

    Reads: `history.csv` of each network asked for, `soft-targets/NAME.h5` and its dataset, where they are there.
    Writes: `plots/learning-curves.*`, `plots/dark-knowledge.*`.

    Raises:
        KdistillError: if there is nothing to draw, or a network asked for is not there.
    """
    networks = _with_histories(workspace, settings.networks, reporter)
    inputs: dict[str, Input] = {}
    for network, manifest in networks.items():
        for reason in freshness.stale(workspace, manifest):
            reporter.warn(f"{network} is stale, {reason}")
        inputs[f"{network.kind} {network.name}"] = Input(network.name, manifest.outputs["history.csv"])
    soft = _soft_targets(workspace, settings.soft_targets)
    if soft:
        inputs["soft_targets"] = Input(settings.soft_targets, soft.digest)
    identity = Manifest(kind="plots", settings={"formats": sorted(set(settings.formats))}, inputs=inputs)
    artifact = workspace.plots
    if up_to_date(artifact, identity, artifact.out_of_date(identity), force=force, reporter=reporter):
        return artifact.require()

    start = time.perf_counter()
    pictures = {"learning-curves": _learning_curves(networks)}
    if soft:
        pictures["dark-knowledge"] = _dark_knowledge(workspace, soft)

    from kdistill import figures

    with artifact.writing() as staging:
        for name, picture in pictures.items():
            for ending in settings.formats:
                figures.save(picture, staging.path / f"{name}.{ending}")
        manifest = staging.commit_loose(identity, results={}, seconds=time.perf_counter() - start)
    for name in manifest.outputs:
        reporter.say(f"wrote {artifact.path / name}")
    if not soft:
        reporter.say(
            f"no dark knowledge to show: there are no soft targets; {workspace.soft_targets('soft-targets').command}"
        )
    reporter.say(f"took {manifest.seconds:.1f} s")
    return manifest


def _networks(workspace: Workspace, names: tuple[str, ...]) -> list[Artifact]:
    standing = [*workspace.teachers(), *workspace.students()]
    if not standing:
        raise KdistillError(f"{workspace.root} has no networks to plot: {workspace.command('train-teacher')}")
    if unknown := [name for name in names if name not in {network.name for network in standing}]:
        known = ", ".join(network.name for network in standing)
        raise KdistillError(f"--network {unknown[0]}: there is no such network in {workspace.root}, only {known}")
    return [network for network in standing if not names or network.name in names]


def _with_histories(workspace: Workspace, names: tuple[str, ...], reporter: Reporter) -> dict[Artifact, Manifest]:
    """The networks to draw: a student whose biases were corrected was not trained, and is left out."""
    standing = {network: network.require() for network in _networks(workspace, names)}
    trained = {network: manifest for network, manifest in standing.items() if "history.csv" in manifest.outputs}
    without = [network for network in standing if network not in trained]
    if not trained:
        trained_one = standing[without[0]].inputs["student"].name
        raise KdistillError(
            f"{without[0]} has no learning curve of its own, as its biases alone were changed: "
            f"{workspace.command('plot')} --network {trained_one}"
        )
    if names and without:
        left_out = ", ".join(map(str, without))
        reporter.say(f"{left_out}: no learning curve, as a corrected student's biases alone were changed")
    return trained


def _soft_targets(workspace: Workspace, name: str) -> SoftTargets | None:
    artifact = workspace.soft_targets(name)
    soft = SoftTargets.open(artifact)
    if soft is None and name != Plot.soft_targets:
        raise KdistillError(f"there are no soft targets {name!r}: {artifact.command}")
    return soft


def _learning_curves(networks: dict[Artifact, Manifest]) -> Figure:
    from kdistill import figures

    datasets = dict.fromkeys(manifest.inputs["dataset"].name for manifest in networks.values())
    title = f"{', '.join(map(data.short_name, datasets))}; training dashed, held-out rows solid"
    return figures.learning_curves([_curve(network) for network in networks], title)


def _curve(network: Artifact) -> Curve:
    from kdistill.figures import Curve

    held_out, table = history.read(network.path / "history.csv", network.remedy)
    return Curve(
        name=network.name,
        role=network.kind,
        held_out=held_out,
        epochs=table["epoch"],
        train_accuracy=table["train_accuracy"],
        held_out_accuracy=table[f"{held_out}_accuracy"],
        train_loss=table.get("hard_loss", table["train_loss"]),
        held_out_loss=table[f"{held_out}_loss"],
    )


def _dark_knowledge(workspace: Workspace, soft: SoftTargets) -> Figure:
    from kdistill import figures

    made_from = soft.manifest.inputs["dataset"]
    dataset = data.resolve(made_from.name, cache=workspace.cache).load()
    rows = transfer_set(soft.manifest, dataset, workspace.cache)
    sources = [source.name for source in transfer_sources(soft.manifest).values()] or [made_from.name]
    who = [data.short_name(name) for name in soft_targets.asked(soft.manifest)]
    title = (
        f"{' + '.join(map(data.short_name, sources))}: what {' + '.join(who)} say{'s' * (len(who) == 1)} of some rows; "
        "the label's bar in orange"
    )
    return figures.dark_knowledge(_examples(soft, rows), dataset.class_names, soft.temperature, title)


def _examples(soft: SoftTargets, rows: data.Split) -> list[Example]:
    """Rows whose soft targets tell most: of each class the one with the highest entropy that the teacher has right."""
    from kdistill.figures import Example

    places = soft.join(rows.keys(), rows.labels, "rows that it speaks of")
    chosen = _telling_rows(Joined(soft, places), rows.labels)
    mask = np.zeros(len(rows), bool)
    mask[chosen] = True
    inputs, labels, logits = rows.chosen(mask).read(), rows.labels[mask], soft.take(places[mask]).dense()
    pictures = inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4))
    given = [None if label == NO_LABEL else int(label) for label in labels]
    order = np.argsort(np.where(labels == NO_LABEL, logits.argmax(axis=1), labels), kind="stable")
    return [Example(inputs[row] if pictures else None, given[row], logits[row]) for row in order]


def _telling_rows(said: Joined, labels: NDArray[np.int64]) -> list[int]:
    best: dict[int, tuple[float, int]] = {}  # of each class: entropy, and row
    for start in range(0, len(labels), BLOCK_ROWS):
        logits = said.at(np.arange(start, min(start + BLOCK_ROWS, len(said)))).dense()
        log_probabilities = metrics.log_softmax(logits)
        entropy = -(np.exp(log_probabilities) * log_probabilities).sum(axis=1)
        likely = logits.argmax(axis=1)
        label = labels[start : start + len(logits)]
        entropy[(likely != label) & (label != NO_LABEL)] = -1.0
        for found in np.unique(likely):
            row = int(np.argmax(np.where(likely == found, entropy, -2.0)))
            if entropy[row] > best.get(int(found), (0.0, 0))[0]:
                best[int(found)] = float(entropy[row]), start + row
    return [row for _, row in sorted(best.values(), reverse=True)[:EXAMPLES]]
