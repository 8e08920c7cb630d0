"""The formats of data: each is read as what it is, and what is wrong with a file is said in one line."""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zlib

import h5py
import numpy as np
import pytest
from helpers import MNIST
from PIL import Image

from kdistill import data
from kdistill.data.readers import images as image_reader
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import ReadOptions


def small(rows=60, classes=3, seed=0):
    """Rows (rows, 6, 4) uint8 whose brightness is their class, and labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    return (draw.integers(0, 60, (rows, 6, 4)) + 60 * labels[:, None, None]).astype(np.uint8), labels


def load(name, **reading):
    return data.resolve(ReadOptions(**reading).named(str(name))).load()


def check_rows(rows, expected):
    """However rows are asked for, they are these."""
    assert rows.shape == expected.shape
    assert rows.dtype == expected.dtype
    for size in (1, 7, 1000):
        np.testing.assert_array_equal(np.concatenate(list(rows.blocks(size))), expected)
    np.testing.assert_array_equal(rows.read(), expected)
    if rows.seekable:
        np.testing.assert_array_equal(rows.part(3, 9), expected[3:9])
        np.testing.assert_array_equal(rows.take(np.array([2, 3, 8])), expected[[2, 3, 8]])


def save_npy(place, **arrays):
    for name, values in arrays.items():
        np.save(place / f"{name}.npy", values)
    return place / "x_train.npy"


def save_h5(place, **arrays):
    (place / "data.h5").unlink(missing_ok=True)  # it may be held open
    with h5py.File(place / "data.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return place / "data.h5"


def test_npy_files_are_mapped(tmp_path):
    """A pair of files, with another pair or a share of the rows as test part; read from where they lie."""
    x, y = small()
    path = save_npy(tmp_path, x_train=x, labels=y, other=x[:10], more=y[:10])
    said = {"labels": tmp_path / "labels.npy", "test_inputs": tmp_path / "other.npy"}
    said |= {"test_labels": tmp_path / "more.npy"}
    dataset = load(path, **{name: str(place) for name, place in said.items()})
    check_rows(dataset.train.inputs, x)
    check_rows(dataset.test.inputs, x[:10])
    assert (dataset.test.labels == y[:10]).all()
    assert isinstance(dataset.train.inputs.values.base, np.memmap)
    cut = load(path, labels=str(tmp_path / "labels.npy"), test_fraction="0.25")
    assert (len(cut.train), len(cut.test)) == (45, 15)
    both = np.concatenate([cut.train.read(), cut.test.read()])
    assert sorted(map(bytes, both)) == sorted(map(bytes, x))
    check_rows(cut.train.inputs, cut.train.read())


def test_files_in_options_are_found_from_anywhere(tmp_path, monkeypatch):
    """A file that an option names is recorded by its full path, and where it lies is no part of what the data is."""
    x, y = small()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        save_npy(tmp_path / place, x_train=x, labels=y)
    found = []
    for place in ("one", "two"):
        monkeypatch.chdir(tmp_path / place)
        found.append(data.resolve(ReadOptions(labels="labels.npy", test_fraction="0.5").named("x_train.npy")))
    monkeypatch.chdir(tmp_path)
    assert found[0].name == f"{tmp_path}/one/x_train.npy?labels={tmp_path}/one/labels.npy&test-fraction=0.5"
    assert data.resolve(found[0].name).load().classes == 3
    assert found[0].identity().digest == found[1].identity().digest
    np.save(tmp_path / "two" / "labels.npy", y[::-1])
    assert found[0].identity().digest != found[1].identity().digest
    other = data.resolve(ReadOptions(test_fraction="0.4").named(found[0].name))
    assert other.identity().digest != found[0].identity().digest


def test_directory_of_npy(tmp_path):
    x, y = small()
    save_npy(tmp_path, x_train=x, y_train=y, x_test=x[:9], y_test=y[:9], class_names=np.array(["a", "b", "ü"]))
    dataset = load(tmp_path)
    check_rows(dataset.train.inputs, x)
    assert (len(dataset.test), dataset.class_names) == (9, ("a", "b", "ü"))


@pytest.mark.parametrize("kind", ["npy", "h5", "function"])
def test_big_endian_data_is_read(tmp_path, monkeypatch, kind):
    """Rows and keys are those of the same numbers in this machine's byte order."""
    monkeypatch.chdir(tmp_path)
    x, y = small()
    arrays = {"x_train": x.astype(">f4"), "y_train": y.astype(">i8")}
    if kind == "function":
        path = module(tmp_path, "return x.astype('>f4'), y.astype('>i8')")
    else:
        path = save_npy(tmp_path, **arrays).parent if kind == "npy" else save_h5(tmp_path, **arrays)
    dataset = load(path, test_fraction="0.25")
    (tmp_path / "native").mkdir()
    native = load(save_npy(tmp_path / "native", x_train=x.astype("f4"), y_train=y).parent, test_fraction="0.25")
    check_rows(dataset.train.inputs, native.train.read())
    assert dataset.train.read().dtype.isnative
    assert (dataset.train.keys() == native.train.keys()).all()
    assert (dataset.train.labels == native.train.labels).all()


@pytest.mark.parametrize("layout", [{}, {"chunks": (7, 2, 4), "compression": "gzip"}])
def test_hdf5_is_read_in_blocks(tmp_path, layout):
    x, y = small()
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("x_train", data=x, **layout)
        file["y_train"], file["x_test"], file["y_test"] = y, x[:9], y[:9]
        file["class_names"] = ["a", "b", "ü"]
    dataset = load(tmp_path / "data.h5")
    check_rows(dataset.train.inputs, x)
    assert (len(dataset.test), dataset.class_names) == (9, ("a", "b", "ü"))


def test_hdf5_names_by_option_and_labels_of_text(tmp_path):
    """Any dataset can be inputs or labels; texts are categories, in order."""
    x, y = small()
    names = np.array(["cat", "ant", "bee"])
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["photos/pixels"] = x
        file["photos/what"] = names[y].astype("S")
        file["more"] = x[:9]
        file.create_dataset("of more", data=names[y[:9]].tolist())
    dataset = load(path, inputs="photos/pixels", labels="photos/what", test_inputs="more", test_labels="of more")
    assert dataset.class_names == ("ant", "bee", "cat")
    assert (np.array(dataset.class_names)[dataset.train.labels] == names[y]).all()
    assert (np.array(dataset.class_names)[dataset.test.labels] == names[y[:9]]).all()
    check_rows(dataset.train.inputs, x)


def test_transfer_set_without_labels(tmp_path):
    """Inputs alone can be a transfer set, and their classes are the dataset's."""
    x, y = small()
    dataset = load(save_h5(tmp_path, x_train=x, y_train=y, x_test=x, y_test=y))
    for path in (save_npy(tmp_path, x_train=x[:20]), save_h5(tmp_path, x_train=x[:20])):
        split = data.resolve(str(path)).transfer_set(dataset)
        assert (len(split), split.labelled) == (20, 0)
        check_rows(split.inputs, x[:20])


def test_transfer_set_maps_names_to_the_datasets_classes(tmp_path):
    x, y = small()
    names = np.array(["cat", "ant", "bee"])
    dataset = load(save_h5(tmp_path, x_train=x, y_train=names[y].tolist()), test_fraction="0.5")
    split = data.resolve(str(save_h5(tmp_path, x_train=x, y_train=["cat", "bee"] * 30))).transfer_set(dataset)
    assert split.labels.tolist() == [2, 1] * 30
    path = save_h5(tmp_path, x_train=x, y_train=["cat", "dog"] * 30)
    with pytest.raises(KdistillError, match="holds 'dog', which is none of the classes ant, bee, cat"):
        data.resolve(str(path)).transfer_set(dataset)


def test_classes_do_not_depend_on_the_cut(tmp_path):
    """A class whose only row is in the test part still is one."""
    x, y = small()
    y[:] = y % 2
    for row in range(60):
        y[row] = 2
        dataset = load(save_npy(tmp_path, x_train=x, y_train=y).parent, test_fraction="0.5")
        assert dataset.classes == 3
        y[row] = row % 2


