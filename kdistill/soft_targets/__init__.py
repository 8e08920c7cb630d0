"""The soft-target file: what a teacher said of each row of a transfer set, in HDF5, found again by row key.

| dataset | shape, type | what |
|---|---|---|
| `logits` | (rows, classes) float32 or float16 | the teacher's logits, of which any temperature is a view |
| `soft_targets` | as `logits` | softmax(logits / T), T being the attribute `temperature` |
| `labels` | (rows,) int64 | hard labels, -1 where there is none |
| `row_keys` | (rows, 16) uint8 | `kdistill.row_keys` of each input row |

A file of the k largest has `logits` (rows, k + 1), the last being the one that has the mass of all other classes at T,
and `top_classes` (rows, k): which class each of the others is.

A file of views has an axis of them after the rows: `logits` (rows, views, classes) and so on. View 0 is the row as it is,
the others are drawn by the seed in the manifest's settings, as `augmentation.Views` has it.

Fletcher-32 checksums guard the data and HDF5's own the metadata (`libver="latest"`); the attribute `digest` is a
SHA-256 over the contents of `row_keys`, `labels`, `logits` and `top_classes`; the attribute `manifest` is the
artifact's manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdistill.data import NO_LABEL, Dataset, Source, Split, joined, resolve, selected
from kdistill.data.keys import positions, row_keys, sortable
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.settings import Objective, Selection, Training, check_value
from kdistill.soft_targets.storage import Logits, LogitStorage, unusable, unusable_row
from kdistill.workspace import FORMAT, Artifact, Manifest, commands, recorded
from kdistill.workspace.resume_log import Block, BlockLog

if TYPE_CHECKING:
    from kdistill.data.augmentation import Views

Floats = NDArray[np.floating[Any]]
Keys = NDArray[np.uint8]
Labels = NDArray[np.int64]

CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 16 << 20


def write(
    path: Path,
    log: BlockLog,
    identity: Manifest,
    labels: Labels,
    form: LogitStorage,
    *,
    since: float,
    teacher: dict[str, Any],
) -> Manifest:
    """Write the soft-target file from a log of `row_keys` and a form's columns; one block in memory at a time.

    Args:
        path: of the new file.
        log: what the teacher said.
        identity: what the file is made from.
        labels: (rows,) of the transfer set.
        form: how the log holds logits.
        since: when the work began, by `time.perf_counter`.
        teacher: what a student may want to know of it.

    Returns:
        The manifest as written.
    """
    rows = log.rows
    if rows != len(labels):
        raise KdistillError(f"{log.path} holds {rows:,} rows and the transfer set {len(labels):,}: run this again")
    correct = 0
    content = _Content()
    with _Disk(path) as disk, h5py.File(disk, "w", libver="latest") as file:
        made = {name: _create(file, name, (rows, *shape), dtype) for name, (shape, dtype) in form.datasets.items()}
        start = 0
        for block in log.blocks():
            end = start + len(block["row_keys"])
            logits = Logits(form, block["logits"], block.get("top_classes"))
            logits.check(start, " + ".join(teacher_names(identity)))  # soft targets of such logits are finite at any T
            block["labels"] = labels[start:end]
            block["soft_targets"] = np.exp(metrics.log_softmax(block["logits"], form.temperature))
            for name, values in block.items():
                made[name][start:end] = values
            content.add(block)
            correct += _correct(logits, block["labels"])
            start = end
        labelled = int((labels != NO_LABEL).sum())
        results = {
            "rows": rows,
            "classes": form.classes,
            "labelled": labelled,
            "correct": correct,
            "teacher": teacher,
        }
        manifest = recorded(
            identity, outputs={"content": content.digest()}, results=results, seconds=time.perf_counter() - since
        )
        attributes: dict[str, Any] = {
            "kdistill_format": FORMAT,
            "temperature": form.temperature,
            "classes": form.classes,
            "teacher": ", ".join(teacher_names(identity)),
            "dataset": identity.inputs["dataset"].name,
            "accuracy": correct / labelled if labelled else float("nan"),
            "digest": content.digest(),
            "manifest": manifest.to_json(),
        }
        for name, value in attributes.items():
            file.attrs[name] = _checked(value) if isinstance(value, str) else value
    return manifest


def teacher_names(manifest: Manifest) -> list[str]:
    """Who was asked: names or paths of teachers, or the path of a file of logits."""
    return [made.name for made in manifest.made_from("teacher", "logits").values()]


def transfer_sources(manifest: Manifest, cache: Path | None = None) -> dict[str, Source]:
    """The transfer sets that a file was made from, by their role; none where it was the dataset's training rows.

    `cache` is a directory for decoded rows.
    """
    named = manifest.made_from("transfer_set")
    return {role: resolve(made.name, cache=cache) for role, made in named.items()}


def whole_transfer_set(manifest: Manifest, dataset: Dataset, cache: Path | None = None) -> Split:
    """The rows that those a file speaks of were selected from."""
    sources = transfer_sources(manifest, cache).values()
    return joined([source.transfer_set(dataset) for source in sources]) if sources else dataset.train


def transfer_set(manifest: Manifest, dataset: Dataset, cache: Path | None = None) -> Split:
    """The rows that a file speaks of: inputs and labels."""
    rows = whole_transfer_set(manifest, dataset, cache)
    return rows.chosen(selected(rows, Selection.of(manifest.settings), dataset))


def _correct(logits: Logits, labels: Labels) -> int:
    """How many rows have the teacher's most likely class for a label."""
    return int((logits.most_likely() == labels).sum())


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
        self._parts = {name: hashlib.sha256() for name in ("row_keys", "labels", "logits", "top_classes")}

    def add(self, block: Block) -> None:
        for name, part in self._parts.items():
            if name in block:
                part.update(np.ascontiguousarray(block[name], block[name].dtype.newbyteorder("<")).data)
            else:
                part.update(b"")

    def digest(self) -> str:
        whole = b"".join(part.digest() for part in self._parts.values())
        return "sha256:" + hashlib.sha256(whole).hexdigest()


