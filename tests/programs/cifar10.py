"""Distill a resnet-8 from a resnet-20 on CIFAR-10, against students that learn from hard labels.

    python tests/programs/cifar10.py --data DIRECTORY --seeds 0,1,2 --place .cifar10

DIRECTORY has the images as `train/CLASS/*.jpg` and `test/CLASS/*.jpg`. The program prints each command that it runs, and
resumes an interrupted run. It writes `results.md`. Networks train as in He et al. 2016 (section 4.2), but for fewer epochs. All
students see augmented images; distilled ones see the views that the teacher saw. The temperature is chosen by the validation
errors of the first seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paper import markdown, mean_sd, run_all

from kdistill import __version__
from kdistill.console.native_stderr import silence_native_stderr
from kdistill.evaluation.intervals import Estimate

AUGMENT = "--augment crop:4,flip"
RECIPE = "--batch-size 128 --optimizer nesterov --learning-rate 0.1 --schedule step:0.5,0.75 --l2 0.0001 --validation-fraction 0.1"
HARD = "hard"


def commands(options: argparse.Namespace, workspace: Path) -> Iterator[list[str]]:
    """Yield groups of commands in their order. The commands of a group are independent of each other."""
    data, (first, *others) = shlex.quote(options.data), options.seeds
    yield [
        f"train-teacher --dataset {data} --model {options.teacher} --epochs {options.teacher_epochs} {RECIPE} {AUGMENT}"
    ]
    yield [f"soften --temperature {options.temperatures[0]} {AUGMENT} --views {options.views}"]
    student = f"train-student --model {options.student} --epochs {options.student_epochs} {RECIPE}"
    hard = [f"{student} --name {HARD}-{seed} --seed {seed} --alpha 1 {AUGMENT}" for seed in options.seeds]

    def distilled(temperature: str, seed: str) -> str:
        return (
            f"{student} --name T{temperature}-{seed} --seed {seed} --alpha {options.alpha} --temperature {temperature}"
        )

    yield [*(distilled(temperature, first) for temperature in options.temperatures), *hard]
    if others:
        yield [distilled(chosen(options, workspace), seed) for seed in others]


def chosen(options: argparse.Namespace, workspace: Path) -> str:
    """Return the temperature whose student of the first seed makes the fewest errors on validation rows."""

    def errors(temperature: str) -> int:
        return results_of(workspace / f"students/T{temperature}-{options.seeds[0]}")["validation_errors"]

    return min(options.temperatures, key=errors)


def results_of(network: Path) -> dict[str, Any]:
    """Return the results in the manifest of a network, and the errors on its validation rows after the last epoch."""
    results = json.loads((network / "manifest.json").read_text(encoding="utf-8"))["results"]
    with (network / "history.csv").open(newline="", encoding="utf-8") as stream:
        *_, last = csv.DictReader(stream)
    wrong = round((1 - float(last["validation_accuracy"])) * results["held_out_rows"])
    return {**results, "validation_errors": wrong}


def report(options: argparse.Namespace, workspace: Path) -> str:
    """Return the tables of results as Markdown."""
    teacher = results_of(workspace / "teachers/teacher")
    best = f"T{chosen(options, workspace)}"
    found = {
        kind: [
            results_of(workspace / f"students/{kind}-{seed}")
            for seed in (options.seeds if kind in (HARD, best) else options.seeds[:1])
        ]
        for kind in (HARD, *(f"T{temperature}" for temperature in options.temperatures))
    }

    def errors(kind: str, split: str = "test") -> list[int]:
        return [each[f"{split}_errors"] for each in found[kind]]

    rows = [
        ("network", "validation errors", f"errors of {teacher['test_rows']:,} test rows", "minus hard labels"),
        (f"teacher, {options.teacher}", f"{teacher['validation_errors']:,}", f"{teacher['test_errors']:,}", ""),
    ]
    for kind in found:
        name = "hard labels" if kind == HARD else f"distilled, T = {kind[1:]}" + " (chosen)" * (kind == best)
        paired = "" if kind == HARD else difference(errors(kind), errors(HARD)[: len(found[kind])])
        rows.append((f"{options.student}, {name}", mean_sd(errors(kind, "validation")), mean_sd(errors(kind)), paired))
    how = (
        f"Errors: mean ± standard deviation (each seed). Differences: of the same seed, with 95% interval. T is chosen by "
        f"validation errors of the first seed. {teacher['training_rows']:,} training rows, {options.teacher_epochs} epochs for the teacher and "
        f"{options.student_epochs} for students, alpha {options.alpha}, {options.views} views; kdistill {__version__}."
    )
    return f"{markdown(rows)}\n\n{how}"


def difference(errors: Sequence[int], hard: Sequence[int]) -> str:
    """Return the mean difference in errors to the hard-label students of the same seeds, with its interval."""
    estimate = Estimate.of([own - other for own, other in zip(errors, hard, strict=True)])
    interval = "" if estimate.low is None else f" [{estimate.low:+,.1f}, {estimate.high:+,.1f}]"
    return f"{estimate.mean:+,.1f}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="directory with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--place", type=Path, default=Path(".cifar10"), help="directory to work in")
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: text.split(","), help="seeds of the students")
    parser.add_argument("--temperatures", default="1,4", type=lambda text: text.split(","), help="to choose from")
    parser.add_argument("--alpha", default="0.1", help="weight of the hard labels in distillation")
    parser.add_argument("--teacher", default="resnet-20")
    parser.add_argument("--student", default="resnet-8")
    parser.add_argument("--teacher-epochs", type=int, default=40)
    parser.add_argument("--student-epochs", type=int, default=30)
    parser.add_argument("--views", type=int, default=10, help="views per row: the unchanged row and augmented ones")
    options = parser.parse_args()
    silence_native_stderr()
    start = time.perf_counter()
    for group in commands(options, options.place / "workspace"):
        run_all(group, options.place / "workspace")
    text = report(options, options.place / "workspace")
    (options.place / "results.md").write_text(f"{text}\n", encoding="utf-8")
    print(f"{text}\n\nWrote {options.place}/results.md in {(time.perf_counter() - start) / 60:.0f} min")


if __name__ == "__main__":
    sys.exit(main())