def save_images(place, images, labels, names, ending="png"):
    """A folder a class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = place / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.{ending}")
    return place


NAMES = ["cat", "ant", "bee"]


def test_images_are_their_pixels(tmp_path):
    """A folder a class, read as 8-bit grey; classes are sorted, and rows are in a fixed order that mixes them."""
    x, y = small()
    save_images(tmp_path / "photos", x, y, NAMES)
    for litter in ("photos/.DS_Store", "photos/cat/Thumbs.db", "photos/ant/.hidden"):
        (tmp_path / litter).write_text("litter")
    dataset = load(tmp_path / "photos", test_fraction="0.25")
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.preprocessing == {"images": {"height": 6, "width": 4, "colours": "grey", "resized": "bilinear"}}
    names = np.array(dataset.class_names)
    found = {
        bytes(image): names[label]
        for part in (dataset.train, dataset.test)
        for image, label in zip(part.read(), part.labels, strict=True)
    }
    assert found == {bytes(image): NAMES[label] for image, label in zip(x, y, strict=True)}
    check_rows(dataset.train.inputs, dataset.train.read())
    assert len(set(dataset.train.labels[:10])) == 3


def test_image_folder_with_a_test_part(tmp_path):
    """`train` and `test`; what is held apart to choose by is the test part only where there is no other."""
    x, y = small()
    for part in ("train", "validation", "test"):
        save_images(tmp_path / part, x[: 30 if part == "test" else 60], y[: 30 if part == "test" else 60], NAMES)
        dataset = load(tmp_path) if part != "train" else None
    assert (len(dataset.train), len(dataset.test)) == (60, 30)


def test_images_identity_is_names_and_bytes(tmp_path):
    """Litter changes nothing; another name or another byte does."""
    x, y = small(6)
    place = save_images(tmp_path / "photos", x, y, NAMES)
    digests = [data.resolve(str(place)).identity().digest]
    (place / "cat" / ".DS_Store").write_text("litter")
    assert data.resolve(str(place)).identity().digest == digests[0]
    (place / "cat" / "000.png").rename(place / "cat" / "900.png")
    digests.append(data.resolve(str(place)).identity().digest)
    (place / "cat" / "900.png").rename(place / "ant" / "900.png")
    digests.append(data.resolve(str(place)).identity().digest)
    Image.fromarray(x[1]).save(place / "ant" / "900.png")
    digests.append(data.resolve(str(place)).identity().digest)
    assert len(set(digests)) == 4


def colours(height=6, width=4):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


KINDS = {  # an image that Pillow writes, and the grey values that it means
    "1": lambda grey: (Image.fromarray(grey > 127), (grey > 127) * 255),
    "L": lambda grey: (Image.fromarray(grey), grey),
    "LA, transparent": lambda grey: (
        Image.merge("LA", [Image.fromarray(grey), Image.new("L", grey.shape[::-1], 0)]),
        np.full_like(grey, 255),
    ),
    "P, grey": lambda grey: (_palette(grey), grey),
    "I;16": lambda grey: (Image.fromarray(grey.astype(np.uint16) * 256 + 200), grey),
}


def _palette(grey):
    image = Image.fromarray(grey, "P")
    image.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_grey(tmp_path, kind):
    """Whatever a grey image is stored as, it is read as 8-bit grey."""
    image, expected = KINDS[kind](colours()[..., 0])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "1.png")
    rows = data.resolve(str(tmp_path)).reader.contents().train.inputs
    assert rows.shape == (2, 6, 4)
    np.testing.assert_array_equal(rows.read()[0], expected)


def test_one_coloured_image_makes_all_coloured(tmp_path):
    """Grey beside colour gets three equal channels; alpha is laid on white, palettes are looked up."""
    x, y = small(6)
    rgb = colours()
    place = save_images(tmp_path, x, y, NAMES)
    Image.fromarray(rgb).save(place / "ant" / "rgb.png")
    half = Image.fromarray(np.dstack([rgb, np.full((6, 4), 128, np.uint8)]))
    half.save(place / "ant" / "rgba.webp", lossless=True)
    Image.fromarray(np.dstack([rgb, np.zeros((6, 4), np.uint8)])).save(place / "ant" / "clear.tiff")
    Image.fromarray(rgb).quantize(256).save(place / "ant" / "palette.gif")
    Image.fromarray(255 - np.dstack([rgb, np.full((6, 4), 255, np.uint8)]), "CMYK").save(place / "ant" / "cmyk.tif")
    rows = data.resolve(str(place)).reader.contents().train.inputs
    found = {file.name: values for file, values in zip(rows.files, rows.read(), strict=True)}
    np.testing.assert_array_equal(found["000.png"], np.repeat(x[0][..., None], 3, axis=-1))
    np.testing.assert_array_equal(found["rgb.png"], rgb)
    np.testing.assert_allclose(found["rgba.webp"], 255 - (255 - rgb.astype(int)) * 128 / 255, atol=1.01)
    assert (found["clear.tiff"] == 255).all()
    np.testing.assert_array_equal(found["palette.gif"], rgb)
    np.testing.assert_allclose(found["cmyk.tif"], rgb, atol=1)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_is_applied(tmp_path, ending, orientation):
    """A photo that a camera stored lying is read standing, also where it is made smaller in decoding."""
    picture = np.zeros((64, 48), np.uint8)
    picture[:20, :16] = 255
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # how it was turned, anticlockwise, before it was stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.rot90(picture, turns)).save(tmp_path / name / f"1.{ending}", exif=exif, quality=95)
    channels = (3,) if ending == "webp" else ()  # it has no grey
    images = data.resolve(str(tmp_path)).reader.contents().train.inputs.read()
    assert images.shape == (2, 64, 48, *channels)
    np.testing.assert_allclose(images.reshape(2, 64, 48, -1)[0, :, :, 0], picture, atol=40)
    images = data.resolve(f"{tmp_path}?image-size=16x12").reader.contents().train.inputs.read()
    corners = images.reshape(2, 16, 12, -1)[0, [0, 0, -1], [0, -1, 0], 0]
    np.testing.assert_allclose(corners, [255, 0, 0], atol=40)


def test_images_are_resized_bilinearly(tmp_path):
    """Images of several sizes are brought to one, in height and width as the option says."""
    x, y = small(6)
    place = save_images(tmp_path, x, y, NAMES)
    Image.fromarray(np.tile(np.arange(0, 160, 2, dtype=np.uint8), (30, 1))).save(place / "ant" / "wide.png")
    dataset = load(place, image_size="5x8", test_fraction="0.2")
    assert dataset.input_shape == (5, 8)
    rows = data.resolve(f"{place}?image-size=5x8").reader.contents().train.inputs
    wide = {file.name: values for file, values in zip(rows.files, rows.read(), strict=True)}["wide.png"]
    np.testing.assert_allclose(wide[2], np.arange(9, 160, 20), atol=2.5)


def test_unlabelled_images_as_transfer_set(tmp_path):
    """Images without class folders are brought to the dataset's size and colours; labelled ones to its classes."""
    x, y = small()
    dataset = load(save_images(tmp_path / "photos", x, y, NAMES), test_fraction="0.5")
    (tmp_path / "more").mkdir()
    for number, side in enumerate((20, 30)):
        Image.fromarray(colours(side, side)).save(tmp_path / "more" / f"{number}.png")
    split = data.resolve(str(tmp_path / "more")).transfer_set(dataset)
    assert (split.inputs.shape, split.labelled) == ((2, 6, 4), 0)
    split = data.resolve(str(save_images(tmp_path / "bees", x[:3], [2] * 3, NAMES))).transfer_set(dataset)
    assert [dataset.class_names[label] for label in split.labels] == ["bee"] * 3
    with pytest.raises(KdistillError, match="holds 'dog', which is none of the classes ant, bee, cat"):
        data.resolve(str(save_images(tmp_path / "dogs", x[:3], [0] * 3, ["dog"]))).transfer_set(dataset)
    other = load(
        save_npy(tmp_path, x_train=np.zeros((9, 5, 5, 1), np.uint8), y_train=np.arange(9) % 2).parent,
        test_fraction="0.5",
    )
    assert data.resolve(str(tmp_path / "more")).transfer_set(other).inputs.read().shape == (2, 5, 5, 1)


def _photos(place):
    return save_images(place / "photos", *small(), NAMES)


def _spoiled(place, contents, name="000.png"):
    folder = _photos(place)
    (folder / "cat" / name).write_bytes(contents if contents is not None else b"")
    return folder


def _cut_image(place, ending):
    folder = save_images(place / "photos", [colours(100, 100)] * 9, np.arange(9) % 3, NAMES, ending)
    file = folder / "ant" / f"004.{ending}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return folder


def _of_float(place):
    folder = _photos(place)
    Image.fromarray(np.zeros((6, 4), np.float32)).save(folder / "ant" / "a.tiff")
    return folder


def _with(place, make):
    folder = _photos(place)
    make(folder)
    return folder


def test_ignored_files_are_one_warning(run, tmp_path):
    """Beside folders, files that are not images are ignored and named in one line; they are no part of the data."""
    for part in ("train", "test"):
        save_images(tmp_path / "photos" / part, *small(), NAMES)
    clean = data.resolve(str(tmp_path / "photos"))
    assert clean.load().warnings == ()
    digest = clean.identity().digest
    for name in ("LICENSE", "train/README.md", "test/labels.csv"):
        (tmp_path / "photos" / name).write_text("text")
    assert clean.identity().digest == digest
    outcome = run("train-teacher", "--dataset", "photos", "--batch-size", "1000")
    warning, error = outcome.err.splitlines()
    assert warning.startswith("warning: ")
    assert all(name in warning for name in ("photos", "LICENSE", "train/README.md", "test/labels.csv"))
    assert "--batch-size" in error
    np.save("logits.npy", np.zeros((9, 3), np.float32))
    for number in range(9):
        (tmp_path / "photos/train" / f"notes{number}.txt").write_text("text")
    soften = ["soften", "--dataset", "photos", "--transfer-set", "photos/train", "--logits", "logits.npy"]
    *warnings, error = run(*soften).err.splitlines()
    assert ["LICENSE" in warning for warning in warnings] == [True, False]
    assert all("more" in warning and "notes8" not in warning for warning in warnings)


def _bomb(height, width):
    """A PNG whose header claims a size, and that holds no pixels."""

    def chunk(kind, contents=b""):
        return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT") + chunk(b"IEND")


