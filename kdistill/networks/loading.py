"""Load the trained networks of a workspace."""

from __future__ import annotations

from pathlib import Path

from kdistill import workspace
from kdistill.errors import KdistillError
from kdistill.networks.saved_models import SavedNetwork

SAVED_MODEL = "saved_model"
VARIABLES = "variables"


def load_network(artifact: workspace.Artifact) -> tuple[workspace.Manifest, SavedNetwork]:
    """Load the manifest and the SavedModel of a teacher or student, both from the same run.

    Raises:
        KdistillError: if the artifact does not exist or is damaged.
    """
    while True:
        before = artifact.manifest()
        try:
            manifest = artifact.require()
            network = SavedNetwork.load(artifact.path / SAVED_MODEL)
        except KdistillError:
            if artifact.manifest() == before:
                raise
            continue  # another process has replaced the artifact in the meantime
        if artifact.manifest() == manifest:
            return manifest, network


def graph_digests(saved_model: Path) -> tuple[tuple[str, str], ...]:
    """Return the names and digests of the files of a SavedModel, except the values of its variables."""
    files = sorted(item for item in saved_model.iterdir() if item.name != VARIABLES)
    return tuple((file.name, workspace.digest(file)) for file in files)


class NetworkLoader:
    """Loads networks one after another; loading a network makes the previous one unusable.

    Networks of one architecture have the same graph. If the next network has the graph of the previous one, only the values
    of its variables are read. That takes about a millisecond and no more memory, while `tf.saved_model.load` takes tens of
    milliseconds. The logits are the same to the bit.
    """

    def __init__(self) -> None:
        self._graph: tuple[tuple[str, str], ...] = ()
        self._network: SavedNetwork | None = None

    def load(self, artifact: workspace.Artifact, manifest: workspace.Manifest) -> SavedNetwork:
        """Load the network of an artifact.

        Args:
            artifact: the artifact, whose `saved_model` is known to be undamaged.
            manifest: its manifest.

        Raises:
            KdistillError: if the network cannot be loaded or was replaced in the meantime.
        """
        path = artifact.path / SAVED_MODEL
        try:
            graph = graph_digests(path)
            network = self._reuse(graph, path) or SavedNetwork.load(path)
        except (KdistillError, OSError):
            if artifact.manifest() == manifest:
                raise
        if artifact.manifest() != manifest:
            raise KdistillError(f"{artifact} was replaced while it was being read; run the command again")
        self._graph, self._network = graph, network
        return network

    def _reuse(self, graph: tuple[tuple[str, str], ...], path: Path) -> SavedNetwork | None:
        previous, self._network = self._network, None
        return previous.restore(path) if previous is not None and graph == self._graph else None
