"""The layers of a Keras network: iterate over them, and list them in a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdistill.backend import keras

TABLE_ROWS = 40


def operations_in(operation: Any) -> Iterator[Any]:
    """Yield a network or layer, and all layers and operations inside it, at any depth."""
    yield operation
    for inner in getattr(operation, "operations", getattr(operation, "layers", ())):
        yield from operations_in(inner)


def layer_table(network: keras.Model) -> list[tuple[str, str, str]]:
    """Return the layers of a network as rows of a table, and a last row with the total.

    Returns:
        (name and type, output shape, number of parameters) of each layer. In a deep network, one row sums up the layers
        in the middle.
    """
    rows = [
        (f"{layer.name} ({type(layer).__name__})", _output_shape(layer), layer.count_params())
        for layer in network.layers
    ]
    if len(rows) > TABLE_ROWS:
        half = TABLE_ROWS // 2
        hidden = rows[half:-half]
        rows[half:-half] = [(f"... {len(hidden)} more", "", sum(count for _, _, count in hidden))]
    return [(name, shape, f"{count:,}") for name, shape, count in [*rows, ("total", "", network.count_params())]]


def _output_shape(layer: keras.Layer) -> str:
    """Return the output shape, or nothing for a layer that is called twice or has several outputs."""
    try:
        return " x ".join(map(str, layer.output.shape[1:]))
    except (AttributeError, ValueError):
        return ""
