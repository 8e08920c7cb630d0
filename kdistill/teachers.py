"""Whoever is asked: one network, several of which the mean is taken, or a file of what another program said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdistill import metrics, workspace
from kdistill.data import Dataset, Split
from kdistill.errors import KdistillError
from kdistill.readers import Chosen, Rows
from kdistill.row_keys import row_keys
from kdistill.settings import NAME, Soften
from kdistill.workspace import Artifact, Input, Manifest, Workspace

if TYPE_CHECKING:
    from kdistill.augmentation import Views
    from kdistill.saved_models import SavedNetwork

Floats = NDArray[np.float32]
PROBED_ROWS = 256
SUM_TOLERANCE = 1e-2  # of probabilities, which may be of half precision
SMALLEST = float(np.finfo(np.float32).tiny)  # what a probability of 0 counts as


@dataclass(frozen=True)
class Candidate:
    """A teacher that has been found, and not yet loaded; `artifact` and `manifest` are those of one in the workspace."""

    made_from: Input
    path: Path
    artifact: Artifact | None = None
    manifest: Manifest | None = None


class Answers(Protocol):
    """Logits of a transfer set's rows; `probabilities` says of each who was asked whether it gave those."""

    @property
    def probabilities(self) -> Sequence[bool]: ...

    def of(self, split: Split, rows: int, skip: int = 0) -> Iterator[tuple[NDArray[Any], Floats]]:
        """Inputs and logits, block by block of `rows` rows, without the first `skip` blocks.

        Of several views of each row the logits are (rows, views, classes), and the inputs are the rows as they are.
        """


def find(place: Workspace, name: str) -> Candidate:
    """Find a teacher by its name in the workspace or by the path of its SavedModel or `.keras` file.

    Raises:
        KdistillError: if there is none, or it is damaged.
    """
    path = Path(name).expanduser().absolute()
    if NAME.fullmatch(name):
        artifact = place.teacher(name)
        if artifact.path.exists():
            manifest = artifact.require()
            saved_model = artifact.path / "saved_model"
            return Candidate(Input(name, manifest.outputs["saved_model"]), saved_model, artifact, manifest)
        if not path.exists() and path.suffix != ".keras":
            known = ", ".join(teacher.name for teacher in place.teachers())
            there = f", only {known}" if known else ""
            raise KdistillError(f"there is no {artifact} in {place.root}{there}: {artifact.command}")
    if not path.exists():
        raise KdistillError(
            f"--teacher {name}: there is no such SavedModel or .keras file, and no such teacher in {place.root}"
        )
    if path.suffix != ".keras" and not (path / "saved_model.pb").exists():
        raise KdistillError(f"--teacher {name} is no SavedModel (a directory with saved_model.pb) and no .keras file")
    return Candidate(Input(str(path), workspace.digest(path)), path)


@dataclass(frozen=True)
class Panel:
    """One teacher or several, loaded; of several the mean is taken.

    `mean` is `arithmetic`, of the probabilities at `temperature` (Hinton, Vinyals and Dean 2015, section 5: the logits
    are T times the log of the mean), or `geometric`, of the logits. They see each row as it is, or `views` of it.
    """

    members: Sequence[SavedNetwork]
    probabilities: Sequence[bool]
    mean: str
    temperature: float
    views: Views | None = None

    def of(self, split: Split, rows: int, skip: int = 0) -> Iterator[tuple[NDArray[Any], Floats]]:
        for block in islice(split.blocks(rows), skip, None):
            yield block, self.logits(block) if self.views is None else self._of_views(block, self.views)

    def _of_views(self, block: NDArray[Any], views: Views) -> Floats:
        """Logits (rows, views, classes)."""
        keys = row_keys(block)
        return np.stack([self.logits(views.seen(block, keys, view)) for view in range(views.count or 1)], axis=1)

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int, dataset: str) -> None:
        """Refuse data that does not fit, as `SavedNetwork.check` does."""
        for member in self.members:
            member.check(input_shape, input_dtype, classes, dataset)

    def logits(self, inputs: NDArray[Any]) -> Floats:
        """What they say together of one block of inputs (rows, ...): (rows, classes)."""
        said = [
            _as_logits(member.logits(inputs), given, str(member.path))
            for member, given in zip(self.members, self.probabilities, strict=True)
        ]
        if len(said) == 1:
            return said[0]
        if self.mean == "geometric":
            return np.asarray(np.mean(said, axis=0, dtype=np.float64), np.float32)
        each = np.stack([metrics.log_softmax(logits, self.temperature) for logits in said])
        peak = each.max(axis=0)
        mean = peak + np.log(np.exp(each - peak).mean(axis=0))
        return _zero_mean(self.temperature * mean)


@dataclass(frozen=True)
class Spoken:
    """What another program said of the rows of a transfer set, in their order: a file of logits or probabilities."""

    rows: Rows
    where: str
    probabilities: Sequence[bool]

    def of(self, split: Split, rows: int, skip: int = 0) -> Iterator[tuple[NDArray[Any], Floats]]:
        pairs = zip(split.blocks(rows), self.rows.blocks(rows), strict=True)
        for block, said in islice(pairs, skip, None):
            yield block, _as_logits(said.astype(np.float32), self.probabilities[0], self.where)


