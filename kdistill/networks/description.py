"""The description of a network: what it takes and returns, as `Dataset.description` and the manifests have it."""

from __future__ import annotations

from typing import Any

from kdistill.errors import KdistillError
from kdistill.workspace import Manifest
from kdistill.workspace.schema import fits

DESCRIPTION = {
    "task": str,
    "class_names": list[str] | None,
    "preprocessing": dict[str, Any],
    "input": {"shape": list[int], "data_dtype": str | None},
}


def describe(manifest: Manifest, input_shape: tuple[int | None, ...] | None) -> dict[str, Any]:
    """Return the description of a trained network. A missing value is None.

    Args:
        manifest: of a teacher or student.
        input_shape: of its SavedModel, with the batch dimension.
    """
    shape = list((input_shape or (None,))[1:])
    recorded = {"input": {"shape": shape, "data_dtype": None}} | dict(manifest.results)
    return {key: recorded.get(key) for key in DESCRIPTION}


def check_description(description: Any, place: object) -> None:
    """Check the types of a description.

    Args:
        description: of a network.
        place: where the network is, for messages.

    Raises:
        KdistillError: if a value is missing or has a wrong type.
    """
    if not fits(description, DESCRIPTION):
        raise KdistillError(f"{place} does not describe its inputs and outputs (expected a network of kdistill)")
