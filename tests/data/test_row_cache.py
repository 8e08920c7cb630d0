"""The cache of decoded rows, with damaged entries, full disks and concurrent processes."""

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


def write(directory, key=KEY, rows=ROWS):
    return row_cache.write(directory, key, rows.shape, blocks(rows))


def entry(directory, key=KEY):
    return directory / f"{key}.rows"


def test_write_and_read(tmp_path):
    """An entry returns the rows that were written, read-only; another key has none."""
    directory = tmp_path / "a" / "b"
    assert row_cache.read(directory, KEY) is None
    for rows in (write(directory), row_cache.read(directory, KEY)):
        np.testing.assert_array_equal(rows, ROWS)
        assert rows.dtype == np.uint8
        assert not rows.flags.writeable
    assert row_cache.read(directory, OTHER) is None
    assert os.listdir(directory) == [entry(directory).name]


def _changed(directory, at):
    contents = bytearray(entry(directory).read_bytes())
    contents[at] ^= 1
    entry(directory).write_bytes(contents)


def _linked(directory):
    shutil.move(entry(directory), directory / "elsewhere")
    entry(directory).symlink_to(directory / "elsewhere")


def _piped(directory):
    entry(directory).unlink()
    os.mkfifo(entry(directory))


DAMAGE = {
    "first byte": lambda directory: _changed(directory, 0),
    "shape": lambda directory: _changed(directory, 70),
    "row": lambda directory: _changed(directory, 500),
    "checksum": lambda directory: _changed(directory, -1),
    "cut short": lambda directory: os.truncate(entry(directory), 600),
    "cut to nothing": lambda directory: os.truncate(entry(directory), 0),
    "longer": lambda directory: entry(directory).write_bytes(entry(directory).read_bytes() + b"x"),
    "another key's": lambda directory: (
        write(directory, OTHER, 255 - ROWS) is None or entry(directory, OTHER).replace(entry(directory))
    ),
    "link": _linked,
    "pipe": _piped,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entry_is_replaced(tmp_path, damage):
    """A damaged entry is not used, and links are not followed for reading or writing."""
    write(tmp_path)
    DAMAGE[damage](tmp_path)
    assert row_cache.read(tmp_path, KEY) is None
    assert damage == "link" or not entry(tmp_path).exists()
    np.testing.assert_array_equal(write(tmp_path), ROWS)
    assert not entry(tmp_path).is_symlink()


def test_size_limit(tmp_path, monkeypatch):
    """The least recently used entry is removed first; an entry above the limit is not kept."""
    keys = ["a" * 64, "b" * 64, "c" * 64]
    for age, key in enumerate(keys):
        write(tmp_path, key)
        os.utime(entry(tmp_path, key), ns=(age, age))
    row_cache.read(tmp_path, keys[0])  # counts as a use
    size = entry(tmp_path, keys[0]).stat().st_size
    monkeypatch.setattr(row_cache, "MAX_BYTES", 3 * size)
    assert write(tmp_path, KEY) is not None
    assert {path.stem for path in tmp_path.iterdir()} == {keys[0], keys[2], KEY}
    assert write(tmp_path, OTHER, np.zeros((4 * size, 1), np.uint8)) is None
    assert len(os.listdir(tmp_path)) == 3


def test_full_disk(tmp_path, monkeypatch):
    """An entry above half of the free space is not kept, and no directory remains."""
    free = shutil.disk_usage(tmp_path)._replace(free=2 * ROWS.nbytes)
    monkeypatch.setattr(row_cache.shutil, "disk_usage", lambda _: free)
    assert write(tmp_path / "new" / "cache") is None
    assert os.listdir(tmp_path) == []


def test_disk_fails_while_writing(tmp_path):
    """A failed write leaves nothing behind."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        assert write(tmp_path / "cache") is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []


def test_error_of_the_blocks_is_raised(tmp_path):
    """An `OSError` from decoding is raised, unlike one from writing the entry."""

    def failing():
        yield ROWS[:20]
        raise PermissionError(errno.EACCES, "denied", "photo.png")

    with pytest.raises(PermissionError, match=r"photo\.png"):
        row_cache.write(tmp_path / "cache", KEY, ROWS.shape, failing())
    assert os.listdir(tmp_path) == []


def test_directory_deleted_while_writing(tmp_path):
    """The entry is not kept, and the next one is."""

    def deleting():
        yield ROWS[:20]
        shutil.rmtree(tmp_path / "cache")
        yield ROWS[20:]

    assert row_cache.write(tmp_path / "cache", KEY, ROWS.shape, deleting()) is None
    assert write(tmp_path / "cache") is not None


def test_two_writers_and_a_reader(tmp_path):
    """Two writers of one entry do not disturb each other, and mapped rows survive replacement and removal."""
    read = []

    def meanwhile():
        yield ROWS[:20]
        read.append(write(tmp_path))
        yield ROWS[20:]

    read.append(row_cache.write(tmp_path, KEY, ROWS.shape, meanwhile()))
    shutil.rmtree(tmp_path)
    for rows in read:
        np.testing.assert_array_equal(rows, ROWS)


def test_killed_writer(tmp_path):
    """The next writer removes the file of a killed one."""
    pid = os.fork()
    if not pid:
        row_cache.write(tmp_path, KEY, ROWS.shape, (os.kill(os.getpid(), signal.SIGKILL) or row for row in ROWS))
    os.waitpid(pid, 0)
    (remnant,) = tmp_path.iterdir()
    assert remnant.suffix == ".partial"
    assert row_cache.read(tmp_path, KEY) is None
    assert write(tmp_path) is not None
    assert list(tmp_path.iterdir()) == [entry(tmp_path)]
