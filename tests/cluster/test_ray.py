"""Ray gives what this process gives, whatever dies, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys

import h5py
import pytest
from helpers import mentions, saved_weights, write_npz
from ray_cluster import Processes, outcome, wait_until

from kdistill.workspace import Workspace, digest
from kdistill.workspace.kinds import BLOCKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray: pip install 'kdistill[ray]'"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]

TEACHER = """
import time

import numpy as np


def slow(inputs):
    time.sleep(0.1)
    return plain(inputs)


def plain(inputs):
    return np.stack([inputs.reshape(len(inputs), -1)[:, 20:30].sum(axis=1) * number for number in range(10)], 1) / 9.0


def failing(inputs):
    if (inputs.reshape(len(inputs), -1).sum(axis=1) > LIMIT).any():
        raise ValueError("too bright")
    return plain(inputs)


LIMIT = 390.0
"""
SOFTEN = ["soften", "--dataset", "digits", "--batch-size", "40"]


@pytest.fixture
def processes(network, tmp_path):
    """Processes with a teacher in their working directory."""
    (tmp_path / "teacher.py").write_text(TEACHER)
    found = Processes(network, tmp_path)
    yield found
    found.stop()


@pytest.fixture
def expected(processes):
    """The soft targets of the slow teacher, from one process."""
    result = processes.run(*SOFTEN, "--teacher", "teacher:slow", "--workspace", "expected")
    assert result.code == 0, result.err
    return contents(processes.place / "expected/soft-targets/soft-targets.h5")


def contents(path):
    """Return all arrays of a soft-target file, and its manifest without what differs between two runs."""
    with h5py.File(path) as file:
        manifest = json.loads(file.attrs["manifest"])
        return {name: file[name][()].tobytes() for name in file} | {
            name: value for name, value in manifest.items() if name not in ("created", "seconds")
        }


def logged_bytes(place):
    """Return the size of the resume log of soften."""
    log = place / "workspace/soft-targets/.soft-targets.h5.partial" / BLOCKS
    return log.stat().st_size if log.exists() else 0


def test_worker_with_other_data_is_refused(cluster, processes, digits):
    """The data changes after the driver has read it, and before a worker does."""
    data = write_npz(processes.place / "data.npz", digits)
    command = ["soften", "--dataset", data, "--teacher", "teacher:plain", "--ray", cluster.address]
    driver = processes.kdistill(*command)
    processes.read_until(driver, "0 workers")
    write_npz(data, digits, x_train=digits.train.read()[::-1])
    cluster.add_nodes(1)
    result = outcome(driver)
    assert result.code == 1
    assert mentions(result.err, "error", data, "worker")
    assert len(result.err.splitlines()) == 1
    assert not list(processes.place.glob("workspace/soft-targets/*.h5"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "elsewhere"])
def test_no_cluster(processes, address):
    """The error names the address, and nothing is written."""
    result = processes.run(*SOFTEN, "--teacher", "teacher:plain", "--ray", address)
    assert result.code == 1
    assert mentions(result.err, "--ray", address)
    assert not (processes.place / "workspace").exists()


def test_more_cpus_than_there_are(processes):
    """Ray on this machine can't wait for a larger one."""
    result = processes.run(*SOFTEN, "--teacher", "teacher:plain", "--ray", "local", "--ray-cpus", 4096)
    assert result.code == 2
    assert mentions(result.err, "--ray-cpus", 4096)
    assert not (processes.place / "workspace").exists()
    wait_until(lambda: not processes.alive(), "the end of all processes")


def test_views_and_top_k(two_workers, processes, made):
    """The teacher's network, its views and its largest logits are the same, and so is the manifest."""
    shutil.copytree(made, processes.place / "workspace")
    command = ["soften", "--augment", "shift:1", "--views", "3", "--top-k", "4", "--batch-size", "100", "--force"]
    file = processes.place / "workspace/soft-targets/soft-targets.h5"
    assert processes.run(*command).code == 0
    here = contents(file)
    result = processes.run(*command, *two_workers)
    assert result.code == 0, result.err
    assert mentions(result.out, "2 workers") or mentions(result.out, "1 worker")
    assert contents(file) == here
    assert here["threads"] == 1


def test_predict(two_workers, processes, made):
    """A student's predictions are the same file."""
    command = ["predict", "digits", "--all", "--batch-size", "100", "--workspace", made]
    for name, options in ("here.csv", []), ("there.csv", two_workers):
        result = processes.run(*command, "--output", name, *options)
        assert result.code == 0, result.err
    assert digest(processes.place / "here.csv") == digest(processes.place / "there.csv")


