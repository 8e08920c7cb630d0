"""`package.module:function`: arrays or `tf.data.Dataset`s that a user-defined function returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data import user_code
from kdistill.data.reader import Contents, Reader, array_contents, as_strings
from kdistill.data.readers import streams
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError, one_line_errors

EXPECTED = (
    "expected (x, y), ((x_train, y_train), (x_test, y_test)), a dictionary of x_train, y_train, x_test and y_test, "
    "a tf.data.Dataset, or two of them"
)


class Function(Reader):
    """A function without arguments, in a module that is installed or in the current directory.

    The digest is that of the function's name, of the module's source and of the files that its `ARTIFACTS` names: data
    that changes without them is not noticed.
    """

    format = "a function"
    takes = ("test-fraction",)

    def digest(self) -> str:
        return user_code.digest(self.place, "dataset")

    def contents(self) -> Contents:
        from kdistill.backend import tf

        source = user_code.find_source(self.place, "dataset")
        function = user_code.load_function(self.place, source)
        with user_code.one_line_failures(self.place, source):
            value = function()
        if isinstance(value, dict):
            return self._from_arrays(value)
        items = value if isinstance(value, tuple) else (value,)
        if len(items) <= 2 and all(isinstance(item, tf.data.Dataset) for item in items):
            return Contents(*streams.parts(dict(zip(("train", "test"), items, strict=False)), self.place))
        if len(items) == 2 and all(isinstance(item, tuple) and len(item) == 2 for item in items):
            (x_train, y_train), (x_test, y_test) = items
            return self._from_arrays({"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test})
        if len(items) == 2 and not any(isinstance(item, (tuple, tf.data.Dataset)) for item in items):
            return self._from_arrays({"x_train": items[0], "y_train": items[1]})
        raise KdistillError(f"{self.place} returned {_describe(value)} ({EXPECTED})")

    def _from_arrays(self, values: Mapping[Any, Any]) -> Contents:
        if values.get("x_train") is None:
            raise KdistillError(f"{self.place} returned {_describe(values)} without x_train ({EXPECTED})")
        arrays = {str(name): self._array(str(name), array) for name, array in values.items() if array is not None}
        return array_contents({name: ArrayRows(array, f"{self.place}: {name}", name) for name, array in arrays.items()})

    def _array(self, name: str, value: Any) -> NDArray[Any]:
        with one_line_errors(f"{self.place}: can't convert {name} to an array"):
            array = np.asarray(value)
        if not array.dtype.hasobject:
            return array
        if all(isinstance(item, str) for item in array.reshape(-1)):
            if name.startswith("x_"):
                return array
            return as_strings(array.reshape(-1), f"{self.place}: {name}").reshape(array.shape)
        types = sorted({type(item).__name__ for item in array.reshape(-1)[:1000]})
        raise KdistillError(f"{self.place}: {name} has type object ({', '.join(types)}; expected numbers or strings)")


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(str, list(value)[:8])) or 'nothing'}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value[:4]))}{', ...' * (len(value) > 4)})"
    return "None" if value is None else f"a value of type {type(value).__name__}"
