"""Measures kdistill's speed against a reference doing the same work: `make bench`, or `python tests/programs/bench.py --help`.

Runs of one group are interleaved (A B A B ...), the first of each side is warm-up and not counted, and medians are
compared. Times are wall seconds unless a row says otherwise; a row without a reference is held against its target.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
MNIST = Path(os.environ.get("KDISTILL_MNIST") or REPOSITORY.parent / "shared" / "data" / "mnist.npz")
BATCH_ROWS = 128
BENT = "shift:1,rotate:10,zoom:0.1,elastic:3"  # what the teacher of tests/programs/paper.py sees
SOFTEN_ROWS = 1000
TEMPERATURE = 20.0
ALPHA = 0.1

# In a process of its own: run kdistill and print the peak of its memory in KiB. ru_maxrss begins at the size that the
# process had before exec(2), which is ours, so Linux's own count for the new program is read where there is one.
PEAK_MEMORY = """
import resource, sys
from pathlib import Path
from kdistill.cli import app
app(sys.argv[1:], standalone_mode=False)
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
print(*peaks or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024])
"""

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One measurement: kdistill's number against its limit, or its ratio to the reference's against that."""

    what: str
    mine: float
    reference: float | None
    target: float
    unit: str = "s"

    @property
    def measured(self) -> float:
        return self.mine if self.reference is None else self.mine / self.reference

    def __str__(self) -> str:
        cells = [self.what, f"{self.mine:.2f} {self.unit}"]
        if self.reference is None:
            cells += ["", "", f"at most {self.target:g} {self.unit}"]
        else:
            cells += [f"{self.reference:.2f} {self.unit}", f"{self.measured:.3f}", f"at most {self.target:g}"]
        return "| " + " | ".join([*cells, "yes" if self.measured <= self.target else "no"]) + " |"


@dataclass(frozen=True)
class Setup:
    """What every group is given: how often to run, where MNIST lies, and a place for scratch files."""

    runs: int
    mnist: Path
    scratch: Path