def _checked(text: str) -> NDArray[Any]:
    """Text of fixed length, which HDF5 keeps in the checksummed header, not in its heap of variable lengths."""
    contents = text.encode()
    return np.array(contents, h5py.string_dtype("utf-8", len(contents)))


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """A new dataset; the chunks of one of views hold one view, which is what is read at a time.

    All are stored whole, so that they are made of a size by which the last is full, or nearly.
    """
    of_a_view = (*(1 for _ in shape[1:-1]), *shape[-1:]) if len(shape) > 1 else ()
    most = max(1, CHUNK_BYTES // (np.dtype(dtype).itemsize * math.prod(of_a_view)))
    rows = math.ceil(shape[0] / math.ceil(shape[0] / most))
    return file.create_dataset(name, shape, dtype, chunks=(rows, *of_a_view), fletcher32=True)


def recovered(artifact: Artifact) -> Manifest:
    """What the manifest in a soft-target file says of how it was made, however damaged the file is."""
    text: str | bytes = ""
    with contextlib.suppress(OSError, KeyError, ValueError, TypeError, RuntimeError):
        if not artifact.path.is_symlink():
            with h5py.File(artifact.path, "r", locking=False) as file:
                text = np.asarray(file.attrs["manifest"]).item()
    return Manifest.recovered(text, artifact.kind)


class SoftTargets:
    """A soft-target file that is there; what it says of itself is checked when it is opened.

    It is held open: whatever takes its place meanwhile, one reader reads one file.

    Args:
        path: the file, in a workspace or anywhere else.
        remedy: the command that makes it again, for messages.

    Attributes:
        temperature: T of `soft_targets()`.
        rows: how many examples it speaks of.
        classes: how many classes there are.
        form: how logits are stored.
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
            manifest = Manifest.from_json(
                np.asarray(file.attrs["manifest"]).item(), str(path), remedy, kind="soft targets"
            )
            settings, results = manifest.settings, manifest.results
            form = LogitStorage(
                results["classes"],
                float(file.attrs["temperature"]),
                settings["dtype"],
                settings["top_k"],
                settings.get("views"),
            )
            for name, (shape, dtype) in form.datasets.items():
                dataset = file.get(name, getlink=True)
                if not isinstance(dataset, h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
                    raise KdistillError(f"{path}: {name} is not a dataset of this file: {remedy}")
                wanted, stored = (results["rows"], *shape), file[name]
                if stored.external or stored.is_virtual or stored.shape != wanted or stored.dtype != np.dtype(dtype):
                    raise KdistillError(f"{path}: {name} is not the {wanted} array that its manifest says: {remedy}")
                if stored.id.get_storage_size() < stored.nbytes:
                    raise KdistillError(f"{path}: {name} claims {wanted} and holds less: {remedy}")
        self.path = path
        self.manifest = manifest
        self.form = form
        self.temperature = form.temperature
        self.rows = int(results["rows"])
        self.classes = form.classes
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
        artifact.refuse_links()
        if not artifact.path.exists():
            return None
        return cls(artifact.path, remedy=commands.remedy(artifact, recovered(artifact)))

    @property
    def digest(self) -> str:
        return self.manifest.outputs["content"]

    @property
    def model(self) -> str | None:
        """The teacher's architecture, which a student has too unless told otherwise; None if it is not known."""
        model = self.manifest.results["teacher"]["model"]
        return None if model is None else str(model)

    @property
    def teacher(self) -> str:
        """Who was asked: a name or a path, or several."""
        return ", ".join(teacher_names(self.manifest))

    @property
    def views(self) -> Views | None:
        """What the teacher saw of each row; None if it saw the row as it is, once."""
        from kdistill.data.augmentation import Views

        how = self.manifest.settings
        return Views(how["augment"], how["seed"], self.form.views) if self.form.views else None

    @property
    def exact_temperature(self) -> bool:
        """Whether the logits hold at any temperature, or only at the one that they were made for."""
        return self.form.top_k is None and self.manifest.settings["mean"] != "arithmetic"

    def blocks(self) -> Iterator[tuple[Keys, Labels, Logits]]:
        """Keys, labels and logits in order; reading to the end checks the digest of all.

        Raises:
            KdistillError: if the file is damaged.
        """
        content = _Content()
        correct = 0
        step = self._block_rows
        names = ("row_keys", "labels", *self.form.columns)
        with _readable(self.path, self.remedy):
            for start in range(0, self.rows, step):
                block = {name: self.file[name][start : start + step] for name in names}
                logits = Logits(self.form, block["logits"], block.get("top_classes"))
                if (row := unusable_row(logits.values)) is not None:
                    raise KdistillError(f"{self.path}: {unusable(start + row)}: {self.remedy}")
                content.add(block)
                correct += _correct(logits, block["labels"])
                yield block["row_keys"], block["labels"], logits
        if content.digest() != self.digest:
            raise KdistillError(f"{self.path} is not what was written (its digest differs): {self.remedy}")
        if correct != self.manifest.results["correct"]:
            raise KdistillError(
                f"{self.path}: its teacher is right on {correct:,} of its {self.rows:,} rows, and was on "
                f"{self.manifest.results['correct']:,} when it was written: {self.remedy}"
            )

    @property
    def _block_rows(self) -> int:
        return max(1, BLOCK_BYTES // self.form.row_bytes)

    @cached_property
    def _index(self) -> tuple[Keys, Labels, Labels]:
        """Key, label and the teacher's most likely class of every row, after a check of the whole file."""
        parts = [(keys, labels, logits.most_likely()) for keys, labels, logits in self.blocks()]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]

    def check(self) -> None:
        """Read the whole file, and check that its soft targets are its logits at its temperature.

        Raises:
            KdistillError: if they are not, or the file is damaged.
        """
        start = 0
        tolerance = {"float32": (1e-4, 1e-7), "float16": (2e-3, 1e-7)}[self.form.dtype]
        for _, _, logits in self.blocks():
            expected = np.exp(metrics.log_softmax(logits.values, self.temperature))
            with _readable(self.path, self.remedy):
                view = self.file["soft_targets"][start : start + len(logits)].astype(np.float32)
            if not np.allclose(view, expected, *tolerance):
                raise KdistillError(
                    f"{self.path}: soft_targets are not softmax(logits / {self.temperature:g}): {self.remedy}"
                )
            start += len(logits)

    def take(self, places: NDArray[np.int64], view: int = 0) -> Logits:
        """The logits of some rows, by their place in the file, in any order and with any repetition.

        Args:
            places: (n,).
            view: which one, in a file of several.

        Raises:
            KdistillError: if the file is damaged.
        """
        order = np.argsort(places, kind="stable")
        ascending = places[order]
        form = self.form.of_a_view
        shapes = form.columns.items()
        found = {name: np.empty((len(places), *shape), dtype) for name, (shape, dtype) in shapes}
        step = self._block_rows
        edges = np.unique(ascending // step)
        with _readable(self.path, self.remedy):
            for edge in edges:
                low, high = np.searchsorted(ascending, (edge * step, (edge + 1) * step))
                wanted = ascending[low:high]
                for name, values in found.items():
                    part = slice(wanted[0], wanted[-1] + 1)
                    block = self.file[name][part if self.form.views is None else (part, view)]
                    values[order[low:high]] = block[wanted - wanted[0]]
        return Logits(form, found["logits"], found.get("top_classes"))

    @property
    def keys(self) -> Keys:
        """All row keys in the file's order, (rows, 16)."""
        return self._index[0]

    @property
    def labels(self) -> Labels:
        """All hard labels in the file's order, (rows,), -1 for none."""
        return self._index[1]

    def logits(self) -> NDArray[np.float32]:
        """All logits in the file's order, (rows, classes), in memory; `take` has those of some rows, and of other views."""
        return self.take(np.arange(self.rows)).dense()

    def soft_targets(self, temperature: float | None = None) -> NDArray[np.float32]:
        """softmax(logits / T) in the file's order, (rows, classes); T is the file's unless another is given."""
        scale = self.temperature if temperature is None else check_value(Objective, "temperature", temperature)
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
        check_value(Training, "batch_size", batch_size)
        keys = row_keys(np.asarray(inputs))
        rows = self._find(
            keys, "inputs", "give them with the type, shape and values they have there, as not yet scaled"
        )
        labels = self.labels[rows] if labels is None else np.asarray(labels, np.int64)
        self._gate(rows, labels)
        logits = self.take(rows).dense()

        from kdistill.backend import tf
        from kdistill.networks.saved_models import scaled
        from kdistill.training.losses import targets

        with tf.device("CPU"):
            columns = [tf.convert_to_tensor(column) for column in (inputs, labels, logits)]
        order = tf.data.Dataset.range(len(keys))
        if shuffle:
            order = order.shuffle(len(keys), seed=seed)

        def batch(places: Any) -> tuple[Any, Any]:
            rows, labels, logits = (tf.gather(column, places) for column in columns)
            return scaled(rows), targets(labels, logits)

        return order.batch(batch_size).map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def join(self, keys: Keys, labels: Labels, whose: str, remedy: str = "") -> NDArray[np.int64]:
        """The place in the file of each row, found by key, never by position.

        Args:
            keys: (n, 16), `kdistill.row_keys` of the inputs to be trained on, in any order, with any repetition.
            labels: (n,) their hard labels, `data.NO_LABEL` for none.
            whose: what rows these are, for messages.
            remedy: the command that makes a file of these rows, for messages; the one that made this unless told
                otherwise.

        Returns:
            (n,), for `take`.

        Raises:
            KdistillError: if a row is not in the file, or if the labels are not those that the file's accuracy was
                recorded with.
        """
        rows = self._find(keys, whose, remedy or self.remedy)
        self._gate(rows, labels)
        return rows

    @cached_property
    def _order(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The keys as names, and the order that sorts them."""
        names = sortable(self.keys)
        return names, np.argsort(names, kind="stable")

    def _find(self, keys: Keys, whose: str, remedy: str) -> NDArray[np.int64]:
        """Where in the file each key stands; the first place, of those that stand there twice."""
        rows = positions(keys, self.keys, self._order[1])
        if missing := int((rows < 0).sum()):
            raise KdistillError(
                f"{missing:,} of the {len(keys):,} {whose} are not in {self.path}, which was made from "
                f"{self.manifest.inputs['dataset'].name}: {remedy}"
            )
        return rows

    def _gate(self, rows: NDArray[np.int64], labels: Labels) -> None:
        """The teacher must be as often right on the joined labels as it was on the file's.

        Only rows that are labelled in both are counted, and none that stand in the file twice with different labels:
        either may be meant.
        """
        names, order = self._order
        _, all_known, all_said = self._index
        ranked, known = names[order], all_known[rows]
        conflict = (ranked[1:] == ranked[:-1]) & (all_known[order][1:] != all_known[order][:-1])
        doubtful = np.isin(names[rows], ranked[1:][conflict]) if conflict.any() else np.zeros(len(rows), bool)
        counted = (labels != NO_LABEL) & (known != NO_LABEL) & ~doubtful
        then, now = (int(((all_said[rows] == these) & counted).sum()) for these in (known, labels))
        if then != now:
            count = int(counted.sum())
            raise KdistillError(
                f"the teacher of {self.path} was right on {then:,} of these {count:,} rows ({then / count:.2%}) when "
                f"the file was written and is on {now:,} ({now / count:.2%}) with the labels given now: the labels "
                "have changed; kdistill soften again"
            )


@dataclass(frozen=True)
class AlignedSoftTargets:
    """What a file says of some rows, row by row: `places` (rows,) are from `SoftTargets.join`."""

    soft: SoftTargets
    places: NDArray[np.int64]

    @property
    def form(self) -> LogitStorage:
        return self.soft.form

    @property
    def nbytes(self) -> int:
        """Of one view."""
        return len(self.places) * self.form.of_a_view.row_bytes

    def __len__(self) -> int:
        return len(self.places)

    def chosen(self, mask: NDArray[np.bool_]) -> AlignedSoftTargets:
        """The rows that a mask (rows,) chooses."""
        return AlignedSoftTargets(self.soft, self.places[mask])

    def permuted(self, labels: Labels, seed: int) -> AlignedSoftTargets:
        """Each row with what was said of another of the same label, in an order drawn from the seed.

        The rows of a label are told what they were told before, each something else: what a teacher says of a class
        is kept, and what it says of a row is lost. Rows without a label are exchanged among each other.
        """
        random = np.random.default_rng([seed, len(labels)])
        order = np.arange(len(labels))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            order[rows] = random.permutation(rows)
        return AlignedSoftTargets(self.soft, self.places[order])

    def at(self, rows: NDArray[Any], view: int = 0) -> Logits:
        """Those of some rows, by number, and of one view, read from the file."""
        return self.soft.take(self.places[rows], view)


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
