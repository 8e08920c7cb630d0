"""Augmented views of rows: a pure function of row key, view number and seed, on the device.

What moves a picture as a whole is together one affine map a row, which one of TensorFlow's operations applies. What
bends it adds to that, for each pixel, how much farther away its value comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import tf
from kdistill.data.keys import uniform
from kdistill.errors import KdistillError
from kdistill.settings import parse_augment

Transforms = NDArray[np.float32]

BETWEEN = {"rotate", "zoom", "elastic"}  # steps after which values come from between pixels
KNOTS = 5  # along either axis, from edge to edge: where a picture is bent by a number drawn for the place
KNOT_WIDTH = 0.6  # standard deviation of a knot's influence, of the distance between two: 4 pixels of 28


@dataclass(frozen=True)
class Views:
    """Which inputs a network sees in the place of a row: view 0 is the row as it is, the others are augmented.

    `augment` is as `settings.parse_augment` takes it:

    - `shift:N`: moved by up to N whole pixels along either axis, each as likely as the others, black coming in.
    - `crop:N`: the same, but the picture's own mirrored edge comes in.
    - `flip`: mirrored left to right, every second time.
    - `rotate:D`: turned by up to D degrees, and `zoom:S`: larger or smaller by up to the share S; bilinear.
    - `elastic:N`: bent, each pixel moved by up to N pixels along either axis, its neighbours by nearly as much (Simard,
      Steinkraus and Platt 2003, there a smoothed random field; here of `KNOTS` by `KNOTS` random numbers); bilinear.

    Attributes:
        augment: the steps.
        seed: another seed draws other views.
        count: how many views there are, which epochs take in turn; None where each epoch has a new one, and none is
            the row as it is.
    """

    augment: str
    seed: int
    count: int | None = None

    @cached_property
    def steps(self) -> Mapping[str, float]:
        """How much of what is done to a row."""
        return dict(parse_augment(self.augment))

    def of_epoch(self, epoch: int) -> int:
        """The view that an epoch, counted from 1, sees."""
        return epoch if self.count is None else (epoch - 1) % self.count

    def transforms(self, keys: NDArray[np.uint8], view: int, input_shape: tuple[int, ...]) -> Transforms:
        """What is done to rows in one view.

        Args:
            keys: (rows, 16), their `row_keys`.
            view: its number.
            input_shape: (height, width) or (height, width, channels).

        Returns:
            (rows, 8): where each pixel comes from, as `ImageProjectiveTransformV3` takes it, the last two being 0;
            with `elastic` (rows, 8 + 2 * KNOTS**2), then how far from there, down and right, in pixels at the knots.

        Raises:
            KdistillError: if rows are no pictures, or too small.
        """
        if len(input_shape) not in (2, 3):
            raise KdistillError(f"--augment moves pictures, and the rows here have shape {input_shape}")
        height, width = input_shape[:2]
        rows = len(keys)
        steps = self.steps
        knots = 2 * KNOTS**2 if "elastic" in steps else 0
        if view == 0:
            return np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0] + [0] * knots, np.float32), (rows, 1))

        def draw(number: int) -> NDArray[np.float64]:
            return uniform(keys, self.seed, view, number)

        pixels = steps.get("shift", steps.get("crop", 0.0))
        if max(pixels, steps.get("elastic", 0.0)) >= min(height, width):
            raise KdistillError(f"--augment {self.augment} moves beyond pictures of {height}x{width}")
        down, right = (np.floor(draw(number) * (2 * pixels + 1)) - pixels for number in (1, 2))
        mirror = np.where((draw(3) < 0.5) & ("flip" in steps), -1.0, 1.0)
        angle = np.deg2rad(steps.get("rotate", 0.0)) * (2 * draw(4) - 1)
        larger = (1 + steps.get("zoom", 0.0)) ** (2 * draw(5) - 1)
        cosine, sine = np.cos(angle) / larger, np.sin(angle) / larger
        x, y = (width - 1) / 2, (height - 1) / 2  # the middle stays where it is, but for the shift
        found = np.zeros((rows, 8 + knots), np.float32)
        found[:, 0], found[:, 1] = mirror * cosine, -mirror * sine
        found[:, 3], found[:, 4] = sine, cosine
        found[:, 2] = x - found[:, 0] * (x + right) - found[:, 1] * (y + down)
        found[:, 5] = y - found[:, 3] * (x + right) - found[:, 4] * (y + down)
        for knot in range(knots):
            found[:, 8 + knot] = steps["elastic"] * (2 * draw(6 + knot) - 1)
        return found

    def seen(self, inputs: NDArray[Any], keys: NDArray[np.uint8], view: int) -> NDArray[Any]:
        """Rows (rows, ...) as a network sees them in one view."""
        return np.asarray(self.apply(tf.constant(inputs), self.transforms(keys, view, inputs.shape[1:])))

    def apply(self, inputs: Any, transforms: Any) -> Any:
        """Rows as one view has them: tensors (rows, ...) and `transforms` of them, to (rows, ...) of the same type."""
        steps = self.steps
        between = bool(BETWEEN & steps.keys())
        shape, kind = tf.shape(inputs), inputs.dtype
        known = inputs.shape
        pictures = inputs if known.rank == 4 else inputs[..., None]
        exact = kind in (tf.uint8, tf.int32, tf.float32) and not (between and kind != tf.float32)
        pictures = pictures if exact else tf.cast(pictures, tf.float32)
        if "elastic" in steps:
            moved = _sampled(pictures, *_sources(transforms, *known[1:3]), mirrored="crop" in steps)
        else:
            moved = tf.raw_ops.ImageProjectiveTransformV3(
                images=pictures,
                transforms=transforms,
                output_shape=shape[1:3],
                fill_value=0.0,
                interpolation="BILINEAR" if between else "NEAREST",
                fill_mode="REFLECT" if "crop" in steps else "CONSTANT",
            )
        if kind.is_integer and not exact:
            moved = tf.round(moved)
        return tf.ensure_shape(tf.reshape(tf.cast(moved, kind), shape), known)


def _sources(transforms: Any, height: int, width: int) -> tuple[Any, Any]:
    """Where each pixel of pictures comes from, in pixels down and right: twice (rows, height, width)."""
    right, down = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    a, b, c, d, e, f = (transforms[:, i, None, None] for i in range(6))
    bent = tf.reshape(transforms[:, 8:], (-1, 2, KNOTS, KNOTS))
    bent = tf.einsum("rakl,yk,xl->rayx", bent, _influence(height), _influence(width))
    return d * right + e * down + f + bent[:, 0], a * right + b * down + c + bent[:, 1]


def _influence(size: int) -> NDArray[np.float32]:
    """How much each knot bends at each pixel along an axis, (size, KNOTS); 1 in all, so that none is bent by more."""
    apart = np.arange(size)[:, None] / max(1, size - 1) * (KNOTS - 1) - np.arange(KNOTS)
    share = np.exp(-0.5 * (apart / KNOT_WIDTH) ** 2)
    return np.asarray(share / share.sum(axis=1, keepdims=True), np.float32)


def _sampled(pictures: Any, down: Any, right: Any, *, mirrored: bool) -> Any:
    """Bilinear values of pictures (rows, height, width, channels), float32, at places (rows, height, width)."""
    _, height, width, channels = pictures.shape
    if mirrored:
        down, right = _mirrored(down, height), _mirrored(right, width)
    pictures = tf.pad(pictures, [(0, 0), (1, 2), (1, 2), (0, 0)])  # all that is farther out is black as well
    down, right = tf.clip_by_value(down + 1, 0, height + 1), tf.clip_by_value(right + 1, 0, width + 1)
    top, left = tf.floor(down), tf.floor(right)
    below, beside = (down - top)[..., None], (right - left)[..., None]
    stride = width + 3
    first = tf.range(tf.shape(pictures)[0])[:, None, None] * ((height + 3) * stride)
    corner = first + tf.cast(top, tf.int32) * stride + tf.cast(left, tf.int32)
    flat = tf.reshape(pictures, (-1, channels))
    above = tf.gather(flat, corner) * (1 - beside) + tf.gather(flat, corner + 1) * beside
    under = tf.gather(flat, corner + stride) * (1 - beside) + tf.gather(flat, corner + stride + 1) * beside
    return above * (1 - below) + under * below


def _mirrored(place: Any, size: int) -> Any:
    """Places along an axis, those beyond an edge as far within it."""
    turned = tf.math.floormod(place + 0.5, 2.0 * size)
    return tf.clip_by_value(tf.minimum(turned, 2.0 * size - turned) - 0.5, 0, size - 1)
