"""The soft-target file: what a teacher said of each row of a transfer set, in HDF5, found again by row key.

| dataset | shape, type | what |
|---|---|---|
| `logits` | (rows, classes) float32 | the teacher's logits, of which any temperature is a view |
| `soft_targets` | (rows, classes) float32 | softmax(logits / T), T being the attribute `temperature` |
| `labels` | (rows,) int64 | hard labels |
| `row_keys` | (rows, 16) uint8 | `data.row_keys` of each input row |

Fletcher-32 checksums guard the data and HDF5's own the metadata (`libver="latest"`); the attribute `digest` is a
SHA-256 over the contents of `row_keys`, `labels` and `logits`; the attribute `manifest` is the artifact's manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdistill import data, metrics
from kdistill.errors import KdistillError
from kdistill.settings import check_batch_size, check_temperature
from kdistill.workspace import FORMAT, Artifact, Manifest, recorded

Floats = NDArray[np.float32]
Keys = NDArray[np.uint8]

CHUNK_BYTES = 1 << 20
BLOCK_ROWS = 10_000
_RECORD = struct.Struct("<QQI")  # first row, rows, CRC-32 of keys and logits


class BlockLog:
    """What the teacher has said so far: an append-only file of checked records, which a killed run leaves behind.

    The first line is the identity of the file being made; each record holds the keys and logits of one batch. A
    record that was cut short is dropped on opening, so that work goes on after the last whole one. A log of another
    identity is begun anew, which `restarted` tells.
    """

    def __init__(self, path: Path, identity: Manifest, classes: int) -> None:
        self.path = path
        self._row_bytes = 16 + 4 * classes
        self._classes = classes
        head = identity.to_json().replace("\n", " ").encode() + b"\n"
        self._start = len(head)
        self.rows = 0
        self.restarted = False
        self._file = path.open("a+b", buffering=0)  # what could not be written must not be tried again on closing
        self._file.seek(0)
        if self._file.read(len(head)) != head:
            self.restarted = self._file.tell() > 0
            self._file.truncate(0)
            self._append(head)
        else:
            end = self._start
            for keys, _ in self._records():
                self.rows += len(keys)
                end = self._file.tell()
            self._file.truncate(end)

    def _records(self) -> Iterator[tuple[Keys, Floats]]:
        self._file.seek(self._start)
        following = 0
        while len(head := self._file.read(_RECORD.size)) == _RECORD.size:
            first, rows, checksum = _RECORD.unpack(head)
            left = os.fstat(self._file.fileno()).st_size - self._file.tell()
            if first != following or rows * self._row_bytes > left:
                return
            body = self._file.read(rows * self._row_bytes)
            if zlib.crc32(body) != checksum:
                return
            following += rows
            keys = np.frombuffer(body, np.uint8, rows * 16).reshape(rows, 16)
            logits = np.frombuffer(body, "<f4", offset=rows * 16).reshape(rows, self._classes)
            yield keys, logits

    def append(self, keys: Keys, logits: Floats) -> None:
        """Add one batch: keys (rows, 16), logits (rows, classes)."""
        body = keys.tobytes() + logits.astype("<f4").tobytes()
        self._append(_RECORD.pack(self.rows, len(keys), zlib.crc32(body)) + body)
        self.rows += len(keys)

    def _append(self, contents: bytes) -> None:
        left = memoryview(contents)
        while left:
            left = left[self._file.write(left) :]

    def write_file(
        self,
        path: Path,
        identity: Manifest,
        labels: NDArray[np.int64],
        *,
        temperature: float,
        seconds: float,
        teacher: dict[str, Any],
    ) -> Manifest:
        """Write the soft-target file from all records; one batch in memory at a time."""
        rows, classes = self.rows, self._classes
        if rows != len(labels):
            raise KdistillError(f"{self.path} holds {rows:,} rows and the transfer set {len(labels):,}: run this again")
        correct = 0
        content = _Content()
        with _Disk(path) as disk, h5py.File(disk, "w", libver="latest") as file:
            made = {
                name: _create(file, name, (rows, *shape), dtype)
                for name, shape, dtype in (
                    ("logits", (classes,), "<f4"),
                    ("soft_targets", (classes,), "<f4"),
                    ("labels", (), "<i8"),
                    ("row_keys", (16,), "u1"),
                )
            }
            start = 0
            for keys, logits in self._records():
                end = start + len(keys)
                made["row_keys"][start:end] = keys
                made["logits"][start:end] = logits
                made["soft_targets"][start:end] = np.exp(metrics.log_softmax(logits, temperature))
                made["labels"][start:end] = labels[start:end]
                content.add(keys, labels[start:end], logits)
                correct += len(keys) - metrics.errors(logits, labels[start:end])
                start = end
            results = {"rows": rows, "classes": classes, "correct": correct, "teacher": teacher}
            manifest = recorded(identity, outputs={"content": content.digest()}, results=results, seconds=seconds)
            attributes: dict[str, Any] = {
                "kdistill_format": FORMAT,
                "temperature": temperature,
                "teacher": identity.inputs["teacher"].name,
                "teacher_digest": identity.inputs["teacher"].digest,
                "dataset": identity.inputs["dataset"].name,
                "dataset_digest": identity.inputs["dataset"].digest,
                "accuracy": correct / rows,
                "digest": content.digest(),
                "manifest": manifest.to_json(),
            }
            for name, value in attributes.items():
                file.attrs[name] = _checked(value) if isinstance(value, str) else value
        return manifest

    def close(self) -> None:
        self._file.close()


class _Disk(io.FileIO):
    """A new file for HDF5 to write to, which tells of a full disk when it is closed.

    HDF5 (1.14.6, with h5py 3.14.0) never returns from closing a file whose last blocks can't be written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, block: Any) -> int:
        try:
            left = memoryview(block)
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = self.error or error
        return len(block)

    def close(self) -> None:
        super().close()
        if self.error:
            raise self.error