def test_bound_on_pixels(tmp_path, monkeypatch):
    """--max-pixels decides alone, changes nothing that is read, and leaves Pillow's own bound as it was."""
    x, y = small()
    place = save_images(tmp_path / "photos", x, y, NAMES)
    expected = load(place, **CUT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounded = load(place, max_pixels="24", **CUT)
        np.testing.assert_array_equal(bounded.train.read(), expected.train.read())
        with pytest.raises(KdistillError, match=r"\.png has 6x4 pixels.*--max-pixels 24"):
            load(place, max_pixels="23", **CUT)
    while image_reader._PILLOWS_BOUND._readers:  # threads that were reading when the first image was refused
        time.sleep(0.01)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert bounded.name.endswith("max-pixels=24&test-fraction=0.5")
    assert data.resolve(bounded.name).identity().digest == data.resolve(expected.name).identity().digest


def test_bound_on_tiles(tmp_path):
    """A TIFF's tiles may be larger than the image, and are decoded whole."""
    tile = zlib.compress(bytes(64 * 64))
    tags = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 64),
        (323, 64),
        (324, 134),
        (325, len(tile)),
    ]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)
    assert len(header) == 134
    (tmp_path / "tile.tif").write_bytes(header + tile)
    rows = data.resolve(str(tmp_path)).reader.contents().train.inputs
    np.testing.assert_array_equal(rows.read(), np.zeros((1, 16, 16)))
    with pytest.raises(KdistillError, match=r"tile\.tif has 64x64 pixels.*--max-pixels 4096"):
        data.resolve(f"{tmp_path}?max-pixels=4095").reader.contents()


def test_links_to_images_are_followed(tmp_path):
    x, y = small()
    save_images(tmp_path / "real", x, y, NAMES)
    for file in (tmp_path / "real").rglob("*.png"):
        link = tmp_path / "links" / file.relative_to(tmp_path / "real")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    real, links = load(tmp_path / "real", **CUT), load(tmp_path / "links", **CUT)
    np.testing.assert_array_equal(links.train.read(), real.train.read())


def undecoded(monkeypatch):
    """From now on no image can be opened."""

    def refuse(path, *_, **__):
        raise KdistillError(f"{path} was opened")

    monkeypatch.setattr("kdistill.data.readers.images._opened", refuse)


def both_splits(dataset):
    return [dataset.train.read(), dataset.test.read()]


@pytest.mark.parametrize("parts", [[""], ["train", "test"]])
def test_images_are_decoded_once(tmp_path, monkeypatch, parts):
    """Rows from the cache are those that are decoded, to the bit; nothing is decoded before rows are asked for."""
    place, cache = tmp_path / "photos", tmp_path / "cache"
    for part in parts:
        save_images(place / part, *small(seed=len(part)), NAMES, "jpg")
    options = {} if parts[1:] else {"test_fraction": "0.25"}
    name = ReadOptions(image_size="5x7", **options).named(str(place))
    plain = both_splits(data.load(name))
    first = data.resolve(name, cache=cache).load()
    assert not cache.exists()
    both_splits(first)
    undecoded(monkeypatch)
    again = data.resolve(name, cache=cache).load()
    for dataset in (first, again):
        for split, expected in zip((dataset.train, dataset.test), plain, strict=True):
            check_rows(split.inputs, expected)
    with pytest.raises(KdistillError, match="was opened"):
        data.load(name)


CHANGES = {
    "bytes": lambda photos: Image.fromarray(255 - small()[0][0]).save(photos / "cat/000.png"),
    "name": lambda photos: (photos / "cat/000.png").rename(photos / "cat/900.png"),
    "class": lambda photos: (photos / "cat/000.png").rename(photos / "ant/000.png"),
    "file more": lambda photos: Image.fromarray(small()[0][0]).save(photos / "cat/900.png"),
    "colours": lambda photos: Image.fromarray(colours()).save(photos / "cat/900.png"),
    "damaged entry": lambda photos: _flip_middle(next((photos.parent / "cache/rows").iterdir())),
    "no cache": lambda photos: shutil.rmtree(photos.parent / "cache"),
}


def _flip_middle(file):
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


@pytest.mark.parametrize("change", CHANGES)
def test_cache_follows_the_files(tmp_path, change):
    photos, cache = _photos(tmp_path), tmp_path / "cache"
    name = ReadOptions(**CUT).named(str(photos))
    both_splits(data.resolve(name, cache=cache).load())
    CHANGES[change](photos)
    for _ in range(2):
        for got, expected in zip(
            both_splits(data.resolve(name, cache=cache).load()), both_splits(data.load(name)), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


def test_cache_knows_how_images_are_decoded(tmp_path, monkeypatch):
    """Another size, bound on pixels, task or version of Pillow is another entry."""
    photos, cache = _photos(tmp_path), tmp_path / "cache"
    dataset = load(photos, **CUT)
    for number, name in enumerate((f"{photos}", f"{photos}?image-size=5", f"{photos}?max-pixels=24"), 1):
        rows = data.resolve(name, cache=cache).reader.contents().train.inputs.read()
        np.testing.assert_array_equal(rows, data.resolve(name).reader.contents().train.inputs.read())
        assert len(os.listdir(cache / "rows")) == number
    data.resolve(str(photos), cache=cache).transfer_set(dataset).read()
    assert len(os.listdir(cache / "rows")) == 4
    monkeypatch.setattr("PIL.__version__", "0.0.1")
    data.resolve(str(photos), cache=cache).reader.contents().train.inputs.read()
    assert len(os.listdir(cache / "rows")) == 5


def test_images_that_change_while_they_are_read(tmp_path):
    """They are not kept as what they were."""
    photos, cache = _photos(tmp_path), tmp_path / "cache"
    dataset = data.resolve(ReadOptions(**CUT).named(str(photos)), cache=cache).load()
    CHANGES["bytes"](photos)
    with pytest.raises(KdistillError, match="photos changed while it was read"):
        dataset.train.read()
    assert not cache.exists()


def test_rows_that_cannot_be_kept_are_decoded(tmp_path, monkeypatch):
    photos, cache = _photos(tmp_path), tmp_path / "cache"
    monkeypatch.setattr("kdistill.data.row_cache.MOST_BYTES", 100)
    name = ReadOptions(**CUT).named(str(photos))
    plain = data.load(name)
    check_rows(data.resolve(name, cache=cache).load().train.inputs, plain.train.read())
    assert not cache.exists()


def test_folder_is_digested_once(run, tmp_path, monkeypatch):
    """All parts of a command share the digest of a folder, until a file's times change."""
    from kdistill.data.readers import images

    digested = collections.Counter()
    monkeypatch.setattr(images, "RECENT", -1e9)  # the files are new
    monkeypatch.setattr(images, "_stream_digest", lambda s: digested.update([s.name]) or s.read().hex())
    photos, more = _photos(tmp_path), save_images(tmp_path / "more", *small(seed=1), NAMES)
    np.save("logits.npy", np.zeros((9, 3), np.float32))
    soften = ["soften", "--dataset", photos, "--test-fraction", "0.5", "--transfer-set", more, "--logits", "logits.npy"]
    assert "9 rows of logits" in run(*soften).err
    assert set(digested.values()) == {1}
    assert len(digested) == 120
    monkeypatch.setattr(images, "RECENT", 1e9)  # in which a file may change unseen
    monkeypatch.setattr(images, "_DIGESTS", {})
    assert len({data.resolve(str(photos)).identity().digest for _ in range(2)}) == 1
    assert set(digested.values()) == {1, 3}
    monkeypatch.setattr(images, "RECENT", -1e9)
    before = data.resolve(str(photos)).identity().digest
    file, times = photos / "cat/000.png", os.stat(photos / "cat/000.png")
    while os.stat(file).st_ctime_ns == times.st_ctime_ns:  # the clock of file systems is coarse
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert data.resolve(str(photos)).identity().digest != before


CUT = {"test_fraction": "0.5"}
BAD_IMAGES = {
    "corrupt image": (lambda p: _spoiled(p, b"no image"), CUT, "cat/000.png can't be read as an image"),
    "empty image": (lambda p: _spoiled(p, b""), CUT, "cat/000.png can't be read as an image"),
    "truncated PNG": (lambda p: _cut_image(p, "png"), CUT, "ant/004.png can't be read as an image"),
    "truncated JPEG": (lambda p: _cut_image(p, "jpg"), CUT, "ant/004.jpg can't be read as an image"),
    "truncated GIF": (lambda p: _cut_image(p, "gif"), CUT, "ant/004.gif can't be read as an image"),
    "truncated WebP": (lambda p: _cut_image(p, "webp"), CUT, "ant/004.webp can't be read as an image"),
    "a program by the name of an image": (
        lambda p: _spoiled(p, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        CUT,
        "cat/000.png can't be read",
    ),
    "no image": (lambda p: _spoiled(p, b"", "notes.txt"), CUT, "cat/notes.txt is no image (they end in .bmp, .gif"),
    "broken link": (
        lambda p: _with(p, lambda f: (f / "cat" / "000.png").unlink() or (f / "cat" / "000.png").symlink_to("gone")),
        CUT,
        "cat/000.png can't be read",
    ),
    "floating point": (_of_float, CUT, "a.tiff can't be read as an image (it holds floating-point numbers"),
    "empty class": (lambda p: _with(p, lambda f: (f / "dog").mkdir()), CUT, "dog is the folder of a class, and empty"),
    "empty folder": (lambda p: p, CUT, "is a directory with nothing in it"),
    "folder in a class": (lambda p: _with(p, lambda f: (f / "cat/old").mkdir()), CUT, "cat/old is a directory where"),
    "images beside classes": (
        lambda p: _with(p, lambda f: (f / "cat/000.png").rename(f / "000.png")),
        CUT,
        "photos/000.png is an image beside folders (ant, ...): move it",
    ),
    "images beside train": (
        lambda p: _with(p / "train", lambda f: (f / "cat/000.png").rename(p / "000.png")).parent.parent,
        {},
        "000.png is an image beside folders (train, ...): move it",
    ),
    "pipe": (lambda p: _with(p, lambda f: os.mkfifo(f / "cat/pipe.png")), CUT, "cat/pipe.png", "not a regular file"),
    "endless device": (
        lambda p: _with(p, lambda f: (f / "cat/zero.png").symlink_to("/dev/zero")),
        CUT,
        "cat/zero.png",
        "not a regular file",
    ),
    "link to itself": (
        lambda p: _with(p, lambda f: (f / "cat/loop.png").symlink_to("loop.png")),
        CUT,
        "cat/loop.png can't be read",
    ),
    "loop of directories": (
        lambda p: _with(p, lambda f: (f / "loop").symlink_to(f)),
        CUT,
        "loop/ant is a directory where images are meant",
    ),
    "169 million pixels": (
        lambda p: _spoiled(p, _bomb(13_000, 13_000)),
        {"image_size": "8", **CUT},
        "cat/000.png has 13000x13000 pixels",
        "--max-pixels allows 50000000: pass --max-pixels 169000000",
    ),
    "4 billion pixels": (lambda p: _spoiled(p, _bomb(65_535, 65_535)), CUT, "--max-pixels 4294836225"),
    "several sizes": (
        lambda p: _with(p, lambda f: Image.fromarray(colours(9, 9)).save(f / "cat" / "0.png")),
        CUT,
        "0.png is 9x9): --image-size HxW",
    ),
    "images without test part": (_photos, {}, "photos has no test part: --test-fraction 0.2"),
    "images without classes": (
        lambda p: _with(p / "a", lambda _: None) / "cat",
        CUT,
        "has no class folders in cat: a dataset has labels",
    ),
    "one class folder": (lambda p: save_images(p / "x", small()[0], [0] * 60, NAMES), CUT, "holds a single class"),
    "test class unknown": (
        lambda p: (
            save_images(p / "train", *small(), NAMES) and save_images(p / "test", *small(4, 4), [*NAMES, "dog"]).parent
        ),
        {},
        "class folders in test holds 'dog'",
    ),
    "option for tables": (
        _photos,
        {"labels": "x"},
        "--labels means nothing for a folder of images, which takes --image",
    ),
}


def table(rows=40, seed=0):
    """Two columns of numbers, the same one constant, and three classes by name."""
    draw = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    return {
        "age": draw.normal(50, 9, rows) + 20 * label,
        "same": np.full(rows, 0.1),
        "count": draw.integers(0, 9, rows),
        "label": np.array(NAMES)[label],
    }


def save_table(path, columns):
    pandas = pytest.importorskip("pandas", reason="kdistill[tables] is not installed")
    pytest.importorskip("pyarrow", reason="kdistill[tables] is not installed")
    frame = pandas.DataFrame(columns)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_are_standardised_from_training_rows(tmp_path, ending):
    """Each column less its mean, by its standard deviation, both of the training rows alone; what is constant is 0."""
    columns = table()
    dataset = load(save_table(tmp_path / f"data.{ending}", columns), test_fraction="0.25")
    assert (len(dataset.train), len(dataset.test), dataset.class_names) == (30, 10, ("ant", "bee", "cat"))
    assert dataset.input_dtype == "float32"
    train, test = dataset.train.read(), dataset.test.read()
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), [1, 0, 1], rtol=1e-5)
    assert abs(test.mean(axis=0)[0]) > 1e-3
    assert not train[:, 1].any()
    check_rows(dataset.train.inputs, train)
    said = dataset.preprocessing
    assert json.loads(json.dumps(said)) == said
    (mean, deviation), (_, zero), _ = said["standardised"].values()
    assert zero == 0
    again = np.sort(np.concatenate([train, test])[:, 0].astype(float) * deviation + mean)
    np.testing.assert_allclose(again, np.sort(columns["age"]), rtol=1e-5)


