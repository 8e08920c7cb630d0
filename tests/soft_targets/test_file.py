"""The soft-target file: read by plain h5py as documented, joined by key, damaged in no way unseen."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdistill import soft_targets
from kdistill.data.keys import row_keys
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.soft_targets import SoftTargets, align, writer
from kdistill.soft_targets.storage import Logits, LogitStorage
from kdistill.workspace import Input, Manifest, Workspace
from kdistill.workspace.resume_log import BlockLog

ROWS, CLASSES = 300, 7
IDENTITY = Manifest(
    kind="soft targets",
    settings={
        "temperature": 4.0,
        "batch_size": 32,
        "dtype": "float32",
        "top_k": None,
        "mean": None,
        "signature": None,
        "output": None,
        "teacher_input": "scaled",
    },
    inputs={"dataset": Input("some", "sha256:d"), "teacher": Input("teacher", "sha256:t")},
)


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(0)
    inputs = draw.integers(0, 256, (ROWS, 3, 3)).astype(np.uint8)
    logits = draw.normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
    labels = np.where(draw.random(ROWS) < 0.8, logits.argmax(axis=1), draw.integers(0, CLASSES, ROWS))
    return row_keys(inputs), logits, labels


def write(place, rows, *, labels=None, manifest=IDENTITY, size=32, classes=CLASSES):
    keys, logits, own = rows
    artifact = Workspace(place).soft_targets("soft-targets")
    artifact.path.parent.mkdir(exist_ok=True)
    storage = LogitStorage(classes, 4.0, manifest.settings["dtype"], manifest.settings["top_k"])
    log = begin(place, manifest, storage)
    for start in range(log.rows, len(keys), size):
        block = slice(start, start + size)
        log.append({"row_keys": keys[block], **storage.store(logits[block]).arrays()})
    given_labels = own if labels is None else labels
    said = {"model": "cnn", "parameters": 1, "probabilities": [False]}
    soft_targets.write(artifact.path, log, manifest, given_labels, storage, start_time=0.0, teacher=said)
    log.close()
    return artifact


def begin(place, manifest=IDENTITY, storage=None):
    return BlockLog(
        place / "blocks.log", manifest, {"row_keys": ((16,), "u1"), **(storage or LogitStorage(CLASSES, 4.0)).columns}
    )


@pytest.mark.parametrize("shape", [(60_000, 40, 10), (60_000, 10), (26_215, 10), (5, 300_000), (1, 10), (60_000,)])
def test_chunks_waste_nothing(tmp_path, shape):
    """Chunks are of a megabyte at most, unless a row is more, and hold hardly more rows than there are."""
    with h5py.File(tmp_path / "some.h5", "w") as file:
        made = writer.create_dataset(file, "logits", shape, "<f4")
        assert made.shape == shape
        assert made.chunks[1:-1] == (1,) * len(shape[1:-1])
        assert np.prod(made.chunks) * 4 <= max(writer.CHUNK_BYTES, 4 * shape[-1])
        chunks = -(-shape[0] // made.chunks[0])
        assert chunks * made.chunks[0] < shape[0] + chunks


def joined(soft, keys, labels):
    """The logits of rows, as a student would get them."""
    return soft.take(align(soft, keys, labels, "rows").positions).dense()


@pytest.fixture
def artifact(tmp_path, rows):
    return write(tmp_path, rows)


def test_plain_h5py_reads_it_as_documented(artifact, rows):
    """Shapes, types, checksums, attributes and contents are those of the README."""
    keys, logits, labels = rows
    with h5py.File(artifact.path) as file:
        assert {name: (item.shape, item.dtype.str) for name, item in file.items()} == {
            "logits": ((ROWS, CLASSES), "<f4"),
            "soft_targets": ((ROWS, CLASSES), "<f4"),
            "labels": ((ROWS,), "<i8"),
            "row_keys": ((ROWS, 16), "|u1"),
        }
        assert all(item.fletcher32 and item.chunks for item in file.values())
        assert (file["logits"][()] == logits).all()
        assert (file["row_keys"][()] == keys).all()
        assert (file["labels"][()] == labels).all()
        expected = np.exp(logits / 4.0) / np.exp(logits / 4.0).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(file["soft_targets"][()], expected, rtol=1e-5)
        assert file.attrs["temperature"] == 4.0
        assert file.attrs["teacher"].decode() == "teacher"
        assert file.attrs["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
        assert file.attrs["kdistill_format"] == 1


@given(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=2 * ROWS))
@settings(max_examples=40, deadline=None)
def test_join_is_by_content(made_once, places):
    """Any permutation, subset and repetition of the rows gets the logits of each."""
    soft, (keys, logits, labels) = made_once
    assert (joined(soft, keys[places], labels[places]) == logits[places]).all()


@pytest.fixture(scope="module")
def made_once(tmp_path_factory, rows):
    return SoftTargets.open(write(tmp_path_factory.mktemp("soft"), rows)), rows


def test_unknown_rows_are_refused(artifact, rows):
    """Rows that the teacher never saw are counted, and the remedy named."""
    keys, _, labels = rows
    other = keys.copy()
    other[:17] ^= 1
    with pytest.raises(KdistillError, match=r"17 of the 300 training rows of mine .* kdistill soften --dataset mine"):
        align(SoftTargets.open(artifact), other, labels, "training rows of mine", "kdistill soften --dataset mine")


def test_changed_labels_are_refused(artifact, rows):
    """Labels other than those the accuracy was recorded with stop the run, with both numbers."""
    keys, logits, labels = rows
    then, now = ((logits.argmax(axis=1) == some).sum() for some in (labels, np.roll(labels, 1)))
    with pytest.raises(KdistillError, match=rf"\b{now} of these 300 .*\b{then}\b.* kdistill soften"):
        align(SoftTargets.open(artifact), keys, np.roll(labels, 1), "some")


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e20])
def test_unusable_logits_are_refused(tmp_path, rows, monkeypatch, value):
    """With the teacher and the row when a file is written, with the file and the row when one is read."""
    keys, logits, labels = (array.copy() for array in rows)
    logits[[77, 200], 3] = value
    with pytest.raises(KdistillError, match=r"^teacher: the logits of row 77 "):
        write(tmp_path, (keys, logits, labels))
    monkeypatch.setattr(Logits, "check", lambda *_: None)
    soft = SoftTargets.open(write(tmp_path, (keys, logits, labels)))
    for read in (soft.check, lambda: align(soft, keys, labels, "some")):
        with pytest.raises(KdistillError, match=r"soft-targets\.h5: the logits of row 77 .* kdistill soften .*--force"):
            read()


def test_duplicates_with_different_labels_are_fine(tmp_path, rows):
    """A row that the dataset holds twice, labelled differently, is no reason to refuse either."""
    keys, logits, labels = (array.copy() for array in rows)
    keys[1], logits[1], labels[1] = keys[0], logits[0], (labels[0] + 1) % CLASSES
    soft = SoftTargets.open(write(tmp_path, (keys, logits, labels)))
    assert (joined(soft, keys, labels) == logits).all()
    assert (joined(soft, keys[1:], labels[1:]) == logits[1:]).all()


def test_keys_with_zero_bytes_are_told_apart(tmp_path, rows):
    """Keys that end in zeros, or differ in the last byte only, are different keys."""
    keys, logits, labels = (array.copy() for array in rows)
    keys[:3] = 0
    keys[1, 15], keys[2, 0] = 1, 1
    soft = SoftTargets.open(write(tmp_path, (keys, logits, labels)))
    assert (joined(soft, keys[[2, 0, 1]], labels[[2, 0, 1]]) == logits[[2, 0, 1]]).all()


def rewrite(artifact, name, change):
    with h5py.File(artifact.path, "r+") as file:
        file[name][...] = change(file[name][()])


@pytest.mark.parametrize("name", ["logits", "row_keys", "labels"])
def test_permuted_file_trains_no_student(artifact, rows, name):
    """Rows moved within the file, by any program, are seen when it is read."""
    keys, _, labels = rows
    rewrite(artifact, name, lambda values: np.roll(values, 1, axis=0))
    with pytest.raises(KdistillError, match="digest"):
        align(SoftTargets.open(artifact), keys, labels, "some")


def test_permuted_logits_with_a_matching_digest_are_refused(artifact, rows, tmp_path):
    """Even where the digest was made anew, the accuracy recorded at writing no longer holds."""
    keys, logits, labels = rows
    honest = SoftTargets.open(artifact)
    (tmp_path / "other").mkdir()
    forged = SoftTargets.open(write(tmp_path / "other", (keys, np.roll(logits, 1, axis=0), labels)))
    forged.file.close()
    results = {**forged.manifest.results, "correct": honest.manifest.results["correct"]}
    with h5py.File(forged.path, "r+") as file:
        text = forged.manifest.to_json().replace(
            f'"correct": {forged.manifest.results["correct"]}', f'"correct": {results["correct"]}'
        )
        file.attrs["manifest"] = text
    with pytest.raises(KdistillError, match=f"{results['correct']}"):
        align(SoftTargets.open(write_artifact(forged)), keys, labels, "some")


def write_artifact(soft):
    return Workspace(soft.path.parent.parent).soft_targets("soft-targets")


def test_resumed_log_gives_the_same_file(tmp_path, rows):
    """A log cut anywhere goes on after its last whole record, and ends with the same bytes in every dataset."""
    (tmp_path / "whole").mkdir()
    whole = write(tmp_path / "whole", rows)
    contents = (tmp_path / "whole" / "blocks.log").read_bytes()
    head, record = contents.index(b"\n") + 1, 28 + 32 * (16 + 4 * CLASSES)
    for cut in (0, 10, 700, 3000, len(contents) - 1, len(contents)):
        place = tmp_path / f"cut-{cut}"
        place.mkdir()
        (place / "blocks.log").write_bytes(contents[:cut])
        log = begin(place)
        assert log.rows == min(ROWS, max(0, cut - head) // record * 32) if cut < len(contents) else ROWS
        log.close()
        again = write(place, rows)
        with h5py.File(whole.path) as one, h5py.File(again.path) as other:
            for name in one:
                assert one[name][()].tobytes() == other[name][()].tobytes()


def test_log_of_another_identity_is_not_resumed(tmp_path, rows):
    """A log begun with another temperature starts over."""
    keys, logits, _ = rows
    log = begin(tmp_path)
    log.append({"row_keys": keys[:32], "logits": logits[:32] + 1})
    log.close()
    other = Manifest(kind="soft targets", settings={**IDENTITY.settings, "temperature": 8.0}, inputs=IDENTITY.inputs)
    assert begin(tmp_path, other).rows == 0


def test_newer_format_is_refused_by_name(artifact):
    with h5py.File(artifact.path, "r+") as file:
        file.attrs["kdistill_format"] = 99
    with pytest.raises(KdistillError, match=r"format 99.*upgrade"):
        SoftTargets.open(artifact)


def test_other_hdf5_is_refused(artifact):
    with h5py.File(artifact.path, "w") as file:
        file["x"] = [1]
    with pytest.raises(KdistillError, match="no soft-target file"):
        SoftTargets.open(artifact)


def test_temperature_is_a_view_of_the_logits(artifact, rows):
    """The stored logits are the teacher's own, so that any temperature can be had from them."""
    _, logits, _ = rows
    with h5py.File(artifact.path) as file:
        stored = file["soft_targets"][()]
    soft = SoftTargets.open(artifact)
    again = soft.take(np.arange(ROWS)).dense()
    np.testing.assert_allclose(np.exp(metrics.log_softmax(again, soft.temperature)), stored, rtol=1e-5)
    assert (again == logits).all()


