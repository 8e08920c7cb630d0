"""The soft-target file: read by plain h5py as documented, and refused if it is damaged in any way."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from helpers import mentions

from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.soft_targets import SoftTargets, align
from kdistill.soft_targets.storage import Logits


def read_all(artifact, rows):
    """Check a file and return everything that is read from it."""
    keys, _, labels = rows
    soft = SoftTargets.open(artifact)
    soft.check()
    logits = align(soft, keys, labels, "rows").at(np.arange(len(keys))).dense()
    return logits.tobytes(), soft.temperature, soft.manifest


def set_attribute(artifact, name, value):
    with h5py.File(artifact.path, "r+") as file:
        file.attrs[name] = value


def test_plain_h5py_reads_it_as_documented(artifact, rows):
    """Shapes, types, checksums, attributes and contents are the documented ones."""
    keys, logits, labels = rows
    with h5py.File(artifact.path) as file:
        assert {name: (item.shape, item.dtype.str) for name, item in file.items()} == {
            "logits": ((300, 7), "<f4"),
            "soft_targets": ((300, 7), "<f4"),
            "labels": ((300,), "<i8"),
            "row_keys": ((300, 16), "|u1"),
        }
        assert all(item.fletcher32 and item.chunks for item in file.values())
        assert (file["logits"][()] == logits).all()
        assert (file["row_keys"][()] == keys).all()
        assert (file["labels"][()] == labels).all()
        expected = np.exp(logits / 4.0) / np.exp(logits / 4.0).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(file["soft_targets"][()], expected, rtol=1e-5)
        assert file.attrs["temperature"] == 4.0
        assert file.attrs["teacher"].decode() == "teacher"
        assert file.attrs["score"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
        assert file.attrs["kdistill_format"] == 1


def test_take_reads_rows_in_any_order(artifact, rows, monkeypatch):
    """Rows from many blocks, repeated and out of order, come back in the order asked for."""
    monkeypatch.setattr("kdistill.soft_targets.file.BLOCK_BYTES", 1000)
    soft = SoftTargets.open(artifact)
    order = np.random.default_rng(0).integers(0, 300, 700)
    np.testing.assert_array_equal(soft.take(order).dense(), rows[1][order])
    assert len(soft.take(order[:0])) == 0


def test_soft_targets_follow_from_the_logits(artifact, rows):
    """The stored logits are the teacher's own; their softmax at the file's temperature is stored beside them."""
    with h5py.File(artifact.path) as file:
        stored = file["soft_targets"][()]
    soft = SoftTargets.open(artifact)
    assert (soft.logits() == rows[1]).all()
    np.testing.assert_allclose(soft.soft_targets(), stored, rtol=1e-5)
    np.testing.assert_allclose(soft.soft_targets(1.0), np.exp(metrics.log_softmax(rows[1])), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e20])
def test_unusable_logits_are_refused(tmp_path, rows, write, monkeypatch, value):
    """Logits that another program has written are refused by every reader, with the file, the row and the remedy."""
    keys, logits, labels = (array.copy() for array in rows)
    logits[[77, 200], 3] = value
    monkeypatch.setattr(Logits, "check", lambda *_: None)
    soft = SoftTargets.open(write(tmp_path, (keys, logits, labels)))
    for read in (soft.check, lambda: align(soft, keys, labels, "rows")):
        with pytest.raises(KdistillError) as error:
            read()
        assert mentions(str(error.value), soft.path, "row 77", "kdistill soften", "--force")


@pytest.mark.parametrize("name", ["logits", "row_keys", "labels", "soft_targets"])
def test_moved_rows_are_noticed(artifact, rows, name):
    """Rows that another program has moved within the file are noticed when it is read."""
    with h5py.File(artifact.path, "r+") as file:
        file[name][...] = np.roll(file[name][()], 1, axis=0)
    with pytest.raises(KdistillError, match=r"kdistill soften .*--force"):
        read_all(artifact, rows)


def test_moved_logits_with_a_matching_digest_are_noticed(tmp_path, rows, write):
    """Even if the digest matches, the recorded score of the teacher does not."""
    keys, logits, labels = rows
    score = int((logits.argmax(axis=1) == labels).sum())
    artifact = write(tmp_path, (keys, np.roll(logits, 1, axis=0), labels))
    manifest = SoftTargets.open(artifact).manifest
    recorded = manifest.results["score"]
    text = manifest.to_json().replace(f'"score": {recorded}', f'"score": {score}')
    set_attribute(artifact, "manifest", text)
    with pytest.raises(KdistillError) as error:
        read_all(artifact, rows)
    assert mentions(str(error.value), artifact.path, score, recorded)


def test_newer_format_is_refused(artifact):
    """The message has both versions of the format."""
    set_attribute(artifact, "kdistill_format", 99)
    with pytest.raises(KdistillError) as error:
        SoftTargets.open(artifact)
    assert mentions(str(error.value), artifact.path, 99, 1)


def test_other_hdf5_is_refused(artifact):
    """An HDF5 file of another program is refused with the command that writes soft targets."""
    with h5py.File(artifact.path, "w") as file:
        file["x"] = [1]
    with pytest.raises(KdistillError) as error:
        SoftTargets.open(artifact)
    assert mentions(str(error.value), artifact.path, "kdistill soften", "--force")


def test_flipped_bits_are_noticed_or_harmless(artifact, rows):
    """Each of 200 random bit flips either is an error or changes nothing that is read."""
    expected = read_all(artifact, rows)
    contents = artifact.path.read_bytes()
    draw = np.random.default_rng(11)
    noticed = 0
    for _ in range(200):
        flipped = bytearray(contents)
        flipped[draw.integers(len(contents))] ^= 1 << draw.integers(8)
        artifact.path.unlink()
        artifact.path.write_bytes(flipped)
        try:
            found = read_all(artifact, rows)
        except KdistillError:
            noticed += 1
        else:
            assert found == expected
    assert noticed > 100


@pytest.mark.parametrize("kept", [0, 1, 100, 2000, 10_000, -1])
def test_truncated_file_is_refused(artifact, rows, kept):
    """A file that was cut is refused with its path and the remedy."""
    artifact.path.write_bytes(artifact.path.read_bytes()[:kept])
    with pytest.raises(KdistillError) as error:
        read_all(artifact, rows)
    assert mentions(str(error.value), artifact.path, "kdistill soften", "--force")


def external_link(file, name, _):
    file[name] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_link(file, name, _):
    file[name] = h5py.SoftLink("/labels")


def external_storage(file, name, values):
    file.create_dataset(name, values.shape, values.dtype, external=[("/etc/passwd", 0, values.nbytes)])


def virtual(file, name, values):
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", values.shape)
    file.create_virtual_dataset(name, layout)


def group(file, name, _):
    file.create_group(name)


def huge(file, name, values):
    file.create_dataset(name, (10**12, *values.shape[1:]), values.dtype, chunks=(100, *values.shape[1:]))


def empty(file, name, values):
    file.create_dataset(name, values.shape, values.dtype, chunks=True)


@pytest.mark.parametrize("replacement", [external_link, soft_link, external_storage, virtual, group, huge, empty])
def test_dataset_that_is_elsewhere_or_empty_is_refused(artifact, replacement):
    """Nothing outside the file is read, and no memory is reserved for data that is not there."""
    with h5py.File(artifact.path, "r+") as file:
        values = file["logits"][()]
        del file["logits"]
        replacement(file, "logits", values)
    with pytest.raises(KdistillError) as error:
        SoftTargets.open(artifact)
    assert mentions(str(error.value), artifact.path, "kdistill soften", "--force")


def test_manifest_of_too_many_rows_is_refused(artifact):
    """A manifest of 10^12 rows does not reserve memory for them."""
    with h5py.File(artifact.path) as file:
        text = file.attrs["manifest"].decode()
    set_attribute(artifact, "manifest", text.replace('"rows": 300', '"rows": 1000000000000'))
    with pytest.raises(KdistillError) as error:
        SoftTargets.open(artifact)
    assert mentions(str(error.value), artifact.path, "1000000000000", "kdistill soften")


@pytest.mark.parametrize("text", ["", "{}", "null", '{"format": 1}', "[" * 10_000])
def test_damaged_manifest_is_refused(artifact, text):
    """A manifest that is not one is refused with the path of the file."""
    set_attribute(artifact, "manifest", text)
    with pytest.raises(KdistillError, match="kdistill soften") as error:
        SoftTargets.open(artifact)
    assert mentions(str(error.value), artifact.path)
