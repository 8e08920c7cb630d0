"""Measure networks on the training and test rows of one dataset."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.console import Reporter, Steps
from kdistill.data.rows import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics

if TYPE_CHECKING:
    from kdistill.networks.loading import NetworkLoader
    from kdistill.networks.saved_models import SavedNetwork
    from kdistill.teachers import Ensemble

CACHED_BYTES = 256 << 20  # limit for the inputs of a dataset, and another one for the logits of a teacher


@dataclass(frozen=True)
class Measurement:
    """One network on one split. Values that do not apply or are not known are None.

    NLL and KL(teacher || network) are in nats, KL at T = 1.
    """

    name: str
    role: str
    split: str
    rows: int
    errors: int
    error_rate: float
    nll: float
    ece: float
    brier: float
    agreement: float | None
    kl_to_teacher: float | None
    parameters: int | None
    bytes: int | None

    @property
    def accuracy(self) -> float:
        """The fraction of rows that the network classifies correctly."""
        return 1 - self.error_rate


@dataclass(frozen=True, eq=False)
class NetworkToMeasure:
    """A network that is loaded when its turn comes."""

    name: str
    role: str
    load: Callable[[NetworkLoader], SavedNetwork | Ensemble | None]  # None if it has changed since it taught a student
    graph: tuple[object, ...] = ()  # sort key that puts networks with equal graphs next to each other
    parameters: int | None = None
    bytes: int | None = None
    teacher: NetworkToMeasure | None = None
    listed: bool = True  # otherwise it is only the teacher of other networks

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


Observer = Callable[[NetworkToMeasure, data.Split, NDArray[Any]], None]  # is given each block of logits, in order


class BlockCache:
    """Blocks of rows that are kept after they are computed once, or computed again each time if they are too large."""

    def __init__(self, compute: Callable[[], Iterable[NDArray[Any]]], *, keep: bool) -> None:
        self._compute, self._keep = compute, keep
        self._blocks: list[NDArray[Any]] | None = None

    def __iter__(self) -> Iterator[NDArray[Any]]:
        if self._keep and self._blocks is None:
            self._blocks = list(self._compute())
        return iter(self._compute() if self._blocks is None else self._blocks)


def measure(
    networks: Sequence[NetworkToMeasure],
    dataset: data.Dataset,
    reporter: Reporter,
    bar: Steps,
    observer: Observer | None = None,
) -> list[Measurement]:
    """Measure networks on both splits of their dataset.

    Each teacher is followed by its students. Memory holds one network at a time, and also its teacher if the teacher's
    logits are larger than `CACHED_BYTES`. A dataset that is larger than `CACHED_BYTES` is read again for each network.

    Returns:
        Two measurements per network, of the training and the test rows, in the order of `networks`. Networks that fail
        are left out with a warning.
    """
    from kdistill.networks.loading import NetworkLoader

    splits = dataset.train, dataset.test
    inputs_fit = sum(split.inputs.nbytes for split in splits) <= CACHED_BYTES
    logits_fit = sum(len(split) for split in splits) * dataset.classes * 4 <= CACHED_BYTES
    inputs = [BlockCache(functools.partial(split.blocks, BLOCK_ROWS), keep=inputs_fit) for split in splits]
    measurements: dict[NetworkToMeasure, list[Measurement]] = {}
    failures: dict[str, list[NetworkToMeasure]] = {}

    def measure_network(
        entry: NetworkToMeasure,
        loader: NetworkLoader,
        teacher_logits: Sequence[BlockCache | None] = (None, None),
        *,
        keep: bool = False,
    ) -> Sequence[BlockCache | None]:
        """Measure a network, and return its logits of the training and test rows, or None for each if it fails."""
        if entry.listed:
            bar.advance()
        try:
            network = entry.load(loader)
            if network is None:
                return None, None
            network.check(dataset.input_shape, dataset.input_dtype, dataset.classes, dataset.name)
            logits = [BlockCache(functools.partial(map, network.logits, blocks), keep=keep) for blocks in inputs]
            if entry.listed:
                arguments = zip(splits, logits, teacher_logits, strict=True)
                measurements[entry] = [_measure_split(entry, *each, observer) for each in arguments]
        except KdistillError as error:
            failures.setdefault(str(error), []).append(entry)
            return None, None
        return logits

    loader = NetworkLoader()
    teachers = dict.fromkeys(entry.teacher for entry in networks)
    for teacher in teachers:
        teacher_logits = measure_network(teacher, NetworkLoader(), keep=logits_fit) if teacher else (None, None)
        students = [entry for entry in networks if entry.teacher is teacher and entry not in teachers]
        for student in sorted(students, key=lambda entry: entry.graph):
            measure_network(student, loader, teacher_logits)
    for reason, entries in failures.items():
        reporter.warn(f"skipped {', '.join(map(str, entries))}: {reason}")
    return [measurement for entry in networks for measurement in measurements.get(entry, [])]


def _measure_split(
    network: NetworkToMeasure,
    split: data.Split,
    logits: Iterable[NDArray[Any]],
    teacher_logits: Iterable[NDArray[Any]] | None,
    observer: Observer | None,
) -> Measurement:
    """Measure one network on one split. Memory holds a few numbers per row, whatever the number of classes."""
    columns_of_blocks: list[list[NDArray[Any]]] = []
    start = 0
    pairs: Iterable[tuple[NDArray[Any], NDArray[Any] | None]]
    pairs = zip(logits, repeat(None)) if teacher_logits is None else zip(logits, teacher_logits, strict=True)
    for block, teacher_block in pairs:
        labels = split.labels[start : start + len(block)]
        start += len(block)
        if observer:
            observer(network, split, block)
        columns = [
            metrics.confidence(block),
            block.argmax(axis=1) == labels,
            metrics.negative_log_likelihood(block, labels),
            metrics.brier_score(block, labels),
        ]
        if teacher_block is not None:
            columns += [metrics.agreement(block, teacher_block), metrics.kl_divergence(teacher_block, block)]
        columns_of_blocks.append(columns)
    confidence, correct, nll, brier, *of_teacher = map(np.concatenate, zip(*columns_of_blocks, strict=True))
    agreement, kl_to_teacher = (float(values.mean()) for values in of_teacher) if of_teacher else (None, None)
    errors = int((~correct).sum())
    return Measurement(
        name=network.name,
        role=network.role,
        split=split.name,
        rows=len(correct),
        errors=errors,
        error_rate=errors / len(correct),
        nll=float(nll.mean()),
        ece=metrics.expected_calibration_error(confidence, correct),
        brier=float(brier.mean()),
        agreement=agreement,
        kl_to_teacher=kl_to_teacher,
        parameters=network.parameters,
        bytes=network.bytes,
    )
