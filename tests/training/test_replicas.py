"""Replicas: the same training on 1, 2 and 4 devices, and on two workers, one of which is killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import KDISTILL, MNIST, mentions, needs_mnist, run_command, saved_weights

from kdistill import data
from kdistill.console import Reporter
from kdistill.data import Split
from kdistill.data.augmentation import Views
from kdistill.data.rows import ArrayRows
from kdistill.networks.build import build_network
from kdistill.settings import CLASSIFICATION, Objective, Training
from kdistill.soft_targets.storage import LogitStorage
from kdistill.training import loop
from kdistill.training.checkpoint import Checkpoint
from kdistill.training.replicas import Replicas
from kdistill.training.training_rows import TrainingRows
from kdistill.training.workers import Workers
from kdistill.workspace import Manifest

ROWS = 203  # the last batch has 11
CASES = {
    "hard labels": {},
    "soft targets": {
        "rates": "0.2,0.5",
        "top_k": 3,
        "weights": True,
        "augment": "shift:2",
        "ema": 0.9,
        "l2": 1e-3,
        "optimizer": "sgd",
    },
}
REFUSED = (  # by four devices, with words of the error
    (["train-teacher", "--devices", "5"], ("--devices", 5, 4)),
    (["train-teacher", "--batch-size", "3"], ("--batch-size", 3, 4)),
    (["train-teacher", "--xla", "on"], ("--xla", 4)),
    (["train-student", "--loss", "dist"], ("--loss", "dist", "--devices")),
)


@pytest.mark.parametrize(("count", "rows"), [(2, 32), (4, 32), (4, 5), (4, 1), (3, 7)])
def test_parts(count, rows):
    """The parts have the same size. Each row of the batch counts once, and the order of the rows stays."""
    replicas = Replicas(SimpleNamespace(num_replicas_in_sync=count), Workers(), "CPU")
    parts = [replicas.part(number, rows) for number in range(count)]
    positions = np.concatenate([np.asarray(part.positions) for part in parts])
    weights = np.concatenate([np.asarray(part.weights) for part in parts])
    assert {len(part.positions) for part in parts} == {-(-rows // count)}
    assert positions[weights == 1].tolist() == list(range(rows))
    assert set(weights) <= {0, 1}
    assert positions.max() < rows


def training_rows(dataset, *, top_k=None, weights=False, augment=None):
    """Return rows to train on, with soft targets if `top_k` is given."""
    inputs, labels = dataset.train.read()[:ROWS], dataset.train.labels[:ROWS]
    random = np.random.default_rng(0)
    row_weights = random.uniform(0, 2, ROWS).astype(np.float32) if weights else None
    split = replace(Split("test", ArrayRows(inputs, "digits"), labels), weights=row_weights)
    if top_k is None:
        return TrainingRows(split)
    storage = LogitStorage(10, 4.0, top_k=top_k)
    teacher = storage.store(random.normal(size=(ROWS, 10)).astype(np.float32) * 3)
    return TrainingRows(split, teacher=teacher, views=Views(augment, 0))


def weights_and_history(directory, rows, devices, *, model="mlp-30", rates=None, batch_size=32, **options):
    """Train for three epochs on some logical devices; return the weights, and the history without times."""
    training = Training(epochs=3, batch_size=batch_size, seed=3, devices=str(devices), xla="off", **options)
    hard, soft = Objective(alpha=1.0), Objective(alpha=0.3, temperature=4.0)
    directory.mkdir(parents=True)
    network, progress = loop.train(
        lambda: build_network(
            model, (28, 28), 10, role="student", seed=3, precision="float32", l2=training.l2, dropout=rates
        ),
        rows,
        replace(rows, teacher=None),
        objective=(soft if rows.teacher else hard).for_task(CLASSIFICATION),
        settings=training,
        role="student",
        checkpoint=Checkpoint(directory / "checkpoint.npz", Manifest(kind="student", settings=training.recorded())),
        reporter=Reporter(quiet=True),
    )
    history = [[value for name, value in row.items() if name != "seconds"] for row in progress.rows]
    return [np.asarray(each.numpy()) for each in network.variables], np.array(history)


def differences(directory, rows, **options):
    """Return the largest differences of weights and history between 1 and 2, and between 1 and 4 devices."""
    results = {count: weights_and_history(directory / str(count), rows, count, **options) for count in (1, 2, 4)}
    weights, history = results.pop(1)
    return {
        count: (
            max(float(np.abs(one - other).max()) for one, other in zip(weights, other_weights, strict=True)),
            float(np.nanmax(np.abs(history - other_history))),
        )
        for count, (other_weights, other_history) in results.items()
    }


def digits_differences(directory):
    """Return the differences for each of `CASES`."""
    dataset, found = data.resolve("digits").load(), {}
    for name, options in CASES.items():
        of_rows = {key: options[key] for key in ("top_k", "weights", "augment") if key in options}
        of_training = {key: value for key, value in options.items() if key not in of_rows}
        found[name] = differences(directory / name, training_rows(dataset, **of_rows), **of_training)
    return found


def mnist_differences(directory):
    """Return the differences for a network on all of MNIST."""
    rows = TrainingRows(replace(data.resolve(str(MNIST)).load().train, name="test"))
    return differences(directory, rows, batch_size=128)


def refusals():
    """Return what commands print that several devices cannot run, and the files that they leave."""
    from kdistill import cli

    cli.silence_native_stderr = lambda: None
    for command in (["train-teacher", "--model", "small", "--epochs", "1", "--devices", "2"], ["soften"]):
        assert run_command(*command).code == 0
    outcomes = [run_command(*command, "--name", "new") for command, _ in REFUSED]
    return {
        "replicas": json.loads(Path("workspace/teachers/teacher/manifest.json").read_text())["results"]["replicas"],
        "outcomes": [(each.code, each.err) for each in outcomes],
        "left": [str(path) for path in Path().glob("workspace/*/*new*")],
    }


def on_four_devices(directory, expression):
    """Evaluate an expression with the names of this module, in a new process where the CPU is four logical devices."""
    code = (
        "from kdistill.backend import tf\n"
        "device = tf.config.LogicalDeviceConfiguration()\n"
        "tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0], [device] * 4)\n"
        "import json, test_replicas as tests\nfrom pathlib import Path\n"
        f"print(json.dumps({expression}))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """Return the results of `digits_differences` and `refusals` on four devices."""
    return on_four_devices(tmp_path_factory.mktemp("four"), "[tests.digits_differences(Path()), tests.refusals()]")


@pytest.mark.slow
def test_any_number_of_devices_is_the_same_training(four_devices):
    """With row weights, top-k soft targets of views and dropout too, and although the last batch is smaller."""
    for case, found in four_devices[0].items():
        for devices, (weights, history) in found.items():
            assert weights < 1e-4, (case, devices)
            assert history < 1e-4, (case, devices)


@pytest.mark.slow
@needs_mnist
def test_mnist_on_any_number_of_devices(tmp_path):
    """Losses agree to 1e-4 and weights to 1e-3 over three epochs."""
    for devices, (weights, history) in on_four_devices(tmp_path, "tests.mnist_differences(Path('mnist'))").items():
        assert weights < 1e-3, devices
        assert history < 1e-4, devices


@pytest.mark.slow
def test_what_several_devices_refuse(four_devices):
    """More devices than there are, fewer rows in a batch than devices, XLA, and a loss over the whole batch."""
    found = four_devices[1]
    assert found["replicas"] == 2
    for (code, error), (_, words) in zip(found["outcomes"], REFUSED, strict=True):
        assert code == 2, error
        assert mentions(error, *words)
        assert len(error.splitlines()) == 1
    assert found["left"] == []


KILLED = """
import os, signal, sys
from kdistill.training.replicas import Replicas

