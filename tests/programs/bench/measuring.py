"""How a comparison is measured: the sides run in turns (A B A B ...), after one run of each that is not counted."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np

BATCH_ROWS = 128
KDISTILL = Path(sys.executable).with_name("kdistill")
PROGRAMS = Path(__file__).parent
PACKAGES = ("tensorflow", "keras", "torch", "ray")

Work = Callable[[], float]  # returns the seconds that it took


class SkippedError(Exception):
    """A group cannot be measured on this machine. The message says why."""


@dataclass(frozen=True)
class Row:
    """A measured value, or its ratio to the value of the reference, and the largest allowed value, if there is one."""

    title: str
    value: float
    reference: float | None
    target: float | None = None
    unit: str = "s"

    def __str__(self) -> str:
        measured = self.value if self.reference is None else self.value / self.reference
        cells = [self.title, f"{self.value:,.2f} {self.unit}", "", "", "", ""]
        if self.reference is not None:
            cells[2:4] = f"{self.reference:,.2f} {self.unit}", f"{measured:.3f}"
        if self.target is not None:
            unit = f" {self.unit}" if self.reference is None else ""
            cells[4:] = f"at most {self.target:g}{unit}", "yes" if measured <= self.target else "no"
        return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class Setup:
    """The number of counted runs, the path of MNIST or of arrays like it, and a directory for scratch files."""

    runs: int
    mnist: Path
    scratch: Path

    def rows(self, name: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Return the training or test rows of MNIST: (60000, 28, 28) uint8, (60000,) int64.

        Raises:
            SkippedError: if there is no such file.
        """
        if not self.mnist.exists():
            raise SkippedError(f"{self.mnist} does not exist; pass --mnist or set KDISTILL_MNIST")
        with np.load(self.mnist, allow_pickle=False) as arrays:
            return arrays[f"x_{name}"], arrays[f"y_{name}"].astype(np.int64)

    def dataset(self, train_rows: int = 60_000) -> Path:
        """Write a dataset with the first training rows, and so few test rows that their evaluation takes no time."""
        path = self.scratch / f"mnist-{train_rows}.npz"
        if not path.exists():
            (x_train, y_train), (x_test, y_test) = self.rows(), self.rows("test")
            train, test = slice(train_rows), slice(BATCH_ROWS)
            np.savez(path, x_train=x_train[train], y_train=y_train[train], x_test=x_test[test], y_test=y_test[test])
        return path


Group = Callable[[Setup], Iterator[Row]]


def timed(function: Callable[[], object]) -> Work:
    def work() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return work


def medians(runs: int, works: Mapping[str, Work]) -> dict[str, float]:
    """Return the median seconds of each, after one run of each that counts only if it is the only one."""
    taken = {name: [work()] for name, work in works.items()}
    for _ in range(runs):
        for name, work in works.items():
            taken[name].append(work())
    return {name: statistics.median(seconds[1:] or seconds) for name, seconds in taken.items()}


def start(*command: object, cores: Iterable[int] = (), **variables: str) -> subprocess.Popen[str]:
    """Start a process, with only the given cores if there are any, and with more environment variables."""
    limit = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    return subprocess.Popen(
        [*limit, *map(str, command)], stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=os.environ | variables
    )


def finish(*processes: subprocess.Popen[str]) -> str:
    """Wait for processes, and return what the first one printed."""
    try:
        outputs = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process in processes:
        subprocess.CompletedProcess(process.args, process.returncode).check_returncode()
    return outputs[0]


def python(*arguments: object) -> str:
    return finish(start(sys.executable, *arguments))


def kdistill(*arguments: object, cores: Iterable[int] = (), **variables: str) -> None:
    """Run the command line in a new process, by the script beside this Python."""
    finish(start(KDISTILL, *arguments, cores=cores, **variables))


def run_here(*arguments: object) -> None:
    """Run the command line in this process, which has grown large already.

    So it must not have the child that reports its death: while that lives, each page that this process writes is copied.
    """
    from kdistill.cli import app

    with mock.patch("kdistill.cli.report_death", contextlib.nullcontext):
        app([*map(str, arguments), "--quiet"], standalone_mode=False)


