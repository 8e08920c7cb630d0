"""Measure the speed of kdistill against a reference that does the same work.

    python tests/programs/bench.py --only epoch

The sides of a comparison run in turns (A B A B ...), after one run of each that is not counted, and medians are compared.
A row without a reference is compared with its target. Training is measured on MNIST: see --mnist.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

MNIST = Path(os.environ.get("KDISTILL_MNIST") or Path(__file__).resolve().parents[3] / "shared/data/mnist.npz")
BATCH_ROWS = 128
SOFTEN_ROWS = 1000
TEMPERATURE, ALPHA = 20.0, 0.1
AUGMENT = "shift:1,rotate:10,zoom:0.1,elastic:3"  # of the teacher in paper.py

# Run kdistill and print the peak of its memory in KiB. On Linux, ru_maxrss starts at the size of the parent process, so
# VmHWM is read instead.
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

Work = Callable[[], float]  # returns the seconds that it took


@dataclass(frozen=True)
class Row:
    """A measured value, or its ratio to the value of the reference, and the largest allowed value."""

    title: str
    value: float
    reference: float | None
    target: float
    unit: str = "s"

    def __str__(self) -> str:
        measured = self.value if self.reference is None else self.value / self.reference
        reference = ("", "") if self.reference is None else (f"{self.reference:.2f} {self.unit}", f"{measured:.3f}")
        target = f"at most {self.target:g}" + (f" {self.unit}" if self.reference is None else "")
        cells = [self.title, f"{self.value:.2f} {self.unit}", *reference, target]
        return "| " + " | ".join([*cells, "yes" if measured <= self.target else "no"]) + " |"


@dataclass(frozen=True)
class Setup:
    """The number of counted runs, the path of MNIST, and a directory for scratch files."""

    runs: int
    mnist: Path
    scratch: Path

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the training rows of MNIST: (60000, 28, 28) uint8, (60000,) int64."""
        with np.load(self.mnist, allow_pickle=False) as arrays:
            return arrays["x_train"], arrays["y_train"].astype(np.int64)

    def dataset(self, train_rows: int = 60_000) -> Path:
        """Write a dataset with the first training rows, and so few test rows that their evaluation takes no time."""
        path = self.scratch / f"mnist-{train_rows}.npz"
        if not path.exists():
            with np.load(self.mnist, allow_pickle=False) as arrays:
                rows = {name: train_rows if name.endswith("train") else BATCH_ROWS for name in arrays.files}
                np.savez(path, **{name: arrays[name][:count] for name, count in rows.items()})
        return path


def timed(function: Callable[[], object]) -> Work:
    def work() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return work


