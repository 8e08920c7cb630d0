"""Decoding of image files to rows of 8-bit gray or RGB values, with Pillow."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError, first_line, one_line_errors

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1  # increase it whenever the same files are decoded to other values
CODECS = ("jpg", "webp")  # libraries whose versions may decode the same file to different values
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # some other formats of Pillow can contain programs
GRAY, DEEP_GRAY = {"1", "L", "LA", "La"}, {"I", "I;16", "I;16L", "I;16B", "I;16N"}
ORIENTATION, SIDEWAYS = 0x0112, {5, 6, 7, 8}  # the EXIF tag, and its values that swap height and width
TIFF_SIZE = 0x0100, 0x0101  # only some versions of Pillow swap the `size` of a rotated TIFF, so read the tags
TIFF_TILE_SIZE = 0x0142, 0x0143  # a tile is decoded as a whole, and may be larger than the image


def decoder_versions() -> tuple[object, ...]:
    """Return the versions of all code that decodes images."""
    from PIL import __version__, features

    return (VERSION, __version__, *map(features.version, CODECS))


def read_header(path: Path, max_pixels: int) -> tuple[tuple[int, int], bool]:
    """Return the (height, width) at which an image is meant to be seen, and whether it is gray."""
    with _open(path, max_pixels) as image:
        width, height = (image.tag_v2[tag] for tag in TIFF_SIZE) if image.format == "TIFF" else image.size
        if _orientation(image) in SIDEWAYS:
            width, height = height, width
        gray = image.mode in GRAY | DEEP_GRAY
        if image.mode in ("P", "PA"):
            palette = np.reshape(image.getpalette() or [], (-1, 3))
            gray = bool((palette == palette[:, :1]).all())
        return (height, width), gray


def decode(path: Path, row_shape: tuple[int, ...], max_pixels: int) -> NDArray[np.uint8]:
    """Return the values of an image in the shape of a row: (height, width), maybe with 1 channel of gray or 3 of RGB.

    Images are resized bilinearly, and transparent pixels are blended with white.
    """
    from PIL import Image, ImageOps

    size = row_shape[1::-1]  # Pillow's sizes are (width, height)
    with _open(path, max_pixels) as image:
        orientation = _orientation(image)
        if image.format in ("JPEG", "MPO"):  # a JPEG can be decoded at a smaller scale, which is faster
            image.draft(None, size[::-1] if orientation in SIDEWAYS else size)
        image.load()  # some versions of Pillow rotate a TIFF here, so its orientation may change
        result = _eight_bits(image if _orientation(image) == 1 else ImageOps.exif_transpose(image))
        if result.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in result.info:
            result = result.convert("RGBA")
            result = Image.alpha_composite(Image.new("RGBA", result.size, "white"), result)
        result = result.convert("RGB" if row_shape[2:] == (3,) else "L")
        if result.size != size:
            result = result.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(result, np.uint8).reshape(row_shape)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:  # `getexif` would decode the whole image
        return 1
    return int(image.getexif().get(ORIENTATION, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image with 16 bits per value as one with 8."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point images are not supported, as their range is unknown")
    if image.mode not in DEEP_GRAY:
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("images with more than 16 bits per value are not supported")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _reason(error: BaseException) -> str:
    from PIL import UnidentifiedImageError

    return "unknown format, or damaged" if isinstance(error, UnidentifiedImageError) else first_line(error)


@contextlib.contextmanager
def _open(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image and read only its header. An error, also one in the block, is reported with its path.

    Raises:
        KdistillError: if the file can't be decoded, or if it has more than `max_pixels`.
    """
    from PIL import Image

    with (
        one_line_errors(f"{path} can't be read as an image", fix="replace or remove it", describe=_reason),
        _without_pillow_limit(),
        path.open("rb") as stream,  # given a path, Pillow 13.0.0 maps an uncompressed TIFF, and scrambles a rotated one
        Image.open(stream, formats=FORMATS) as image,
    ):
        sizes = [image.size]
        if image.format == "TIFF":
            sizes.append(tuple(image.tag_v2.get(tag, 0) for tag in TIFF_TILE_SIZE))
        width, height = max(sizes, key=math.prod)
        if width * height > max_pixels:
            raise KdistillError(
                f"{path} has {height}x{width} pixels, more than --max-pixels {max_pixels}: pass --max-pixels "
                f"{width * height}, or make the image smaller"
            )
        yield image


_LOCK = threading.Lock()
_LIMITS: list[int | None] = []  # Pillow's limit as each image that is being read found it; only the first is not None


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit on pixels, one number per process, while images are read with `max_pixels` as the limit."""
    from PIL import Image

    with _LOCK:
        _LIMITS.append(Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _LOCK:
            Image.MAX_IMAGE_PIXELS = _LIMITS.pop()