def epoch(
    setup: Setup,
    name: str,
    *options: object,
    command: str = "train-teacher",
    run: Callable[..., None] = run_here,
) -> Work:
    """Return the work of one epoch: two are trained, and the second is measured, by kdistill itself.

    Args:
        setup: has the dataset.
        name: of the network.
        *options: of the command. With `--epochs`, the work is the median of all epochs but the first.
        command: that trains.
        run: runs a command line.
    """
    workspace = setup.scratch / "training"

    def work() -> float:
        how = ["--dataset", setup.dataset(), "--batch-size", BATCH_ROWS, "--epochs", 2, "--force"]
        run(command, "--workspace", workspace, "--name", name, *how, *options)
        kind = command.removeprefix("train-")
        with (workspace / f"{kind}s" / name / "history.csv").open() as stream:
            return after_first(row["seconds"] for row in csv.DictReader(stream))

    return work


def reference_epoch(program: str, *arguments: object) -> Work:
    """Return the work of one epoch of a program beside this one, measured as by `epoch`: see `print_epochs`."""
    return lambda: after_first(python(PROGRAMS / program, *arguments).split())


def print_epochs(docstring: str, prepare: Callable[..., Callable[[], object]]) -> None:
    """Read a command line with a network and data, and print the seconds of each epoch.

    Args:
        docstring: of the program.
        prepare: returns a function that trains one epoch. It takes the options, the inputs (rows, height, width)
            float32, scaled to [0, 1], and the labels (rows,) int64.
    """
    parser = argparse.ArgumentParser(description=docstring.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument(
        "data", type=Path, help=".npz file with x_train (rows, height, width) uint8 and y_train (rows,)"
    )
    parser.add_argument("--batch-size", type=int, default=BATCH_ROWS)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the network")
    parser.add_argument("--bfloat16", action="store_true", help="compute in mixed precision")
    parser.add_argument("--threads", type=int, help="PyTorch's threads")
    options = parser.parse_args()
    with np.load(options.data, allow_pickle=False) as arrays:
        work = timed(prepare(options, as_floats(arrays["x_train"]), arrays["y_train"].astype(np.int64)))
    for _ in range(options.epochs):
        print(work(), flush=True)


def as_floats(inputs: np.ndarray) -> np.ndarray:
    return inputs.astype(np.float32) / np.float32(255.0)


def after_first(seconds: Iterable[str]) -> float:
    return statistics.median([float(each) for each in seconds][1:])


def two_cores() -> list[int]:
    """Return two cores that this process may use.

    Raises:
        SkippedError: if processes cannot be limited to one each.
    """
    cores = sorted(os.sched_getaffinity(0)) if shutil.which("taskset") else []
    if len(cores) < 2:
        raise SkippedError("needs taskset and two cores")
    return cores[:2]


def require_torch() -> None:
    if find_spec("torch") is None:
        raise SkippedError("torch is not installed (pip install torch)")


def machine() -> str:
    """Return the processor, the number of cores, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    packages = [f"{name} {version(name)}" for name in PACKAGES if find_spec(name)]
    return f"{processor}, {os.cpu_count()} cores; {', '.join([f'Python {platform.python_version()}', *packages])}"


def arguments(docstring: str, groups: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=docstring.splitlines()[0])
    parser.add_argument("--runs", type=runs, default=5, help="counted runs of each side, after one (default: 5)")
    parser.add_argument("--only", choices=groups, help="measure one group only")
    return parser


def runs(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} (expected at least 0; 0 counts the first run)")
    return number


def print_table(groups: Mapping[str, Group], only: str | None, setup: Setup, device: str = "") -> None:
    """Print a table, each row as soon as it is measured, and then the groups that are skipped."""
    print(f"{device}{machine()}; medians of {setup.runs} runs\n")
    print("| what | kdistill | reference | ratio | target | reached |\n|---|---|---|---|---|---|", flush=True)
    reasons = {name: print_rows(groups[name], setup) for name in ([only] if only else groups)}
    if skipped := [f"Skipped {name}: {reason}" for name, reason in reasons.items() if reason]:
        print("", *skipped, sep="\n")


def print_rows(measure: Group, setup: Setup) -> str | None:
    """Print the rows of a group, or return why it is skipped."""
    try:
        for row in measure(setup):
            print(row, flush=True)
    except SkippedError as reason:
        return str(reason)
    return None
