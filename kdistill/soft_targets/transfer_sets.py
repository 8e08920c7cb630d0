"""The teachers and the transfer sets that the manifest of soft targets names."""

from __future__ import annotations

from pathlib import Path

from kdistill.data import Dataset, Source, Split, joined, resolve, selected
from kdistill.settings import Selection
from kdistill.workspace import Manifest


def teacher_names(manifest: Manifest) -> list[str]:
    """Return the names or paths of the teachers, or the path of the file of precomputed logits."""
    return [teacher.name for teacher in manifest.made_from("teacher", "logits").values()]


def transfer_sources(manifest: Manifest, cache: Path | None = None) -> dict[str, Source]:
    """Return the sources of the transfer sets by their role; empty if the dataset's training rows are the transfer set.

    `cache` is a directory for decoded rows.
    """
    inputs = manifest.made_from("transfer_set")
    return {role: resolve(transfer_set.name, cache=cache) for role, transfer_set in inputs.items()}


def full_transfer_set(manifest: Manifest, dataset: Dataset, cache: Path | None = None) -> Split:
    """Return the rows of all transfer sets, before any selection by class or fraction."""
    sources = transfer_sources(manifest, cache).values()
    return joined([source.transfer_set(dataset) for source in sources]) if sources else dataset.train


def transfer_set(manifest: Manifest, dataset: Dataset, cache: Path | None = None) -> Split:
    """Return the inputs and labels of the rows in a soft-target file."""
    rows = full_transfer_set(manifest, dataset, cache)
    return rows.chosen(selected(rows, Selection.of(manifest.settings), dataset))
