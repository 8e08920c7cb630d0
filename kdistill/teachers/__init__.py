"""Whoever is asked: one network, several of which the mean is taken, or a file of what another program said."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data import NO_LABEL, Dataset, Split
from kdistill.data.keys import positions, row_keys
from kdistill.data.readers import Array, Rows, Subset, text
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.settings import NAME, Soften
from kdistill.soft_targets.storage import unusable, unusable_row
from kdistill.workspace import Artifact, Input, Manifest, Workspace

if TYPE_CHECKING:
    from kdistill.data.augmentation import Views
    from kdistill.networks.saved_models import SavedNetwork

Floats = NDArray[np.float32]
PROBED_ROWS = 256
SUM_TOLERANCE = 1e-2  # of probabilities, which may be of half precision
# A probability of exactly 0 has no logarithm. It means "too small to express": below 1 / trees for a forest, 3e-8 in
# float16. A tiny number in its place, such as float32's smallest, would put it 87 below the largest logit, where a softmax
# at T = 20 sees little but these zeros. So the zeros of a row get this share of the mass together, few enough to leave its
# other probabilities as they are, and never more each than the smallest of those.
ZERO_MASS = 1e-3


@dataclass
class ZeroProbabilities:
    """How many of the probabilities that a teacher gave were exactly 0: `count` of `total`."""

    count: int = 0
    total: int = 0

    def __str__(self) -> str:
        return (
            f"{self.count:,} of {self.total:,} probabilities ({self.count / self.total:.1%}) are exactly 0: those of a row "
            f"count as {ZERO_MASS:g} / classes each, or as its smallest other probability if that is less; if the "
            "teacher has logits, use those"
        )


@dataclass(frozen=True)
class Candidate:
    """A teacher that has been found, and not yet loaded; `artifact` and `manifest` are those of one in the workspace."""

    made_from: Input
    path: Path
    artifact: Artifact | None = None
    manifest: Manifest | None = None


class LogitsSource(Protocol):
    """Logits of a transfer set's rows; `probabilities` says of each who was asked whether it gave those."""

    @property
    def probabilities(self) -> Sequence[bool]: ...

    @property
    def zeros(self) -> ZeroProbabilities: ...

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
    if path.suffix == ".keras" and not path.is_file():
        raise KdistillError(f"--teacher {name} is not a regular file (expected a .keras file)")
    if path.suffix != ".keras" and not (path / "saved_model.pb").exists():
        raise KdistillError(f"--teacher {name} {_why_no_teacher(name)}")
    return Candidate(Input(str(path), workspace.digest(path)), path)


def _why_no_teacher(name: str) -> str:
    """Return what a path is that is neither a SavedModel nor a `.keras` file, and what to do with it."""
    lower = name.lower()
    if lower.endswith(".weights.h5"):
        return (
            "holds weights without their architecture: save the whole network, model.save('net.keras'), or train on from "
            f"them, kdistill train-teacher --model MODEL --weights {shlex.quote(name)}"
        )
    if lower.endswith((".h5", ".hdf5")):
        return (
            "is an HDF5 file, which is not loaded: save the network as .keras, model.save('net.keras'); a file of logits is "
            f"given by --logits {shlex.quote(name)}"
        )
    if lower.endswith((".npy", ".npz")):
        return f"is a file of arrays: a file of logits is given by --logits {shlex.quote(name)}"
    return (
        "is neither a SavedModel (a directory with saved_model.pb) nor a .keras file: for any other teacher, run it over the "
        "transfer set, np.savez('logits.npz', logits=logits), and pass --logits logits.npz instead"
    )