numbers_from_chief, epochs = Replicas.numbers_from_chief, []


def killed(self, *numbers):
    epochs.append(numbers)
    if len(epochs) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return numbers_from_chief(self, *numbers)


Replicas.numbers_from_chief = killed
from kdistill.cli import main

main()
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def two_workers(directory, *arguments, killed=None):
    """Run a command as two workers that share a directory; return their exit statuses, outputs and errors.

    Args:
        directory: the working directory of both.
        *arguments: of the command; those of the second worker may differ.
        killed: the worker that is killed in the second epoch.
    """
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    processes = []
    for index in (1, 0):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        program = [sys.executable, "-c", KILLED] if killed == index else KDISTILL
        options = arguments[index] if isinstance(arguments[0], list) else arguments
        processes.append(
            subprocess.Popen(
                [*program, *map(str, options)],
                cwd=directory,
                env=os.environ | {"TF_CONFIG": json.dumps(config), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)][::-1]


TRAIN = (
    *("train-teacher", "--model", "small", "--epochs", 4, "--batch-size", 101, "--validation-fraction", 0.2),
    *("--early-stopping", 2, "--seed", 4),
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a directory where two workers have trained a teacher, and what they printed."""
    directory = tmp_path_factory.mktemp("workers")
    return directory, two_workers(directory, *TRAIN)


@pytest.mark.slow
def test_two_workers(uninterrupted, run, tmp_path):
    """The chief writes and reports, and the network is that of a single process up to rounding."""
    directory, (chief, worker) = uninterrupted
    assert (chief[0], worker[0]) == (0, 0), (chief, worker)
    assert mentions(chief[1], 2, "workers", "teacher")
    assert len(worker[1].splitlines()) == 1
    assert not chief[2] + worker[2]
    assert sorted(path.name for path in (directory / "workspace/teachers").iterdir()) == ["teacher"]
    manifest = json.loads((directory / "workspace/teachers/teacher/manifest.json").read_text())
    assert manifest["results"]["replicas"] == 2
    alone = run(*TRAIN, "--workspace", tmp_path)
    assert alone.code == 0, alone.err
    with (
        np.load(directory / "workspace/teachers/teacher/checkpoint.npz") as of_two,
        np.load(tmp_path / "teachers/teacher/checkpoint.npz") as of_one,
    ):
        for name in of_one.files:
            if name != "head":
                np.testing.assert_allclose(of_two[name], of_one[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_killed_workers(uninterrupted, tmp_path):
    """The other worker ends with one line, and the same command on both resumes to the bits of an uninterrupted run."""
    for killed in (1, 0):  # in the second epoch, and in the second one after that was resumed
        outcomes = two_workers(tmp_path, *TRAIN, killed=killed)
        code, _, error = outcomes[1 - killed]
        assert (outcomes[killed][0], code) == (-9, 1)
        assert len(error.splitlines()) == 1
        assert mentions(error, "worker", "resumes")
    chief, worker = two_workers(tmp_path, *TRAIN)
    assert (chief[0], worker[0]) == (0, 0), (chief, worker)
    assert mentions(chief[1], "epoch", 2), "it resumes"
    place = "workspace/teachers/teacher"
    assert saved_weights(tmp_path / place) == saved_weights(uninterrupted[0] / place)


@pytest.mark.slow
def test_workers_with_different_commands(tmp_path):
    """All of them refuse, and nothing is written."""
    outcomes = two_workers(tmp_path, *([*TRAIN, "--optimizer", optimizer] for optimizer in ("adam", "sgd")))
    for code, _, error in outcomes:
        assert code == 1
        assert mentions(error, "workers", "settings")
    assert not list(tmp_path.glob("workspace/teachers/*"))