class _Content:
    """A digest of what the file says, the same whatever the blocks it was written or read in."""

    def __init__(self) -> None:
        self._parts = [hashlib.sha256() for _ in range(3)]

    def add(self, keys: Keys, labels: NDArray[np.int64], logits: Floats) -> None:
        for part, array, dtype in zip(self._parts, (keys, labels, logits), ("u1", "<i8", "<f4"), strict=True):
            part.update(np.ascontiguousarray(array, dtype).data)

    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(b"".join(part.digest() for part in self._parts)).hexdigest()


def _checked(text: str) -> NDArray[Any]:
    """Text of fixed length, which HDF5 keeps in the checksummed header, not in its heap of variable lengths."""
    contents = text.encode()
    return np.array(contents, h5py.string_dtype("utf-8", len(contents)))


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    row_bytes = np.dtype(dtype).itemsize * int(np.prod(shape[1:]))
    rows = max(1, min(shape[0], CHUNK_BYTES // row_bytes))
    return file.create_dataset(name, shape, dtype, chunks=(rows, *shape[1:]), fletcher32=True)


class SoftTargets:
    """A soft-target file that is there; what it says of itself is checked when it is opened.

    It is held open: whatever takes its place meanwhile, one reader reads one file.

    Args:
        path: the file, in a workspace or anywhere else.
        remedy: the command that makes it again, for messages.

    Attributes:
        temperature: T of `soft_targets()`.
        rows: how many examples it speaks of.
        classes: how many logits each has.
        manifest: what it came from.

    Raises:
        KdistillError: if there is none, or it is damaged, or of a newer format, or none of kdistill's.
    """

    def __init__(self, path: str | os.PathLike[str], *, remedy: str = "kdistill soften --force") -> None:
        path = Path(path)
        if path.is_dir():
            raise KdistillError(f"{path} is a directory where a soft-target file is meant: remove it")
        if not path.exists():
            raise KdistillError(f"there is no soft-target file {path}: kdistill soften")
        with _readable(path, remedy):
            file = h5py.File(path, "r", locking=False)
            version = file.attrs.get("kdistill_format")
            if version is None:
                raise KdistillError(f"{path} is no soft-target file of kdistill's: {remedy}")
            if int(version) > FORMAT:
                raise KdistillError(
                    f"{path} has format {int(version)}, and this kdistill reads up to {FORMAT}: upgrade kdistill"
                )
            manifest = Manifest.from_json(np.asarray(file.attrs["manifest"]).item(), str(path), remedy)
            rows, classes = int(manifest.results["rows"]), int(manifest.results["classes"])
            shapes = {"logits": (rows, classes), "soft_targets": (rows, classes), "labels": (rows,)}
            shapes["row_keys"] = (rows, 16)
            for name, shape in shapes.items():
                dataset = file.get(name, getlink=True)
                if not isinstance(dataset, h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
                    raise KdistillError(f"{path}: {name} is not a dataset of this file: {remedy}")
                if file[name].external or file[name].is_virtual or file[name].shape != shape:
                    raise KdistillError(f"{path}: {name} is not the {shape} array that its manifest says: {remedy}")
                if file[name].id.get_storage_size() < file[name].nbytes:
                    raise KdistillError(f"{path}: {name} claims {shape} and holds less: {remedy}")
        self.path = path
        self.manifest = manifest
        self.temperature = float(file.attrs["temperature"])
        self.rows = rows
        self.classes = classes
        self.file = file
        self.remedy = remedy

    def __repr__(self) -> str:
        return (
            f"SoftTargets({str(self.path)!r}): {self.rows:,} rows of {self.classes} classes, T = {self.temperature:g}"
        )

    @classmethod
    def open(cls, artifact: Artifact) -> SoftTargets | None:
        """The soft targets of a workspace, None if there are none.

        Raises:
            KdistillError: if the file is damaged, or of a newer format, or none of kdistill's.
        """
        return cls(artifact.path, remedy=f"{artifact.command} --force") if artifact.path.exists() else None

    @property
    def digest(self) -> str:
        return self.manifest.outputs["content"]

    @property
    def model(self) -> str:
        """The teacher's architecture, which a student has too unless told otherwise."""
        return str(self.manifest.results["teacher"]["model"])

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[Keys, NDArray[np.int64], Floats]]:
        """Keys, labels and logits in order; reading to the end checks the digest of all.

        Raises:
            KdistillError: if the file is damaged.
        """
        content = _Content()
        correct = 0
        with _readable(self.path, self.remedy):
            keys, labels, logits = (self.file[name] for name in ("row_keys", "labels", "logits"))
            for start in range(0, self.rows, rows):
                block = slice(start, min(start + rows, self.rows))
                parts = keys[block], labels[block], logits[block]
                content.add(*parts)
                correct += len(parts[1]) - metrics.errors(parts[2], parts[1])
                yield parts
        if content.digest() != self.digest:
            raise KdistillError(f"{self.path} is not what was written (its digest differs): {self.remedy}")
        if correct != self.manifest.results["correct"]:
            raise KdistillError(
                f"{self.path}: its teacher is right on {correct:,} of its {self.rows:,} rows, and was on "
                f"{self.manifest.results['correct']:,} when it was written: {self.remedy}"
            )

    @cached_property
    def _arrays(self) -> tuple[Keys, NDArray[np.int64], Floats]:
        parts = list(self.blocks())
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]

    def check_view(self) -> None:
        """Check that the stored soft targets are the stored logits at the stored temperature.

        Raises:
            KdistillError: if they are not, or the file is damaged.
        """
        with _readable(self.path, self.remedy):
            for start in range(0, self.rows, BLOCK_ROWS):
                block = slice(start, min(start + BLOCK_ROWS, self.rows))
                expected = np.exp(metrics.log_softmax(self.file["logits"][block], self.temperature))
                if not np.allclose(self.file["soft_targets"][block], expected, rtol=1e-4, atol=1e-7):
                    raise KdistillError(
                        f"{self.path}: soft_targets are not softmax(logits / {self.temperature:g}): {self.remedy}"
                    )

    @property
    def keys(self) -> Keys:
        """All row keys in the file's order, (rows, 16)."""
        return self._arrays[0]

    @property
    def labels(self) -> NDArray[np.int64]:
        """All hard labels in the file's order, (rows,)."""
        return self._arrays[1]

    def logits(self) -> Floats:
        """All logits in the file's order, (rows, classes)."""
        return self._arrays[2]

    def soft_targets(self, temperature: float | None = None) -> Floats:
        """softmax(logits / T) in the file's order, (rows, classes); T is the file's unless another is given."""
        scale = self.temperature if temperature is None else check_temperature(temperature)
        return np.exp(metrics.log_softmax(self.logits(), scale)).astype(np.float32)

    def dataset(
        self,
        inputs: NDArray[Any],
        labels: NDArray[np.integer[Any]] | None = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
    ) -> Any:
        """What `Model.fit` takes for a model compiled with a `DistillationLoss`.

        Args:
            inputs: (rows, ...), some or all of the inputs that the teacher was asked about, as they were then, in
                any order: they are found by their contents.
            labels: (rows,) whole numbers; the file's if they aren't given.
            batch_size: rows a step.
            shuffle: give the rows in another order each epoch.
            seed: of the order.

        Returns:
            A `tf.data.Dataset` of batches of inputs, float32 (uint8 scaled to [0, 1]), and of `losses.targets`.

        Raises:
            KdistillError: as `join`.
            UsageError: if the batch size is below 1.
        """
        check_batch_size(batch_size)
        keys = data.row_keys(np.asarray(inputs))
        rows = self._find(
            keys, "inputs", "give them with the type, shape and values they have there, as not yet scaled"
        )
        labels = self.labels[rows] if labels is None else np.asarray(labels, np.int64)
        self._gate(rows, labels)
        logits = self.logits()[rows]

        from kdistill.backend import tf
        from kdistill.losses import targets
        from kdistill.saved_models import scaled

        with tf.device("CPU"):
            columns = [tf.convert_to_tensor(column) for column in (inputs, labels, logits)]
        order = tf.data.Dataset.range(len(keys))
        if shuffle:
            order = order.shuffle(len(keys), seed=seed)

        def batch(places: Any) -> tuple[Any, Any]:
            rows, labels, logits = (tf.gather(column, places) for column in columns)
            return scaled(rows), targets(labels, logits)

        return order.batch(batch_size).map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def join(self, keys: Keys, labels: NDArray[np.int64], dataset: str) -> Floats:
        """The teacher's logits of each row, found by key, never by position.

        Args:
            keys: (n, 16), `data.row_keys` of the inputs to be trained on, in any order, with any repetition.
            labels: (n,) their hard labels.
            dataset: its name, for messages.

        Returns:
            (n, classes).

        Raises:
            KdistillError: if a row is not in the file, or if the labels are not those that the file's accuracy was
                recorded with.
        """
        rows = self._find(keys, f"training rows of {dataset}", f"kdistill soften --dataset {dataset}")
        self._gate(rows, labels)
        return self.logits()[rows]

    @cached_property
    def _order(self) -> tuple[NDArray[Any], NDArray[np.intp]]:
        """The keys as names, and the order that sorts them."""
        names = _sortable(self.keys)
        return names, np.argsort(names, kind="stable")

    def _find(self, keys: Keys, whose: str, remedy: str) -> NDArray[np.intp]:
        """Where in the file each key stands; the first place, of those that stand there twice."""
        names, order = self._order
        place = np.searchsorted(names[order], wanted := _sortable(keys))
        rows = order[np.minimum(place, self.rows - 1)]
        missing = int((names[rows] != wanted).sum())
        if missing:
            raise KdistillError(
                f"{missing:,} of the {len(keys):,} {whose} are not in {self.path}, which was made from "
                f"{self.manifest.inputs['dataset'].name}: {remedy}"
            )
        return rows

    def _gate(self, rows: NDArray[np.intp], labels: NDArray[np.int64]) -> None:
        """The teacher must be as often right on the joined labels as it was on the file's.

        Rows that stand in the file twice with different labels are left out: either label may be meant.
        """
        names, order = self._order
        _, known, logits = self._arrays
        same_key = names[order][1:] == names[order][:-1]
        conflict = same_key & (known[order][1:] != known[order][:-1])
        doubtful = np.isin(names[rows], names[order][1:][conflict]) if conflict.any() else np.zeros(len(rows), bool)
        said = logits.argmax(axis=1)[rows]
        then = int(((said == known[rows]) & ~doubtful).sum())
        now = int(((said == labels) & ~doubtful).sum())
        if then != now:
            count = int((~doubtful).sum())
            raise KdistillError(
                f"the teacher of {self.path} was right on {then:,} of these {count:,} rows ({then / count:.2%}) when "
                f"the file was written and is on {now:,} ({now / count:.2%}) with the labels given now: the labels "
                "have changed; kdistill soften again"
            )


def _sortable(keys: Keys) -> NDArray[Any]:
    """Keys (rows, 16) as (rows,) strings of fixed length, which NumPy sorts and compares as bytes."""
    return np.ascontiguousarray(keys).view("S16").ravel()


@contextlib.contextmanager
def _readable(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except KdistillError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise KdistillError(f"{path} is damaged and can't be read as a soft-target file: {remedy}") from None
