"""Compare distillation with hard labels on a real dataset of each task.

    python tests/programs/tasks.py --data DIRECTORY --seeds 0,1,2 --place .tasks

DIRECTORY has `letter-recognition.csv`, `rt-polarity.pos`, `rt-polarity.neg`, `yeast.arff` and `housing.csv`; datasets that are missing
are left out. The program prints each command that it runs, resumes an interrupted run, and writes `results.md`. Alpha and
temperature are chosen by validation rows. A student has far fewer weights than its teacher, and sees the rows that the teacher saw,
or a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paper import markdown, run_all

from kdistill import __version__, tasks
from kdistill.console.native_stderr import silence_native_stderr

TRAIN = "--schedule cosine --validation-fraction 0.2"


@dataclass(frozen=True)
class Problem:
    """A dataset, its teacher and its students, whose epochs are for all rows and for a tenth of them."""

    name: str
    file: str
    teacher: str
    student: str
    epochs: tuple[int, int]
    temperatures: str = "1,2,4,8"


LETTERS = "mlp-24 --learning-rate 0.01"  # at 0.001, the validation loss still falls in the last epochs

PROBLEMS = (
    Problem("letters", "letter-recognition.csv", "mlp-512 --dropout 0,0.2 --epochs 100", LETTERS, (100, 300)),
    Problem("reviews", "rt-polarity.pos", "text-64 --dropout 0.5,0.5 --epochs 8", "text-4", (8, 80)),
    Problem("yeast", "yeast.arff", "mlp-512 --dropout 0.2,0.5 --epochs 30", "mlp-16", (60, 300)),
    Problem("housing", "housing.csv", "mlp-256 --dropout 0,0.1 --epochs 100", "mlp-12", (100, 300), ""),
)


def convert(problem: Problem, source: Path, place: Path) -> None:
    """Write a dataset as `.npz`, standardized by its training rows, with the usual split or a fifth of the rows for testing."""
    path = place / f"{problem.name}.npz"
    if path.exists():
        return
    x, y, train = globals()[f"_{problem.name}"](source / problem.file)
    if x.dtype.kind == "f":
        mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
        x = ((x - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    np.savez(path, x_train=x[train], y_train=y[train], x_test=x[~train], y_test=y[~train])


def _letters(path: Path) -> tuple[Any, Any, Any]:
    import pandas as pd

    frame = pd.read_csv(path, header=None if "T," in path.read_text()[:4] else 0)
    text = next(name for name in frame.columns if frame[name].dtype.kind not in "iuf")
    return frame.drop(columns=text).to_numpy(float), frame[text].to_numpy(str), np.arange(len(frame)) < 16_000


def _reviews(path: Path) -> tuple[Any, Any, Any]:
    texts = [
        [line.strip() for line in path.with_suffix(suffix).read_text("utf-8").splitlines() if line.strip()]
        for suffix in (".neg", ".pos")
    ]
    labels = np.repeat([0, 1], [len(each) for each in texts])
    return np.array([*texts[0], *texts[1]]), labels, np.random.default_rng(0).random(len(labels)) >= 0.2


def _yeast(path: Path) -> tuple[Any, Any, Any]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    start = next(number for number, line in enumerate(lines) if line.lower() == "@data") + 1
    values = np.array([line.split(",") for line in lines[start:] if line], float)
    return values[:, :-14], values[:, -14:].astype(np.int8), np.arange(len(values)) < 1500


def _housing(path: Path) -> tuple[Any, Any, Any]:
    import pandas as pd

    frame = pd.get_dummies(pd.read_csv(path), columns=["ocean_proximity"], dtype=float)
    train = np.random.default_rng(0).random(len(frame)) >= 0.2
    x = frame.drop(columns="median_house_value")
    return x.fillna(x[train].mean()).to_numpy(float), frame["median_house_value"].to_numpy(np.float32), train


def commands(problem: Problem, place: Path, seeds: str) -> list[list[str]]:
    temperatures = f" --temperature {problem.temperatures}" if problem.temperatures else ""
    sweep = f"sweep --model {problem.student} --alpha 0,0.5 --seeds {seeds} {TRAIN}{temperatures}"
    return [
        [f"train-teacher --dataset {place / problem.name}.npz --model {problem.teacher} {TRAIN}"],
        ["soften"],
        [
            f"{sweep} --name all --epochs {problem.epochs[0]}",
            f"{sweep} --name tenth --epochs {problem.epochs[1]} --fraction 0.1 --batch-size 16",
        ],
    ]


def rows_of(problem: Problem, workspace: Path) -> list[tuple[str, ...]]:
    """Return rows of the table: for all training rows and for a tenth, hard labels against the chosen distilled setting."""
    teacher = json.loads((workspace / "teachers/teacher/manifest.json").read_text())["results"]
    headline = tasks.get(teacher["task"]).headline
    number = headline.mean_format
    rows = []
    for sweep, share in (("all", "all"), ("tenth", "10%")):
        found = json.loads((workspace / f"sweeps/{sweep}/summary.json").read_text())
        hard = next(each for each in found if each["kind"] == "hard labels")
        chosen = next(each for each in found if each["chosen"] and each["kind"] == "distilled")
        setting = ", ".join(
            [f"alpha {chosen['alpha']:g}", *([f"T = {chosen['temperature']:g}"] if chosen["temperature"] else [])]
        )
        test, difference = chosen["test"], chosen["difference"]
        interval = (
            f" [{number(difference['low'])}, {number(difference['high'])}]" if difference["low"] is not None else ""
        )
        rows.append(
            (
                f"{problem.name} ({teacher['task']})",
                share,
                headline.label,
                number(teacher[f"test_{headline.measure}"]),
                f"{number(hard['test']['mean'])} ± {number(hard['test']['sd'])}",
                f"{number(test['mean'])} ± {number(test['sd'])} ({setting})",
                f"{number(difference['mean'])}{interval}",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with the datasets")
    parser.add_argument("--place", type=Path, default=Path(".tasks"), help="directory to work in")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the students")
    options = parser.parse_args()
    silence_native_stderr()
    start = time.perf_counter()
    options.place.mkdir(parents=True, exist_ok=True)
    header = (
        "dataset",
        "rows",
        "measure",
        "teacher",
        "student, hard labels",
        "student, distilled",
        "difference (95% interval)",
    )
    table = [header]
    for problem in PROBLEMS:
        if not (options.data / problem.file).exists():
            print(f"left out {problem.name}: {options.data / problem.file} is missing")
            continue
        convert(problem, options.data, options.place)
        workspace = options.place / problem.name
        for group in commands(problem, options.place, options.seeds):
            run_all(group, workspace)
        table += rows_of(problem, workspace)
        text = f"{markdown(table)}\n\nMeans ± standard deviation of seeds {options.seeds}; kdistill {__version__}."
        (options.place / "results.md").write_text(f"{text}\n", encoding="utf-8")
    print(f"{text}\n\nWrote {options.place}/results.md in {(time.perf_counter() - start) / 60:.0f} min")


if __name__ == "__main__":
    sys.exit(main())
