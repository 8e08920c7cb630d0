"""Read the next items in another thread while this one works."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kdistill.workspace import threads

T = TypeVar("T")

SMALL_BLOCK = 16 << 20  # bytes of float32


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, while another thread prepares the next one. No item may be None."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


def blocks_at_once(row_shape: Sequence[int], rows: int, *, parallel: bool) -> int:
    """Return how many blocks of rows to compute at once: two if they are small, since one leaves cores idle at times.

    Args:
        row_shape: of a row.
        rows: of a block.
        parallel: whether several threads can compute at the same time.
    """
    return 2 if parallel and threads() > 1 and 4 * rows * math.prod(row_shape) <= SMALL_BLOCK else 1


@dataclass(frozen=True)
class TwoSteps(Generic[T]):
    """A function in two steps. The first one only reads.

    Attributes:
        read: takes an item, and returns what `compute` takes.
        compute: returns the result.
        at_once: how many items are computed at the same time, each in its own thread if there are several.
    """

    read: Callable[[Any], Any]
    compute: Callable[[Any], T]
    at_once: int = 1

    def __call__(self, item: Any) -> T:
        return self.compute(self.read(item))

    def map(self, items: Iterable[Any]) -> Iterator[T]:
        """Yield the results of items in their order. While some are computed, the next one is read."""
        inputs = read_ahead(map(self.read, items))
        return map(self.compute, inputs) if self.at_once == 1 else self._in_threads(inputs)

    def _in_threads(self, inputs: Iterator[Any]) -> Iterator[T]:
        with ThreadPoolExecutor(self.at_once) as pool:
            pending: deque[Future[T]] = deque()
            for each in inputs:
                pending.append(pool.submit(self.compute, each))
                if len(pending) > self.at_once:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