def test_transfer_table_is_standardised_as_the_dataset(tmp_path):
    """By the dataset's means and deviations, whatever the order of its columns; its labels are the dataset's classes."""
    columns = table()
    dataset = load(save_table(tmp_path / "data.csv", columns), test_fraction="0.25")
    more = {
        "id": np.arange(2) + 10.0,
        "label": ["cat", "bee"],
        "count": [3, 4],
        "same": [0.1, 7.0],
        "age": [50.0, 90.0],
    }
    split = data.resolve(str(save_table(tmp_path / "more.parquet", more))).transfer_set(dataset)
    standards = dataset.preprocessing["standardised"]
    expected = [
        [(50 - standards["age"][0]) / standards["age"][1], 0, (3 - standards["count"][0]) / standards["count"][1]]
    ]
    np.testing.assert_allclose(split.read()[:1], expected, rtol=1e-6)
    assert [dataset.class_names[label] for label in split.labels] == ["cat", "bee"]
    del more["label"]
    assert data.resolve(str(save_table(tmp_path / "more.csv", more))).transfer_set(dataset).labelled == 0
    del more["age"]
    with pytest.raises(KdistillError, match=r"more\.csv has no column age: it has id, count, same"):
        data.resolve(str(save_table(tmp_path / "more.csv", more))).transfer_set(dataset)


def test_transfer_table_of_another_label_column(tmp_path):
    """The column that `--labels` named for the dataset is the transfer set's, and never an input."""
    columns = table() | {"extra": np.arange(40)}
    columns["kind"] = columns.pop("label")
    path = save_table(tmp_path / "data.csv", columns)
    dataset = load(path, labels="kind", inputs="count,age", test_inputs=str(path))
    split = data.resolve(str(path)).transfer_set(dataset)
    assert (split.labels == dataset.train.labels).all()
    np.testing.assert_array_equal(split.read(), dataset.train.read())
    assert list(dataset.preprocessing["standardised"]) == ["count", "age"]


def test_numeric_labels_are_sorted_as_numbers(tmp_path):
    """Classes are whatever values there are; the texts NA and None are classes too, where they are labels."""
    columns = table(12)
    for values, names in (
        ([10, 9, 2], ("2", "9", "10")),
        ([10.0, 9.0, 2.0], ("2", "9", "10")),
        ([1.5, 0.5, 10.0], ("0.5", "1.5", "10.0")),
        ([True, False, True], ("False", "True")),
        (["NA", "None", "x"], ("NA", "None", "x")),
    ):
        columns["label"] = values * 4
        assert load(save_table(tmp_path / "data.csv", columns), test_fraction="0.5").class_names == names


def _table(place, **changed):
    return save_table(place / "data.csv", {**table(), **changed})


def _csv(place, text):
    pytest.importorskip("pandas", reason="kdistill[tables] is not installed")
    return _written(place / "data.csv", text.encode("latin1"))


def _holed(place, ending, hole=np.nan):
    columns = table()
    columns["age"][[5, 9]] = hole
    return save_table(place / f"data.{ending}", columns)


BAD_TABLES = {
    "missing values in CSV": (lambda p: _holed(p, "csv"), CUT, "column age has 2 missing values, the first in row 5"),
    "missing values in Parquet": (
        lambda p: _holed(p, "parquet"),
        CUT,
        "column age has 2 missing values, the first in row 5",
    ),
    "infinities": (lambda p: _holed(p, "csv", np.inf), CUT, "column age holds 2 infinite values, the first in row 5"),
    "missing labels": (
        lambda p: _table(p, label=[None, "b"] * 20),
        CUT,
        "column label has 20 missing values, the first in row 0",
    ),
    "text as input": (
        lambda p: _table(p, age=["old", "12"] * 20),
        CUT,
        "column age holds 20 texts, the first 'old' in row 0, and inputs are numbers",
    ),
    "dates as input": (
        lambda p: save_table(p / "d.parquet", {**table(), "age": np.full(40, "2020-01-01", "M8[s]")}),
        CUT,
        "column age holds values of type datetime64",
    ),
    "no label column": (
        lambda p: save_table(p / "d.csv", {"a": [1.0, 2.0], "b": [1.0, 2.0]}),
        CUT,
        "has no column label, and no --labels COLUMN was given",
    ),
    "label column not named": (
        lambda p: save_table(p / "d.csv", {"a": [1.0, 2.0], "b": ["x", "y"]}),
        CUT,
        "or say that it is the label, --labels b",
    ),
    "near column": (_table, {"inputs": "Age", **CUT}, "(did you mean age?)"),
    "near label column": (
        lambda p: save_table(p / "d.csv", {"a": [1.0, 2.0], "Label": [1.0, 2.0]}),
        CUT,
        "(did you mean Label?)",
    ),
    "regression of whole numbers": (
        lambda p: _table(p, label=np.arange(40) * 100.0),
        CUT,
        "40 different numbers in 40 rows, e.g. 0.0: regression is not supported",
    ),
    "regression of prices": (
        lambda p: _csv(p, "a,label\n" + "".join(f"1,{price}.0\n" for price in range(1001) for _ in range(12))),
        CUT,
        "1,001 different numbers in 12,012 rows",
    ),
    "regression of integers": (
        lambda p: _csv(p, "a,label\n" + "".join(f"1,{price}\n" for price in range(1001) for _ in range(3))),
        CUT,
        "1,001 different numbers in 3,003 rows",
    ),
    "infinite labels": (
        lambda p: _table(p, label=[1.0, np.inf] * 20),
        CUT,
        "label holds 20 infinite values, the first",
    ),
    "long label": (lambda p: _table(p, label=["a", "b" * 1001] * 20), CUT, "a text of 1,001 characters in row 1"),
    "table without a header": (
        lambda p: _csv(p, "T,2,8.5\nI,5,12\n"),
        CUT,
        "has no header row",
        "(seq -s ',' 0 2; cat ",
        "--labels 0",
    ),
    "table of numbers without a header": (lambda p: _csv(p, "5\t1\n4\t0\n"), CUT, "has no header row", "--labels 1"),
    "unknown column": (_table, {"inputs": "age,nosuch", **CUT}, "data.csv has no column nosuch: it has age, same"),
    "unknown label column": (_table, {"labels": "nosuch", **CUT}, "data.csv has no column nosuch: it has age, same"),
    "label as input": (_table, {"inputs": "age,label", **CUT}, "names a column twice, or that of the labels (label)"),
    "regression": (
        lambda p: _table(p, label=np.linspace(0, 1, 40)),
        CUT,
        "40 different numbers in 40 rows, e.g. 0.0: regression is not supported",
    ),
    "values too large": (lambda p: _holed(p, "csv", 1e308), CUT, "column age holds values too large"),
    "table without test part": (_table, {}, "has no test part: --test-fraction 0.2"),
    "table without rows": (lambda p: _csv(p, "a,label\n"), CUT, "has no rows"),
    "empty table": (lambda p: _csv(p, ""), CUT, "data.csv can't be read as a table: No columns"),
    "longer rows": (lambda p: _csv(p, "a,label\n1,2,3\n1,2,4\n"), CUT, "data.csv can't be read as a table"),
    "one longer row": (lambda p: _csv(p, "a,label\n1,2\n1,2,4\n"), CUT, "Expected 2 fields in line 3, saw 3"),
    "no UTF-8": (lambda p: _csv(p, "a,label\n1,\xff\n"), CUT, "data.csv can't be read as a table: 'utf-8' codec"),
    "no Parquet": (
        lambda p: _csv(p, "a,label\n1,2\n").rename(p / "x.parquet"),
        CUT,
        "x.parquet can't be read as a table",
    ),
    "test table without the columns": (
        lambda p: _table(p) and save_table(p / "test.csv", {"age": [1.0], "label": ["cat"]}) and p / "data.csv",
        {"test_inputs": "test.csv"},
        "test.csv has no column same: it has age, label",
    ),
    "test table of another class": (
        lambda p: _table(p) and save_table(p / "test.csv", {**table(2), "label": ["cat", "dog"]}) and p / "data.csv",
        {"test_inputs": "test.csv"},
        "column label holds 'dog'",
    ),
}