def seconds(work: Work) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(runs: int, works: Mapping[str, Work]) -> dict[str, float]:
    """The median seconds of each, after one call of each that is not counted; interleaved."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: statistics.median(times) for name, times in taken.items()}


def python(*arguments: object) -> str:
    """Run this Python in a process of its own; what it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def kdistill(*arguments: object) -> str:
    """Run the command line as its user does, by the script beside this Python."""
    command = [str(Path(sys.executable).with_name("kdistill")), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure_help(setup: Setup) -> Iterator[Row]:
    """The wall time of `kdistill --help`, alone and against importing what a Typer command line can't do without."""
    times = medians(
        setup.runs,
        {"help": lambda: kdistill("--help"), "imports": lambda: python("-c", "import typer, rich")},
    )
    yield Row("`kdistill --help`", times["help"], None, 0.25)
    yield Row("`kdistill --help` / importing typer and rich", times["help"], times["imports"], 2.5)


def measure_fresh(setup: Setup) -> Iterator[Row]:
    """The wall time of a stage that finds its artifact up to date: no TensorFlow, but every digest checked."""
    command = ["train-teacher", "--epochs", "1", "--workspace", setup.scratch / "fresh"]
    kdistill(*command)
    times = medians(setup.runs, {"fresh": lambda: kdistill(*command)})
    yield Row("up-to-date `train-teacher`", times["fresh"], None, 0.6)


def measure_epoch(setup: Setup) -> Iterator[Row]:
    """An epoch on hard labels against `keras.Model.fit`: same network, rows, batches and optimizer.

    An epoch is what training costs each time round: its order drawn and all of its steps; held-out rows are judged on
    neither side. `fit` has its defaults, without its progress bar, and float32 inputs scaled beforehand.
    """
    inputs, labels = _mnist(setup)
    cnn = medians(
        setup.runs,
        {
            "fit": _keras_epoch("cnn", inputs, labels),
            "float32": _epoch("cnn", inputs, labels),
            "bfloat16": _epoch("cnn", inputs, labels, precision="mixed_bfloat16"),
        },
    )
    yield Row("epoch, cnn / `fit`", cnn["float32"], cnn["fit"], 0.85)
    yield Row("epoch, cnn in mixed_bfloat16 / `fit` in float32", cnn["bfloat16"], cnn["fit"], 0.5)
    mlp = medians(
        setup.runs,
        {"fit": _keras_epoch("mlp-800", inputs, labels), "float32": _epoch("mlp-800", inputs, labels)},
    )
    yield Row("epoch, mlp-800 / `fit`", mlp["float32"], mlp["fit"], 0.62)


def measure_dropout(setup: Setup) -> Iterator[Row]:
    """An epoch of the paper's teacher with dropout, and with jittered inputs too, against neither."""
    inputs, labels = _mnist(setup)
    times = medians(
        setup.runs,
        {
            "neither": _epoch("mlp-1200", inputs, labels),
            "dropout": _epoch("mlp-1200", inputs, labels, dropout="0.2,0.5"),
            "both": _epoch("mlp-1200", inputs, labels, dropout="0.2,0.5", augment="shift:2"),
            "bent": _epoch("mlp-1200", inputs, labels, dropout="0.2,0.5", augment=BENT),
        },
    )
    yield Row("epoch, mlp-1200 with `--dropout 0.2,0.5` / without", times["dropout"], times["neither"], 1.2)
    yield Row("the same with `--augment shift:2` / without either", times["both"], times["neither"], 1.3)
    yield Row(f"the same with `--augment {BENT}` / without either", times["bent"], times["neither"], 1.3)


def measure_distil(setup: Setup) -> Iterator[Row]:
    """An epoch of distillation from cached logits against hard labels alone, and against the teacher in the loop.

    The student is mlp-800, the teacher mlp-1200 with its weights as drawn: arithmetic takes as long with any. Keras's
    loss is given explicitly, without which `LogitsDistillation` is not the KL divergence of softmaxes (Keras 3.15.1).
    """
    inputs, labels = _mnist(setup)
    teacher = _build("mlp-1200", role="teacher")
    teacher_logits = teacher.predict(_as_floats(inputs), batch_size=SOFTEN_ROWS, verbose=0)
    times = medians(
        setup.runs,
        {
            "cached": _epoch("mlp-800", inputs, labels, teacher_logits=teacher_logits),
            "hard": _epoch("mlp-800", inputs, labels),
            "distiller": _distiller_epoch(teacher, _build("mlp-800", role="student"), inputs, labels),
        },
    )
    yield Row("distillation epoch, mlp-800 / hard labels alone", times["cached"], times["hard"], 1.05)
    yield Row("distillation epoch, mlp-800 / Keras's `Distiller`", times["cached"], times["distiller"], 0.45)


def measure_soften(setup: Setup) -> Iterator[Row]:
    """The whole of `soften` against bare calls of the same SavedModel, and its peak memory as rows grow threefold.

    `soften` checks the teacher, reads and digests the file, keys the rows and writes HDF5; the bare calls have their
    inputs in memory as float32 and keep the logits there.
    """
    from kdistill.console import Reporter
    from kdistill.settings import Soften, Training, TrainTeacher
    from kdistill.stages import soften, train_teacher
    from kdistill.workspace import Workspace

    workspace, reporter = Workspace(setup.scratch / "soften"), Reporter(quiet=True)
    training = Training(epochs=1, batch_size=BATCH_ROWS)
    settings = TrainTeacher(dataset=str(setup.mnist), training=training)
    train_teacher.run(workspace, settings, force=True, reporter=reporter)
    inputs, _ = _mnist(setup)
    times = medians(
        setup.runs,
        {
            "soften": lambda: soften.run(workspace, Soften(), force=True, reporter=reporter),
            "bare": _bare_calls(workspace.teacher("teacher").path / "saved_model", inputs),
        },
    )
    yield Row("`soften`, cnn, 60,000 rows / bare calls", times["soften"], times["bare"], 1.25)
    few, many = (_peak_memory(setup, workspace.root, rows) for rows in (20_000, 60_000))
    yield Row("peak memory of `soften`, 60,000 rows / 20,000", many, few, 1.05, "MiB")


GROUPS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "help": measure_help,
    "fresh": measure_fresh,
    "epoch": measure_epoch,
    "dropout": measure_dropout,
    "distil": measure_distil,
    "soften": measure_soften,
}
ON_MNIST = ("epoch", "dropout", "distil", "soften")


