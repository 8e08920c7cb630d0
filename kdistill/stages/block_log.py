"""The log of soften and predict: results of blocks of rows, from which an interrupted command resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdistill.cluster import ClusterError, Engine, Work
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.workspace import Manifest
from kdistill.workspace.kinds import BLOCKS
from kdistill.workspace.resume_log import Block, BlockLog, Columns


@contextmanager
def open_log(directory: Path, identity: Manifest, columns: Columns, rows: int) -> Iterator[BlockLog]:
    """Open the log in a directory, and close it at the end.

    An error deletes it: the same command would fail again, so it must not resume. If only the cluster failed, it can.
    """
    log = BlockLog(directory / BLOCKS, identity, columns, rows)
    try:
        yield log
    except KdistillError as error:
        if not isinstance(error, ClusterError):
            log.path.unlink()
        raise
    finally:
        log.close()


def fill(
    log: BlockLog,
    engine: Engine,
    work: Work,
    to_block: Callable[[Any], Block],
    *,
    title: str,
    rows: int,
    batch_size: int,
    reporter: Reporter,
) -> None:
    """Append the blocks that are not in a log yet.

    Args:
        log: of the command.
        engine: does the work.
        work: its items are numbers of blocks.
        to_block: takes a result of the work, and returns the rows to append.
        title: of the progress bar.
        rows: how many there are in all blocks.
        batch_size: rows per block.
        reporter: prints whether the command resumes, and the progress.
    """
    if log.rows:
        reporter.say(f"Resuming after row {log.rows:,}")
    elif log.restarted:
        reporter.say("Starting over: the interrupted run had other settings")
    missing = range(math.ceil(log.rows / batch_size), math.ceil(rows / batch_size))
    with reporter.steps(title, rows) as bar:
        bar.advance(log.rows)
        for result in engine.map(work, missing, bar.note):
            before = log.rows
            log.append(to_block(result))
            bar.advance(log.rows - before)
