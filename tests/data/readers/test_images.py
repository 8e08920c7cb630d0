"""Folders of images: which files are listed, and how they are decoded."""

from __future__ import annotations

import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from small_data import HALF, NAMES, X, Y, check_error, check_rows, inputs_of, load, save_images, save_npy, small

from kdistill import data
from kdistill.data.readers import image_decoding
from kdistill.errors import KdistillError


def colors(height=6, width=4):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_classes(place, image, name="1.png", **options):
    """Write the same image to two classes, and return the rows that are read."""
    for folder in (place / "a", place / "b"):
        folder.mkdir()
        image.save(folder / name, **options)
    return inputs_of(place).read()


def decoded(place, **options):
    """Return the decoded images by file name."""
    rows = inputs_of(place, **options)
    return {file.name: values for file, values in zip(rows.files, rows.read(), strict=True)}


def test_rows_are_pixels(tmp_path):
    """Gray images are read as 8-bit gray. Classes are sorted, and the fixed order of the rows mixes them."""
    place = save_images(tmp_path / "photos")
    for clutter in (".DS_Store", "cat/Thumbs.db", "ant/.hidden"):
        (place / clutter).write_text("clutter")
    dataset = load(place, test_fraction=0.25)
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.preprocessing == {"images": {"height": 6, "width": 4, "colors": "gray", "resized": "bilinear"}}
    read = {
        bytes(image): dataset.class_names[label]
        for part in (dataset.train, dataset.test)
        for image, label in zip(part.read(), part.labels, strict=True)
    }
    assert read == {bytes(image): NAMES[label] for image, label in zip(X, Y, strict=True)}
    check_rows(dataset.train.inputs, dataset.train.read())
    assert len(set(dataset.train.labels[:10])) == 3


def test_train_and_test_folders(tmp_path):
    """A validation folder is the test part only if there is no test folder."""
    save_images(tmp_path / "train")
    save_images(tmp_path / "validation")
    assert len(load(tmp_path).test) == 60
    save_images(tmp_path / "test", X[:30], Y[:30])
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (60, 30)


def test_digest_depends_on_names_and_bytes(tmp_path):
    """Clutter does not change the digest; another name, class or byte does."""
    place = save_images(tmp_path / "photos", X[:6], Y[:6])
    digests = []

    def add():
        digests.append(data.resolve(str(place)).digest())

    add()
    (place / "cat" / ".DS_Store").write_text("clutter")
    add()
    assert digests[0] == digests.pop()
    (place / "cat" / "000.png").rename(place / "cat" / "900.png")
    add()
    (place / "cat" / "900.png").rename(place / "ant" / "900.png")
    add()
    Image.fromarray(X[1]).save(place / "ant" / "900.png")
    add()
    assert len(set(digests)) == 4


def _palette(gray):
    image = Image.fromarray(gray, "P")
    image.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    return image


