"""`package.module:function`: what a function of the user's own returns, arrays or `tf.data.Dataset`s."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.data import user_code
from kdistill.data.reader import Contents, Part, Reader, as_text, as_texts
from kdistill.data.readers import streams
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError, first_line

RETURNS = (
    "it can return (x, y), ((x_train, y_train), (x_test, y_test)), a dictionary of x_train, y_train, x_test and y_test, "
    "a tf.data.Dataset, or two of them"
)


class Function(Reader):
    """A function without arguments, in a module that is installed or lies in the current directory.

    What stands for its data is the source of its module: data that changes otherwise is not noticed.
    """

    format = "a function"
    takes = ("test-fraction",)

    @property
    def _names(self) -> tuple[str, str]:
        module, _, function = self.place.rpartition(":")
        return module, function

    def _source(self) -> Path:
        return user_code.find_source(self.place, "dataset")

    def digest(self) -> str:
        return workspace.digest(self._source())

    def contents(self) -> Contents:
        from kdistill.backend import tf

        found = self._call()
        if isinstance(found, dict):
            return self._of_arrays(found)
        pair = found if isinstance(found, tuple) and len(found) == 2 else None
        if isinstance(found, tf.data.Dataset):
            return Contents(streams.part(found, self.place, "train"))
        if pair and all(isinstance(one, tf.data.Dataset) for one in pair):
            train, test = (
                streams.part(one, self.place, name) for one, name in zip(pair, ("train", "test"), strict=True)
            )
            return Contents(train, test)
        if pair and all(isinstance(one, tuple) and len(one) == 2 for one in pair):
            (x_train, y_train), (x_test, y_test) = pair
            return self._of_arrays({"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test})
        if pair and not any(isinstance(one, (tuple, tf.data.Dataset)) for one in pair):
            return self._of_arrays({"x_train": pair[0], "y_train": pair[1]})
        raise KdistillError(f"{self.place} returned {_described(found)}: {RETURNS}")

    def _call(self) -> Any:
        module, function = self._names
        source = self._source()
        with self._one_line(source), contextlib.redirect_stdout(sys.stderr):
            called = vars(user_code.import_file(module, source)).get(function)
            if not callable(called):
                raise KdistillError(f"{self.place}: {source} has no function {function}")
            return called()

    @contextlib.contextmanager
    def _one_line(self, source: Path) -> Iterator[None]:
        """An error in the user's code as one line, with the place in that code where it came from."""
        try:
            yield
        except (KdistillError, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the user's code
            place = user_code.error_location(error, source) or source
            raise KdistillError(f"{self.place} failed: {type(error).__name__}: {first_line(error)} ({place})") from None

    def _of_arrays(self, found: dict[Any, Any]) -> Contents:
        if found.get("x_train") is None:
            raise KdistillError(f"{self.place} returned {_described(found)}, without x_train: {RETURNS}")
        arrays = {str(name): self._array(str(name), values) for name, values in found.items() if values is not None}

        def part(split: str) -> Part:
            x, y = f"x_{split}", f"y_{split}"
            return Part(ArrayRows(arrays[x], f"{self.place}: {x}"), arrays.get(y), x, y)

        return Contents(
            train=part("train"),
            test=part("test") if "x_test" in arrays else None,
            class_names=[as_text(name) for name in arrays.get("class_names", np.empty(0)).reshape(-1)],
        )

    def _array(self, name: str, values: Any) -> NDArray[Any]:
        try:
            array = np.asarray(values)
        except Exception as error:  # noqa: BLE001 - whatever the user's object raises
            said = first_line(error)
            raise KdistillError(f"{self.place}: {name} is no array: {said}") from None
        if not array.dtype.hasobject:
            return array
        if all(isinstance(value, str) for value in array.reshape(-1)):
            return as_texts(array.reshape(-1), f"{self.place}: {name}").reshape(array.shape)
        kinds = sorted({type(value).__name__ for value in array.reshape(-1)[:1000]})
        raise KdistillError(f"{self.place}: {name} is of type object ({', '.join(kinds)}): it needs numbers, or texts")


def _described(found: Any) -> str:
    if isinstance(found, dict):
        return f"a dictionary of {', '.join(map(str, list(found)[:8])) or 'nothing'}"
    if isinstance(found, tuple):
        return f"({', '.join(map(_described, found[:4]))}{', ...' * (len(found) > 4)})"
    return "None" if found is None else f"a value of type {type(found).__name__}"
