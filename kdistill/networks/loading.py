"""Load trained networks of a workspace, and count their errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kdistill import workspace
from kdistill.data import Dataset
from kdistill.data.readers import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.networks import saved_models

SAVED_MODEL = "saved_model"
VARIABLES = "variables"


def load_network(artifact: workspace.Artifact) -> tuple[workspace.Manifest, saved_models.SavedNetwork]:
    """The manifest and the SavedModel of a network that stands, both of the same one.

    Raises:
        KdistillError: if there is none, or it is damaged.
    """
    while True:
        before = artifact.manifest()
        try:
            manifest = artifact.require()
            network = saved_models.SavedNetwork.load(artifact.path / SAVED_MODEL)
        except KdistillError:
            if artifact.manifest() == before:
                raise
            continue  # another has taken its place while it was read
        if artifact.manifest() == manifest:
            return manifest, network


def graph_digests(saved_model: Path) -> tuple[tuple[str, str], ...]:
    """What a SavedModel consists of besides the values of its variables: names and digests of its other files."""
    return tuple(
        (item.name, workspace.digest(item)) for item in sorted(saved_model.iterdir()) if item.name != VARIABLES
    )


class NetworkLoader:
    """Loads networks one after another, each in place of the one before, which must not be used any more.

    Networks of one architecture have the same graph. Where the next network has the graph of the last, only the values
    of the variables are read, which takes about a millisecond and no new memory; `tf.saved_model.load` takes tens of
    milliseconds. The logits are the same to the bit, as the graph is the same.
    """

    def __init__(self) -> None:
        self._graph: tuple[tuple[str, str], ...] = ()
        self._network: saved_models.SavedNetwork | None = None

    def load(self, artifact: workspace.Artifact, manifest: workspace.Manifest) -> saved_models.SavedNetwork:
        """The network of an artifact of which this is the manifest; the caller has checked `saved_model`.

        Raises:
            KdistillError: if it can't be loaded, or was replaced in the meantime.
        """
        path = artifact.path / SAVED_MODEL
        try:
            graph_now = graph_digests(path)
            last, self._network = self._network, None
            if last is not None and graph_now == self._graph and saved_models.restore(last.keep, path):
                network = replace(last, path=path)
            else:
                del last
                network = saved_models.SavedNetwork.load(path)
        except (KdistillError, OSError):
            if artifact.manifest() == manifest:
                raise
        if artifact.manifest() != manifest:
            raise KdistillError(f"{artifact} was replaced while it was read: run the command again")
        self._graph, self._network = graph_now, network
        return network


def count_test_errors(network: saved_models.SavedNetwork, dataset: Dataset) -> int:
    """How many test rows a network gets wrong; one block in memory."""
    labels = np.split(dataset.test.labels, range(BLOCK_ROWS, len(dataset.test), BLOCK_ROWS))
    blocks = zip(dataset.test.blocks(BLOCK_ROWS), labels, strict=True)
    return sum(metrics.errors(network.logits(block), of_block) for block, of_block in blocks)