def _as_logits(said: Floats, probabilities: bool, where: str) -> Floats:
    if not probabilities:
        return said
    if not are_probabilities(said):
        raise KdistillError(
            f"{where} gives rows that are no probabilities after rows that are: --teacher-output logits"
        )
    return _zero_mean(np.log(np.maximum(said, np.float32(SMALLEST))))


def _zero_mean(logits: NDArray[np.floating[Any]]) -> Floats:
    """The logits (rows, classes) of the same probabilities that have a mean of 0 in each row.

    The logarithms of probabilities lie far below 0, by T * log(classes) and more: a student that matches logits would
    learn little else.
    """
    return np.asarray(logits - logits.mean(axis=-1, keepdims=True), np.float32)


def are_probabilities(said: NDArray[np.floating[Any]]) -> bool:
    """Whether every row is non-negative and sums to 1."""
    return bool((said >= 0).all() and np.allclose(said.sum(axis=1, dtype=np.float64), 1.0, atol=SUM_TOLERANCE))


def load(candidates: Sequence[Candidate], settings: Soften, dataset: Dataset, split: Split) -> Panel:
    """Load teachers, and try them on the first rows of a transfer set.

    Raises:
        KdistillError: if one doesn't fit the data, or was made anew since it was found.
    """
    from kdistill import networks
    from kdistill.augmentation import Views

    first = next(split.blocks(PROBED_ROWS))
    members, probabilities = [], []
    for candidate in candidates:
        if candidate.artifact:
            manifest, network = networks.load(candidate.artifact)
            if manifest != candidate.manifest:
                raise KdistillError(f"{candidate.artifact} was made anew just now: run this again")
        else:
            network = _open(candidate, settings.signature, settings.output, settings.teacher_input)
        network.check(dataset.input_shape, dataset.input_dtype, dataset.classes, dataset.name)
        said = network.logits(first)
        _check_classes(said.shape[1], str(candidate.path), dataset)
        members.append(network)
        probabilities.append(_gives_probabilities(said, settings, str(candidate.path)))
    views = Views(settings.augment, settings.seed or 0, settings.views) if settings.augment else None
    return Panel(members, probabilities, settings.mean, settings.temperature, views)


def _open(candidate: Candidate, signature: str | None, output: str | None, teacher_input: str) -> SavedNetwork:
    """Load a teacher; what is said of those from outside means nothing for one of the workspace."""
    from kdistill.saved_models import SavedNetwork

    if candidate.artifact:
        return SavedNetwork.load(candidate.path)
    return SavedNetwork.load(candidate.path, signature=signature, output=output, raw=teacher_input == "raw")


def again(place: Workspace, manifest: Manifest) -> Panel | None:
    """The teachers that made a soft-target file, loaded; None if they are not as they were, or were no networks."""
    names = manifest.made_from("teacher")
    try:
        candidates = [find(place, made.name) for made in names.values()]
        if not names or [candidate.made_from for candidate in candidates] != list(names.values()):
            return None
        how = manifest.settings
        members = [_open(each, how["signature"], how["output"], how["teacher_input"]) for each in candidates]
    except (KdistillError, OSError):
        return None
    return Panel(members, manifest.results["teacher"]["probabilities"], how["mean"] or "arithmetic", how["temperature"])


def read(path: Path, settings: Soften, dataset: Dataset, split: Split, chosen: NDArray[np.bool_]) -> Spoken:
    """Open a file of logits or probabilities of a whole transfer set, and check it against that.

    Args:
        path: the file.
        settings: what it is said to hold.
        dataset: says which classes there are.
        split: the whole transfer set.
        chosen: (rows,) which of its rows are asked about.

    Returns:
        What is said of the rows that are chosen.

    Raises:
        KdistillError: if it has not as many rows as the transfer set, or not the dataset's classes.
    """
    from kdistill.readers import logits

    rows = logits.read(path)
    where = str(path)
    if len(rows) != len(split):
        raise KdistillError(f"{where} has {len(rows):,} rows of logits, and the transfer set {len(split):,} rows")
    _check_classes(rows.shape[1], where, dataset)
    rows = rows if chosen.all() else Chosen(rows, chosen)
    first = next(rows.blocks(PROBED_ROWS)).astype(np.float32)
    return Spoken(rows, where, [_gives_probabilities(first, settings, where)])


def _gives_probabilities(said: Floats, settings: Soften, where: str) -> bool:
    found = are_probabilities(said)
    if settings.teacher_output == "probabilities" and not found:
        raise KdistillError(f"{where} gives rows that are no probabilities: --teacher-output logits")
    return found and settings.teacher_output != "logits"


def _check_classes(classes: int, where: str, dataset: Dataset) -> None:
    if classes != dataset.classes:
        raise KdistillError(f"{where} gives {classes} logits a row, and {dataset.name} has {dataset.classes} classes")
