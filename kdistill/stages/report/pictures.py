"""Pictures of rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.stages.dark_knowledge import are_images, describe_input
from kdistill.stages.report.html import Html, element, image, join

MOST_PIXELS = 96  # in each direction


def picture(row: NDArray[Any] | None, alt: str, columns: Sequence[str] = (), lines: Sequence[str] = ()) -> Html:
    """Return an image as a picture, and another row as some of its values.

    Args:
        row: one input, of any shape; None if `lines` describe it.
        alt: what it shows.
        columns: the names of a table's inputs; empty for other data.
        lines: text that describes the row.
    """
    if row is not None and are_images(np.asarray(row)[np.newaxis]):
        return image(encode(row), "image/png", alt, class_="row")
    described = lines if row is None else describe_input(row, columns)
    return element("pre", Html("\n".join(map(join, described))), role="group", aria_label=alt)


def encode(pixels: NDArray[Any]) -> bytes:
    """Return an image (height, width[, channels]) as PNG, a large one reduced. In a gray one, high values are dark."""
    from PIL import Image

    step = -(-max(pixels.shape[:2]) // MOST_PIXELS)
    pixels = pixels[::step, ::step]
    gray = pixels.ndim == 2 or pixels.shape[-1] == 1
    if gray or pixels.dtype != np.uint8:
        scaled = pixels.astype(np.float64) - pixels.min()
        scaled *= 255 / (scaled.max() or 1)
        pixels = np.rint(255 - scaled.reshape(pixels.shape[:2]) if gray else scaled).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
