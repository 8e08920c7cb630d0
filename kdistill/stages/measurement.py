"""Measure networks on the training and test rows of one dataset."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.console import Reporter, Steps
from kdistill.data.rows import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.tasks import Measures, Task

if TYPE_CHECKING:
    from kdistill.networks.loading import NetworkLoader
    from kdistill.networks.saved_models import SavedNetwork
    from kdistill.teachers import Ensemble, StoredTeacher

CACHED_BYTES = 256 << 20  # limit for the inputs of a dataset, and another one for the logits of a teacher


@dataclass(frozen=True)
class Measurement:
    """One network on one split.

    Attributes:
        name: of the network.
        role: `teacher` or `student`.
        split: `train` or `test` of the dataset that the network was trained on, or `other` rows.
        dataset: the name of the dataset of the rows.
        task: what the outputs are.
        rows: how many there are.
        measures: those of the task, by name. Those that do not apply or are not known are missing.
        parameters: of the network; None if unknown.
        bytes: of its SavedModel; None if unknown.
        per_class: the measures of each class, not of training rows; None if they were not asked for.
    """

    name: str
    role: str
    split: str
    dataset: str
    task: Task
    rows: int
    measures: Measures
    parameters: int | None
    bytes: int | None
    per_class: list[dict[str, Any]] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return all values by name, those that are not known as None."""
        known = {column.measure: None for column in self.task.columns} | self.measures
        fields = {name: getattr(self, name) for name in ("name", "role", "split", "dataset")}
        fields |= {"task": self.task.name, "rows": self.rows}
        per_class = {} if self.per_class is None else {"per_class": self.per_class}
        return {**fields, **known, "parameters": self.parameters, "bytes": self.bytes, **per_class}


@dataclass(frozen=True, eq=False)
class NetworkToMeasure:
    """A network that is loaded when its turn comes."""

    name: str
    role: str
    load: Callable[[NetworkLoader], SavedNetwork | Ensemble | StoredTeacher | None]  # None if it has changed since then
    graph: tuple[object, ...] = ()  # sort key that puts networks with equal graphs next to each other
    parameters: int | None = None
    bytes: int | None = None
    teacher: NetworkToMeasure | None = None
    listed: bool = True  # otherwise it is only the teacher of other networks
    test_only: bool = False  # its outputs of the training rows are not known

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


Observer = Callable[[NetworkToMeasure, data.Split, NDArray[Any]], None]  # is given each block of outputs, in order


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
    *,
    per_class: bool = False,
) -> list[Measurement]:
    """Measure networks on both splits of a dataset, or only on its test rows if it has no training rows.

    Each teacher is followed by its students. Memory holds one network at a time, and also its teacher if the teacher's
    logits are larger than `CACHED_BYTES`. A dataset that is larger than `CACHED_BYTES` is read again for each network.

    Returns:
        One measurement per network and split, training rows first, in the order of `networks`. Networks that fail are
        left out with a warning.
    """
    from kdistill.networks.loading import NetworkLoader

    splits = dataset.train, dataset.test
    inputs_fit = sum(split.inputs.nbytes for split in splits) <= CACHED_BYTES
    logits_fit = sum(len(split) for split in splits) * (dataset.outputs or 1024) * 4 <= CACHED_BYTES
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
        """Measure a network, and return its logits of the training and test rows, None for those it does not have."""
        if entry.listed:
            bar.advance()
        try:
            network = entry.load(loader)
            if network is None:
                return None, None
            network.check(dataset.input_shape, dataset.input_dtype, dataset.outputs, dataset.name)
            logits = [
                BlockCache(
                    functools.partial(map, network.logits, blocks), keep=keep or (per_class and split is dataset.test)
                )
                if len(split) and not (entry.test_only and split is dataset.train)
                else None
                for split, blocks in zip(splits, inputs, strict=True)
            ]
            if entry.listed:
                measurements[entry] = _measure_splits(entry, dataset, logits, teacher_logits, observer)
                if per_class and logits[1] is not None:
                    *train, test = measurements[entry]
                    outputs = np.concatenate(list(logits[1]))
                    classes = dataset.task.per_class(outputs, dataset.test.labels, dataset.class_names)
                    measurements[entry] = [*train, replace(test, per_class=classes)]
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


def _measure_splits(
    network: NetworkToMeasure,
    dataset: data.Dataset,
    outputs: Sequence[BlockCache | None],
    teacher_outputs: Sequence[BlockCache | None],
    observer: Observer | None,
) -> list[Measurement]:
    """Measure one network on the training and the test rows, if it has outputs for these."""
    task, (train, test) = dataset.task, (dataset.train, dataset.test)
    measured = [
        (split, task.measure(_observed(blocks, network, split, observer), split.labels, of_teacher))
        for split, blocks, of_teacher in zip((train, test), outputs, teacher_outputs, strict=True)
        if blocks is not None
    ]
    if outputs[0] is not None and outputs[1] is not None:
        measured[-1][1].update(task.probe(outputs[0], train.labels, outputs[1], test.labels))
    return [
        Measurement(
            network.name,
            network.role,
            split.name,
            dataset.name,
            task,
            len(split),
            measures,
            network.parameters,
            network.bytes,
        )
        for split, measures in measured
    ]


def _observed(
    blocks: Iterable[NDArray[Any]], network: NetworkToMeasure, split: data.Split, observer: Observer | None
) -> Iterator[NDArray[Any]]:
    for block in blocks:
        if observer:
            observer(network, split, block)
        yield block
