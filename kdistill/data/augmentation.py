"""Augmentation: views of image rows as a pure function of row key, view number and seed, computed on the device.

Shift, flip, rotation and zoom combine to one affine map per row, which a TensorFlow operation applies. Elastic
distortion adds an offset per pixel, which needs `_sample`.
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

INTERPOLATED = {"rotate", "zoom", "elastic"}  # steps that read between pixels
KNOTS = 5  # elastic distortion is defined by random offsets on a grid of KNOTS x KNOTS points, edge to edge
KNOT_WIDTH = 0.6  # standard deviation of a knot's influence in grid spacings: 4 pixels in images of 28
IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0)


@dataclass(frozen=True)
class Views:
    """Augmented views of rows. Networks see them in place of the rows.

    The steps of `augment`, as in `settings.parse_augment`:

    - `shift:N`: translation by up to N whole pixels along each axis, uniformly distributed; the border is black.
    - `crop:N`: the same, but the border is the mirrored image.
    - `flip`: horizontal mirror image with probability 1/2.
    - `rotate:D`: rotation by up to D degrees. `zoom:S`: scaling by a factor of up to 1 + S, or its inverse. Bilinear.
    - `elastic:N`: smooth distortion by up to N pixels along each axis (Simard, Steinkraus and Platt 2003, with offsets
      on a grid instead of a smoothed random field). Bilinear.

    Attributes:
        augment: the steps, e.g. `shift:2,flip`.
        seed: other seeds give other views.
        count: the number of views; epochs take turns, and view 0 is the unchanged row. None: each epoch has a new view,
            and no epoch sees the unchanged rows.
    """

    augment: str
    seed: int
    count: int | None = None

    @cached_property
    def steps(self) -> Mapping[str, float]:
        """The amount of each step, by its name."""
        return dict(parse_augment(self.augment))

    def for_epoch(self, epoch: int) -> int:
        """Return the number of the view that an epoch sees; epochs count from 1."""
        return epoch if self.count is None else (epoch - 1) % self.count

    def transforms(self, keys: NDArray[np.uint8], view: int, input_shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the random transforms of rows in one view.

        Args:
            keys: (rows, 16) from `row_keys`.
            view: the number of the view.
            input_shape: (height, width) or (height, width, channels).

        Returns:
            (rows, 8): the map from each output pixel to an input pixel, in the format of `ImageProjectiveTransformV3`;
            the last two columns are 0. With `elastic`, 2 * KNOTS**2 more columns: the vertical offsets in pixels at the
            knots, and then the horizontal ones.

        Raises:
            KdistillError: if rows are not images, or are smaller than the largest shift or distortion.
        """
        if len(input_shape) not in (2, 3):
            raise KdistillError(
                f"--augment {self.augment} needs images, but rows have shape {input_shape or 'of texts'}"
            )
        (height, width), steps = input_shape[:2], self.steps
        offsets = 2 * KNOTS**2 if "elastic" in steps else 0
        transforms = np.tile(np.array([*IDENTITY, *[0] * offsets], np.float32), (len(keys), 1))
        if view == 0:
            return transforms
        pixels = steps.get("shift", steps.get("crop", 0.0))
        if max(pixels, steps.get("elastic", 0.0)) >= min(height, width):
            raise KdistillError(f"--augment {self.augment} exceeds the image size of {height}x{width} pixels")
        draws = [uniform(keys, self.seed, view, number) for number in range(1, 6 + offsets)]
        down, right = (np.floor(draw * (2 * pixels + 1)) - pixels for draw in draws[:2])
        mirror = np.where((draws[2] < 0.5) & ("flip" in steps), -1.0, 1.0)
        angle = np.deg2rad(steps.get("rotate", 0.0)) * (2 * draws[3] - 1)
        scale = (1 + steps.get("zoom", 0.0)) ** (2 * draws[4] - 1)
        cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
        transforms[:, 0], transforms[:, 1] = mirror * cosine, -mirror * sine
        transforms[:, 3], transforms[:, 4] = sine, cosine
        x, y = (width - 1) / 2, (height - 1) / 2  # rotation and scaling keep the center in place
        for row, center in ((0, x), (3, y)):
            transforms[:, row + 2] = center - transforms[:, row] * (x + right) - transforms[:, row + 1] * (y + down)
        for column, draw in enumerate(draws[5:], 8):
            transforms[:, column] = steps["elastic"] * (2 * draw - 1)
        return transforms

    def render(self, inputs: NDArray[Any], keys: NDArray[np.uint8], view: int) -> NDArray[Any]:
        """Return one view of rows (rows, ...) with keys (rows, 16)."""
        return np.asarray(self.apply(tf.constant(inputs), self.transforms(keys, view, inputs.shape[1:])))

    def apply(self, inputs: Any, transforms: Any, *, xla: bool = False) -> Any:
        """Apply `transforms` to a tensor of rows (rows, ...), and return a tensor of the same shape and type.

        Args:
            inputs: the rows.
            transforms: of the rows, (rows, columns).
            xla: use only operations that XLA can compile. The results may differ in the last bits.
        """
        steps, dtype = self.steps, inputs.dtype
        interpolated = bool(INTERPOLATED & steps.keys())
        images = inputs if inputs.shape.rank == 4 else inputs[..., None]
        if interpolated or dtype not in (tf.uint8, tf.int32):
            images = tf.cast(images, tf.float32)
        if "elastic" in steps or xla:
            y, x = _positions(transforms, *inputs.shape[1:3])
            if not interpolated:
                y, x = tf.round(y), tf.round(x)
            images = _sample(tf.cast(images, tf.float32), y, x, mirrored="crop" in steps)
        else:
            images = tf.raw_ops.ImageProjectiveTransformV3(
                images=images,
                transforms=transforms,
                output_shape=tf.shape(inputs)[1:3],
                fill_value=0.0,
                interpolation="BILINEAR" if interpolated else "NEAREST",
                fill_mode="REFLECT" if "crop" in steps else "CONSTANT",
            )
        if dtype.is_integer:
            images = tf.round(images)
        return tf.ensure_shape(tf.reshape(tf.cast(images, dtype), tf.shape(inputs)), inputs.shape)