GRAY = colors()[..., 0]
MODES = {  # an image, and the gray values that it means
    "1": (Image.fromarray(GRAY > 127), (GRAY > 127) * 255),
    "L": (Image.fromarray(GRAY), GRAY),
    "LA, transparent": (Image.merge("LA", [Image.fromarray(GRAY), Image.new("L", (4, 6), 0)]), np.full((6, 4), 255)),
    "P": (_palette(GRAY), GRAY),
    "I;16": (Image.fromarray(GRAY.astype(np.uint16) * 256 + 200), GRAY),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_gray(tmp_path, mode):
    image, expected = MODES[mode]
    rows = save_classes(tmp_path, image)
    assert rows.shape == (2, 6, 4)
    np.testing.assert_array_equal(rows[0], expected)


def test_one_color_image_makes_all_rows_rgb(tmp_path):
    """Gray values are repeated in three channels, transparent pixels are blended with white, palettes are looked up."""
    rgb = colors()

    def with_channel(value, values=rgb):
        return np.dstack([values, np.full((6, 4), value, np.uint8)])

    place = save_images(tmp_path, X[:6], Y[:6])
    Image.fromarray(rgb).save(place / "ant" / "rgb.png")
    Image.fromarray(with_channel(128)).save(place / "ant" / "rgba.webp", lossless=True)
    Image.fromarray(with_channel(0)).save(place / "ant" / "clear.tiff")
    Image.fromarray(rgb).quantize(256).save(place / "ant" / "palette.gif")
    Image.fromarray(255 - with_channel(255), "CMYK").save(place / "ant" / "cmyk.tif")
    images = decoded(place)
    np.testing.assert_array_equal(images["000.png"], np.repeat(X[0][..., None], 3, axis=-1))
    np.testing.assert_array_equal(images["rgb.png"], rgb)
    np.testing.assert_allclose(images["rgba.webp"], 255 - (255 - rgb.astype(int)) * 128 / 255, atol=1.01)
    assert (images["clear.tiff"] == 255).all()
    np.testing.assert_array_equal(images["palette.gif"], rgb)
    np.testing.assert_allclose(images["cmyk.tif"], rgb, atol=1)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_orientation_is_applied(tmp_path, extension, orientation, turns):
    """An image that a camera stored rotated is read upright, also if it is decoded at a smaller scale."""
    picture = np.zeros((64, 48), np.uint8)
    picture[:20, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    rotated = Image.fromarray(np.rot90(picture, turns))
    rows = save_classes(tmp_path, rotated, f"1.{extension}", exif=exif, quality=95)
    assert rows.shape[:3] == (2, 64, 48)
    np.testing.assert_allclose(rows.reshape(2, 64, 48, -1)[0, :, :, 0], picture, atol=40)
    rows = inputs_of(tmp_path, image_size="16x12").read()
    np.testing.assert_allclose(rows.reshape(2, 16, 12, -1)[0, [0, 0, -1], [0, -1, 0], 0], [255, 0, 0], atol=40)


def test_images_are_resized_bilinearly(tmp_path):
    place = save_images(tmp_path, X[:6], Y[:6])
    Image.fromarray(np.tile(np.arange(0, 160, 2, dtype=np.uint8), (30, 1))).save(place / "ant" / "wide.png")
    assert load(place, image_size="5x8", test_fraction=0.2).input_shape == (5, 8)
    wide = decoded(place, image_size="5x8")["wide.png"]
    np.testing.assert_allclose(wide[2], np.arange(9, 160, 20), atol=2.5)


def test_transfer_set(tmp_path):
    """Images without class folders get the size and colors of the dataset; labeled ones must have its classes."""
    dataset = load(save_images(tmp_path / "photos"), **HALF)
    (tmp_path / "more").mkdir()
    for side in (20, 30):
        Image.fromarray(colors(side, side)).save(tmp_path / "more" / f"{side}.png")
    more = data.resolve(str(tmp_path / "more"))
    split = more.load_transfer_set(dataset)
    assert (split.inputs.shape, split.labeled_rows) == ((2, 6, 4), 0)
    bees = data.resolve(str(save_images(tmp_path / "bees", X[:3], [2] * 3))).load_transfer_set(dataset)
    assert [dataset.class_names[label] for label in bees.labels] == ["bee"] * 3
    dogs = data.resolve(str(save_images(tmp_path / "dogs", X[:3], [0] * 3, ["dog"])))
    with pytest.raises(KdistillError, match="'dog'"):
        dogs.load_transfer_set(dataset)
    arrays = {"x_train": np.zeros((9, 5, 5, 1), np.uint8), "y_train": np.arange(9) % 2}
    assert more.load_transfer_set(load(save_npy(tmp_path, **arrays).parent, **HALF)).read().shape == (2, 5, 5, 1)


def test_ignored_files_are_one_warning(run, tmp_path):
    """Other files beside class folders are named in one warning, and do not change the digest."""
    for part in ("train", "test"):
        save_images(tmp_path / "photos" / part)
    source = data.resolve(str(tmp_path / "photos"))
    assert source.load().warnings == ()
    digest = source.digest()
    for name in ("LICENSE", "train/README.md", "test/labels.csv"):
        (tmp_path / "photos" / name).write_text("text")
    assert source.digest() == digest
    outcome = run("train-teacher", "--dataset", "photos", "--batch-size", "1000")
    warning, error = outcome.err.splitlines()
    assert warning.startswith("warning: ")
    assert all(name in warning for name in ("photos", "LICENSE", "train/README.md", "test/labels.csv"))
    assert "--batch-size" in error
    for number in range(9):
        (tmp_path / "photos/train" / f"notes{number}.txt").write_text("text")
    assert "notes8" not in source.load().warnings[0]
    np.save("logits.npy", np.zeros((9, 3), np.float32))
    soften = "soften", "--dataset", "photos", "--transfer-set", "photos/train", "--logits", "logits.npy"
    *warned, error = run(*soften).err.splitlines()
    assert ["LICENSE" in warning for warning in warned] == [True, False]


def test_links_are_followed(tmp_path):
    for file in save_images(tmp_path / "real").rglob("*.png"):
        link = tmp_path / "links" / file.relative_to(tmp_path / "real")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    np.testing.assert_array_equal(inputs_of(tmp_path / "links").read(), inputs_of(tmp_path / "real").read())


def test_max_pixels(tmp_path, monkeypatch):
    """--max-pixels is the only limit, does not change the digest, and leaves Pillow's own limit as it was."""
    place = save_images(tmp_path / "photos")
    expected = load(place, **HALF)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limited = load(place, max_pixels=24, **HALF)
        np.testing.assert_array_equal(limited.train.read(), expected.train.read())
        check_error(place, ".png", "6x4", "--max-pixels 24", max_pixels=23, **HALF)
    while image_decoding._LIMITS:  # other threads may still be reading
        time.sleep(0.01)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert limited.name.endswith("max-pixels=24&test-fraction=0.5")
    assert data.resolve(limited.name).digest() == data.resolve(expected.name).digest()


def test_max_pixels_counts_tiles(tmp_path):
    """The tiles of a TIFF are decoded as a whole, and may be larger than the image."""
    tile = zlib.compress(bytes(64 * 64))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 64, 323: 64, 324: 134, 325: len(tile)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)
    assert len(header) == tags[324]
    (tmp_path / "tile.tif").write_bytes(header + tile)
    np.testing.assert_array_equal(inputs_of(tmp_path).read(), np.zeros((1, 16, 16)))
    with pytest.raises(KdistillError, match=r"tile\.tif.*64x64.*--max-pixels 4096"):
        inputs_of(tmp_path, max_pixels=4095)


def _png_header(height, width):
    """Return a PNG whose header claims a size, without pixels."""

    def chunk(kind, content=b""):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT") + chunk(b"IEND")


def _of_extension(photos, extension):
    """Replace the images by larger ones, of which one is truncated."""
    save_images(photos, [colors(100, 100)] * 9, np.arange(9) % 3, ["x", "y", "z"], extension)
    file = photos / "y" / f"004.{extension}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _relink(file, target):
    file.unlink(missing_ok=True)
    file.symlink_to(target)


CHANGES = {  # a change of good images, what the message has, and options
    "corrupt image": (lambda p: (p / "cat/000.png").write_bytes(b"no image"), ["cat/000.png"]),
    "empty image": (lambda p: (p / "cat/000.png").write_bytes(b""), ["cat/000.png"]),
    "truncated PNG": (lambda p: _of_extension(p, "png"), ["y/004.png"], {"image_size": "8"}),
    "truncated JPEG": (lambda p: _of_extension(p, "jpg"), ["y/004.jpg"], {"image_size": "8"}),
    "truncated GIF": (lambda p: _of_extension(p, "gif"), ["y/004.gif"], {"image_size": "8"}),
    "truncated WebP": (lambda p: _of_extension(p, "webp"), ["y/004.webp"], {"image_size": "8"}),
    "a PostScript program": (
        lambda p: (p / "cat/000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ["cat/000.png"],
    ),
    "another file in a class": (lambda p: (p / "cat/notes.txt").write_bytes(b""), ["cat/notes.txt", ".bmp, .gif"]),
    "broken link": (lambda p: _relink(p / "cat/000.png", "gone"), ["cat/000.png", "link"]),
    "floating point": (
        lambda p: Image.fromarray(np.zeros((6, 4), np.float32)).save(p / "ant/a.tiff"),
        ["ant/a.tiff", "floating-point"],
    ),
    "empty class": (lambda p: (p / "dog").mkdir(), ["photos/dog", "empty"]),
    "folder in a class": (lambda p: (p / "cat/old").mkdir(), ["cat/old"]),
    "images beside classes": (lambda p: (p / "cat/000.png").rename(p / "000.png"), ["photos/000.png", "ant"]),
    "pipe": (lambda p: os.mkfifo(p / "cat/pipe.png"), ["cat/pipe.png", "regular file"]),
    "endless device": (lambda p: _relink(p / "cat/zero.png", "/dev/zero"), ["cat/zero.png", "regular file"]),
    "link to itself": (lambda p: _relink(p / "cat/loop.png", "loop.png"), ["cat/loop.png"]),
    "loop of directories": (lambda p: _relink(p / "loop", p), ["loop/ant"]),
    "169 million pixels": (
        lambda p: (p / "cat/000.png").write_bytes(_png_header(13_000, 13_000)),
        ["cat/000.png", "13000x13000", "50000000", "--max-pixels 169000000"],
        {"image_size": "8"},
    ),
    "4 billion pixels": (
        lambda p: (p / "cat/000.png").write_bytes(_png_header(65_535, 65_535)),
        ["--max-pixels 4294836225"],
    ),
    "several sizes": (
        lambda p: Image.fromarray(colors(9, 9)).save(p / "cat/0.png"),
        ["cat/0.png", "9x9", "--image-size HxW"],
    ),
    "option of tables": (lambda _: None, ["--labels", "--image-size"], {"labels": "x"}),
    "no test part": (lambda _: None, ["photos", "--test-fraction 0.2"], {"test_fraction": None}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_bad_images(tmp_path, case):
    photos = save_images(tmp_path / "photos")
    change, expected, *options = CHANGES[case]
    change(photos)
    check_error(photos, *expected, **HALF | (options[0] if options else {}))


def test_bad_folders(tmp_path):
    """An empty folder, a folder without classes, one with a single class, and one whose test classes are others."""
    check_error(tmp_path, str(tmp_path))
    photos = save_images(tmp_path / "photos")
    check_error(photos / "cat", "class folders in cat", **HALF)
    check_error(save_images(tmp_path / "one", labels=[0] * 60), "class folders", **HALF)
    save_images(tmp_path / "both" / "train")
    save_images(tmp_path / "both" / "test", *small(4, 4), [*NAMES, "dog"])
    check_error(tmp_path / "both", "'dog'")
    (tmp_path / "both/train/cat/000.png").rename(tmp_path / "both/000.png")
    check_error(tmp_path / "both", "both/000.png", "test")
