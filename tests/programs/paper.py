"""Reproduce the results of Hinton, Vinyals and Dean (2015) on MNIST with kdistill's commands.

    python tests/programs/paper.py --data mnist.npz --seeds 0,1,2 --place .paper

The program prints each command that it runs. If it is stopped, the next run resumes: finished commands are up to date. It
writes `results.md` and `temperatures.png`. Nothing is chosen by test labels, except in the rows marked as tuned.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from kdistill import __version__, load_dataset
from kdistill.cli import app
from kdistill.console.native_stderr import silence_native_stderr

LOCAL_MNIST = Path(__file__).resolve().parents[3] / "shared/data/mnist.npz"
MNIST = os.environ.get("KDISTILL_MNIST") or (str(LOCAL_MNIST) if LOCAL_MNIST.exists() else "mnist")
VALIDATION = "--validation-fraction 0.02"
TEACHER = "--model mlp-1200 --dropout 0,0.25 --batch-size 256 --schedule cosine"
AUGMENT = "shift:1,rotate:10,zoom:0.1,elastic:3"
STUDENT = f"--batch-size 32 --schedule cosine {VALIDATION}"
LARGE = f"--epochs 8 --batch-size 64 --schedule cosine {VALIDATION}"
SMALL = f"--epochs 30 --batch-size 64 --learning-rate 0.003 --schedule cosine {VALIDATION}"
TEACHERS = ("teacher", "teacher-1", "teacher-2", "teacher-3", "teacher-4")
MAX_PROCESSES = 8  # each process has TensorFlow and the dataset in memory


@dataclass(frozen=True)
class Plan:
    """How networks are trained. The defaults are for MNIST."""

    teacher: str = f"{TEACHER} {VALIDATION} --epochs 100"
    other_teachers: str = f"{TEACHER} {VALIDATION} --epochs 60"
    model: str = "mlp-800"
    student: str = f"--epochs 30 {STUDENT}"
    views: int = 40
    views_student: str = f"--epochs 40 {STUDENT}"
    fraction: str = "0.03"
    few: str = f"--epochs 100 --batch-size 20 --schedule cosine {VALIDATION}"
    few_dropout: str = "0.25,0.1"
    temperatures: str = "1,2.5,4,8,20"
    losses: str = "kd,mse,dkd,dist,jsd,reverse-kl"
    loss_seeds: str = "0,1,2,3,4"
    small: str = f"--model mlp-30 {SMALL}"
    large: str = f"--model mlp-300,mlp-800 {LARGE}"
    loss_large: str = f"--model mlp-800 {LARGE}"


SHORT = "--epochs 3 --batch-size 32 --validation-fraction 0.1 --xla off"
QUICK = Plan(  # for the built-in digits
    teacher=f"--model mlp-100 --dropout 0,0.25 {SHORT}",
    other_teachers=f"--model mlp-30 {SHORT}",
    model="mlp-30",
    student=SHORT,
    views=3,
    views_student=SHORT,
    fraction="0.1",
    few="--epochs 3 --batch-size 16 --validation-fraction 0.1 --xla off",
    temperatures="1,4",
    losses="kd,mse",
    loss_seeds="0,1",
    small=f"--model mlp-10 {SHORT}",
    large=f"--model mlp-30 {SHORT}",
    loss_large=f"--model mlp-30 {SHORT}",
)


def commands(plan: Plan, dataset: str, seeds: str) -> Iterable[list[str]]:
    """Yield groups of commands in their order. The commands of a group are independent of each other."""
    yield [
        f"train-teacher --name {name} --seed {seed} --dataset {shlex.quote(dataset)} --augment {AUGMENT} "
        f"{plan.other_teachers if seed else plan.teacher}"
        for seed, name in enumerate(TEACHERS)
    ]
    soft_targets = {
        "views": f"--augment {AUGMENT} --views {plan.views}",
        "ensemble": " ".join(f"--teacher {name}" for name in TEACHERS),
        "plain": f"--teacher {TEACHERS[0]}",
        "no-3": "--omit-class 3",
        "only-7-8": "--only-classes 7,8",
        "other": f"--teacher {TEACHERS[1]}",
    }
    yield [f"soften --temperature 20 --name {name} {options}" for name, options in soft_targets.items()]
    main, *sweeps = sweep_commands(plan, seeds)
    yield [main, *student_commands(plan, seeds), *sweeps]  # the longest first
    yield [f"correct-bias --student {kind}-{seed}" for kind in ("no-3", "only-7-8") for seed in seeds.split(",")]


def sweep_commands(plan: Plan, seeds: str) -> list[str]:
    """Return the commands that compare distilled students with students of hard labels."""
    at_20 = f"--soft-targets plain --temperature 20 --alpha 0 --seeds {seeds} --model {plan.model}"
    few = f"{at_20} --fraction {plan.fraction} {plan.few}"
    losses = f"--soft-targets plain --alpha 0.1 --seeds {plan.loss_seeds}"
    temperatures = f"--soft-targets plain --alpha 0 --seeds {seeds} --temperature {plan.temperatures}"
    return [
        f"sweep --name main {at_20} {plan.student} --controls --other-soft-targets other",
        f"sweep --name losses-small --loss {plan.losses} --temperature 4 {losses} {plan.small}",
        f"sweep --name losses-large --loss {plan.losses} --temperature 4 {losses} {plan.loss_large}",
        f"sweep --name temperatures-small {temperatures} {plan.small}",
        f"sweep --name temperatures-large {temperatures} {plan.large}",
        f"sweep --name standardized-small --standardize-logits --temperature 2 {losses} {plan.small}",
        f"sweep --name standardized-large --standardize-logits --temperature 2 {losses} {plan.loss_large}",
        f"sweep --name few-dropout {few} --dropout {plan.few_dropout}",
        f"sweep --name few {few}",
    ]


def student_commands(plan: Plan, seeds: str) -> Iterable[str]:
    """Yield the commands of the students that are not part of a sweep."""
    for seed in seeds.split(","):
        student = f"train-student --seed {seed} --model {plan.model}"
        for kind in ("ensemble", "no-3", "only-7-8"):
            yield f"{student} --name {kind}-{seed} --soft-targets {kind} --alpha 0 {plan.student}"
        yield f"{student} --name views-{seed} --soft-targets views --alpha 0 {plan.views_student}"
        few = f"--fraction {plan.fraction} {plan.few}"
        yield f"{student} --name few-views-{seed} --soft-targets views --alpha 0 {few}"
        yield f"{student} --name few-augmented-{seed} --soft-targets plain --alpha 1 --augment {AUGMENT} {few}"


def run_all(group: Sequence[str], workspace: Path) -> None:
    """Run commands in parallel, each on its part of the cores."""
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    processes = min(len(cores), len(group), MAX_PROCESSES)
    parts = context.SimpleQueue()
    for number in range(processes):
        parts.put(cores[number::processes])
    with ProcessPoolExecutor(processes, context, start_worker, (parts,)) as pool:
        list(pool.map(run_command, group, repeat(workspace)))


def start_worker(parts: Any) -> None:
    """Keep a worker to its part of the cores: networks trained side by side this way are finished sooner."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, parts.get())
    silence_native_stderr()
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()