def _far(place):
    """A table whose test part lies too far from its training rows."""
    pytest.importorskip("pandas", reason="kdistill[tables] is not installed")
    _written(place / "test.csv", b"a,label\n1,x\n1e300,y\n")
    return _written(place / "data.csv", b"a,label\n1,x\n1.5,y\n")


def test_tables_far_from_the_training_rows(tmp_path):
    """A value that is infinity once it is standardized is named, with its column; a large one that isn't is read."""
    dataset = load(_far(tmp_path), test_inputs=str(tmp_path / "test.csv"))
    assert np.isfinite(dataset.train.read()).all()
    with pytest.raises(KdistillError, match=r"test part: column a holds 1e\+300"):
        dataset.test.read()
    _written(tmp_path / "data.csv", b"a,label\n1e100,x\n2e100,y\n")
    np.testing.assert_allclose(
        load(tmp_path / "data.csv", test_inputs=str(tmp_path / "data.csv")).train.read(), [[-1], [1]]
    )


@pytest.mark.parametrize("between", [",", ";", "\t", "|", "  "])
@pytest.mark.parametrize("ending", ["csv", "data"])
def test_tables_of_other_separators_and_extensions(tmp_path, between, ending):
    """The separator is read from the header; what kind of file it is, from --data-format where the ending doesn't say."""
    path = _table(tmp_path)
    expected = load(path, test_fraction="0.25")
    other = tmp_path / f"other.{ending}"
    other.write_text(path.read_text().replace(",", between))
    options = {} if ending == "csv" else {"data_format": "csv"}
    dataset = load(other, test_fraction="0.25", test_inputs=None, **options)
    np.testing.assert_array_equal(dataset.train.read(), expected.train.read())
    assert dataset.class_names == expected.class_names
    both = load(other, test_inputs=str(other), **options)
    assert len(both.test) == 40


def test_data_format_of_other_files(tmp_path):
    """Any file can be named otherwise than its format has it."""
    x, y = small()
    for path, file_format in (
        (save_h5(tmp_path, x_train=x, y_train=y), "hdf5"),
        (_saved_npz(tmp_path), "npz"),
        (save_table(tmp_path / "a.parquet", table()), "parquet"),
    ):
        other = path.rename(tmp_path / f"{file_format}.data")
        with pytest.raises(KdistillError, match="--data-format"):
            load(other, test_fraction="0.25")
        assert load(other, test_fraction="0.25", data_format=file_format).classes == 3
    assert (
        load(save_npy(tmp_path, x_train=x, y=y), labels=str(tmp_path / "y.npy"), **CUT, data_format="npy").classes == 3
    )


def test_columns_may_be_numbered(tmp_path):
    """A header of numbers in order is one; the command that a table without a header is refused with makes such a one."""
    path = _csv(tmp_path, "a,1,9\nb,2,9\n" * 6)
    with pytest.raises(KdistillError) as caught:
        load(path, labels="0", **CUT)
    command = re.search(r"\(seq.* > numbered\.csv", str(caught.value))[0]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    dataset = load(tmp_path / "numbered.csv", labels="0", **CUT)
    assert (len(dataset.train) + len(dataset.test), dataset.class_names) == (12, ("a", "b"))
    assert list(dataset.preprocessing["standardised"]) == ["1", "2"]


def test_one_text_in_many_rows_is_read_once(tmp_path):
    """A text column of Parquet is not spread out: its few texts are shared by the rows."""
    path = save_table(
        tmp_path / "d.parquet", {"a": np.random.default_rng(0).normal(size=40), "label": ["b" * 900, "c"] * 20}
    )
    labels = data.resolve(str(path)).reader.contents().train.labels
    assert labels.dtype == object
    assert len({id(label) for label in labels}) == 2


