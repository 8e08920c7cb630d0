"""Which workers share a training, as `TF_CONFIG` and Slurm describe them."""

from __future__ import annotations

import json

import pytest
from helpers import mentions

from kdistill.errors import KdistillError
from kdistill.training.workers import Workers

SLURM = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "n[9-10],gpu[001,003]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2),2,1",
    "SLURM_PROCID": "3",
}


@pytest.fixture
def workers(monkeypatch):
    """Return a function that returns the workers of an environment."""
    for name in ("TF_CONFIG", *SLURM):
        monkeypatch.delenv(name, raising=False)

    def here(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Workers.here()

    return here


def config(cluster, job, index):
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})


def test_without_workers(workers):
    """A process alone is the chief."""
    here = workers()
    assert (here.count, here.chief) == (1, True)


@pytest.mark.parametrize(
    ("cluster", "job", "index", "expected"),
    [
        ({"worker": ["a:1", "b:1"]}, "worker", 0, Workers(("a:1", "b:1"), 0)),
        ({"worker": ["a:1", "b:1"]}, "worker", 1, Workers(("a:1", "b:1"), 1)),
        ({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, "chief", 0, Workers(("c:1", "a:1", "b:1"), 0)),
        ({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, "worker", 0, Workers(("c:1", "a:1", "b:1"), 1)),
        ({"worker": ["a:1"], "evaluator": ["b:1"]}, "worker", 0, Workers()),
        ({}, "worker", 0, Workers()),
    ],
)
def test_tf_config(workers, cluster, job, index, expected):
    """The chief, if there is one, is the first worker."""
    assert workers(TF_CONFIG=config(cluster, job, index)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        config({"worker": ["a:1", "b:1"]}, "worker", 2),
        config({"worker": ["a:1", "b:1"]}, "worker", -1),
        config({"worker": ["a:1", "b:1"], "ps": ["c:1"]}, "ps", 0),
        config({"worker": 3}, "worker", 0),
    ],
)
def test_tf_config_that_cannot_be_used(workers, text):
    with pytest.raises(KdistillError) as caught:
        workers(TF_CONFIG=text)
    assert mentions(str(caught.value), "TF_CONFIG")


def test_slurm(workers):
    """Each task of a job step is a worker, in the order of the ranks; `TF_CONFIG={}` makes them independent."""
    here = workers(**SLURM)
    addresses = ("n9:8888", "n10:8888", "gpu001:8888", "gpu001:8889", "gpu003:8888")
    assert here == Workers(addresses, 3)
    assert workers(SLURM_STEP_NUM_TASKS="1").count == 1
    assert workers(**SLURM, TF_CONFIG="{}").count == 1


def test_slurm_without_a_list_of_nodes(workers):
    with pytest.raises(KdistillError) as caught:
        workers(SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0")
    assert mentions(str(caught.value), "srun", "TF_CONFIG")


@pytest.mark.parametrize("command", [["sweep"], ["run"], ["train-teacher", "--ray", "local"]])
def test_commands_that_are_started_once(run, monkeypatch, command):
    """Commands that do more than one training, or start workers themselves, refuse several workers, and write nothing."""
    monkeypatch.setenv("TF_CONFIG", config({"worker": ["a:1", "b:1"]}, "worker", 0))
    outcome = run(*command)
    assert outcome.code == 2
    assert mentions(outcome.err, "TF_CONFIG", command[0], 2)