def medians(runs: int, works: Mapping[str, Work]) -> dict[str, float]:
    """Return the median seconds of each, after one run of each that is not counted."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            taken[name].append(work())
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def python(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def kdistill(*arguments: object) -> None:
    """Run the command line in a new process, by the script beside this Python."""
    command = [str(Path(sys.executable).with_name("kdistill")), *map(str, arguments)]
    subprocess.run(command, stdout=subprocess.PIPE, check=True)


def run_here(*arguments: object) -> None:
    """Run the command line in this process."""
    from kdistill.cli import app

    app([*map(str, arguments), "--quiet"], standalone_mode=False)


def measure_help(setup: Setup) -> Iterator[Row]:
    """`kdistill --help`, also compared with the imports that a Typer command line needs."""
    imports = timed(lambda: python("-c", "import typer, rich"))
    times = medians(setup.runs, {"help": timed(lambda: kdistill("--help")), "imports": imports})
    yield Row("`kdistill --help`", times["help"], None, 0.25)
    yield Row("`kdistill --help` / importing typer and rich", times["help"], times["imports"], 2.5)


def measure_fresh(setup: Setup) -> Iterator[Row]:
    """A stage that finds its artifact up to date, and checks every digest."""
    command = ["train-teacher", "--epochs", "1", "--workspace", setup.scratch / "fresh"]
    times = medians(setup.runs, {"fresh": timed(lambda: kdistill(*command))})
    yield Row("up-to-date `train-teacher`", times["fresh"], None, 0.6)


def measure_epoch(setup: Setup) -> Iterator[Row]:
    """An epoch with hard labels against `keras.Model.fit`, whose inputs are scaled beforehand.

    Both run in one process, where kdistill has made TensorFlow deterministic. On a CPU, this costs `fit` less than 5%.
    """
    cnn, bfloat16 = ["--model", "cnn"], ["--model", "cnn", "--precision", "mixed_bfloat16"]
    times = compare_with_fit(setup, {"float32": cnn, "bfloat16": bfloat16})
    yield Row("epoch, cnn / `fit`", times["float32"], times["fit"], 0.85)
    yield Row("epoch, cnn in mixed_bfloat16 / `fit` in float32", times["bfloat16"], times["fit"], 0.5)
    times = compare_with_fit(setup, {"mlp": ["--model", "mlp-800"]})
    yield Row("epoch, mlp-800 / `fit`", times["mlp"], times["fit"], 0.62)


def measure_dropout(setup: Setup) -> Iterator[Row]:
    """An epoch of the paper's teacher with dropout and with augmented inputs, against neither."""
    dropout = ["--model", "mlp-1200", "--dropout", "0.2,0.5"]
    options = {
        "neither": dropout[:2],
        "dropout": dropout,
        "shift": [*dropout, "--augment", "shift:2"],
        "elastic": [*dropout, "--augment", AUGMENT],
    }
    times = medians(setup.runs, {name: epoch(setup, name, *each) for name, each in options.items()})
    yield Row("epoch, mlp-1200 with `--dropout 0.2,0.5` / without", times["dropout"], times["neither"], 1.2)
    yield Row("the same with `--augment shift:2` / without either", times["shift"], times["neither"], 1.3)
    yield Row(f"the same with `--augment {AUGMENT}` / without either", times["elastic"], times["neither"], 1.3)


def measure_distillation(setup: Setup) -> Iterator[Row]:
    """An epoch of distillation from the file, against hard labels and against Keras's `Distiller`."""
    workspace = setup.scratch / "training"
    epoch(setup, "teacher", "--model", "mlp-1200")()
    run_here("soften", "--workspace", workspace, "--temperature", TEMPERATURE)
    hard = epoch(setup, "hard", "--model", "mlp-800", "--alpha", 1, command="train-student")
    cached = epoch(setup, "cached", "--model", "mlp-800", "--alpha", ALPHA, command="train-student")
    hard()
    teacher, student = load(workspace / "teachers/teacher"), load(workspace / "students/hard")
    times = medians(setup.runs, {"cached": cached, "hard": hard, "distiller": distiller(setup, teacher, student)})
    yield Row("distillation epoch, mlp-800 / hard labels", times["cached"], times["hard"], 1.05)
    yield Row("distillation epoch, mlp-800 / Keras's `Distiller`", times["cached"], times["distiller"], 0.45)


def measure_soften(setup: Setup) -> Iterator[Row]:
    """`soften` against calls of the same SavedModel, and its peak memory with three times the rows.

    The calls have their inputs in memory and do not write the logits.
    """
    workspace = setup.scratch / "soften"
    options = ["--dataset", setup.dataset(), "--batch-size", BATCH_ROWS, "--epochs", 1]
    run_here("train-teacher", "--workspace", workspace, *options)
    soften = timed(lambda: run_here("soften", "--workspace", workspace, "--force"))
    calls = saved_model_calls(workspace / "teachers/teacher/saved_model", as_floats(setup.rows()[0]))
    times = medians(setup.runs, {"soften": soften, "calls": calls})
    yield Row("`soften`, cnn, 60,000 rows / calls of the SavedModel", times["soften"], times["calls"], 1.25)
    few, many = (peak_memory(setup, workspace, rows) for rows in (20_000, 60_000))
    yield Row("peak memory of `soften`, 60,000 rows / 20,000", many, few, 1.05, "MiB")


GROUPS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "help": measure_help,
    "fresh": measure_fresh,
    "epoch": measure_epoch,
    "dropout": measure_dropout,
    "distil": measure_distillation,
    "soften": measure_soften,
}
WITHOUT_MNIST = ("help", "fresh")


