"""The teachers and the transfer sets that the manifest of soft targets names."""

from __future__ import annotations

from pathlib import Path

from kdistill.data import Dataset, Source, Split, concatenate, resolve, selection_mask
from kdistill.settings import Selection
from kdistill.workspace import Manifest


def teacher_names(manifest: Manifest) -> list[str]:
    """Return the names or paths of the teachers, or the path of the file of precomputed logits."""
    return [teacher.name for teacher in manifest.inputs_of("teacher", "logits")]


def transfer_sources(manifest: Manifest, cache: Path | None = None) -> list[Source]:
    """Return the sources of the transfer sets.

    Args:
        manifest: of the soft targets.
        cache: directory for decoded rows.

    Returns:
        The sources in order; none if the transfer set is the training rows of the dataset.
    """
    return [resolve(transfer_set.name, cache=cache) for transfer_set in manifest.inputs_of("transfer_set")]


def full_transfer_set(manifest: Manifest, dataset: Dataset, cache: Path | None = None) -> Split:
    """Return the rows of all transfer sets, before any selection by class or fraction."""
    sources = transfer_sources(manifest, cache)
    return concatenate([source.load_transfer_set(dataset) for source in sources]) if sources else dataset.train


def transfer_set(manifest: Manifest, dataset: Dataset, cache: Path | None = None) -> Split:
    """Return the inputs and labels of the rows in a soft-target file."""
    rows = full_transfer_set(manifest, dataset, cache)
    return rows.select(selection_mask(rows, Selection.of(manifest.settings), dataset))