def test_repetitive_parquet(tmp_path, monkeypatch):
    """A small file of very many rows is refused before they are read; of not so many, it is read."""
    rows = 200_000
    path = save_table(tmp_path / "d.parquet", {"a": np.zeros(rows), "label": np.arange(rows) * 2 // rows})
    assert load(path, **CUT).classes == 2
    monkeypatch.setattr("kdistill.data.readers.tables.UNDOUBTED", 1 << 20)
    monkeypatch.setattr("pandas.read_parquet", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(KdistillError, match="claims 200,000 rows in "):
        load(path, **CUT)


def test_texts_of_no_fixed_length_are_read_in_blocks(tmp_path, monkeypatch):
    """Blocks of texts, which a file may hold once and have in many rows, are small where the file is large."""
    monkeypatch.setattr("kdistill.data.readers.hdf5.MOST_READ", 0)
    monkeypatch.setattr("kdistill.data.readers.hdf5.LEAST_TEXTS", 7)
    x, y = small()
    path = save_h5(tmp_path, x_train=x, y_train=np.array(NAMES)[y].tolist())
    contents = data.resolve(str(path)).reader.contents()
    assert contents.train.labels.tolist() == np.array(NAMES)[y].tolist()


def test_housing_is_regression(tmp_path):
    """The classic table of house prices is refused, where it is here."""
    housing = MNIST.parent / "housing.csv"
    if not housing.exists():
        pytest.skip("housing.csv is not here")
    with pytest.raises(KdistillError, match="3,842 different numbers in 20,640 rows"):
        load(housing, labels="median_house_value", inputs="longitude,latitude", **CUT)


def test_tables_without_pandas(tmp_path, monkeypatch):
    """What is not installed is named with the command that installs it."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    path = _written(tmp_path / "data.csv", b"a,label\n1,2\n")
    with pytest.raises(KdistillError, match=r"needs pandas and pyarrow: pip install 'kdistill\[tables\]'"):
        load(path, test_fraction="0.5")


COUNT = itertools.count()
HEAD = """
import numpy as np, tensorflow as tf
y = np.arange(60) % 3
x = (np.random.default_rng(0).integers(0, 60, (60, 6, 4)) + 60 * y[:, None, None]).astype(np.uint8)
def dataset(rows=60):
    return tf.data.Dataset.from_tensor_slices((x[:rows], y[:rows]))
print("a module may print")
"""


def module(place, body, arguments=""):
    """A module in the current directory, of a name of its own, with a function `load`."""
    name = f"data_{next(COUNT)}"
    (place / f"{name}.py").write_text(HEAD + f"def load({arguments}):\n    " + body.replace("\n", "\n    ") + "\n")
    return f"{name}:load"


RETURNED = {
    "arrays": "return x, y",
    "lists": "return x.tolist(), y.tolist()",
    "train and test": "return (x, y), (x[:9], y[:9])",
    "a dictionary": "return {'x_train': x, 'y_train': y, 'x_test': x[:9], 'y_test': y[:9], 'class_names': list('abc')}",
    "labels of text": "return x, [['a', 'b', 'c'][label] for label in y]",
    "tensors": "return tf.constant(x), tf.constant(y)",
    "tf.data": "return dataset()",
    "two of tf.data": "return dataset(), dataset(9)",
    "tf.data of unknown length": "return dataset().filter(lambda a, b: True)",
    "tf.data of labels of text": "return dataset().map(lambda a, b: (a, tf.gather(['a', 'b', 'c'], b)))",
    "tf.data shuffled once": "return dataset().shuffle(60, seed=1, reshuffle_each_iteration=False)",
}


@pytest.mark.parametrize("kind", RETURNED)
def test_functions_of_the_users_own(tmp_path, monkeypatch, capsys, kind):
    """Whatever form a function returns its data in, rows and labels are the same; it may print."""
    monkeypatch.chdir(tmp_path)
    has_test = kind in ("train and test", "a dictionary", "two of tf.data")
    dataset = load(module(tmp_path, RETURNED[kind]), **{} if has_test else {"test_fraction": "0.15"})
    x, y = small()
    parts = (dataset.train,) if has_test else (dataset.train, dataset.test)
    read = np.concatenate([part.read() for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    assert sorted((bytes(a.astype(np.uint8)), b) for a, b in zip(read, labels, strict=True)) == sorted(
        (bytes(a), b) for a, b in zip(x, y, strict=True)
    )
    assert (len(dataset.test), dataset.classes) == (9, 3)
    assert dataset.class_names == (("a", "b", "c") if "text" in kind or "dictionary" in kind else ("0", "1", "2"))
    check_rows(dataset.train.inputs, dataset.train.read())
    assert capsys.readouterr().out == ""


def test_function_of_inputs_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = load(module(tmp_path, "return (x, y), (x, y)"))
    for body in ("return dataset().map(lambda a, b: a)", "return {'x_train': x}", "return x, None"):
        split = data.resolve(module(tmp_path, body)).transfer_set(dataset)
        assert (len(split), split.labelled) == (60, 0)
        check_rows(split.inputs, small()[0])


def test_functions_identity_is_their_source(tmp_path, monkeypatch):
    """It is found without running the module, or the package above it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack_age").mkdir()
    (tmp_path / "pack_age" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "pack_age" / "mine.py").write_text("raise SystemExit")
    before = data.resolve("pack_age.mine:load").identity()
    (tmp_path / "pack_age" / "mine.py").write_text("raise SystemExit  # changed")
    assert data.resolve("pack_age.mine:load").identity().digest != before.digest
    assert before.name == "pack_age.mine:load"


GENERATED = "\nreturn tf.data.Dataset.from_generator(rows, output_types=(tf.float32, tf.int64))"
UNEQUAL = "def rows():\n    for i in range({0}): yield np.zeros(1 + i // {1}), i % 2" + GENERATED
CHANGING = (
    "passes = []\ndef rows():\n    passes.append(1)\n    for i in range(9 {0} len(passes)): yield np.zeros(3), i % 2"
    + GENERATED
)
BAD_FUNCTIONS = {
    "an exception": ("a = 1\nreturn a / 0", "failed: ZeroDivisionError: division by zero (", ".py:10)"),
    "an exception of many lines": ("raise ValueError('one\\ntwo')", "failed: ValueError: one (", ".py:9)"),
    "an exit": ("raise SystemExit('enough')", "failed: SystemExit: enough (", ".py:9)"),
    "bad syntax": ("return (", "failed: SyntaxError: '(' was never closed (", ".py:9)"),
    "nothing": ("return None", "returned None: it can return (x, y), "),
    "three": ("return x, y, x", "returned (a value of type ndarray, a value of type ndarray, a value"),
    "other names": ("return {'x': x, 'y': y}", "returned a dictionary of x, y, without x_train"),
    "ragged lists": ("return [[1], [1, 2]], [0, 1]", "x_train is no array: setting an array element"),
    "objects": ("return [{}, {}], [0, 1]", "x_train is of type object"),
    "unequal length": ("return x, y[:-1]", "59 labels for 60 rows"),
    "arrays beside tf.data": ("return dataset(), x", "returned (a value of type _TensorSliceDataset, a value"),
    "tf.data without end": ("return dataset().repeat()", "never ends: leave out .repeat()"),
    "tf.data in batches": ("return dataset().batch(20)", "gives labels of shape (None,), and a label is one number"),
    "tf.data of one-hot labels": ("return dataset().map(lambda a, b: (a, tf.one_hot(b, 3)))", "by tf.argmax"),
    "tf.data of several labels": (
        "return dataset().map(lambda a, b: (a, tf.maximum(tf.one_hot(b, 3), [1, 0, 0])))",
        "multi-label data is not supported: row 1 has 2 ones",
    ),
    "tf.data beyond int32": (
        "return dataset().map(lambda a, b: (tf.cast(a, tf.int64) + 2 ** 40, b))",
        "(int32)",
    ),
    "floats beyond float32": ("return x * 1e300, y", "x_train holds ", "e+30"),
    "mixed labels": ("return x, np.array([None, *y[1:]])", "y_train is of type object (NoneType, int"),
    "tf.data of dictionaries": ("return dataset().map(lambda a, b: {'a': a, 'b': b})", "gives a dictionary of a, b"),
    "tf.data of triples": ("return dataset().map(lambda a, b: (a, b, b))", "gives (Tensor, Tensor, Tensor)"),
    "tf.data of ragged tensors": (
        "return tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1], [1, 2]]), [0, 1]))",
        "gives (RaggedTensor, Tensor)",
    ),
    "tf.data of unequal rows": (
        UNEQUAL.format(9, 5),
        "can't be read: Cannot batch tensors with different shapes",
    ),
    "tf.data of unequal blocks": (
        UNEQUAL.format(1500, 1000),
        "gives rows of shape (1,) and of (2,)",
    ),
    "tf.data that fails": (
        "def rows():\n    yield np.zeros(3), 0\n    1 / 0" + GENERATED,
        "ZeroDivisionError: division by zero (",
        ".py:11)",
    ),
    "tf.data without rows": ("return dataset(0)", "train has no rows"),
    "tf.data of NaN": ("return dataset().map(lambda a, b: (tf.cast(a, tf.float32) / 0, b))", "first in row 0"),
    "tf.data shuffled each time": ("return dataset().shuffle(60, seed=1)", "reshuffle_each_iteration=False"),
    "tf.data drawn anew": (
        "draw = np.random.default_rng()\ndef rows():\n    for i in range(9): yield draw.normal(size=3), i % 2"
        + GENERATED,
        "gives another row 0 than that of the first time",
    ),
    "tf.data shorter the second time": (
        CHANGING.format("-"),
        "rows instead of the 8 of the first time",
    ),
    "tf.data longer the second time": (
        CHANGING.format("+"),
        "more than the 10 rows of the first time",
    ),
}


def test_function_with_an_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = module(tmp_path, "return x, y", "path")
    with pytest.raises(KdistillError, match=r"failed: TypeError: .* missing 1 required .* \(/.*/data_\d+\.py\)$"):
        load(name, test_fraction="0.5")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch:load", "there is no module 'nosuch' in "),
        ("json.nosuch:load", "there is no module 'json.nosuch' in "),
        ("json:nosuch", "has no function nosuch"),
        ("sys:exit", "'sys' is no module with Python source"),
    ],
)
def test_functions_that_are_not_there(name, said):
    with pytest.raises(KdistillError, match=said):
        load(name, test_fraction="0.5")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A function that prepares a dataset as TensorFlow Datasets would have."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="kdistill[tfds] is not installed")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    def prepare(config=None, version="1.0.0", rows=None, image=(6, 4, 1), **splits):
        images, labels = rows or small()

        class Mine(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version(version)
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

            def _info(self):
                pixels = tfds.features.Image(shape=image)
                features = {"image": pixels, "label": tfds.features.ClassLabel(names=NAMES)}
                keys = ("image", "label")
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
                )

            def _split_generators(self, _):
                return {name: self._generate_examples(count) for name, count in splits.items()}

            def _generate_examples(self, count):
                for row in range(count):
                    yield row, {"image": images[row].reshape(*images[row].shape[:2], -1), "label": int(labels[row])}

        Mine(data_dir=str(tmp_path), config=config).download_and_prepare()

    return prepare


def test_tensorflow_datasets(prepared):
    """The splits train and test, or validation, with the names of classes that it knows."""
    x, y = small()
    prepared(train=60, test=9)
    dataset = load("tfds:mine")
    assert (len(dataset.train), len(dataset.test), dataset.class_names) == (60, 9, ("cat", "ant", "bee"))
    read = {bytes(image): label for image, label in zip(dataset.train.read(), dataset.train.labels, strict=True)}
    assert read == {bytes(image): label for image, label in zip(x, y, strict=True)}
    check_rows(dataset.train.inputs, dataset.train.read())
    prepared(version="1.1.0", train=50, validation=6)
    assert [len(part) for part in (load("tfds:mine").train, load("tfds:mine").test)] == [50, 6]
    assert len(load("tfds:mine:1.0.0").train) == 60
    prepared(version="2.0.0", train=40)
    assert len(load("tfds:mine", test_fraction="0.5").train) == 20
    with pytest.raises(KdistillError, match="tfds:mine has no test part: --test-fraction"):
        load("tfds:mine")


def test_tensorflow_datasets_in_configurations(prepared):
    """One that is prepared is the one meant; of several, none is guessed."""
    prepared(config="plain", train=60, test=6)
    assert len(load("tfds:mine").train) == 60
    prepared(config="more", version="2.0.0", train=30, test=6)
    with pytest.raises(KdistillError, match="configurations: say which, tfds:mine/more, tfds:mine/plain"):
        load("tfds:mine")
    assert len(load("tfds:mine/plain").train) == 60
    assert len(load("tfds:mine/more:2.0.0").train) == 30


def test_tensorflow_datasets_identity(prepared):
    """Another version is other data; it is known without TensorFlow."""
    prepared(train=60)
    before = data.resolve("tfds:mine").identity()
    assert data.resolve("tfds:mine").identity() == before
    prepared(version="1.1.0", train=60)
    assert data.resolve("tfds:mine").identity().digest != before.digest
    code = (
        "import sys; from kdistill import data; print(data.resolve('tfds:mine:1.0.0').identity().digest);"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == before.digest


def test_tensorflow_datasets_of_unequal_images(prepared):
    """Images of several sizes are one line; `--image-size` brings them to one."""
    images = [np.full((5 + i % 2, 4, 3), 20 * i, np.uint8) for i in range(12)]
    prepared(rows=(images, np.arange(12) % 3), image=(None, None, 3), train=12)
    with pytest.raises(KdistillError, match="tfds:mine: train can't be read: Cannot batch tensors"):
        load("tfds:mine", test_fraction="0.5")
    dataset = load("tfds:mine", test_fraction="0.5", image_size="8")
    assert dataset.input_shape == (8, 8, 3)
    assert sorted(np.concatenate([dataset.train.read(), dataset.test.read()])[:, 3, 3, 0]) == list(range(0, 240, 20))


def test_tensorflow_datasets_that_cannot_be_had(prepared):
    """A name that is none, and one that is not prepared here and can't be downloaded."""
    with pytest.raises(UsageError, match="is no tfds:NAME"):
        data.resolve("tfds:../mine")
    with pytest.raises(KdistillError, match="tfds:nosuch can't be had from TensorFlow Datasets: ") as caught:
        load("tfds:nosuch")
    assert "\n" not in str(caught.value)
    prepared(test=5)
    with pytest.raises(KdistillError, match="has no split train, only test"):
        load("tfds:mine")


def test_tensorflow_datasets_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(KdistillError, match=r"needs tensorflow-datasets: pip install 'kdistill\[tfds\]'"):
        load("tfds:mine")


def _claims_much(path, shape=(10**12, 28, 28)):
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.write(bytes(1000))
    return path


def _h5(path, make):
    with h5py.File(path / "bad.h5", "w") as file:
        make(file)
    return path / "bad.h5"


def _without_storage(file):
    file.create_dataset("x_train", (10**12, 28, 28), "u1", chunks=(1, 28, 28))
    file["x_train"][5] = 1
    file["y_train"] = np.zeros(10)


def _external(file):
    file.create_dataset("x_train", (10, 4), "u1", external=[("/etc/hostname", 0, 40)])


def _virtual(file):
    layout = h5py.VirtualLayout((10, 4), "u1")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (10, 4))
    file.create_virtual_dataset("x_train", layout)


def _cut_short(path):
    x, y = small(3000)
    path = save_h5(path, x_train=x, y_train=y)
    path.write_bytes(path.read_bytes()[:-40_000])
    return path


def _flipped(path):
    x, y = small(600)
    with h5py.File(path / "bad.h5", "w") as file:
        file.create_dataset("x_train", data=x, chunks=(10, 6, 4), fletcher32=True)
        file["y_train"] = y
        where = file["x_train"].id.get_chunk_info(30).byte_offset
    contents = bytearray((path / "bad.h5").read_bytes())
    contents[where + 5] ^= 4
    (path / "bad.h5").write_bytes(contents)
    return path / "bad.h5"


def _nan(file):
    x = np.zeros((60, 4))
    x[7, 2] = np.nan
    file["x_train"], file["y_train"] = x, np.arange(60) % 2


def _many_labels(file):
    """10^7 labels that take little room, which are not to be read."""
    file["x_train"] = small()[0]
    file.create_dataset("y_train", (10**7,), "u1", chunks=(10**6,), compression="gzip")[:] = 0


def _large_chunk(file):
    """60 labels in a chunk of 10^8, which would be decompressed whole; only its first bytes are there."""
    file["x_train"] = small()[0]
    labels = file.create_dataset("y_train", (60,), "u1", chunks=(10**8,), maxshape=(None,), compression="gzip")
    labels.id.write_direct_chunk((0,), zlib.compress(bytes(60)))


@pytest.mark.parametrize("make", [_many_labels, _large_chunk])
def test_claims_of_hdf5_are_checked_before_labels_are_read(tmp_path, monkeypatch, make):
    monkeypatch.setattr("kdistill.data.readers.hdf5.Hdf5._values", lambda *_: pytest.fail("read"))
    with pytest.raises(KdistillError, match="y_train"):
        load(_h5(tmp_path, make))


def _multi_label():
    labels = np.eye(3, dtype=np.uint8)[small()[1]]
    labels[4] = 1
    return labels


def _piped(place):
    """Inputs, and labels that would come from a pipe."""
    os.mkfifo(place / "labels.npy")
    return save_npy(place, x_train=small()[0])


def _endless(place):
    (place / "x.npz").symlink_to("/dev/zero")
    return place / "x.npz"


BAD = {
    "h5 many labels": (lambda p: _h5(p, _many_labels), {}, "y_train has 10000000 labels for 60 rows"),
    "h5 large chunk": (lambda p: _h5(p, _large_chunk), {}, "y_train has chunks of (100000000,)"),
    "h5 long text of no fixed length": (
        lambda p: save_h5(p, x_train=small()[0], y_train=["a", "b" * 1001] * 30),
        {},
        "y_train holds a text of 1,001 characters in row 1",
    ),
    "h5 long text": (
        lambda p: save_h5(p, x_train=small()[0], y_train=np.array(["a" * 1001, "b"] * 30, "S")),
        {},
        "y_train holds texts of up to 1,001 characters",
    ),
    "h5 multi-label": (
        lambda p: save_h5(p, x_train=small()[0], y_train=_multi_label()),
        {},
        "multi-label data is not supported: row 4 has 3 ones",
    ),
    "h5 int64 beyond int32": (
        lambda p: save_h5(p, x_train=small()[0].astype(np.int64) << 40, y_train=small()[1]),
        CUT,
        "x_train holds ",
        "(int32)",
    ),
    "h5 float64 beyond float32": (
        lambda p: save_h5(p, x_train=np.full((60, 3), 1e39), y_train=small()[1]),
        CUT,
        "x_train holds 1e+39 in row",
    ),
    "h5 complex": (lambda p: save_h5(p, x_train=small()[0] * 1j, y_train=small()[1]), CUT, "of type complex128"),
    "h5 near name": (lambda p: save_h5(p, Pixels=[1]), {"inputs": "pixel"}, "(did you mean Pixels?)"),
    "npy labels of another length": (
        lambda p: save_npy(p, x_train=small()[0], labels=np.zeros(10**6, np.uint8)),
        {"labels": "labels.npy"},
        "labels.npy has 1000000 labels for 60 rows",
    ),
    "npy int64 beyond int32": (
        lambda p: save_npy(p, x_train=small()[0].astype(np.int64) - 2**40, y_train=small()[1]).parent,
        CUT,
        "(int32)",
    ),
    "npy long class names": (
        lambda p: save_npy(p, x_train=small()[0], y_train=small()[1], class_names=np.array(["a" * 1001])).parent,
        CUT,
        "class_names.npy holds texts of up to 1,001 characters",
    ),
    "labels from a pipe": (_piped, {"labels": "labels.npy"}, "--labels", "labels.npy: it is not a regular file"),
    "labels from a directory": (
        lambda p: save_npy(p, x_train=small()[0]),
        {"labels": "."},
        "--labels",
        "it is a directory",
    ),
    "link to a device": (_endless, {}, "--dataset", "x.npz: it is not a regular file"),
    "npy folder with a pipe": (
        lambda p: os.mkfifo(p / "x_train.npy") or p,
        {},
        "x_train.npy: it is not a regular file",
    ),
    "npy without labels": (lambda p: save_npy(p, x_train=small()[0]), {}, "no labels: --labels FILE.npy"),
    "npy labels that are not there": (
        lambda p: save_npy(p, x_train=small()[0]),
        {"labels": "/nosuch.npy"},
        "--labels /nosuch.npy: there is no such file",
    ),
    "npy test inputs without labels": (
        lambda p: save_npy(p, x_train=small()[0]),
        {"labels": "x_train.npy", "test_inputs": "x_train.npy"},
        "no test labels: --test-labels FILE.npy",
    ),
    "npy 10^12 rows": (lambda p: _claims_much(p / "x.npy"), {"labels": "x.npy"}, "not what the file holds"),
    "npy negative shape": (
        lambda p: _claims_much(p / "x.npy", (-10, -100)),
        {"labels": "x.npy"},
        "its header is damaged (shape (-10, -100))",
    ),
    "npy objects": (
        lambda p: save_npy(p, x_train=np.array([{}, {}], object)),
        {"labels": "x_train.npy"},
        "of type object, which only pickle",
    ),
    "npy of text": (lambda p: _written(p / "x.npy", b"hello\n" * 50), {"labels": "x.npy"}, "is not a readable .npy"),
    "npy folder without labels": (lambda p: save_npy(p, x_train=small()[0]).parent, {}, "has no y_train.npy"),
    "npy folder without test": (
        lambda p: save_npy(p, x_train=small()[0], y_train=small()[1]).parent,
        {},
        "has no test part: --test-fraction 0.2",
    ),
    "npy NaN": (
        lambda p: (
            save_npy(p, x_train=np.where(small()[0] == small()[0][8, 0, 0], np.nan, 1.0), y_train=small()[1]).parent
        ),
        {"test_fraction": "0.5"},
        "holds NaN or infinity, first in row",
    ),
    "cut of nothing": (
        lambda p: save_npy(p, x_train=small()[0], y_train=small()[1]).parent,
        {"test_fraction": "0.001"},
        "sets 0 of the 60 rows",
    ),
    "cut of what has a test part": (
        lambda p: save_h5(p, x_train=small()[0], y_train=small()[1], x_test=small()[0], y_test=small()[1]),
        {"test_fraction": "0.5"},
        "has a test part of its own: leave out --test-fraction",
    ),
    "h5 of text": (lambda p: _written(p / "x.h5", b"hello\n" * 50), {}, "is damaged, or no HDF5"),
    "h5 empty": (lambda p: _written(p / "x.h5", b""), {}, "is damaged, or no HDF5"),
    "h5 cut short": (_cut_short, {"test_fraction": "0.5"}, "is damaged, or no HDF5"),
    "h5 flipped bit": (_flipped, {"test_fraction": "0.5"}, "bad.h5: x_train is damaged"),
    "h5 NaN": (lambda p: _h5(p, _nan), {"test_fraction": "0.5"}, "x_train holds NaN or infinity, first in row 7"),
    "h5 other names": (
        lambda p: save_h5(p, a=[1], b=[2]),
        {},
        "has no x_train: it holds a, b; --inputs NAME and --labels NAME",
    ),
    "h5 wrong name": (lambda p: save_h5(p, a=[1]), {"inputs": "a/b/c"}, "has no a/b/c"),
    "h5 group": (lambda p: _h5(p, lambda file: file.create_group("x_train")), {}, "x_train is no dataset with values"),
    "h5 external link": (
        lambda p: _h5(p, lambda file: file.__setitem__("x_train", h5py.ExternalLink("/etc/hostname", "x"))),
        {},
        "x_train is a link",
    ),
    "h5 external storage": (lambda p: _h5(p, _external), {}, "lies in other files"),
    "h5 virtual": (lambda p: _h5(p, _virtual), {}, "lies in other files"),
    "h5 10^12 rows": (lambda p: _h5(p, _without_storage), {}, "claims (1000000000000, 28, 28) of uint8 and holds less"),
    "h5 ragged": (
        lambda p: _h5(p, lambda file: file.create_dataset("x_train", (4,), h5py.vlen_dtype("i4"))),
        {},
        "of no fixed size",
    ),
    "h5 text inputs": (lambda p: save_h5(p, x_train=[["a"], ["b"]], y_train=[0, 1]), {}, "inputs are uint8, floats"),
    "h5 one class of text": (lambda p: save_h5(p, x_train=[[1], [2]], y_train=["a", "a"]), {}, "a single class"),
    "soft targets": (
        lambda p: _h5(p, lambda file: file.attrs.__setitem__("kdistill_format", 1)),
        {},
        "is a soft-target file of kdistill's",
    ),
    "option that means nothing": (
        lambda p: save_h5(p, a=[1]),
        {"image_size": "32"},
        "--image-size means nothing for an HDF5 file, which takes --inputs, --labels",
    ),
}


def _written(path, contents):
    path.write_bytes(contents)
    return path


BAD |= BAD_IMAGES | BAD_TABLES


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ({"test_fraction": "1"}, "--test-fraction is 1: it needs a number between 0 and 1"),
        ({"test_fraction": "nan"}, "--test-fraction is nan"),
        ({"test_fraction": "a fifth"}, "--test-fraction is a fifth"),
        ({"image_size": "0"}, "--image-size is 0: it needs height and width"),
        ({"image_size": "32x"}, "--image-size is 32x"),
        ({"max_pixels": "0"}, "--max-pixels is 0"),
        ({"max_pixels": "5e7"}, "--max-pixels is 5e7"),
        ({"labels": ""}, "--labels is empty"),
    ],
)
def test_wrong_option_values(reading, said):
    with pytest.raises(UsageError) as caught:
        ReadOptions(**reading)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("/a/photos", {}),
        ("/a b/ü&c=d", {"labels": "/ö/a b&c?=%.npy", "test_fraction": "0.5"}),
        ("/is this?.npz", {"test_fraction": "0.5"}),
        ("/is this?.npz", {}),
    ],
)
def test_a_name_says_how_it_is_read(name, reading):
    """What is put on a name is read from it again, whatever letters it has."""
    put = ReadOptions(**reading).named(name)
    assert ReadOptions.of(put) == (name, ReadOptions(**reading))
    assert ReadOptions.of(ReadOptions(inputs="x").named(put)) == (name, ReadOptions(inputs="x", **reading))


