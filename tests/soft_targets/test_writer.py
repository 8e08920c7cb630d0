"""Writing a soft-target file: its chunks, resuming from any point of the log, and logits that are refused."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from helpers import mentions

from kdistill.errors import KdistillError
from kdistill.soft_targets import writer


@pytest.mark.parametrize("shape", [(60_000, 40, 10), (60_000, 10), (26_215, 10), (5, 300_000), (1, 10), (60_000,)])
def test_chunks_waste_nothing(tmp_path, shape):
    """A chunk has at most a megabyte, unless a row is larger, and all chunks together few rows more than the data."""
    with h5py.File(tmp_path / "some.h5", "w") as file:
        dataset = writer.create_dataset(file, "logits", shape, "<f4")
        assert dataset.shape == shape
        assert dataset.chunks[1:-1] == (1,) * len(shape[1:-1])
        assert np.prod(dataset.chunks) * 4 <= max(writer.CHUNK_BYTES, 4 * shape[-1])
        chunks = -(-shape[0] // dataset.chunks[0])
        assert chunks * dataset.chunks[0] < shape[0] + chunks


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e20])
def test_unusable_logits_are_refused(tmp_path, rows, write, value):
    """The message names the teacher and the first row."""
    keys, logits, labels = rows
    logits = logits.copy()
    logits[[77, 200], 3] = value
    with pytest.raises(KdistillError) as error:
        write(tmp_path, (keys, logits, labels))
    assert mentions(str(error.value), "teacher", "row 77")


def test_resumed_log_gives_the_same_file(tmp_path, rows, write, open_log):
    """A log that was cut anywhere resumes after its last complete record, and every dataset has the same bytes."""
    complete = write(tmp_path / "complete", rows)
    contents = (tmp_path / "complete" / "blocks.log").read_bytes()
    head, record = contents.index(b"\n") + 1, 28 + 32 * (16 + 4 * 7)
    for cut in (0, 10, 700, 3000, len(contents) - 1, len(contents)):
        place = tmp_path / f"cut-{cut}"
        place.mkdir()
        (place / "blocks.log").write_bytes(contents[:cut])
        log = open_log(place)
        assert log.rows == (300 if cut == len(contents) else max(0, cut - head) // record * 32)
        log.close()
        resumed = write(place, rows)
        with h5py.File(complete.path) as one, h5py.File(resumed.path) as other:
            assert {name: one[name][()].tobytes() for name in one} == {
                name: other[name][()].tobytes() for name in other
            }


def test_damaged_log_resumes_before_the_damage(tmp_path, rows, write, open_log):
    """A record whose checksum is wrong is dropped, with all that follow it."""
    write(tmp_path, rows)
    contents = bytearray((tmp_path / "blocks.log").read_bytes())
    contents[contents.index(b"\n") + 1 + 2 * (28 + 32 * (16 + 4 * 7)) + 100] ^= 1
    (tmp_path / "blocks.log").write_bytes(contents)
    assert open_log(tmp_path).rows == 64


def test_log_of_another_identity_is_not_resumed(tmp_path, rows, open_log):
    """A log of another temperature starts over."""
    keys, logits, _ = rows
    log = open_log(tmp_path)
    log.append({"row_keys": keys[:32], "logits": logits[:32]})
    log.close()
    assert (open_log(tmp_path).rows, open_log(tmp_path).restarted) == (32, False)
    other = open_log(tmp_path, temperature=8.0)
    assert (other.rows, other.restarted) == (0, True)
