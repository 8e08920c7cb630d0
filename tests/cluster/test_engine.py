"""Engines: in this process by default, and Ray only if it is named and installed."""

from __future__ import annotations

import importlib.util
import operator
import re
from dataclasses import replace
from functools import partial

import pytest
from helpers import QUICK, imports_of, mentions

from kdistill import __version__
from kdistill.cluster import ClusterError, InProcess, Work, engine, ray_calls
from kdistill.cluster.ray_training import _Worker
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import COMMANDS, Cluster, Run, Soften, TrainingCluster, options_of
from kdistill.soft_targets import SoftTargets
from kdistill.stages import soften_blocks
from kdistill.stages.run import _steps
from kdistill.workspace import Workspace


def test_works_in_this_process_by_default():
    """Items are taken one at a time, in order, and nothing is prepared elsewhere."""
    taken = []

    def items():
        for number in range(3):
            taken.append(number)
            yield number

    work = Work(partial(map, lambda number: (number, len(taken))), None, ())
    with engine(Cluster()) as found:
        assert isinstance(found, InProcess)
        assert list(found.map(work, items(), print)) == [(0, 1), (1, 2), (2, 3)]
        taken.clear()
        assert list(found.run(work, items(), print)) == [(0, (0, 1)), (1, (1, 2)), (2, (2, 3))]


@pytest.mark.parametrize("command", ["soften", "predict", "sweep", "run", "train-teacher", "train-student"])
def test_options(command):
    """Six commands have the options, which are not part of any manifest. Two train one network on several workers."""
    options = {each.name: each.option for each in options_of(COMMANDS[command]) if each.option.group == "Cluster"}
    names = {"ray", "ray_cpus", "ray_gpus"} | ({"workers"} if command.startswith("train") else set())
    assert options.keys() == names
    assert not any(each.recorded for each in options.values())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["soften", "--ray-cpus", "2"], ["--ray-cpus", "--ray"]),
        (["soften", "--ray-gpus", "0.5"], ["--ray-gpus", "--ray"]),
        (["soften", "--ray", "local", "--ray-cpus", "0"], ["--ray-cpus", 0]),
        (["soften", "--ray", "local", "--logits", "logits.npz"], ["--ray", "--logits"]),
        (["train-teacher", "--workers", "2"], ["--workers", 2, "--ray"]),
        (["train-student", "--ray", "local", "--workers", "0"], ["--workers", 0]),
        (["train-student", "--ray", "local", "--workers", "2", "--ray-gpus", "0.5"], ["--ray-gpus", 0.5, 2]),
    ],
)
def test_wrong_options(run, options, named):
    outcome = run(*options)
    assert outcome.code == 2
    assert mentions(outcome.err, *named)


def test_stages_of_run(tmp_path):
    """`run` passes its cluster to the stages that can use one, unless the file names another cluster."""
    cluster = Cluster(ray="auto", ray_cpus=2)
    ours = {step.command: getattr(step.settings, "cluster", None) for step in _steps(Workspace(), Run(cluster=cluster))}
    here = TrainingCluster()
    assert ours == {"train-teacher": here, "soften": cluster, "train-student": here, "plot": None}
    config = tmp_path / "kdistill.toml"
    config.write_text(
        '[train-teacher]\nray = "local"\nworkers = 2\n'
        '[[soften]]\nlogits = "logits.npz"\n[[soften]]\nname = "b"\n[[sweep]]\nray = "local"\n'
    )
    steps = _steps(Workspace(), Run(cluster=cluster, config=str(config)))
    two = TrainingCluster(ray="local", workers=2)
    assert [step.settings.cluster for step in steps] == [two, Cluster(), cluster, Cluster(ray="local")]
    with pytest.raises(UsageError, match="--ray"):
        Run(cluster=cluster, write_config=True)


def test_ray_is_not_installed(run, workspace, monkeypatch):
    """The error names the extra, and nothing is written."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    before = (workspace / "soft-targets/soft-targets.h5").read_bytes()
    outcome = run("soften", "--temperature", "3", "--ray", "local")
    assert outcome.code == 1
    assert mentions(outcome.err, "--ray", "local", "pip", "kdistill[ray]")
    assert (workspace / "soft-targets/soft-targets.h5").read_bytes() == before


@pytest.mark.parametrize("command", [["soften"], ["train-student", "--workers", "2", *QUICK]])
def test_up_to_date_without_ray(workspace, tmp_path, command):
    """A result that is up to date needs no cluster."""
    code, imported = imports_of(*command, "--ray", "nowhere:1", cwd=tmp_path)
    assert code == 0
    assert not {"ray", "tensorflow"} & set(imported)


def test_worker_sees_the_workspace(tmp_path):
    """A worker that does not see the workspace of the command refuses to train, since it would write elsewhere."""
    with pytest.raises(ClusterError, match=re.escape(str(tmp_path))):
        _Worker().prepare(b"", str(tmp_path), 1, tmp_path / "marker")


def test_worker_prepares_what_the_driver_has(made):
    """A worker computes the rows of the file, and refuses to if its inputs have another digest."""
    soft = SoftTargets(made / "soft-targets/soft-targets.h5")
    arguments = made, Soften(batch_size=500), soft.manifest, soft.storage
    block = soften_blocks.prepare(*arguments)
    assert (block(1).rows["logits"] == soft.file["logits"][500:1000]).all()
    for number in range(2):
        inputs = list(soft.manifest.inputs)
        inputs[number] = replace(inputs[number], digest="sha256:" + "0" * 64)
        with pytest.raises(KdistillError, match=inputs[number].name):
            soften_blocks.prepare(made, Soften(), replace(soft.manifest, inputs=tuple(inputs)), soft.storage)


def test_worker_of_another_version(monkeypatch):
    """A worker with another version of kdistill refuses to work, in one line with both versions."""
    monkeypatch.setenv(ray_calls.THREADS, "1")
    packed = ray_calls.pack(Work(None, partial, (operator.mul, 2)))
    assert ray_calls.prepared(packed, ".", 1)(3) == 6
    ray_calls.prepared.cache_clear()
    monkeypatch.setattr(ray_calls, "VERSION", "0.0.1")
    with pytest.raises(ClusterError) as error:
        ray_calls.prepared(packed, ".", 1)
    assert mentions(str(error.value), "0.0.1", __version__)
