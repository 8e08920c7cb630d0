"""`kdistill plot`: histories to learning curves, soft targets to a picture of the dark knowledge."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data, soft_targets
from kdistill.console import Reporter
from kdistill.data import NO_LABEL
from kdistill.data.readers import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.settings import Plot
from kdistill.soft_targets import AlignedSoftTargets, SoftTargets, transfer_set, transfer_sources
from kdistill.stages import up_to_date
from kdistill.stages.result import Result
from kdistill.training import history
from kdistill.workspace import Artifact, Input, Manifest, Workspace
from kdistill.workspace import staleness as freshness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdistill.evaluation.figures import Curve, Example

EXAMPLES = 8
CLEAR = 0.5, 0.98  # the first probability at T = 1 of a row that shows dark knowledge well


def run(
    workspace: Workspace, settings: Plot = Plot(), *, force: bool = False, reporter: Reporter = Reporter()
) -> Result:
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
    identity = Manifest(kind="plots", settings={"format": sorted(set(settings.formats))}, inputs=inputs)
    artifact = workspace.plots
    if up_to_date(artifact, identity, artifact.out_of_date(identity), force=force, reporter=reporter):
        return Result(artifact, artifact.require())

    start = time.perf_counter()
    pictures = {"learning-curves": _learning_curves(networks)}
    if soft:
        pictures["dark-knowledge"] = _dark_knowledge(workspace, soft)

    from kdistill.evaluation import figures

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
    return Result(artifact, manifest)


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
    from kdistill.evaluation import figures

    datasets = dict.fromkeys(manifest.inputs["dataset"].name for manifest in networks.values())
    title = ", ".join(map(data.short_name, datasets))
    return figures.learning_curves([_curve(network) for network in networks], title)


def _curve(network: Artifact) -> Curve:
    from kdistill.evaluation.figures import Curve

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
    from kdistill.evaluation import figures

    made_from = soft.manifest.inputs["dataset"]
    dataset = data.resolve(made_from.name, cache=workspace.cache).load()
    rows = transfer_set(soft.manifest, dataset, workspace.cache)
    sources = [source.name for source in transfer_sources(soft.manifest).values()] or [made_from.name]
    who = [data.short_name(name) for name in soft_targets.teacher_names(soft.manifest)]
    title = (
        f"{' + '.join(map(data.short_name, sources))}: probabilities of {' + '.join(who)}, the label's bar in orange. "
        f"One row per class: correct with {CLEAR[0]:.0%} to {CLEAR[1]:.0%} confidence where possible, and with the "
        "second class furthest ahead of the third."
    )
    columns = dataset.preprocessing.get("table", {}).get("inputs", ())
    examples = _examples(soft, rows, columns)
    return figures.dark_knowledge(examples, dataset.class_names, soft.temperature, title)


def _examples(soft: SoftTargets, rows: data.Split, columns: Sequence[str] = ()) -> list[Example]:
    """Return the rows to draw, in the order of their classes; `columns` are the names of a table's inputs."""
    from kdistill.evaluation.figures import Example

    places = soft.join(rows.keys(), rows.labels, "rows that it speaks of")
    chosen = _telling_rows(AlignedSoftTargets(soft, places), rows.labels)
    mask = np.zeros(len(rows), bool)
    mask[chosen] = True
    inputs, labels, logits = rows.chosen(mask).read(), rows.labels[mask], soft.take(places[mask]).dense()
    pictures = inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4))
    given = [None if label == NO_LABEL else int(label) for label in labels]
    order = np.argsort(np.where(labels == NO_LABEL, logits.argmax(axis=1), labels), kind="stable")
    return [
        Example(inputs[row], given[row], logits[row])
        if pictures
        else Example(None, given[row], logits[row], _described(inputs[row], columns))
        for row in order
    ]


def _described(values: NDArray[Any], columns: Sequence[str]) -> list[str]:
    """Describe an input without a picture in a few lines.

    Args:
        values: one row's inputs, of any shape; those of a table are standardized.
        columns: the names of a table's inputs, or nothing.

    Returns:
        The values of a table's row that deviate most, with their columns' names; else the first values.
    """
    if columns:
        from kdistill.evaluation.figures import shorten

        most = np.argsort(-np.abs(values), kind="stable")[:5]
        return [f"{shorten(columns[place], 14)} {values[place]:+.1f} sd" for place in most]
    flat = values.ravel()
    if np.issubdtype(flat.dtype, np.integer):
        flat = np.trim_zeros(flat)  # the padding of token ids
    text = " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in flat[:40].tolist())
    return textwrap.wrap(text + " …" * (flat.size > 40), 22, max_lines=5, placeholder=" …")


def _telling_rows(said: AlignedSoftTargets, labels: NDArray[np.int64]) -> list[int]:
    """Choose a row of each predicted class, of at most `EXAMPLES` classes.

    A row that the teacher classifies correctly, or that has no label, comes before one that it does not. Then comes a
    row with a clear but not certain first class: its probability at T = 1 lies in `CLEAR`, and is at least twice the
    second. Among those the ratio of the second to the third probability decides, the third counting as at least 1%;
    among the others how near the first probability lies to the middle of `CLEAR`.
    """
    best: dict[int, tuple[bool, bool, float, int]] = {}  # of each class: correct, clear, score, and row
    for start in range(0, len(labels), BLOCK_ROWS):
        logits = said.at(np.arange(start, min(start + BLOCK_ROWS, len(said)))).dense()
        probabilities = np.exp(metrics.log_softmax(logits))
        if probabilities.shape[1] < 3:
            probabilities = np.pad(probabilities, ((0, 0), (0, 1)))
        third, second, first = np.sort(np.partition(probabilities, (-3, -2, -1), axis=1)[:, -3:], axis=1).T
        likely = logits.argmax(axis=1)
        label = labels[start : start + len(logits)]
        correct = (likely == label) | (label == NO_LABEL)
        clear = (first >= CLEAR[0]) & (first <= CLEAR[1]) & (first >= 2 * second)
        score = np.where(clear, second / np.maximum(third, 0.01), -np.abs(first - sum(CLEAR) / 2))
        order = np.lexsort((-np.arange(len(likely)), score, clear, correct))  # The best comes last.
        for found in np.unique(likely):
            row = int(order[likely[order] == found][-1])
            rank = bool(correct[row]), bool(clear[row]), float(score[row])
            if int(found) not in best or rank > best[int(found)][:3]:
                best[int(found)] = *rank, start + row
    ranked = sorted(best.values(), reverse=True)
    correct_ones = [one for one in ranked if one[0]]
    return [row for *_, row in (correct_ones or ranked)[:EXAMPLES]]
