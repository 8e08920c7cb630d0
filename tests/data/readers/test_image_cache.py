"""Images are digested and decoded once, until a file changes."""

from __future__ import annotations

import collections
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from small_data import HALF, X, check_rows, inputs_of, load, named, read_parts, save_images, small

from kdistill import data
from kdistill.data.readers import images
from kdistill.errors import KdistillError


@pytest.fixture
def photos(tmp_path):
    return save_images(tmp_path / "photos")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def load_cached(name, cache):
    return data.resolve(name, cache=cache).load()


@pytest.mark.parametrize("parts", [[""], ["train", "test"]])
def test_images_are_decoded_once(tmp_path, monkeypatch, cache, parts):
    """Cached rows equal decoded rows to the bit. Nothing is decoded before the first row is read."""
    place = tmp_path / "pictures"
    for part in parts:
        save_images(place / part, *small(seed=len(part)), ending="jpg")
    name = named(place, image_size="5x7", **({} if parts[1:] else {"test_fraction": 0.25}))
    expected = read_parts(data.load(name))
    first = load_cached(name, cache)
    assert not cache.exists()
    read_parts(first)
    monkeypatch.setattr(images, "decode", lambda path, **_: pytest.fail(f"decoded {path}"))
    monkeypatch.setattr(images, "read_header", lambda path, **_: pytest.fail(f"opened {path}"))
    for dataset in (first, load_cached(name, cache)):
        for split, rows in zip((dataset.train, dataset.test), expected, strict=True):
            check_rows(split.inputs, rows)


def _flip_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


CHANGES = {
    "bytes": lambda photos, _: Image.fromarray(255 - X[0]).save(photos / "cat/000.png"),
    "name": lambda photos, _: (photos / "cat/000.png").rename(photos / "cat/900.png"),
    "class": lambda photos, _: (photos / "cat/000.png").rename(photos / "ant/000.png"),
    "new file": lambda photos, _: Image.fromarray(X[0]).save(photos / "cat/900.png"),
    "colors": lambda photos, _: Image.fromarray(np.stack([X[0], X[1], X[2]], -1)).save(photos / "cat/900.png"),
    "damaged entry": lambda _, cache: _flip_bit(next((cache / "rows").iterdir())),
    "deleted cache": lambda _, cache: shutil.rmtree(cache),
}


@pytest.mark.parametrize("change", CHANGES)
def test_cached_rows_follow_the_files(photos, cache, change):
    name = named(photos, **HALF)
    read_parts(load_cached(name, cache))
    CHANGES[change](photos, cache)
    expected = read_parts(data.load(name))
    for _ in range(2):
        for rows, decoded in zip(read_parts(load_cached(name, cache)), expected, strict=True):
            np.testing.assert_array_equal(rows, decoded)


def test_entry_depends_on_options_and_decoder(photos, cache, monkeypatch):
    """Another size, limit on pixels, dataset of a transfer set or version of Pillow makes another entry."""

    def entries():
        return len(os.listdir(cache / "rows"))

    for number, options in enumerate(({}, {"image_size": "5"}, {"max_pixels": 24}), 1):
        source = data.resolve(named(photos, **options), cache=cache)
        rows = source.reader.contents().train.inputs.read()
        np.testing.assert_array_equal(rows, inputs_of(photos, **options).read())
        assert entries() == number
    source = data.resolve(str(photos), cache=cache)
    source.load_transfer_set(load(photos, **HALF)).read()
    assert entries() == 4
    monkeypatch.setattr("PIL.__version__", "0.0.1")
    source.reader.contents().train.inputs.read()
    assert entries() == 5


@pytest.mark.parametrize("restore", [False, True])
def test_images_that_change_while_they_are_read(photos, cache, monkeypatch, restore):
    """They are not cached, not even if a file is changed and then restored while it is decoded."""
    dataset = load_cached(named(photos, **HALF), cache)
    file = photos / "cat/000.png"
    content, decode = file.read_bytes(), images.ImageRows.read_range
    Image.fromarray(255 - X[0]).save(file)

    def decode_and_restore(*arguments):
        result = decode(*arguments)
        file.write_bytes(content)
        return result

    if restore:
        monkeypatch.setattr(images.ImageRows, "read_range", decode_and_restore)
    with pytest.raises(KdistillError, match="photos"):
        dataset.train.read()
    assert not cache.exists()


def test_rows_that_do_not_fit_are_decoded(photos, cache, monkeypatch):
    monkeypatch.setattr("kdistill.data.row_cache.MAX_BYTES", 100)
    name = named(photos, **HALF)
    check_rows(load_cached(name, cache).train.inputs, data.load(name).train.read())
    assert not cache.exists()


def test_folder_is_digested_once(run, tmp_path, photos, monkeypatch):
    """All parts of a command share the digest of a folder, until a file changes."""
    digested = collections.Counter()
    monkeypatch.setattr(images, "RECENT_SECONDS", -1e9)  # the files are new
    monkeypatch.setattr("kdistill.workspace.digest", lambda path: digested.update([path]) or path.read_bytes().hex())
    more = save_images(tmp_path / "more", *small(seed=1))
    np.save("logits.npy", np.zeros((9, 3), np.float32))
    run("soften", "--dataset", photos, "--test-fraction", "0.5", "--transfer-set", more, "--logits", "logits.npy")
    assert sorted(count for path, count in digested.items() if path.suffix == ".png") == [1] * 120


def test_digest_of_recent_files_is_not_remembered(photos, monkeypatch):
    """Within the resolution of the clock, a file can change without a change of its times."""
    digested = collections.Counter()
    monkeypatch.setattr(images, "RECENT_SECONDS", 1e9)
    monkeypatch.setattr("kdistill.workspace.digest", lambda path: digested.update([path]) or path.read_bytes().hex())
    assert len({data.resolve(str(photos)).digest() for _ in range(2)}) == 1
    assert set(digested.values()) == {2}


def test_change_that_keeps_size_and_modification_time(photos, monkeypatch):
    monkeypatch.setattr(images, "RECENT_SECONDS", -1e9)
    before = data.resolve(str(photos)).digest()
    file = photos / "cat/000.png"
    times = os.stat(file)
    while os.stat(file).st_ctime_ns == times.st_ctime_ns:  # the clock of file systems is coarse
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert data.resolve(str(photos)).digest() != before