FORMATS = {
    "npz": lambda p, _: (_saved_npz(p), ["--test-fraction", "0.2"]),
    "npy": lambda p, _: (
        save_npy(p, x_train=small()[0], y=small()[1]).name,
        ["--labels", "y.npy", "--test-inputs", "x_train.npy", "--test-labels", "y.npy"],
    ),
    "npy folder": lambda p, _: (save_npy(p, x_train=small()[0], y_train=small()[1]).parent, ["--test-fraction", "0.2"]),
    "hdf5": lambda p, _: (
        save_h5(p, pixels=small()[0], what=small()[1]),
        ["--inputs", "pixels", "--labels", "what", "--test-fraction", "0.2"],
    ),
    "images": lambda p, _: (_photos(p), ["--image-size", "8", "--test-fraction", "0.2"]),
    "csv": lambda p, _: (_table(p), ["--inputs", "age,count", "--labels", "label", "--test-fraction", "0.2"]),
    "parquet": lambda p, _: (save_table(p / "d.parquet", table()), ["--test-inputs", "d.parquet"]),
    "tfds": lambda _, prepared: (prepared(train=60, test=9) or "tfds:mine", []),
    "function": lambda p, _: (module(p, "return (x, y), (x, y)"), []),
    "function of tf.data": lambda p, _: (module(p, "return dataset(), dataset(9)"), []),
}


