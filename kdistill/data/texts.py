"""Rows of texts: strings of any length, which networks split into tokens themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.data.rows import BLOCK_ROWS, Rows
from kdistill.errors import KdistillError

TEXT = np.dtype(object)  # of rows of texts, as Python strings
MAX_CHARACTERS = 100_000  # a text widens its whole batch
PIECE_ROWS = 100  # read before lengths are checked: in HDF5, many texts can point to the same bytes
STRING_BYTES = 24  # that TensorFlow needs for each string, besides its bytes


class TextRows(Rows):
    """Texts (rows,) as Python strings.

    Args:
        rows: strings of any NumPy type, or bytes in UTF-8, of shape (rows,) or (rows, 1).
        where: what messages call them.
    """

    def __init__(self, rows: Rows, where: str) -> None:
        self._rows, self._where = rows, where
        self.shape, self.dtype, self.seekable = (len(rows),), TEXT, rows.seekable

    @cached_property
    def row_bytes(self) -> int:
        """The mean bytes of a row in memory."""
        total = sum(len(text.encode()) for block in self.blocks(BLOCK_ROWS) for text in block)
        return STRING_BYTES + total // max(1, len(self))

    def read_range(self, start: int, stop: int) -> NDArray[Any]:
        pieces = ((first, min(first + PIECE_ROWS, stop)) for first in range(start, stop, PIECE_ROWS))
        texts = [self._texts(self._rows.read_range(*piece), piece[0]) for piece in pieces]
        return np.concatenate([np.empty(0, TEXT), *texts])

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        if self.seekable:
            yield from super().blocks(rows)
            return
        start = 0
        for block in self._rows.blocks(rows):
            yield self._texts(block, start)
            start += len(block)

    def _texts(self, block: NDArray[Any], start: int) -> NDArray[Any]:
        """Return the texts of a block that starts at row `start`."""
        texts = np.empty(len(block), TEXT)
        for row, value in enumerate(block.reshape(-1).tolist()):
            try:
                texts[row] = value.decode() if isinstance(value, bytes) else value
                texts[row].encode()  # half a surrogate pair cannot be encoded
            except (UnicodeError, AttributeError):
                raise KdistillError(
                    f"{self._where} contains {value!r:.60} in row {start + row} (expected a text in UTF-8)"
                ) from None
            if len(texts[row]) > MAX_CHARACTERS:
                raise KdistillError(
                    f"{self._where} contains a text of {len(texts[row]):,} characters in row {start + row} (expected at "
                    f"most {MAX_CHARACTERS:,}): shorten it, or split it into several rows"
                )
        return texts
