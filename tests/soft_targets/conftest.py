"""Soft-target files of random rows, written without any teacher."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill import soft_targets
from kdistill.data.keys import row_keys
from kdistill.soft_targets import LogitStorage
from kdistill.workspace import Input, Manifest, Workspace
from kdistill.workspace.resume_log import BlockLog

ROWS, CLASSES = 300, 7
IDENTITY = Manifest(
    kind="soft targets",
    settings={
        "temperature": 4.0,
        "batch_size": 32,
        "dtype": "float32",
        "top_k": None,
        "mean": None,
        "signature": None,
        "output": None,
        "teacher_input": "scaled",
    },
    inputs=(Input("dataset", "some", "sha256:d"), Input("teacher", "teacher", "sha256:t")),
)
STORAGE = LogitStorage(CLASSES, 4.0)


@pytest.fixture(scope="session")
def rows():
    """Return keys, logits and labels of random rows; most labels are the most likely class."""
    draw = np.random.default_rng(0)
    inputs = draw.integers(0, 256, (ROWS, 3, 3)).astype(np.uint8)
    logits = draw.normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
    labels = np.where(draw.random(ROWS) < 0.8, logits.argmax(axis=1), draw.integers(0, CLASSES, ROWS))
    return row_keys(inputs), logits, labels


@pytest.fixture(scope="session")
def open_log():
    """Return a function that opens the resume log of a directory, for an identity with other settings if there are any."""

    def open_log(place, **settings):
        identity = Manifest(kind="soft targets", settings={**IDENTITY.settings, **settings}, inputs=IDENTITY.inputs)
        return BlockLog(place / "blocks.log", identity, {"row_keys": ((16,), "u1"), **STORAGE.columns})

    return open_log


@pytest.fixture(scope="session")
def write(open_log):
    """Return a function that writes the soft targets of rows into a workspace, after what its log has already."""

    def write(place, rows, batch=32):
        keys, logits, labels = rows
        artifact = Workspace(place).soft_targets("soft-targets")
        artifact.path.parent.mkdir(exist_ok=True, parents=True)
        log = open_log(place)
        for start in range(log.rows, len(keys), batch):
            block = slice(start, start + batch)
            log.append({"row_keys": keys[block], **STORAGE.store(logits[block]).arrays()})
        teacher = {"model": "cnn", "parameters": 1, "probabilities": [False]}
        soft_targets.write(artifact.path, log, IDENTITY, labels, STORAGE, start_time=0.0, teacher=teacher)
        log.close()
        return artifact

    return write


@pytest.fixture
def artifact(tmp_path, rows, write):
    """Return a soft-target file that a test may change."""
    return write(tmp_path, rows)
