"""The interface of an engine, and the engine that works in this process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from kdistill.errors import KdistillError
from kdistill.workspace import threads

Note = Callable[[str, str], None]  # as `Steps.note`


class ClusterError(KdistillError):
    """The cluster, or a worker of it, can't do the work. What is done already is still good."""


@dataclass(frozen=True)
class Work:
    """What is done with each item, here or by a worker.

    Attributes:
        here: does it in this process: takes items, and yields their results in the same order.
        prepare: returns, in a worker, a function of one item, and opens all inputs itself. A function of a module.
        arguments: of `prepare`. Like items and results, they can be pickled.
    """

    here: Callable[[Iterable[Any]], Iterator[Any]]
    prepare: Callable[..., Callable[[Any], Any]]
    arguments: tuple[Any, ...]


class Engine(AbstractContextManager["Engine"]):
    """Does work on items. It is a context, and stops what it started when the context ends."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """The number of threads that TensorFlow uses per operation, as manifests record it."""

    @abstractmethod
    def map(self, work: Work, items: Iterable[Any], note: Note) -> Iterator[Any]:
        """Yield the results in the order of the items.

        Only few results are waiting at any time, however many items there are.

        Args:
            work: what to do.
            items: taken when they are needed.
            note: called with the number of workers when it changes, as a line and in short.

        Raises:
            ClusterError: if the cluster is lost, or a worker finds other inputs.
            Exception: what the work raises for an item. Results of the items before it were yielded.
        """

    @abstractmethod
    def run(self, work: Work, items: Iterable[Any], note: Note) -> Iterator[tuple[int, Any]]:
        """Yield the number of each item, from 0, and its result, in the order of completion; otherwise as `map`."""


class InProcess(Engine):
    """Works in this process, on one item after the other."""

    def __exit__(self, *_: object) -> None:
        """Do nothing, since nothing was started."""

    @property
    def threads(self) -> int:
        return threads()

    def map(self, work: Work, items: Iterable[Any], note: Note) -> Iterator[Any]:  # noqa: ARG002
        return work.here(items)

    def run(self, work: Work, items: Iterable[Any], note: Note) -> Iterator[tuple[int, Any]]:
        return enumerate(self.map(work, items, note))