def test_error_of_the_teacher(two_workers, processes):
    """A teacher that fails for some rows gives the line that it gives here, and nothing to resume from."""
    command = [*SOFTEN, "--teacher", "teacher:failing"]
    here, there = processes.run(*command, "--workspace", "other"), processes.run(*command, *two_workers)
    assert here.code == there.code == 1
    assert mentions(here.err, "teacher:failing", "ValueError", "too bright")
    assert there.err == here.err
    assert not logged_bytes(processes.place)


def test_driver_is_killed_and_resumes(two_workers, processes, expected):
    """The workers of a killed driver end, and the same command resumes."""
    command = [*SOFTEN, "--teacher", "teacher:slow", *two_workers]
    driver = processes.kdistill(*command)
    wait_until(lambda: logged_bytes(processes.place) > 10_000, "the first blocks")
    assert len(processes.alive()) > 1
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    wait_until(lambda: not processes.alive(), "the end of all processes")
    result = processes.run(*command)
    assert mentions(result.out, "resuming", "row")
    assert contents(processes.place / "workspace/soft-targets/soft-targets.h5") == expected


def test_node_is_killed(cluster, two_workers, processes, expected):
    """Its blocks are computed by the other worker."""
    driver = processes.kdistill(*SOFTEN, "--teacher", "teacher:slow", *two_workers)
    processes.read_until(driver, "2 workers")
    wait_until(lambda: logged_bytes(processes.place) > 10_000, "the first blocks")
    cluster.kill_node()
    result = outcome(driver)
    assert result.code == 0, result.err
    assert contents(processes.place / "workspace/soft-targets/soft-targets.h5") == expected


def test_sweep(two_workers, processes, made):
    """The table is the same, and so are the students."""
    grid = ["sweep", "--temperature", "1", "--seeds", "0", "--model", "mlp-10", "--epochs", "2", "--xla", "off"]
    places = [processes.place / name for name in ("here", "there")]
    for place, options in zip(places, ([], two_workers), strict=True):
        shutil.copytree(made, place)
        result = processes.run(*grid, "--workspace", place, *options)
        assert result.code == 0, result.err
    tables = [(place / "sweeps/sweep/table.csv").read_bytes() for place in places]
    assert tables[0] == tables[1]
    here, there = (Workspace(place).sweep_students("sweep") for place in places)
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        manifests = one.require(), other.require()
        for name in ("settings", "inputs", "results", "versions", "threads"):
            assert getattr(manifests[0], name) == getattr(manifests[1], name), name
        assert manifests[0].outputs["saved_model"] == manifests[1].outputs["saved_model"]
        assert saved_weights(one.path) == saved_weights(other.path)
    assert processes.run(*grid, "--workspace", places[1], "--ray", "local").up_to_date  # without starting Ray


AHEAD = """
import functools, json, operator
from kdistill.cluster import Work, engine
from kdistill.settings import Cluster

taken, ahead, workers = 0, [], []

def items():
    global taken
    for taken in range(1, 101):
        yield taken

def note(_, number_of_workers):
    workers.append(int(number_of_workers.split()[0]))

with engine(Cluster(ray="ADDRESS")) as ray:
    work = Work(None, functools.partial, (operator.mul, 2))
    results = []
    for result in ray.map(work, items(), note):
        ahead.append(taken - len(results))
        results.append(result)
    done = sorted(ray.run(work, range(100), lambda *_: None))
print(json.dumps([results, max(ahead), max(workers), done]))
"""


def test_order_and_look_ahead(cluster, two_workers, processes):
    """Results are in order, and few items are taken before they are needed."""
    result = outcome(processes.start(sys.executable, "-c", AHEAD.replace("ADDRESS", cluster.address)))
    assert result.code == 0, result.err
    results, ahead, workers, done = json.loads(result.out)
    assert results == [2 * number for number in range(1, 101)]
    assert workers in {2, 3}  # a node that another test killed still counts for some seconds
    assert ahead <= 2 * workers
    assert done == [[number, 2 * number] for number in range(100)]


def test_ctrl_c_leaves_no_process(cluster, processes, expected):
    """Ctrl-C ends the Ray that the command started, and the same command resumes without Ray."""
    command = [*SOFTEN, "--teacher", "teacher:slow"]
    driver = processes.kdistill(*command, "--ray", "local")
    wait_until(lambda: logged_bytes(processes.place) > 10_000, "the first blocks")
    assert len(processes.alive()) > 4
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    assert outcome(driver).code == 130
    wait_until(lambda: not processes.alive(), "the end of all processes")
    result = processes.run(*command)
    assert mentions(result.out, "resuming", "row")
    assert contents(processes.place / "workspace/soft-targets/soft-targets.h5") == expected
