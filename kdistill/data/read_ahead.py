"""Read the next item in another thread while this one works."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, while another thread prepares the next one. No item may be None."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


@dataclass(frozen=True)
class TwoSteps(Generic[T]):
    """A function in two steps. The first one only reads.

    Attributes:
        read: takes an item, and returns what `compute` takes.
        compute: returns the result.
    """

    read: Callable[[Any], Any]
    compute: Callable[[Any], T]

    def __call__(self, item: Any) -> T:
        return self.compute(self.read(item))

    def map(self, items: Iterable[Any]) -> Iterator[T]:
        """Yield the results of items in their order. While one is computed, the next one is read."""
        return map(self.compute, read_ahead(map(self.read, items)))
