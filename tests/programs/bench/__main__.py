"""Measure the speed of kdistill against a reference that does the same work.

    python tests/programs/bench --only epoch

The sides of a comparison run in turns (A B A B ...), after one run of each that is not counted, and medians are compared.
A row without a reference is compared with its target. Training is measured on MNIST: see --mnist.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray_workers
import softening
import training
from measuring import Group, Row, Setup, arguments, kdistill, medians, print_table, python, timed

from kdistill.console.native_stderr import silence_native_stderr

MNIST = Path(os.environ.get("KDISTILL_MNIST") or Path(__file__).resolve().parents[4] / "shared/data/mnist.npz")


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


GROUPS: dict[str, Group] = {
    "help": measure_help,
    "fresh": measure_fresh,
    "epoch": training.measure_epoch,
    "pytorch": training.measure_pytorch,
    "dropout": training.measure_dropout,
    "distil": training.measure_distillation,
    "workers": training.measure_workers,
    "soften": softening.measure_soften,
    "ray": ray_workers.measure_ray,
}


def main() -> None:
    """Print a table, each row as soon as it is measured."""
    parser = arguments(__doc__, GROUPS)
    parser.add_argument("--mnist", type=Path, default=MNIST, help=f"Keras's mnist.npz (default: {MNIST})")
    options = parser.parse_args()
    silence_native_stderr()
    with tempfile.TemporaryDirectory(prefix="kdistill-bench-") as scratch:
        print_table(GROUPS, options.only, Setup(options.runs, options.mnist.absolute(), Path(scratch)))


if __name__ == "__main__":
    main()
