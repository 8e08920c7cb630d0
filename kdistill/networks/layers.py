"""The layers of a Keras network: iterate over them, estimate their work, and list them in a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kdistill.backend import keras

TABLE_ROWS = 40


def operations_in(operation: Any) -> Iterator[Any]:
    """Yield a network or layer, and all layers and operations inside it, at any depth."""
    yield operation
    for inner in getattr(operation, "operations", getattr(operation, "layers", ())):
        yield from operations_in(inner)


def multiply_adds(network: keras.Model) -> int:
    """Estimate how many multiply-adds a network takes per row.

    Each weight counts once per position, e.g. pixel or time step, of its layer's inputs or outputs, whichever have most. If these
    are unknown, as inside of a subclass of `Model`, the pixels or tokens of the network's inputs count.
    """
    tokens = [each.shape[1] or 1 for each in network.inputs if len(each.shape) == 2 and "int" in each.dtype]
    most = max(tokens + [_positions(each) for each in network.inputs])
    total = 0
    for layer in operations_in(network):
        if hasattr(layer, "layers") or not getattr(layer, "weights", ()) or type(layer).__name__ == "Embedding":
            continue
        try:
            positions = max(map(_positions, keras.tree.flatten([layer.input, layer.output])))
        except (AttributeError, ValueError):
            positions = most
        total += positions * sum(math.prod(each.shape) for each in layer.weights)
    return total


def _positions(tensor: Any) -> int:
    return math.prod(size for size in tensor.shape[1:-1] if size)


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
