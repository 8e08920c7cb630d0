"""Engines: in this process by default, and Ray only if it is named and installed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial

import pytest
from helpers import imports_of, mentions

from kdistill.cluster import InProcess, Work, engine
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import COMMANDS, Cluster, Run, Soften, options_of
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


@pytest.mark.parametrize("command", ["soften", "predict", "sweep", "run"])
def test_options(command):
    """Four commands have the options, which are not part of any manifest."""
    options = {each.name: each.option for each in options_of(COMMANDS[command])}
    assert not any(options[name].recorded for name in ("ray", "ray_cpus", "ray_gpus"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--ray-cpus", "2"], ["--ray-cpus", "--ray"]),
        (["--ray-gpus", "0.5"], ["--ray-gpus", "--ray"]),
        (["--ray", "local", "--ray-cpus", "0"], ["--ray-cpus", 0]),
        (["--ray", "local", "--logits", "logits.npz"], ["--ray", "--logits"]),
    ],
)
def test_wrong_options(run, options, named):
    outcome = run("soften", *options)
    assert outcome.code == 2
    assert mentions(outcome.err, *named)


def test_stages_of_run(tmp_path):
    """`run` passes its cluster to the stages that can use one, unless the file names another cluster."""
    cluster = Cluster(ray="auto", ray_cpus=2)
    ours = {step.command: getattr(step.settings, "cluster", None) for step in _steps(Workspace(), Run(cluster=cluster))}
    assert ours == {"train-teacher": None, "soften": cluster, "train-student": None, "plot": None}
    config = tmp_path / "kdistill.toml"
    config.write_text('[[soften]]\nlogits = "logits.npz"\n[[soften]]\nname = "b"\n[[sweep]]\nray = "local"\n')
    steps = _steps(Workspace(), Run(cluster=cluster, config=str(config)))
    assert [step.settings.cluster for step in steps] == [Cluster(), cluster, Cluster(ray="local")]
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


def test_up_to_date_without_ray(workspace, tmp_path):
    """A result that is up to date needs no cluster."""
    code, imported = imports_of("soften", "--ray", "nowhere:1", cwd=tmp_path)
    assert code == 0
    assert "ray" not in imported


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