def _saved_npz(place):
    x, y = small()
    np.savez(place / "data.npz", x_train=x, y_train=y)
    return place / "data.npz"


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_teaches(run, tmp_path, kind, request):
    """A teacher of each format; it is up to date until its data changes."""
    prepared = request.getfixturevalue("prepared") if kind == "tfds" else None
    name, reading = FORMATS[kind](tmp_path, prepared)
    command = ["train-teacher", "--dataset", name, *reading, "--model", "small", "--epochs", "1", "--batch-size", "8"]
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    assert outcome.err.replace("a module may print\n", "") == ""
    assert "Up to date" in run(*command).out


@pytest.mark.parametrize("kind", ["images", "function of tf.data"])
def test_how_data_is_read_is_said_once(run, tmp_path, monkeypatch, kind):
    """Later stages take it from the manifest, and so do `status`, `plot`, `evaluate` and `verify`.

    Images are decoded by the first stage alone.
    """
    name, reading = FORMATS[kind](tmp_path, None)
    options = ["--model", "small", "--epochs", "1", "--batch-size", "8"]
    for command in (
        ["train-teacher", "--dataset", name, *reading, *options],
        ["soften"],
        ["train-student", *options],
        ["plot"],
        ["evaluate"],
        ["verify"],
    ):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err + outcome.out
        undecoded(monkeypatch)
    assert "next: kdistill evaluate" in run("status").out


def test_what_status_prints_can_be_typed(run, tmp_path):
    """A command with a dataset's name in it, options and all, is one that a shell gives back as it was."""
    photos = _photos(tmp_path / "my photos")
    run("train-teacher", "--dataset", photos, "--test-fraction", "0.2", "--model", "small", "--epochs", "1")
    (photos / "cat" / "000.png").unlink()
    command = re.search(r"next: kdistill (.*)", run("status").out)[1]
    assert f"--dataset '{photos}?test-fraction=0.2'" in command
    assert run(*shlex.split(command)).code == 0
    assert "stale" not in run("status").out


@pytest.mark.parametrize("case", [*BAD, *BAD_FUNCTIONS])
def test_bad_data_is_one_line(run, tmp_path, case):
    """Whatever is wrong with data of any format: one line says what and where, and nothing is written."""
    if case in BAD:
        make, reading, *expected = BAD[case]
        place = make(tmp_path)
    else:
        body, *expected = BAD_FUNCTIONS[case]
        place, reading = module(tmp_path, body), CUT
        expected.append(place)
    options = [part for name, value in reading.items() for part in (f"--{name.replace('_', '-')}", value)]
    outcome = run("train-teacher", "--dataset", place, *options, "--model", "small", "--batch-size", "1")
    said = outcome.err.replace("a module may print\n", "")
    assert outcome.code == (2 if "means nothing" in said or "leave out --test-fraction" in said else 1), said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    for text in expected:
        assert text in said
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train-teacher", "--labels", "x"], 2, "--labels means nothing for digits"),
        (["train-teacher", "--dataset", "digits?test-fraction=0.2"], 2, "--test-fraction means nothing for digits"),
        (["train-teacher", "--dataset", "digits?colour=red"], 2, "'colour' is no option of reading data, only inputs"),
        (["soften", "--image-size", "32"], 2, "--image-size says how a dataset is read: name it, --dataset"),
        (["train-student", "--test-fraction", "0.5"], 2, "--test-fraction says how a dataset is read"),
        (["run", "--test-fraction", "2", "--dataset", "digits"], 2, "--test-fraction is 2"),
        (["train-teacher", "--data-format", "csv"], 2, "--data-format means nothing for digits"),
        (["run", "--data-format", "xls"], 2, "--data-format is 'xls'"),
        (["soften", "--data-format", "csv"], 2, "--data-format says how a dataset is read"),
        (["train-teacher", "--dataset", "/dev/zero", "--data-format", "npy"], 1, "/dev/zero: it is not a regular file"),
        (["train-teacher", "--dataset", "digit"], 1, "(did you mean digits?)"),
        (["train-teacher", "--dataset", "tfds:no/such/name"], 2, "is no tfds:NAME"),
        (["train-teacher", "--dataset", "no.such:module"], 1, "there is no module 'no.such' in "),
        (["train-teacher", "--dataset", "data.xyz"], 1, "its ending says no format: they are .npz, .npy, .h5"),
        (["train-teacher", "--dataset", "nosuch.csv"], 1, "there is no such file, and the names are digits, mnist"),
    ],
)
def test_wrong_names_and_options_are_one_line(run, tmp_path, arguments, code, said):
    (tmp_path / "data.xyz").write_text("hello")
    outcome = run(*arguments)
    assert outcome.code == code, outcome.err
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["data.xyz"]
