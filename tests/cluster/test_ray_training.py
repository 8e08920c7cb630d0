"""One training on several workers of Ray: the bits of other workers, whatever dies, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from helpers import KDISTILL, mentions, saved_weights
from ray_cluster import Processes, outcome, wait_until

from kdistill.workspace import Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray: pip install 'kdistill[ray]'"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]

TRAIN = ["train-teacher", "--model", "mlp-30", "--epochs", "12", "--batch-size", "10", "--xla", "off", "--seed", "4"]


@pytest.fixture
def processes(network, tmp_path):
    found = Processes(network, tmp_path)
    yield found
    found.stop()


def by_tf_config(processes, *command):
    """Run a command as two workers that `TF_CONFIG` describes."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        cluster = {"worker": [f"127.0.0.1:{free.getsockname()[1]}" for free in (one, other)]}
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(2)]
    started = [processes.start("env", f"TF_CONFIG={config}", *KDISTILL, *command) for config in configs]
    for process in started:
        result = outcome(process)
        assert result.code == 0, result.err


def workers(processes):
    """Return the numbers of the processes that train."""
    return [pid for pid in processes.alive() if "_Worker" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_killed_worker(two_workers, processes):
    """The command ends with one line, and again resumes to the bits of two workers that `TF_CONFIG` describes."""
    by_tf_config(processes, *TRAIN, "--workspace", "expected")
    command = [*TRAIN, *two_workers, "--workers", 2]
    driver = processes.kdistill(*command)
    processes.read_until(driver, "epoch", "1/12")
    assert len(workers(processes)) == 2
    os.kill(workers(processes)[-1], signal.SIGKILL)
    result = outcome(driver)
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert mentions(result.err, "worker", 2)
    wait_until(lambda: not processes.alive(), "the end of all processes")
    result = processes.run(*command)
    assert result.code == 0, result.err
    assert mentions(result.out, "resuming", "epoch")
    found, expected = (Workspace(processes.place / name).teacher("teacher") for name in ("workspace", "expected"))
    assert saved_weights(found.path) == saved_weights(expected.path)
    for name in ("settings", "inputs", "results", "threads"):
        assert getattr(found.require(), name) == getattr(expected.require(), name), name
    assert sorted(path.name for path in found.path.parent.iterdir()) == ["teacher"]
    assert [path.name for path in found.root.iterdir()] == ["teachers"]


def test_error_of_the_training(two_workers, processes):
    """An error of the workers is the same line as without Ray, and a machine that is too small is an error."""
    for options, words in (
        ([*two_workers, "--workers", 2, "--batch-size", 1], ("--batch-size", 1, 2)),
        (["--ray", "local", "--workers", 4096], (4096, "workers", "CPUs")),
    ):
        result = processes.run(*TRAIN, *options)
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
        assert mentions(result.err, *words)
        assert not (processes.place / "workspace").exists()
        wait_until(lambda: not processes.alive(), "the end of all processes")


def test_ctrl_c(processes):
    """Ctrl-C ends Ray and the worker, and the same command resumes without Ray."""
    driver = processes.kdistill(*TRAIN, "--ray", "local")
    processes.read_until(driver, "epoch", "1/12")
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    result = outcome(driver)
    assert (result.code, len(result.err.splitlines())) == (130, 1)
    wait_until(lambda: not processes.alive(), "the end of all processes")
    result = processes.run(*TRAIN)
    assert result.code == 0, result.err
    assert mentions(result.out, "resuming", "epoch")