def exit_with_parent(parent: int) -> None:
    """Exit if the main process was killed: otherwise this one would hold locks that block the next run."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def run_command(command: str, workspace: Path) -> None:
    print(f"$ kdistill {command}", flush=True)
    output = io.StringIO()
    name, *options = shlex.split(command)
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            app([name, "--debug", "--workspace", str(workspace), *options], standalone_mode=False)
    finally:
        print(f"{output.getvalue()}({name}: {time.perf_counter() - start:.0f} s)", flush=True)


class Results:
    """Errors on the test rows, and tables of them as Markdown."""

    def __init__(self, workspace: Path, dataset: str, seeds: str, plan: Plan) -> None:
        self.workspace, self.plan, self.seeds = workspace, plan, seeds.split(",")
        self.test = load_dataset(dataset).test

    @functools.cache  # noqa: B019 - there is one instance
    def logits(self, network: str) -> np.ndarray:
        """Return the logits of a network, e.g. `students/no-3-0`, on the test rows: (rows, classes)."""
        from kdistill.networks.saved_models import SavedNetwork

        return SavedNetwork.load(self.workspace / network / "saved_model").logits(self.test.read())

    def errors(self, logits: np.ndarray, classes: Sequence[int] | None = None) -> int:
        """Count the errors on all test rows, or on those of some classes."""
        wrong = logits.argmax(axis=1) != self.test.labels
        return int((wrong if classes is None else wrong & np.isin(self.test.labels, classes)).sum())

    def students(self, kind: str, classes: Sequence[int] | None = None, suffix: str = "") -> str:
        """Return the errors of the students of a kind over all seeds."""
        return mean_sd([self.errors(self.logits(f"students/{kind}-{seed}{suffix}"), classes) for seed in self.seeds])

    def tuned(self, kind: str, raised: Sequence[int]) -> str:
        """Return the errors of the students of a kind with one offset tuned on the test labels, as in the paper."""
        students = (f"students/{kind}-{seed}" for seed in self.seeds)
        return mean_sd([fewest_errors(self.logits(name), self.test.labels, raised) for name in students])

    def swept(self, sweep: str, kind: str) -> str:
        """Return the errors of the students of a kind in a sweep, over all seeds."""
        with (self.workspace / "sweeps" / sweep / "table.csv").open(newline="", encoding="utf-8") as stream:
            return mean_sd([float(row["test"]) for row in csv.DictReader(stream) if row["kind"] == kind])

    def summary(self, sweep: str) -> list[dict[str, Any]]:
        return json.loads((self.workspace / "sweeps" / sweep / "summary.json").read_text(encoding="utf-8"))

    def ensemble_errors(self) -> int:
        """Return the errors of the teachers' mean probabilities at T = 20, which `soften` stores."""
        logits = np.stack([self.logits(f"teachers/{name}") for name in TEACHERS]).astype(np.float64) / 20
        powers = np.exp(logits - logits.max(axis=2, keepdims=True))
        return self.errors((powers / powers.sum(axis=2, keepdims=True)).mean(axis=0))

    def networks(self) -> str:
        plan = self.plan
        classes = range(self.logits(f"teachers/{TEACHERS[0]}").shape[1])
        rows = [
            ("network", f"errors of {len(self.test):,} test rows: mean ± sd (each seed)", "paper"),
            ("teacher, augmented, dropout", f"{self.errors(self.logits(f'teachers/{TEACHERS[0]}')):,}", "67"),
            (f"mean of {len(TEACHERS)} such teachers", f"{self.ensemble_errors():,}", ""),
            (f"{plan.model}, hard labels", self.swept("main", "hard labels"), "146"),
            ("distilled from the teacher, T = 20, without views", self.swept("main", "distilled"), "74"),
            (f"distilled from the {len(TEACHERS)} teachers, T = 20, without views", self.students("ensemble"), ""),
            (f"distilled from the teacher, {plan.views} cached views", self.students("views"), ""),
        ]
        for kind, counted, raised, title, name, paper in (
            ("no-3", [3], [3], "without the digit 3", "3s", ("206", "133", "109", "14")),
            (
                "only-7-8",
                [7, 8],
                [c for c in classes if c not in (7, 8)],
                "7s and 8s only",
                "7s and 8s",
                ("4,730", "", "1,320", ""),
            ),
        ):
            part = f"... errors on the {np.isin(self.test.labels, counted).sum():,} {name}"
            rows += [
                (f"distilled, {title}", self.students(kind), paper[0]),
                (part, self.students(kind, counted), paper[1]),
                ("then biases corrected, no test labels", self.students(kind, suffix="-corrected"), paper[2]),
                (part, self.students(kind, counted, "-corrected"), paper[3]),
                ("instead one offset, tuned on the test labels", self.tuned(kind, raised), ""),
            ]
        few = f"{float(plan.fraction):.0%} of the rows"
        rows += [
            (f"{few}: hard labels", self.swept("few", "hard labels"), ""),
            (f"{few}: distilled, T = 20", self.swept("few", "distilled"), ""),
            (f"{few}: hard labels, dropout {plan.few_dropout}", self.swept("few-dropout", "hard labels"), ""),
            (f"{few}: distilled, dropout {plan.few_dropout}", self.swept("few-dropout", "distilled"), ""),
            (f"{few}: hard labels, augmented", self.students("few-augmented"), ""),
            (f"{few}: distilled, {plan.views} cached views", self.students("few-views"), ""),
        ]
        return markdown(rows)

    def controls(self) -> str:
        rows = [("student", "errors", "minus hard labels, 95% interval", "NLL", "ECE", "agreement with the teacher")]
        for entry in self.summary("main"):
            errors, sd = entry["test"]["mean"], entry["test"]["sd"]
            agreement = f"{entry['agreement']['mean']:.2%}" if entry["agreement"] else ""
            metrics = [f"{entry[name]['mean']:.3f}" if entry[name] else "" for name in ("nll", "ece")]
            cells = [
                f"{errors:,.1f}" + (f" ± {sd:.1f}" if sd is not None else ""),
                interval(entry),
                *metrics,
                agreement,
            ]
            rows.append((entry["kind"], *cells))
        return markdown(rows)

    def losses(self) -> str:
        table: dict[str, list[str]] = {}
        models = []
        for size in ("small", "large"):
            for sweep, suffix in (("losses", ""), ("standardized", ", logits standardized, T = 2")):
                for entry in self.summary(f"{sweep}-{size}"):
                    if entry["loss"] is not None or not suffix:
                        name = f"{entry['loss']}{suffix}" if entry["loss"] else "hard labels"
                        difference = f" ({interval(entry)})" if entry["difference"] else ""
                        cell = f"{entry['test']['mean']:,.1f}{difference}"
                        table.setdefault(name, []).append(cell)
            models.append(entry["model"])
        return markdown([("loss", *models), *((name, *cells) for name, cells in table.items())])

    def draw(self, path: Path) -> None:
        """Draw the errors over the temperature, with a line for each model."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        entries = [entry for size in ("small", "large") for entry in self.summary(f"temperatures-{size}")]
        for number, model in enumerate(dict.fromkeys(entry["model"] for entry in entries)):
            hard, *distilled = [entry for entry in entries if entry["model"] == model]
            errors = [entry["test"] for entry in distilled]
            temperatures = [entry["temperature"] for entry in distilled]
            means, sds = [each["mean"] for each in errors], [each["sd"] or 0 for each in errors]
            axes.errorbar(temperatures, means, sds, color=f"C{number}", marker="o", capsize=3, label=model)
            axes.axhline(hard["test"]["mean"], color=f"C{number}", linestyle="--", linewidth=1)
        axes.set(xscale="log", xlabel="T", ylabel="test errors", title=f"{len(self.seeds)} seeds; dashed: hard labels")
        axes.set_ylim(bottom=0)
        axes.minorticks_off()
        axes.set_xticks(temperatures, [f"{value:g}" for value in temperatures], minor=False)
        axes.legend()
        figure.savefig(path, dpi=150)

    def report(self) -> str:
        python = f"Python {platform.python_version()}"
        return "\n\n".join(
            [
                self.networks(),
                f"Seeds: teacher 0, the others 1 to {len(TEACHERS) - 1}, students {', '.join(self.seeds)}.",
                f"Controls, on test rows:\n\n{self.controls()}",
                f"Losses: test errors (minus hard labels of the same seed, 95% interval):\n\n{self.losses()}",
                f"kdistill {__version__}, {platform.machine()}, {os.cpu_count()} cores, {python}",
            ]
        )


def fewest_errors(logits: np.ndarray, labels: np.ndarray, raised: Sequence[int]) -> int:
    """Return the fewest errors that one offset gives, added to the logits of the raised classes."""
    high = np.array(raised)
    low = np.setdiff1d(np.arange(logits.shape[1]), high)
    best_high, best_low = high[logits[:, high].argmax(axis=1)], low[logits[:, low].argmax(axis=1)]
    rows = np.arange(len(labels))
    offsets = logits[rows, best_low].astype(np.float64) - logits[rows, best_high]  # where the prediction changes
    order = offsets.argsort()
    gained = np.cumsum((best_high == labels)[order].astype(int) - (best_low == labels)[order])
    last_of_equal = np.append(np.diff(offsets[order]) > 0, True)
    return int((best_low != labels).sum() - max(0, gained[last_of_equal].max()))


def mean_sd(values: list[int]) -> str:
    if len(values) == 1:
        return f"{values[0]:,}"
    return f"{statistics.fmean(values):,.1f} ± {statistics.stdev(values):.1f} ({', '.join(f'{v:,}' for v in values)})"


def interval(entry: dict[str, Any]) -> str:
    difference = entry["difference"]
    if difference is None:
        return ""
    bounds = f" [{difference['low']:+,.1f}, {difference['high']:+,.1f}]" if difference["sd"] is not None else ""
    return f"{difference['mean']:+,.1f}{bounds}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=MNIST, help=f"dataset (default: {MNIST})")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the students")
    parser.add_argument("--place", type=Path, default=Path(".paper"), help="directory to work in")
    parser.add_argument("--quick", action="store_true", help="run a miniature on the built-in digits")
    options = parser.parse_args()
    silence_native_stderr()
    start = time.perf_counter()
    plan, dataset = (QUICK, "digits") if options.quick else (Plan(), options.data)
    workspace = options.place / "workspace"
    for group in commands(plan, dataset, options.seeds):
        run_all(group, workspace)
    results = Results(workspace, dataset, options.seeds, plan)
    report = results.report()
    (options.place / "results.md").write_text(f"{report}\n", encoding="utf-8")
    results.draw(options.place / "temperatures.png")
    minutes = (time.perf_counter() - start) / 60
    print(f"{report}\n\nWrote {options.place}/results.md and temperatures.png in {minutes:.0f} min")


if __name__ == "__main__":
    sys.exit(main())