def everything(artifact, rows):
    keys, _, labels = rows
    soft = SoftTargets.open(artifact)
    soft.check()
    return joined(soft, keys, labels).tobytes(), soft.temperature, soft.manifest


def test_flipped_bits_are_seen_or_harmless(artifact, rows):
    """200 random bit flips: each is an error in one line, or has no effect on anything that is read."""
    expected = everything(artifact, rows)
    whole = artifact.path.read_bytes()
    draw = np.random.default_rng(11)
    seen = 0
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[draw.integers(len(whole))] ^= 1 << draw.integers(8)
        artifact.path.unlink()
        artifact.path.write_bytes(flipped)
        try:
            found = everything(artifact, rows)
        except KdistillError:
            seen += 1
        else:
            assert found == expected
    assert seen > 100


@pytest.mark.parametrize("kept", [0, 1, 100, 2000, 10_000, -1])
def test_truncated_file_is_damaged(artifact, rows, kept):
    artifact.path.write_bytes(artifact.path.read_bytes()[:kept])
    with pytest.raises(KdistillError, match=r"soft-targets\.h5 is damaged.*kdistill soften .*--force"):
        everything(artifact, rows)


def replace(artifact, name, make):
    with h5py.File(artifact.path, "r+") as file:
        values = file[name][()]
        del file[name]
        make(file, name, values)


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


@pytest.mark.parametrize("trick", [external_link, soft_link, external_storage, virtual, group, huge, empty])
def test_file_that_points_elsewhere_is_refused(artifact, trick):
    """Nothing outside the file is read, and no memory is taken on a file's word."""
    replace(artifact, "logits", trick)
    with pytest.raises(KdistillError, match=r"logits (is not|claims)|is damaged"):
        SoftTargets.open(artifact)


def test_manifest_that_claims_much_is_refused(artifact):
    """A manifest of 10^12 rows does not reserve memory for them."""
    with h5py.File(artifact.path, "r+") as file:
        file.attrs["manifest"] = file.attrs["manifest"].decode().replace('"rows": 300', '"rows": 1000000000000')
    with pytest.raises(KdistillError, match="not the"):
        SoftTargets.open(artifact)


@pytest.mark.parametrize("text", ["", "{}", "null", '{"format": 1}', "[" * 10_000])
def test_spoiled_manifest_in_the_file(artifact, text):
    with h5py.File(artifact.path, "r+") as file:
        file.attrs["manifest"] = text
    with pytest.raises(KdistillError, match=r"not a manifest|damaged"):
        SoftTargets.open(artifact)
