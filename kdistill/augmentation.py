"""Augmented views of rows: a pure function of row key, view number and seed, on the device.

Every augmentation here moves a picture as a whole, so all of them together are one affine map a row, which one of
TensorFlow's operations applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import tf
from kdistill.errors import KdistillError
from kdistill.row_keys import uniform
from kdistill.settings import check_augment

Transforms = NDArray[np.float32]


@dataclass(frozen=True)
class Views:
    """Which inputs a network sees in the place of a row: view 0 is the row as it is, the others are augmented.

    `augment` is as `settings.check_augment` takes it:

    - `shift:N`: moved by up to N whole pixels along either axis, each as likely as the others, black coming in.
    - `crop:N`: the same, but the picture's own mirrored edge comes in.
    - `flip`: mirrored left to right, every second time.
    - `rotate:D`: turned by up to D degrees, and `zoom:S`: larger or smaller by up to the share S; bilinear.

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
        return dict(check_augment(self.augment))

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
            (rows, 8): where each pixel comes from, as `ImageProjectiveTransformV3` takes it; the last two are 0.

        Raises:
            KdistillError: if rows are no pictures, or too small.
        """
        if len(input_shape) not in (2, 3):
            raise KdistillError(f"--augment moves pictures, and the rows here have shape {input_shape}")
        height, width = input_shape[:2]
        rows = len(keys)
        if view == 0:
            return np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32), (rows, 1))
        steps = self.steps

        def draw(number: int) -> NDArray[np.float64]:
            return uniform(keys, self.seed, view, number)

        pixels = steps.get("shift", steps.get("crop", 0.0))
        if pixels >= min(height, width):
            raise KdistillError(f"--augment {self.augment} moves beyond pictures of {height}x{width}")
        down, right = (np.floor(draw(number) * (2 * pixels + 1)) - pixels for number in (1, 2))
        mirror = np.where((draw(3) < 0.5) & ("flip" in steps), -1.0, 1.0)
        angle = np.deg2rad(steps.get("rotate", 0.0)) * (2 * draw(4) - 1)
        larger = (1 + steps.get("zoom", 0.0)) ** (2 * draw(5) - 1)
        cosine, sine = np.cos(angle) / larger, np.sin(angle) / larger
        x, y = (width - 1) / 2, (height - 1) / 2  # the middle stays where it is, but for the shift
        found = np.zeros((rows, 8))
        found[:, 0], found[:, 1] = mirror * cosine, -mirror * sine
        found[:, 3], found[:, 4] = sine, cosine
        found[:, 2] = x - found[:, 0] * (x + right) - found[:, 1] * (y + down)
        found[:, 5] = y - found[:, 3] * (x + right) - found[:, 4] * (y + down)
        return found.astype(np.float32)

    def seen(self, inputs: NDArray[Any], keys: NDArray[np.uint8], view: int) -> NDArray[Any]:
        """Rows (rows, ...) as a network sees them in one view."""
        return np.asarray(self.apply(tf.constant(inputs), self.transforms(keys, view, inputs.shape[1:])))

    def apply(self, inputs: Any, transforms: Any) -> Any:
        """Rows as one view has them: tensors (rows, ...) and (rows, 8) to (rows, ...) of the same type."""
        steps = self.steps
        between = "rotate" in steps or "zoom" in steps
        shape, kind = tf.shape(inputs), inputs.dtype
        known = inputs.shape
        pictures = inputs if known.rank == 4 else inputs[..., None]
        exact = kind in (tf.uint8, tf.int32, tf.float32) and not (between and kind != tf.float32)
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=pictures if exact else tf.cast(pictures, tf.float32),
            transforms=transforms,
            output_shape=shape[1:3],
            fill_value=0.0,
            interpolation="BILINEAR" if between else "NEAREST",
            fill_mode="REFLECT" if "crop" in steps else "CONSTANT",
        )
        if kind.is_integer and not exact:
            moved = tf.round(moved)
        return tf.ensure_shape(tf.reshape(tf.cast(moved, kind), shape), known)