def epoch(setup: Setup, name: str, *options: object, command: str = "train-teacher") -> Work:
    """Return the work of one epoch: two are trained, and the second is measured, by kdistill itself."""
    workspace = setup.scratch / "training"

    def work() -> float:
        how = ["--dataset", setup.dataset(), "--batch-size", BATCH_ROWS, "--epochs", 2, "--force"]
        run_here(command, "--workspace", workspace, "--name", name, *how, *options)
        kind = command.removeprefix("train-")
        with (workspace / f"{kind}s" / name / "history.csv").open() as stream:
            return float(list(csv.DictReader(stream))[-1]["seconds"])

    return work


def compare_with_fit(setup: Setup, options: Mapping[str, list[str]]) -> dict[str, float]:
    """Return the median seconds of epochs of kdistill, and of `fit` with the network of the first of them."""
    works = {name: epoch(setup, name, *each) for name, each in options.items()}
    first = next(iter(works))
    works[first]()
    network = load(setup.scratch / "training/teachers" / first)
    return medians(setup.runs, {**works, "fit": fit(setup, network)})


def load(network: Path) -> Any:
    from kdistill.backend import keras

    return keras.models.load_model(network / "model.keras")


def distiller(setup: Setup, teacher: Any, student: Any) -> Work:
    """Return the work of one epoch of `keras.distillation.Distiller`, which calls the teacher for every batch.

    By default, the loss of `LogitsDistillation` is not the KL divergence of softmaxes (Keras 3.15.1).
    """
    from kdistill.backend import keras

    loss = keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
    return fit(setup, keras.distillation.Distiller(teacher, student, loss, student_loss_weight=ALPHA))


def fit(setup: Setup, model: Any) -> Work:
    """Return the work of one epoch of `fit`, without its progress bar."""
    from kdistill.backend import keras

    inputs, labels = setup.rows()
    floats = as_floats(inputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return timed(lambda: model.fit(floats, labels, batch_size=BATCH_ROWS, verbose=0))


def as_floats(inputs: np.ndarray) -> np.ndarray:
    return inputs.astype(np.float32) / np.float32(255.0)


def saved_model_calls(path: Path, floats: np.ndarray) -> Work:
    """Return the work of calling a SavedModel block after block."""
    from kdistill.backend import tf

    loaded = tf.saved_model.load(str(path))

    def calls() -> object:
        call = loaded.signatures["serving_default"]
        starts = range(0, len(floats), SOFTEN_ROWS)
        blocks = [call(inputs=tf.constant(floats[start : start + SOFTEN_ROWS])) for start in starts]
        return np.concatenate([block["logits"].numpy() for block in blocks])

    return timed(calls)


def peak_memory(setup: Setup, workspace: Path, rows: int) -> float:
    """Return the median of the peaks, in MiB, of processes that soften the first rows of MNIST."""
    options = ["--dataset", setup.dataset(rows), "--name", f"rows-{rows}", "--force", "--quiet"]
    command = ["soften", "--workspace", workspace, *options]
    return statistics.median(int(python("-c", PEAK_MEMORY, *command)) / 1024 for _ in range(setup.runs))


def machine() -> str:
    """Return the processor, the number of cores, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    packages = ", ".join(f"{name} {version(name.lower())}" for name in ("TensorFlow", "Keras"))
    return f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def main() -> None:
    """Print a table, each row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each side (default: 5)")
    parser.add_argument("--only", choices=GROUPS, help="measure one group only")
    parser.add_argument("--mnist", type=Path, default=MNIST, help=f"Keras's mnist.npz (default: {MNIST})")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs is {options.runs} (expected at least 1)")
    print(f"{machine()}; medians of {options.runs} runs\n", flush=True)
    print("| what | kdistill | reference | ratio | target | reached |\n|---|---|---|---|---|---|", flush=True)
    groups = [options.only] if options.only else list(GROUPS)
    skipped = [name for name in groups if name not in WITHOUT_MNIST and not options.mnist.exists()]
    with tempfile.TemporaryDirectory(prefix="kdistill-bench-") as scratch:
        setup = Setup(options.runs, options.mnist.absolute(), Path(scratch))
        for name in groups:
            for row in () if name in skipped else GROUPS[name](setup):
                print(row, flush=True)
    if skipped:
        print(f"\nSkipped {', '.join(skipped)}: {options.mnist} does not exist; pass --mnist or set KDISTILL_MNIST")


if __name__ == "__main__":
    main()