@dataclass(frozen=True)
class Ensemble:
    """One teacher or several, loaded; of several the mean is taken.

    `mean` is `arithmetic`, of the probabilities at `temperature` (Hinton, Vinyals and Dean 2015, section 5: the logits
    are T times the log of the mean), or `geometric`, of the logits. They see each row as it is, or `views` of it.
    """

    members: Sequence[SavedNetwork]
    probabilities: Sequence[bool]
    mean: str
    temperature: float
    views: Views | None = None
    zeros: ZeroProbabilities = field(default_factory=ZeroProbabilities)

    def of(self, split: Split, rows: int, skip: int = 0) -> Iterator[tuple[NDArray[Any], Floats]]:
        for number, block in enumerate(islice(split.blocks(rows), skip, None), skip):
            start = number * rows
            yield block, self.logits(block, start) if self.views is None else self._of_views(block, self.views, start)

    def _of_views(self, block: NDArray[Any], views: Views, start: int) -> Floats:
        """Logits (rows, views, classes)."""
        keys = row_keys(block)
        return np.stack([self.logits(views.seen(block, keys, view), start) for view in range(views.count or 1)], axis=1)

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int, dataset: str) -> None:
        """Refuse data that does not fit, as `SavedNetwork.check` does."""
        for member in self.members:
            member.check(input_shape, input_dtype, classes, dataset)

    def logits(self, inputs: NDArray[Any], start: int = 0) -> Floats:
        """What they say together of one block of inputs (rows, ...): (rows, classes).

        Raises:
            KdistillError: if logits can't be used, naming the row; `start` is the number of the first.
        """
        said = [
            _as_logits(_usable(member.logits(inputs), member.path, start), given, str(member.path), self.zeros)
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
class PrecomputedLogits:
    """Logits or probabilities that another program wrote into a file.

    `rows` are the file's rows that are asked about, in the transfer set's order, and `places` (rows,) their numbers in
    the file; `order` says in words whether that order was checked.
    """

    rows: Rows
    places: NDArray[np.int64]
    where: str
    order: str
    probabilities: Sequence[bool]
    zeros: ZeroProbabilities = field(default_factory=ZeroProbabilities)

    def of(self, split: Split, rows: int, skip: int = 0) -> Iterator[tuple[NDArray[Any], Floats]]:
        pairs = zip(split.blocks(rows), self.rows.blocks(rows), strict=True)
        for number, (block, said) in enumerate(islice(pairs, skip, None), skip):
            logits = _single(said, self.where, self.places[number * rows :])
            yield block, _as_logits(logits, self.probabilities[0], self.where, self.zeros)


def _single(said: NDArray[np.floating[Any]], where: str, places: NDArray[np.int64]) -> Floats:
    """The rows of a file as float32; `places` are their numbers in the file, for messages."""
    with np.errstate(over="ignore"):
        single = said.astype(np.float32)
    if (row := unusable_row(single)) is not None:
        raise KdistillError(f"{where}: {unusable(int(places[row]))}")
    return single


def _usable(said: Floats, path: Path, start: int = 0) -> Floats:
    """What a network gave, if it can be used; `start` is the number of the first row."""
    if (row := unusable_row(said)) is not None:
        raise KdistillError(f"{path}: {unusable(start + row)}")
    return said


def _as_logits(said: Floats, probabilities: bool, where: str, zeros: ZeroProbabilities) -> Floats:
    if not probabilities:
        return said
    if not are_probabilities(said):
        raise KdistillError(
            f"{where} gives rows that are no probabilities after rows that are: --teacher-output logits"
        )
    zero = said == 0
    zeros.count += int(zero.sum())
    zeros.total += zero.size
    smallest = np.where(zero, np.inf, said).min(axis=1, keepdims=True)
    floor = np.minimum(smallest, ZERO_MASS / said.shape[1])
    return _zero_mean(np.log(np.where(zero, floor, said).astype(np.float32)))


def _zero_mean(logits: NDArray[np.floating[Any]]) -> Floats:
    """The logits (rows, classes) of the same probabilities that have a mean of 0 in each row.

    The logarithms of probabilities lie far below 0, by T * log(classes) and more: a student that matches logits would
    learn little else.
    """
    return np.asarray(logits - logits.mean(axis=-1, keepdims=True), np.float32)


def are_probabilities(said: NDArray[np.floating[Any]]) -> bool:
    """Whether every row is non-negative and sums to 1."""
    return bool((said >= 0).all() and np.allclose(said.sum(axis=1, dtype=np.float64), 1.0, atol=SUM_TOLERANCE))


def load(candidates: Sequence[Candidate], settings: Soften, dataset: Dataset, split: Split) -> Ensemble:
    """Load teachers, and try them on the first rows of a transfer set.

    Raises:
        KdistillError: if one doesn't fit the data, or was made anew since it was found.
    """
    from kdistill.data.augmentation import Views
    from kdistill.networks.loading import load_network

    first = next(split.blocks(PROBED_ROWS))
    members, probabilities = [], []
    for candidate in candidates:
        if candidate.artifact:
            manifest, network = load_network(candidate.artifact)
            if manifest != candidate.manifest:
                raise KdistillError(f"{candidate.artifact} was made anew just now: run this again")
        else:
            network = _open(candidate, settings.signature, settings.output, settings.teacher_input)
        network.check(dataset.input_shape, dataset.input_dtype, dataset.classes, dataset.name)
        said = _usable(network.logits(first), candidate.path)
        _check_classes(said.shape[1], str(candidate.path), dataset)
        members.append(network)
        probabilities.append(_gives_probabilities(said, settings, str(candidate.path)))
    views = Views(settings.augment, settings.seed or 0, settings.views) if settings.augment else None
    return Ensemble(members, probabilities, settings.mean, settings.temperature, views)


def _open(candidate: Candidate, signature: str | None, output: str | None, teacher_input: str) -> SavedNetwork:
    """Load a teacher; what is said of those from outside means nothing for one of the workspace."""
    from kdistill.networks.saved_models import SavedNetwork

    if candidate.artifact:
        return SavedNetwork.load(candidate.path)
    return SavedNetwork.load(candidate.path, signature=signature, output=output, raw=teacher_input == "raw")


def reload(place: Workspace, manifest: Manifest) -> Ensemble | None:
    """The teachers that made a soft-target file, loaded.

    None if they are not as they were or were no networks, or if zeros among their probabilities counted as something else.
    """
    names = manifest.made_from("teacher")
    try:
        candidates = [find(place, made.name) for made in names.values()]
        if not names or [candidate.made_from for candidate in candidates] != list(names.values()):
            return None
        how, probabilities = manifest.settings, manifest.results["teacher"]["probabilities"]
        if any(probabilities) and how.get("zero_mass") != ZERO_MASS:
            return None
        members = [_open(each, how["signature"], how["output"], how["teacher_input"]) for each in candidates]
    except (KdistillError, OSError):
        return None
    return Ensemble(members, probabilities, how["mean"] or "arithmetic", how["temperature"])


def read(path: Path, settings: Soften, dataset: Dataset, split: Split, chosen: NDArray[np.bool_]) -> PrecomputedLogits:
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
        KdistillError: if it has not as many rows as the transfer set, or not the dataset's classes, or if its labels
            or row keys are not those of the transfer set.
    """
    from kdistill.data.readers import logits

    file = logits.read(path)
    where = str(path)
    if len(file.logits) != len(split):  # known from the header, before anything is decompressed
        raise KdistillError(
            f"{where} has {len(file.logits):,} rows of logits, and the transfer set {len(split):,} rows"
        )
    _check_classes(file.logits.shape[1], where, dataset)
    places, order = np.flatnonzero(chosen), ""
    if file.row_keys is not None:
        places = _joined(file.row_keys.read(), split.chosen(chosen).keys(), places, where, dataset)
        order = f"the rows of {where} are joined by row_keys"
    if file.labels is not None and _check_labels(file.labels.read(), split.labels[chosen], places, where, dataset):
        order = order or f"the labels in {where} are those of the transfer set, row by row"
    if not order:
        why = "no row has a label in both" if file.labels is not None else "it holds neither labels nor row_keys"
        if path.suffix.lower() == ".npy":
            why = "an .npy has no room for labels or row_keys"
        order = (
            f"the order of the rows of {where} is trusted ({why}); to have it checked, "
            'np.savez("logits.npz", logits=logits, row_keys=kdistill.row_keys(x_train))'
        )
    rows = _ordered(file.logits, places, where)
    first = _single(next(rows.blocks(PROBED_ROWS)), where, places)
    return PrecomputedLogits(rows, places, where, order, [_gives_probabilities(first, settings, where)])


def _joined(
    keys: NDArray[np.uint8], wanted: NDArray[np.uint8], places: NDArray[np.int64], where: str, dataset: Dataset
) -> NDArray[np.int64]:
    """The row of a file with each wanted key: that at `places` if all are there, so that equal rows keep their own."""
    if np.array_equal(keys[places], wanted):
        return places
    found = positions(wanted, keys)
    if missing := int((found < 0).sum()):
        raise KdistillError(
            f"{missing:,} of the {len(wanted):,} rows of the transfer set are not in {where} by its row_keys (expected "
            f"kdistill.row_keys of the inputs as they are there, not scaled: {dataset.input_dtype} rows of "
            f"{dataset.input_shape})"
        )
    return found


def _check_labels(
    labels: NDArray[Any], expected: NDArray[np.int64], places: NDArray[np.int64], where: str, dataset: Dataset
) -> bool:
    """Compare a file's labels, class numbers or names, with the transfer set's; False if no row has both."""
    given = labels.reshape(-1)[places]
    counted = expected != NO_LABEL
    if given.dtype.kind in "SUO":
        given = np.array([text(label) for label in given])
        known: NDArray[Any] = np.array(dataset.class_names)[expected]
    else:
        known = expected
        counted &= given != NO_LABEL
    wrong = counted & (given != known)
    if wrong.any():
        row = int(wrong.argmax())
        raise KdistillError(
            f"{where}: its labels differ from those of the transfer set in {int(wrong.sum()):,} of "
            f"{int(counted.sum()):,} rows, first in row {places[row]} ({given[row]} instead of {known[row]}): save the "
            "logits in the order of the transfer set, or save row_keys=kdistill.row_keys(x_train) with them"
        )
    return bool(counted.any())


def _ordered(rows: Rows, places: NDArray[np.int64], where: str) -> Rows:
    """Some rows of a file in a given order; in memory, unless that is the file's own order."""
    if (np.diff(places) <= 0).any():
        return Array(rows.read()[places], where)
    mask = np.zeros(len(rows), bool)
    mask[places] = True
    return rows if mask.all() else Subset(rows, mask)


def _gives_probabilities(said: Floats, settings: Soften, where: str) -> bool:
    found = are_probabilities(said)
    if settings.teacher_output == "probabilities" and not found:
        raise KdistillError(f"{where} gives rows that are no probabilities: --teacher-output logits")
    return found and settings.teacher_output != "logits"


def _check_classes(classes: int, where: str, dataset: Dataset) -> None:
    if classes != dataset.classes:
        raise KdistillError(f"{where} gives {classes} logits a row, and {dataset.name} has {dataset.classes} classes")