def _mnist(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's training rows: (60000, 28, 28) uint8, (60000,) int64."""
    with np.load(setup.mnist, allow_pickle=False) as arrays:
        return arrays["x_train"], arrays["y_train"].astype(np.int64)


def _as_floats(inputs: np.ndarray) -> np.ndarray:
    return inputs.astype(np.float32) / np.float32(255.0)


def _build(model: str, *, role: str, precision: str = "float32", dropout: str | None = None) -> Any:
    from kdistill.networks.build import build_network

    return build_network(model, (28, 28), 10, role=role, seed=0, precision=precision, dropout=dropout)


def _epoch(
    model: str,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    teacher_logits: np.ndarray | None = None,
    precision: Any = "float32",
    dropout: str | None = None,
    augment: str | None = None,
) -> Work:
    """One epoch as `training.loop` has it, without evaluation, checkpoint and report."""
    from kdistill.data import Split
    from kdistill.data.augmentation import Views
    from kdistill.data.rows import ArrayRows
    from kdistill.settings import Objective, Training
    from kdistill.soft_targets.storage import Logits, LogitStorage
    from kdistill.training.feed import Feed
    from kdistill.training.loop import STEPS_PER_CALL
    from kdistill.training.optimizers import make_optimizer
    from kdistill.training.steps import Trainer
    from kdistill.training.training_rows import TrainingRows

    settings = Training(batch_size=BATCH_ROWS, precision=precision)
    said = None if teacher_logits is None else Logits(LogitStorage(10, TEMPERATURE), teacher_logits)
    views = Views(augment, 0) if augment else None
    training_rows = TrainingRows(Split("train", ArrayRows(inputs, "mnist"), labels), teacher=said, views=views)
    feed = Feed(training_rows, BATCH_ROWS, settings.memory << 20)
    objective = Objective(alpha=1.0) if said is None else Objective(alpha=ALPHA, temperature=TEMPERATURE)
    network = _build(model, role="student", precision=precision, dropout=dropout)
    optimizer = make_optimizer(settings, math.ceil(len(inputs) / BATCH_ROWS))
    optimizer.build(network.trainable_variables)
    trainer = Trainer(network, optimizer, training_rows, objective, settings)
    random = np.random.default_rng(0)
    call_rows = STEPS_PER_CALL * BATCH_ROWS

    def epoch() -> None:
        sums = np.zeros(4)
        for buffer, order in feed.shuffled(random, 1):
            for first in range(0, len(order), call_rows):
                rows = order[first : first + call_rows]
                sums += trainer.train(buffer, rows, (0, first // BATCH_ROWS), objective)
        assert np.isfinite(sums).all()

    return epoch


def _keras_epoch(model: str, inputs: np.ndarray, labels: np.ndarray) -> Work:
    """One epoch of `keras.Model.fit`."""
    return _fit(_build(model, role="student"), inputs, labels)


def _distiller_epoch(teacher: Any, student: Any, inputs: np.ndarray, labels: np.ndarray) -> Work:
    """One epoch of `keras.distillation.Distiller`, which runs the teacher on every batch."""
    from kdistill.backend import keras

    loss = keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
    distiller = keras.distillation.Distiller(teacher, student, loss, student_loss_weight=ALPHA)
    return _fit(distiller, inputs, labels)


def _fit(model: Any, inputs: np.ndarray, labels: np.ndarray) -> Work:
    from kdistill.backend import keras

    floats = _as_floats(inputs)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return lambda: model.fit(floats, labels, batch_size=BATCH_ROWS, verbose=0)


def _bare_calls(saved_model: Path, inputs: np.ndarray) -> Work:
    """A SavedModel called block after block, and nothing else."""
    from kdistill.backend import tf

    loaded = tf.saved_model.load(str(saved_model))
    call, floats = loaded.signatures["serving_default"], _as_floats(inputs)

    def calls() -> object:
        _ = loaded  # its variables die with it
        starts = range(0, len(floats), SOFTEN_ROWS)
        blocks = [call(inputs=tf.constant(floats[start : start + SOFTEN_ROWS])) for start in starts]
        return np.concatenate([block["logits"].numpy() for block in blocks])

    return calls


def _peak_memory(setup: Setup, workspace: Path, rows: int) -> float:
    """The median of the peaks, in MiB, of processes that soften the first `rows` rows of MNIST."""
    dataset = setup.scratch / f"mnist-{rows}.npz"
    with np.load(setup.mnist, allow_pickle=False) as arrays:
        cut = {name: arrays[name][:rows] if name.endswith("train") else arrays[name] for name in arrays.files}
    np.savez_compressed(dataset, **cut)
    command = ["soften", "--workspace", workspace, "--dataset", dataset, "--name", f"rows-{rows}", "--force", "--quiet"]
    return statistics.median(int(python("-c", PEAK_MEMORY, *command)) / 1024 for _ in range(setup.runs))


def _machine() -> str:
    """Processor, cores and versions, in a line."""
    packages = ", ".join(f"{name} {version(name.lower())}" for name in ("TensorFlow", "Keras"))
    return f"{_processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _setup() -> tuple[Setup, list[str]]:
    parser = argparse.ArgumentParser(description="Measure kdistill's speed.")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each side")
    parser.add_argument("--only", choices=GROUPS, help="one group")
    parser.add_argument("--mnist", type=Path, default=MNIST, help=f"Keras's mnist.npz (default: {MNIST})")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error(f"--runs is {given.runs}: it needs at least 1")
    return Setup(given.runs, given.mnist.absolute(), Path()), [given.only] if given.only else list(GROUPS)


def main() -> None:
    """Print a table, a row as soon as it is measured."""
    setup, groups = _setup()
    print(f"{_machine()}; medians of {setup.runs} interleaved runs\n", flush=True)
    print("| what | kdistill | reference | ratio | target | reached |\n|---|---|---|---|---|---|", flush=True)
    skipped = [] if setup.mnist.exists() else [group for group in groups if group in ON_MNIST]
    with tempfile.TemporaryDirectory(prefix="kdistill-bench-") as scratch:
        for group in groups:
            if group not in skipped:
                for row in GROUPS[group](replace(setup, scratch=Path(scratch))):
                    print(row, flush=True)
    if skipped:
        print(f"\nskipped {', '.join(skipped)}: there is no {setup.mnist}; --mnist says where else it lies", flush=True)


if __name__ == "__main__":
    main()