def _positions(transforms: Any, height: int, width: int) -> tuple[Any, Any]:
    """Return the vertical and horizontal position that each pixel is read from, both (rows, height, width)."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    a, b, c, d, e, f = (transforms[:, column, None, None] for column in range(6))
    rows, columns = d * x + e * y + f, a * x + b * y + c
    if transforms.shape[1] == 8:
        return rows, columns
    knots = tf.reshape(transforms[:, 8:], (-1, 2, KNOTS, KNOTS))
    offsets = tf.einsum("rakl,yk,xl->rayx", knots, _knot_weights(height), _knot_weights(width))
    return rows + offsets[:, 0], columns + offsets[:, 1]


def _knot_weights(size: int) -> NDArray[np.float32]:
    """Return the weight of each knot at each pixel of an axis, (size, KNOTS); the weights of a pixel sum to 1."""
    distance = np.arange(size)[:, None] / max(1, size - 1) * (KNOTS - 1) - np.arange(KNOTS)
    weights = np.exp(-0.5 * (distance / KNOT_WIDTH) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _sample(images: Any, y: Any, x: Any, *, mirrored: bool) -> Any:
    """Return bilinear values of float32 images (rows, height, width, channels) at positions (rows, height, width)."""
    _, height, width, channels = images.shape
    if mirrored:
        y, x = _mirror(y, height), _mirror(x, width)
    images = tf.pad(images, [(0, 0), (1, 2), (1, 2), (0, 0)])  # black, like everything farther out
    y, x = tf.clip_by_value(y + 1, 0, height + 1), tf.clip_by_value(x + 1, 0, width + 1)
    top, left = tf.floor(y), tf.floor(x)
    stride = width + 3
    pixels = tf.reshape(images, (-1, (height + 3) * stride, channels))
    corner = tf.cast(top, tf.int32) * stride + tf.cast(left, tf.int32)

    def row_at(offset: int) -> Any:
        start = corner + offset
        weight = (x - left)[..., None]
        return (
            tf.gather(pixels, start, batch_dims=1) * (1 - weight) + tf.gather(pixels, start + 1, batch_dims=1) * weight
        )

    weight = (y - top)[..., None]
    return row_at(0) * (1 - weight) + row_at(stride) * weight


def _mirror(position: Any, size: int) -> Any:
    """Reflect positions beyond the edges of an axis back into it."""
    reflected = tf.math.floormod(position + 0.5, 2.0 * size)
    return tf.clip_by_value(tf.minimum(reflected, 2.0 * size - reflected) - 0.5, 0, size - 1)
