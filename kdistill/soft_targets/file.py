"""The soft-target file: the logits of a teacher for every row of a transfer set, in HDF5.

| dataset | shape, type | contents |
|---|---|---|
| `logits` | (rows, classes) float32 or float16 | the teacher's outputs |
| `soft_targets` | as `logits` | softmax(logits / T), where T is the attribute `temperature` |
| `labels` | (rows,) int64 | hard labels, -1 for rows without one |
| `row_keys` | (rows, 16) uint8 | `kdistill.row_keys` of the inputs |

The task is in the manifest. For multi-label data, `soft_targets` are sigmoid(logits / T) and `labels` are (rows, classes)
int8. For regression, `logits` and `labels` are (rows, numbers) float32, with NaN for missing numbers. For embeddings, `logits`
are vectors (rows, width). Neither has `soft_targets`.

With `no_soft_targets`, the file has no `soft_targets`. With `top_k`, `logits` is (rows, k + 1): the k largest, then one with the
total probability of all other classes at T. `top_classes` (rows, k) holds the classes of the k largest. With `views`, these
arrays have an axis of views after the rows. View 0 is the row as it is; the others follow from the seed in the manifest, see
`kdistill.data.augmentation.Views`.

Fletcher-32 checksums protect the data, and HDF5's own checksums its metadata (`libver="latest"`). The attribute `digest`
is a SHA-256 over `row_keys`, `labels`, `logits` and `top_classes`. The attribute `manifest` is the artifact's manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from kdistill import tasks
from kdistill.errors import KdistillError
from kdistill.settings import Objective, check_value
from kdistill.soft_targets.storage import UNUSABLE, Logits, LogitStorage, check_usable
from kdistill.soft_targets.transfer_sets import teacher_names
from kdistill.tasks import Task
from kdistill.workspace import FORMAT, Artifact, Manifest, hdf5_manifest

if TYPE_CHECKING:
    from kdistill.data.augmentation import Views

BLOCK_BYTES = 16 << 20
TOLERANCE = {"float32": (1e-4, 1e-7), "float16": (2e-3, 1e-7)}  # relative and absolute, of stored soft targets


class Content:
    """The digest of soft targets and the sum of the teacher's scores, from their blocks in order."""

    def __init__(self, task: Task) -> None:
        self.score = 0.0
        self._task = task
        self._hashes = {name: hashlib.sha256() for name in ("row_keys", "labels", "logits", "top_classes")}

    def add(self, block: Mapping[str, NDArray[Any]], logits: Logits) -> None:
        """Add the next rows: their arrays by dataset, and their logits."""
        self.score += float(self._task.score(logits.predictions(), block["labels"]).sum())
        for name, running_hash in self._hashes.items():
            if name in block:
                values = block[name]
                running_hash.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)

    def digest(self) -> str:
        hashes = b"".join(running_hash.digest() for running_hash in self._hashes.values())
        return f"sha256:{hashlib.sha256(hashes).hexdigest()}"


class Index(NamedTuple):
    """Key (rows, 16), hard label (rows, ...) and the teacher's prediction (rows, ...) of all rows of a file."""

    keys: NDArray[np.uint8]
    labels: NDArray[Any]
    predictions: NDArray[Any]


