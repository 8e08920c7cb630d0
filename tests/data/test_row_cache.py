"""The cache of decoded rows: what it returns is what was written, or nothing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal

import numpy as np
import pytest

from kdistill.data import row_cache

KEY, OTHER = "ab" * 32, "cd" * 32
ROWS = np.random.default_rng(0).integers(0, 256, (50, 6, 4), dtype=np.uint8)


def blocks(rows=ROWS):
    return (rows[start : start + 20] for start in range(0, len(rows), 20))


def kept(directory, key=KEY, rows=ROWS):
    return row_cache.write(directory, key, rows.shape, blocks(rows))


def entry(directory, key=KEY):
    return directory / f"{key}.rows"


def test_entry_is_what_was_written(tmp_path):
    place = tmp_path / "a" / "b"
    assert row_cache.read(place, KEY) is None
    for rows in (kept(place), row_cache.read(place, KEY)):
        np.testing.assert_array_equal(rows, ROWS)
        assert rows.dtype == np.uint8
        assert not rows.flags.writeable
    assert row_cache.read(place, OTHER) is None
    assert os.listdir(place) == [entry(place).name]


def _changed(place, at):
    contents = bytearray(entry(place).read_bytes())
    contents[at] ^= 1
    entry(place).write_bytes(contents)


def _linked(place):
    shutil.move(entry(place), place / "elsewhere")
    entry(place).symlink_to(place / "elsewhere")


def _piped(place):
    entry(place).unlink()
    os.mkfifo(entry(place))


DAMAGE = {
    "first byte": lambda place: _changed(place, 0),
    "shape": lambda place: _changed(place, 70),
    "row": lambda place: _changed(place, 500),
    "checksum": lambda place: _changed(place, -1),
    "cut short": lambda place: os.truncate(entry(place), 600),
    "cut to nothing": lambda place: os.truncate(entry(place), 0),
    "longer": lambda place: entry(place).write_bytes(entry(place).read_bytes() + b"x"),
    "another key's": lambda place: kept(place, OTHER, 255 - ROWS) is None or entry(place, OTHER).replace(entry(place)),
    "link": _linked,
    "pipe": _piped,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entry_is_replaced(tmp_path, damage):
    """It is never used, and links are not followed, for reading or for writing."""
    kept(tmp_path)
    DAMAGE[damage](tmp_path)
    assert row_cache.read(tmp_path, KEY) is None
    assert damage == "link" or not entry(tmp_path).exists()
    np.testing.assert_array_equal(kept(tmp_path), ROWS)
    assert not entry(tmp_path).is_symlink()


def test_bound_on_all_entries(tmp_path, monkeypatch):
    """The entry that was not used for longest is removed first; one that is too large is not kept."""
    keys = ["a" * 64, "b" * 64, "c" * 64]
    for age, key in enumerate(keys):
        kept(tmp_path, key)
        os.utime(entry(tmp_path, key), ns=(age, age))
    row_cache.read(tmp_path, keys[0])  # which is a use
    size = entry(tmp_path, keys[0]).stat().st_size
    monkeypatch.setattr(row_cache, "MOST_BYTES", 3 * size)
    assert kept(tmp_path, KEY) is not None
    assert {path.stem for path in tmp_path.iterdir()} == {keys[0], keys[2], KEY}
    assert kept(tmp_path, OTHER, np.zeros((4 * size, 1), np.uint8)) is None
    assert len(os.listdir(tmp_path)) == 3


def test_disk_without_room(tmp_path, monkeypatch):
    """An entry that would take more than half of what is free is not kept, and nothing is left."""
    free = shutil.disk_usage(tmp_path)._replace(free=2 * ROWS.nbytes)
    monkeypatch.setattr(row_cache.shutil, "disk_usage", lambda _: free)
    assert kept(tmp_path / "new" / "cache") is None
    assert os.listdir(tmp_path) == []


def test_disk_that_fails_while_writing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        assert kept(tmp_path / "cache") is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []


def test_error_of_the_source_is_raised(tmp_path):
    """An `OSError` of what decodes is not taken for one of the cache's disk."""

    def failing():
        yield ROWS[:20]
        raise PermissionError(errno.EACCES, "denied", "photo.png")

    with pytest.raises(PermissionError, match=r"photo\.png"):
        row_cache.write(tmp_path / "cache", KEY, ROWS.shape, failing())
    assert os.listdir(tmp_path) == []


def test_directory_deleted_while_writing(tmp_path):
    def deleting():
        yield ROWS[:20]
        shutil.rmtree(tmp_path / "cache")
        yield ROWS[20:]

    assert row_cache.write(tmp_path / "cache", KEY, ROWS.shape, deleting()) is None
    assert kept(tmp_path / "cache") is not None


def test_two_writers_and_a_reader(tmp_path):
    """Writers of one entry don't disturb each other, nor one who reads what is replaced and removed."""
    read = []

    def meanwhile():
        yield ROWS[:20]
        read.append(kept(tmp_path))
        yield ROWS[20:]

    read.append(row_cache.write(tmp_path, KEY, ROWS.shape, meanwhile()))
    shutil.rmtree(tmp_path)
    for rows in read:
        np.testing.assert_array_equal(rows, ROWS)


def test_what_a_killed_writer_left_is_removed(tmp_path):
    pid = os.fork()
    if not pid:
        row_cache.write(tmp_path, KEY, ROWS.shape, (os.kill(os.getpid(), signal.SIGKILL) or row for row in ROWS))
    os.waitpid(pid, 0)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".partial"
    assert row_cache.read(tmp_path, KEY) is None
    assert kept(tmp_path) is not None
    assert list(tmp_path.iterdir()) == [entry(tmp_path)]
