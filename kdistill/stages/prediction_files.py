"""The files of `kdistill predict`: CSV, Parquet, NumPy's `.npz` and HDF5, written from blocks of predictions.

In tables, each value of a row has a column. In `.npz` and HDF5, the values of all rows are one array (rows, values), and
`names` has their names. Only `.npz` needs all rows in memory.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError
from kdistill.settings import PREDICTION_FILES
from kdistill.tasks import Prediction

Block = Sequence[Prediction]  # of the same rows; all blocks of a file have the same names
Write = Callable[[Path, Iterable[Block], int], None]  # a new file, its blocks, and the number of their rows

GROUP_BYTES = 32 << 20  # of a row group of Parquet, which is in memory while it is filled


def require_packages(path: Path) -> None:
    """Check that the packages that write a file of this extension are installed.

    Raises:
        KdistillError: with the command that installs them.
    """
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise KdistillError(f"--output {path.name} needs pyarrow, not installed here: pip install 'kdistill[tables]'")


def write(path: Path, blocks: Iterable[Block], rows: int) -> None:
    """Write a file in the format of its extension."""
    function: Write = globals()[PREDICTION_FILES[path.suffix.lower()]]
    function(path, blocks, rows)


def write_csv(path: Path, blocks: Iterable[Block], rows: int) -> None:  # noqa: ARG001 - as in `Write`
    """Write a table as CSV in UTF-8 (RFC 4180, with line feeds). Numbers have the digits that identify a float32."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, columns in enumerate(map(_columns, blocks)):
            if number == 0:
                file.write(_line(map(_quoted, columns)))
            file.writelines(map(_line, zip(*map(_cells, columns.values()), strict=True)))


def write_parquet(path: Path, blocks: Iterable[Block], rows: int) -> None:  # noqa: ARG001 - as in `Write`
    """Write a table as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    def groups() -> Iterator[Any]:
        waiting: list[Any] = []
        for columns in map(_columns, blocks):
            waiting.append(pa.table(columns))
            if len(waiting) * waiting[0].nbytes >= GROUP_BYTES:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    tables = groups()
    first = next(tables)
    with parquet.ParquetWriter(path, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table, row_group_size=len(table))


def write_npz(path: Path, blocks: Iterable[Block], rows: int) -> None:  # noqa: ARG001 - as in `Write`
    """Write arrays as an `.npz`. Texts have a fixed width, so that no pickle is needed."""
    whole = list(blocks)
    arrays: dict[str, Any] = {
        each.name: np.concatenate([block[number].values for block in whole]) for number, each in enumerate(whole[0])
    }
    arrays |= _names(whole[0])
    np.savez(path, **{name: array.astype(str) if array.dtype == object else array for name, array in arrays.items()})


def write_hdf5(path: Path, blocks: Iterable[Block], rows: int) -> None:
    """Write datasets to an HDF5 file. Texts have a variable length, and numbers have checksums."""
    import h5py

    from kdistill.soft_targets.writer import OutputFile, create_dataset

    with OutputFile(path) as output, h5py.File(output, "w") as file:  # the latest format would record the time
        start = 0
        for block in blocks:
            end = start + len(block[0].values)
            for name, values in {} if start else _names(block).items():
                file.create_dataset(name, data=values, dtype=h5py.string_dtype())
            for each in block:
                if start == 0 and each.values.dtype == object:
                    file.create_dataset(each.name, (rows,), h5py.string_dtype())
                elif start == 0:
                    create_dataset(file, each.name, (rows, *each.values.shape[1:]), each.values.dtype.str)
                file[each.name][start:end] = each.values
            start = end


def _names(block: Block) -> dict[str, NDArray[np.object_]]:
    """Return the names of the values of a row as an array, if they have names."""
    names = next((each.names for each in block if len(each.names)), None)
    return {} if names is None else {"names": np.array(names, object)}


def _columns(block: Block) -> dict[str, NDArray[Any]]:
    """Return the columns of a table, (rows,) each. A name that another column has gets underscores."""
    columns: dict[str, NDArray[Any]] = {}
    for each in block:
        matrix = each.values.reshape(len(each.values), -1)
        numbered = each.names or [f"{each.name} {number}" for number in range(matrix.shape[1])]
        for name, values in zip([each.name] if each.values.ndim == 1 else numbered, matrix.T, strict=True):
            while name in columns:
                name += "_"  # noqa: PLW2901
            columns[name] = values
    return columns


def _cells(values: NDArray[Any]) -> list[str]:
    return [*map(_quoted, values)] if values.dtype == object else values.astype(str).tolist()


def _quoted(text: str) -> str:
    """Return a text as a cell. Python's csv leaves a carriage return unquoted if lines end with a line feed."""
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\r\n]|^\s|\s$', text) else text


def _line(cells: Iterable[str]) -> str:
    return ",".join(cells) + "\n"
