"""Augmented views of rows, compared with NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.data.augmentation import KNOT_WIDTH, KNOTS, Views
from kdistill.data.keys import row_keys
from kdistill.errors import KdistillError

DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (3000, 9, 12), np.uint8)
KEYS = row_keys(IMAGES)


def shifts(transforms):
    """Return how many pixels transforms without rotation move an image down and to the right."""
    return -transforms[:, 5].astype(int), -transforms[:, 2].astype(int)


@pytest.mark.parametrize(("augment", "padding"), [("shift:2", "constant"), ("crop:2", "symmetric")])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_shift_and_crop(augment, padding, channels):
    """The result is a slice of the padded image, bit for bit; all 25 shifts are equally likely."""
    inputs = IMAGES if not channels else DRAW.integers(0, 256, (3000, 9, 12, 3), np.uint8)
    views = Views(augment, 5)
    down, right = shifts(views.transforms(KEYS, 3, inputs.shape[1:]))
    padded = np.pad(inputs, [(0, 0), (2, 2), (2, 2), *[(0, 0)] * len(channels)], mode=padding)
    expected = [padded[i, 2 - y : 11 - y, 2 - x : 14 - x] for i, (y, x) in enumerate(zip(down, right, strict=True))]
    np.testing.assert_array_equal(views.render(inputs, KEYS, 3), np.stack(expected))
    places = np.bincount(5 * (down + 2) + right + 2, minlength=25)
    assert len(places) == 25
    assert ((places - 120) ** 2 / 120).sum() < 52  # chi-square of 24 degrees of freedom, p = 0.001


def test_flip():
    """About half of the images are mirrored, the others are unchanged."""
    views = Views("flip", 0)
    mirrored = views.transforms(KEYS, 1, (9, 12))[:, 0] < 0
    assert 0.45 < mirrored.mean() < 0.55
    seen = views.render(IMAGES, KEYS, 1)
    np.testing.assert_array_equal(seen[mirrored], IMAGES[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(seen[~mirrored], IMAGES[~mirrored])


def test_rotate_and_zoom():
    """A linear ramp is interpolated exactly; angles and scales stay within their limits; the center stays in place."""
    ramp = np.add.outer(3.0 * np.arange(21), 2.0 * np.arange(21)).astype(np.float32)
    inputs = np.tile(ramp, (400, 1, 1))
    keys = KEYS[:400]
    views = Views("rotate:20,zoom:0.25", 1)
    transforms = views.transforms(keys, 1, (21, 21)).astype(np.float64)
    seen = views.render(inputs, keys, 1)
    y, x = np.mgrid[8:13, 8:13]
    a, b, c, d, e, f = (transforms[:, i, None, None] for i in range(6))
    np.testing.assert_allclose(seen[:, 8:13, 8:13], 2 * (a * x + b * y + c) + 3 * (d * x + e * y + f), rtol=1e-4)
    np.testing.assert_allclose(seen[:, 10, 10], ramp[10, 10], rtol=1e-4)
    scale, angle = (
        np.hypot(transforms[:, 0], transforms[:, 3]),
        np.degrees(np.arctan2(transforms[:, 3], transforms[:, 0])),
    )
    for value, limit in ((np.abs(angle), 20), (np.abs(np.log(scale)), np.log(1.25))):
        assert value.max() <= limit * (1 + 1e-6)
        assert value.max() > 0.95 * limit
    assert np.abs(angle.mean()) < 3


@pytest.mark.parametrize("mode", ["shift", "crop"])
def test_elastic(mode):
    """Pixels are bilinear values at positions offset by at most the given number of pixels."""
    inputs = DRAW.uniform(0, 255, (40, 15, 12)).astype(np.float32)
    keys = KEYS[:40]
    views = Views(f"elastic:3,{mode}:2,rotate:10", 3)
    transforms = views.transforms(keys, 1, (15, 12)).astype(np.float64)
    knots = transforms[:, 8:].reshape(-1, 2, KNOTS, KNOTS)
    assert 2.9 < np.abs(knots).max() <= 3
    assert np.abs(knots.mean()) < 0.2
    y, x = np.mgrid[:15, :12].astype(np.float64)
    weights = []
    for size in (15, 12):
        distance = (np.arange(size)[:, None] - np.linspace(0, size - 1, KNOTS)) / ((size - 1) / (KNOTS - 1))
        weight = np.exp(-((distance / KNOT_WIDTH) ** 2) / 2)
        weights.append(weight / weight.sum(axis=1, keepdims=True))
    offsets = weights[0] @ knots @ weights[1].T
    a, b, c, d, e, f = (transforms[:, i, None, None] for i in range(6))
    right, down = a * x + b * y + c + offsets[:, 1], d * x + e * y + f + offsets[:, 0]
    padding = "constant" if mode == "shift" else "symmetric"
    padded = np.pad(inputs, [(0, 0), (15, 15), (12, 12)], mode=padding)
    down, right = np.clip(down + 15, 0, 43.99), np.clip(right + 12, 0, 34.99)
    top, left = np.floor(down).astype(int), np.floor(right).astype(int)
    below, beside = down - top, right - left
    row = np.arange(40)[:, None, None]
    expected = (
        padded[row, top, left] * (1 - below) * (1 - beside)
        + padded[row, top, left + 1] * (1 - below) * beside
        + padded[row, top + 1, left] * below * (1 - beside)
        + padded[row, top + 1, left + 1] * below * beside
    )
    np.testing.assert_allclose(views.render(inputs, keys, 1), expected, atol=0.02)
    colors = np.stack([inputs, inputs / 2, inputs / 4], axis=-1)
    np.testing.assert_allclose(views.render(colors, keys, 1)[..., 1], expected / 2, atol=0.02)


@pytest.mark.parametrize("augment", ["shift:3", "flip,crop:1,rotate:30,zoom:0.2", "elastic:2,shift:1"])
def test_pure_function_of_key_view_and_seed(augment):
    """A view does not depend on other rows; another view or seed gives another image; view 0 is the unchanged row."""
    views = Views(augment, 7, count=4)
    seen = views.render(IMAGES, KEYS, 2)
    some = DRAW.permutation(len(KEYS))[:100]
    np.testing.assert_array_equal(views.render(IMAGES[some], KEYS[some], 2), seen[some])
    np.testing.assert_array_equal(views.render(IMAGES, KEYS, 0), IMAGES)
    for other in (views.render(IMAGES, KEYS, 1), Views(augment, 8).render(IMAGES, KEYS, 2)):
        assert (other != seen).any(axis=(1, 2)).mean() > 0.9
    assert [views.for_epoch(epoch) for epoch in range(1, 6)] == [0, 1, 2, 3, 0]
    assert [Views(augment, 7).for_epoch(epoch) for epoch in (1, 9)] == [1, 9]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_types_are_kept(dtype):
    """Views have the type and shape of the rows, and whole shifts give the same values in every type."""
    inputs = (IMAGES[:50] // 2).astype(dtype)
    for augment in ("shift:2", "rotate:10", "elastic:2"):
        seen = Views(augment, 0).render(inputs, KEYS[:50], 1)
        assert seen.dtype == inputs.dtype
        assert seen.shape == inputs.shape
    expected = Views("shift:2", 0).render(IMAGES[:50] // 2, KEYS[:50], 1)
    np.testing.assert_array_equal(Views("shift:2", 0).render(inputs, KEYS[:50], 1), expected.astype(dtype))


def test_wrong_shapes_and_sizes():
    """Rows that are not images, and steps larger than the image, are refused."""
    with pytest.raises(KdistillError, match=r"--augment shift:1 .*\(64,\)"):
        Views("shift:1", 0).transforms(KEYS, 1, (64,))
    for augment in ("shift:9", "flip,elastic:9"):
        with pytest.raises(KdistillError, match=f"--augment {augment} .*9x12"):
            Views(augment, 0).transforms(KEYS, 1, (9, 12))