class SoftTargets:
    """An open soft-target file.

    Opening checks its format, manifest, shapes and types. Methods that read its contents raise a `KdistillError` if it is
    damaged. It stays open, so replacing it in the meantime does not change what is read.

    Args:
        path: the file, in a workspace or anywhere else.
        remedy: the command that writes the file again, for messages.

    Attributes:
        temperature: T of `soft_targets()`.
        rows: number of rows.
        classes: number of outputs of the teacher: classes, or numbers of a regression or a vector.
        task: what the outputs are.
        storage: how logits are stored.
        manifest: what the file was made from.

    Raises:
        KdistillError: if there is no such file, or it is damaged, of a newer format, or not a soft-target file.
    """

    def __init__(self, path: str | os.PathLike[str], *, remedy: str = "kdistill soften --force") -> None:
        self.path, self.remedy = Path(path), remedy
        if self.path.is_dir():
            raise KdistillError(f"{path} is a directory (expected a soft-target file): rm -r {shlex.quote(str(path))}")
        if not self.path.exists():
            raise KdistillError(f"there is no soft-target file {path}: kdistill soften")
        with self._damage_as_one_line():
            self.file = h5py.File(self.path, "r", locking=False)
            version = self.file.attrs.get("kdistill_format")
            if version is None:
                raise KdistillError(f"{path} is not a soft-target file: {remedy}")
            if int(version) > FORMAT:
                raise KdistillError(f"{path} has format {int(version)} (expected at most {FORMAT}): upgrade kdistill")
            text = hdf5_manifest.manifest_text(self.file)
            self.manifest = Manifest.from_json(text, str(path), lambda: remedy, kind="soft targets")
            self.rows = int(self.manifest.results["rows"])
            self.classes = int(self.manifest.results["classes"])
            self.temperature = float(self.file.attrs["temperature"])
            settings, task = self.manifest.settings, self.manifest.results["task"]
            self.task = tasks.get(task)
            self.storage = LogitStorage.of(settings, self.classes, task)
            for name, (shape, dtype) in self.storage.datasets.items():
                self._check_dataset(name, (self.rows, *shape), dtype)

    def _check_dataset(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Refuse a dataset that is not as the manifest says, or would be read from another file."""
        link = self.file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(dataset := self.file[name], h5py.Dataset):
            raise KdistillError(f"{self.path}: {name} is not a dataset of this file: {self.remedy}")
        if dataset.external or dataset.is_virtual or dataset.shape != shape or dataset.dtype != np.dtype(dtype):
            raise KdistillError(f"{self.path}: {name} is not an array of {shape}, as its manifest says: {self.remedy}")
        if dataset.id.get_storage_size() < dataset.nbytes:
            raise KdistillError(f"{self.path}: {name} claims the shape {shape} but holds less: {self.remedy}")

    def __repr__(self) -> str:
        return (
            f"SoftTargets({str(self.path)!r}): {self.rows:,} rows of {self.task.count(self.classes)}, "
            f"T = {self.temperature:g}"
        )

    @classmethod
    def open(cls, artifact: Artifact) -> SoftTargets | None:
        """Open the soft targets of a workspace; None if there are none."""
        artifact.refuse_links()
        if not artifact.path.exists():
            return None
        return cls(artifact.path, remedy=artifact.remedy)

    @property
    def digest(self) -> str:
        return self.manifest.outputs["content"]

    @property
    def model(self) -> str | None:
        """The teacher's architecture, which is the default for students; None if it is unknown."""
        model = self.manifest.results["teacher"]["model"]
        return None if model is None else str(model)

    @property
    def teacher(self) -> str:
        """Names or paths of the teachers, separated by commas."""
        return ", ".join(teacher_names(self.manifest))

    @property
    def views(self) -> Views | None:
        """The views of each row that the teacher saw; None for each row as it is."""
        from kdistill.data.augmentation import Views

        settings = self.manifest.settings
        return Views(settings["augment"], settings["seed"], self.storage.views) if self.storage.views else None

    @property
    def exact_at_any_temperature(self) -> bool:
        """Whether the logits are exact at any temperature, and not only at the one of the file."""
        averaged_at_t = self.manifest.settings["mean"] == "arithmetic" and self.task.uses_temperature
        return self.storage.top_k is None and not averaged_at_t

    @property
    def keys(self) -> NDArray[np.uint8]:
        """The keys of all rows in the file's order, (rows, 16)."""
        return self.index.keys

    @property
    def labels(self) -> NDArray[Any]:
        """The hard labels of all rows in the file's order, (rows, ...), -1 or NaN for none."""
        return self.index.labels

    @cached_property
    def index(self) -> Index:
        """Everything about the rows but their logits, read with one check of the whole file."""
        parts = [Index(keys, labels, logits.predictions()) for keys, labels, logits in self.blocks()]
        return Index(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def blocks(self, *, check_soft_targets: bool = False) -> Iterator[tuple[NDArray[np.uint8], NDArray[Any], Logits]]:
        """Yield keys, labels and logits in the file's order; the digest and the score are checked at the end."""
        content = Content(self.task)
        names = [name for name in self.storage.datasets if check_soft_targets or name != "soft_targets"]
        with self._damage_as_one_line():
            for start in range(0, self.rows, self._block_rows):
                block = {name: self.file[name][start : start + self._block_rows] for name in names}
                logits = self.storage.from_arrays(block)
                numbers = range(start, start + len(logits))
                check_usable(logits.values, self.path, numbers, f"{UNUSABLE}: {self.remedy}")
                expected = self.storage.soft_targets(logits.values) if "soft_targets" in block else None
                if expected is not None:
                    stored = block["soft_targets"].astype(np.float32)
                    if not np.allclose(stored, expected, *TOLERANCE[self.storage.dtype]):
                        raise KdistillError(
                            f"{self.path}: soft_targets are not those of its logits at T = {self.temperature:g}: "
                            f"{self.remedy}"
                        )
                content.add(block, logits)
                yield block["row_keys"], block["labels"], logits
        if content.digest() != self.digest:
            raise KdistillError(f"{self.path} has changed since it was written (its digest differs): {self.remedy}")
        recorded = self.manifest.results["score"]
        if not math.isclose(content.score, recorded, rel_tol=1e-9):  # blocks of other sizes round differently
            raise KdistillError(
                f"{self.path}: its teacher has a score of {content.score:,.10g} on its labels (expected {recorded:,.10g}, as "
                f"recorded): {self.remedy}"
            )

    def check(self) -> None:
        """Read the whole file, and check its digest, its accuracy, and that its soft targets are those of its logits."""
        for _ in self.blocks(check_soft_targets=True):
            pass

    def take(self, positions: NDArray[np.int64], view: int = 0) -> Logits:
        """Read the logits of some rows, in one view.

        Args:
            positions: (n,), numbers of rows in the file, in any order and with any repetition.
            view: number of the view, if the file has several.
        """
        order = np.argsort(positions, kind="stable")
        ascending = positions[order]
        storage, step = self.storage.one_view, self._block_rows
        arrays = {name: np.empty((len(positions), *shape), dtype) for name, (shape, dtype) in storage.columns.items()}
        with self._damage_as_one_line():
            for block in np.unique(ascending // step):
                low, high = np.searchsorted(ascending, (block * step, (block + 1) * step))
                rows = ascending[low:high]
                part = slice(rows[0], rows[-1] + 1)
                for name, values in arrays.items():
                    contents = self.file[name][part if self.storage.views is None else (part, view)]
                    values[order[low:high]] = contents[rows - rows[0]]
        return storage.from_arrays(arrays)

    def logits(self) -> NDArray[np.float32]:
        """Return the logits of all rows in the file's order, (rows, classes), in view 0 if there are several."""
        return self.take(np.arange(self.rows)).dense()

    def soft_targets(self, temperature: float | None = None) -> NDArray[np.float32]:
        """Return the soft targets of all rows in the file's order, (rows, classes), e.g. softmax(logits / T).

        For tasks without soft targets, they are the outputs of the teacher.

        Args:
            temperature: T; the file's own by default.
        """
        scale = self.temperature if temperature is None else check_value(Objective, "temperature", temperature)
        logits = self.logits()
        soft_targets = self.storage.soft_targets(logits, scale)
        return logits if soft_targets is None else soft_targets.astype(np.float32)

    def dataset(
        self,
        inputs: NDArray[Any],
        labels: NDArray[np.integer[Any]] | None = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
    ) -> Any:
        """Return a dataset for `Model.fit`, for a model compiled with a `DistillationLoss`.

        Args:
            inputs: (rows, ...), inputs of the transfer set with the same type and values as there, in any order; each row
                is found in the file by its contents.
            labels: (rows,) integers; those in the file by default.
            batch_size: number of rows per step.
            shuffle: whether to draw another order of rows for each epoch.
            seed: seed of the order.

        Returns:
            A `tf.data.Dataset` of batches of inputs, float32 (uint8 is scaled to [0, 1]), and of targets as
            `keras_dataset.pack_targets` returns them.

        Raises:
            KdistillError: if a row is not in the file, or the labels are not those in the file.
            UsageError: if the batch size is below 1.
        """
        from kdistill.soft_targets.keras_dataset import keras_dataset

        return keras_dataset(self, inputs, labels, batch_size, seed if shuffle else None)

    @property
    def _block_rows(self) -> int:
        return max(1, BLOCK_BYTES // self.storage.row_bytes)

    @contextlib.contextmanager
    def _damage_as_one_line(self) -> Iterator[None]:
        """Raise a `KdistillError` for what h5py raises if a file is damaged."""
        try:
            yield
        except (KdistillError, PermissionError):
            raise
        except hdf5_manifest.DAMAGED:
            raise KdistillError(f"{self.path} is damaged, or not a soft-target file: {self.remedy}") from None
