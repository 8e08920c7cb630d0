"""Hinton, Vinyals and Dean (2015), section 3 and section 6's small transfer set, by kdistill's own commands.

    python tests/programs/paper.py --data mnist --seeds 0,1,2 --place .paper

Every step is a `kdistill` command, which is printed; one that is up to date does nothing, so that a run that was stopped
goes on where it was. Nothing is chosen by test labels: networks are trained and judged on training rows and on a
validation part of them, and how they were to be trained was chosen so; the commands count a network's test errors once it
is trained. The last step collects them, and writes `results.md` and the picture.
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from kdistill import __version__, data
from kdistill.cli import app
from kdistill.console import silence_native_stderr
from kdistill.evaluation import metrics, sweeps

VALIDATION = "--validation-fraction 0.02"
TEACHER = "--model mlp-1200 --dropout 0,0.25 --batch-size 256 --schedule cosine"
AUGMENT = "shift:1,rotate:10,zoom:0.1,elastic:3"
STUDENT = f"--batch-size 32 --schedule cosine {VALIDATION}"
LARGE = f"--epochs 8 --batch-size 64 --schedule cosine {VALIDATION}"
SMALL = f"--epochs 30 --batch-size 64 --learning-rate 0.003 --schedule cosine {VALIDATION}"
TEACHERS = tuple(f"teacher{ending}" for ending in ("", "-1", "-2", "-3", "-4"))  # the first alone, or the mean of all
MOST_AT_ONCE = 8  # of commands, each of which has TensorFlow and the data in its memory


@dataclass(frozen=True)
class Plan:
    """How much is done: the whole, or a miniature of it."""

    teacher: str = f"{TEACHER} {VALIDATION} --epochs 100"
    others: str = f"{TEACHER} {VALIDATION} --epochs 60"
    model: str = "mlp-800"
    student: str = f"--epochs 30 {STUDENT}"
    views: int = 40
    of_views: str = f"--epochs 40 {STUDENT}"
    fraction: str = "0.03"
    few: str = f"--epochs 100 --batch-size 20 --schedule cosine {VALIDATION}"
    few_dropout: str = "0.25,0.1"
    temperatures: str = "1,2.5,4,8,20"
    losses: str = "kd,mse,dkd,dist,jsd,reverse-kl"
    loss_seeds: str = "0,1,2,3,4"
    sizes: tuple[tuple[str, str], ...] = (  # students of a size, and how they are trained
        ("small", f"--model mlp-30 {SMALL}"),
        ("large", f"--model mlp-300,mlp-800 {LARGE}"),
    )
    loss_sizes: tuple[tuple[str, str], ...] = (
        ("small", f"--model mlp-30 {SMALL}"),
        ("large", f"--model mlp-800 {LARGE}"),
    )


SHORT = "--epochs 3 --batch-size 32 --validation-fraction 0.1 --xla off"
QUICK = Plan(
    teacher=f"--model mlp-100 --dropout 0,0.25 {SHORT}",
    others=f"--model mlp-30 {SHORT}",
    model="mlp-30",
    student=SHORT,
    views=3,
    of_views=SHORT,
    fraction="0.1",
    few="--epochs 3 --batch-size 16 --validation-fraction 0.1 --xla off",
    temperatures="1,4,20",
    losses="kd,mse,dkd",
    loss_seeds="0,1",
    sizes=(("small", f"--model mlp-10 {SHORT}"), ("large", f"--model mlp-30 {SHORT}")),
    loss_sizes=(("small", f"--model mlp-10 {SHORT}"),),
)


class Paper:
    """The commands, in order, in one workspace, several at once, each on its share of the cores."""

    def __init__(self, place: Path, dataset: str, seeds: str, plan: Plan) -> None:
        self.place, self.dataset, self.seeds, self.plan = place, dataset, seeds, plan
        self.workspace = place / "workspace"

    def kdistill(self, commands: Sequence[str]) -> list[str]:
        """Run commands that don't need each other; what they print, which is shown too, is returned."""
        context = multiprocessing.get_context("spawn")
        shares = context.SimpleQueue()
        cores = (
            sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        )
        at_once = min(len(cores), len(commands), MOST_AT_ONCE)
        for number in range(at_once):
            shares.put(cores[number::at_once])
        with ProcessPoolExecutor(at_once, context, _begin, (shares,)) as pool:
            return list(pool.map(_kdistill, commands, repeat(self.workspace)))

    def each_seed(self) -> list[str]:
        return self.seeds.split(",")

    def train(self) -> None:
        """All but the last step."""
        plan = self.plan
        teachers = [
            f"train-teacher --name {name} --seed {seed} --dataset {shlex.quote(self.dataset)} --augment {AUGMENT} "
            f"{plan.others if seed else plan.teacher}"
            for seed, name in enumerate(TEACHERS)
        ]
        self.kdistill(teachers)
        every = " ".join(f"--teacher {name}" for name in TEACHERS)
        soft_targets = {
            "views": f"--augment {AUGMENT} --views {plan.views}",
            "ensemble": every,
            "plain": "",
            "no-3": "--omit-class 3",
            "only-7-8": "--only-classes 7,8",
            "other": f"--teacher {TEACHERS[1]}",
        }
        self.kdistill([f"soften --temperature 20 --name {name} {how}".strip() for name, how in soft_targets.items()])
        longest, *others = self.swept_students()
        self.kdistill([longest, *self.students_alone(), *others])
        self.kdistill(
            [f"correct-bias --student {kind}-{seed}" for kind in ("no-3", "only-7-8") for seed in self.each_seed()]
        )

    def swept_students(self) -> list[str]:
        """Those that are compared with their like from hard labels, the longest sweep first."""
        plan = self.plan
        grid = f"--soft-targets plain --temperature 20 --alpha 0 --seeds {self.seeds} --model {plan.model}"
        few = f"{grid} --fraction {plan.fraction} {plan.few}"
        ways = f"--soft-targets plain --alpha 0.1 --seeds {plan.loss_seeds}"
        temperatures = f"--soft-targets plain --alpha 0 --seeds {self.seeds} --temperature {plan.temperatures}"
        return [
            f"sweep --name main {grid} {plan.student} --controls --other-soft-targets other",
            *(
                f"sweep --name losses-{size} --loss {plan.losses} --temperature 4 {ways} {how}"
                for size, how in plan.loss_sizes
            ),
            *(f"sweep --name temperatures-{size} {temperatures} {how}" for size, how in plan.sizes),
            *(
                f"sweep --name standardized-{size} --standardize-logits --temperature 2 {ways} {how}"
                for size, how in plan.loss_sizes
            ),
            f"sweep --name few-dropout {few} --dropout {plan.few_dropout}",
            f"sweep --name few {few}",
        ]

    def students_alone(self) -> list[str]:
        plan = self.plan
        found = []
        for seed in self.each_seed():
            of_seed = f"--seed {seed} --model {plan.model}"
            found += [
                f"train-student --soft-targets {kind} --name {kind}-{seed} --alpha 0 {of_seed} {how}"
                for kind, how in (
                    ("ensemble", plan.student),
                    ("views", plan.of_views),
                    ("no-3", plan.student),
                    ("only-7-8", plan.student),
                )
            ]
            few = f"{of_seed} --fraction {plan.fraction} {plan.few}"
            found += [
                f"train-student --soft-targets views --name few-views-{seed} --alpha 0 {few}",
                f"train-student --soft-targets plain --name few-augmented-{seed} --alpha 1 --augment {AUGMENT} {few}",
            ]
        return found

    def report(self) -> str:
        """The last step: test errors, counted, as Markdown."""
        dataset = data.load(self.dataset)
        alone = self.manifest("teachers", TEACHERS[0])["test_errors"]
        of_test = f"{len(dataset.test):,} test rows"
        table = [
            ("network", f"errors of {of_test}: mean ± sd (each seed)", "the paper"),
            ("teacher, augmented, dropout", f"{alone:,}", "67"),
            (f"mean of {len(TEACHERS)} such teachers", f"{self.ensemble(dataset):,}", ""),
            (f"{self.plan.model}, hard labels", self.swept("main", "hard labels"), "146"),
            ("distilled from the teacher, T = 20, without views", self.swept("main", "distilled"), "74"),
            (f"distilled from the {len(TEACHERS)} teachers, T = 20, without views", self.students("ensemble"), ""),
            (f"distilled from the teacher, {self.plan.views} cached views", self.students("views"), ""),
        ]
        for kind, classes, what, paper in (
            ("no-3", (3,), "without a single 3", ("206 (133 of the 3s)", "109 (14 of the 3s)")),
            ("only-7-8", (7, 8), "7s and 8s only", ("4,730", "1,320")),
        ):
            named = f"{'3s' if kind == 'no-3' else '7s and 8s'} wrong"
            table += [
                (f"distilled, {what}", self.students(kind, dataset, classes, named), paper[0]),
                (
                    "then biases corrected, no test label seen",
                    self.students(kind, dataset, classes, named, "-corrected"),
                    paper[1],
                ),
                ("(instead: one offset tuned on the test labels)", self.test_tuned(kind, dataset), ""),
            ]
        share = f"{self.plan.fraction} of the rows"
        table += [
            (f"{share}: hard labels", self.swept("few", "hard labels"), ""),
            (f"{share}: distilled, T = 20", self.swept("few", "distilled"), ""),
            (f"{share}: hard labels, dropout {self.plan.few_dropout}", self.swept("few-dropout", "hard labels"), ""),
            (f"{share}: distilled, dropout {self.plan.few_dropout}", self.swept("few-dropout", "distilled"), ""),
            (f"{share}: hard labels, augmented", self.students("few-augmented"), ""),
            (f"{share}: distilled, {self.plan.views} cached views", self.students("few-views"), ""),
        ]
        return "\n\n".join(
            [
                _markdown(table),
                f"Seeds: teacher 0, the others 1 to {len(TEACHERS) - 1}, students {self.seeds}.",
                "Controls, on test rows:",
                self.controls(self.summary("main")),
                "Ways to match logits, test errors less those from hard labels of the same seed, 95% intervals:",
                self.losses(),
                f"kdistill {__version__}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            ]
        )

    def manifest(self, kind: str, name: str) -> dict[str, Any]:
        results: dict[str, Any] = json.loads((self.workspace / kind / name / "manifest.json").read_text())["results"]
        return results

    def summary(self, sweep: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.workspace / "sweeps" / sweep / "summary.json").read_text())
        return found

    def swept(self, sweep: str, kind: str) -> str:
        """Errors of a sweep's students of one kind, of which it has one setting."""
        rows = sweeps.read(self.workspace / "sweeps" / sweep / "table.csv", "make paper")
        return _each([row.test_errors for row in rows if row.kind == kind])

    def students(
        self,
        kind: str,
        dataset: data.Dataset | None = None,
        classes: tuple[int, ...] = (),
        named: str = "",
        ending: str = "",
    ) -> str:
        """Errors of one kind's students, and, of some classes, how many of their rows are wrong."""
        from kdistill.networks.saved_models import SavedNetwork

        names = [f"{kind}-{seed}{ending}" for seed in self.each_seed()]
        errors = [self.manifest("students", name)["test_errors"] for name in names]
        if dataset is None:
            return _each(errors)
        rows = dataset.test.chosen(np.isin(dataset.test.labels, classes))
        wrong = []
        for name in names:
            logits = SavedNetwork.load(self.workspace / "students" / name / "saved_model").logits(rows.read())
            wrong.append(metrics.errors(logits, rows.labels))
        return f"{_each(errors)}; {_each(wrong)} of {len(rows):,} {named}"

    def ensemble(self, dataset: data.Dataset) -> int:
        """Errors of what all teachers say together, as `soften` takes their mean."""
        from kdistill.networks.saved_models import SavedNetwork
        from kdistill.teachers import Ensemble

        each = [SavedNetwork.load(self.workspace / "teachers" / name / "saved_model") for name in TEACHERS]
        said = Ensemble(each, [False] * len(each), "arithmetic", 20.0).logits(dataset.test.read())
        return metrics.errors(said, dataset.test.labels)

    def test_tuned(self, kind: str, dataset: data.Dataset) -> str:
        """Errors of one kind's students with an offset chosen on the test labels, as in section 3 of the paper."""
        from kdistill.networks.saved_models import SavedNetwork

        inputs, labels = dataset.test.read(), dataset.test.labels
        errors = []
        for name in (f"{kind}-{seed}" for seed in self.each_seed()):
            classes = self.manifest("students", f"{name}-corrected")["classes"]
            logits = SavedNetwork.load(self.workspace / "students" / name / "saved_model").logits(inputs)
            errors.append(_fewest_errors(logits, labels, np.array([one["shift"] for one in classes])))
        return _each(errors)

    def controls(self, summary: list[dict[str, Any]]) -> str:
        table = [("student", "errors", "less hard labels, 95% interval", "NLL", "ECE", "agreement with the teacher")]
        for one in summary:
            shares = [f"{one[name]['mean']:.3f}" if one[name] else "" for name in ("nll", "ece")]
            agree = f"{one['agreement']['mean']:.2%}" if one["agreement"] else ""
            table.append((one["kind"], _estimate(one["test_errors"]), _interval(one["difference"]), *shares, agree))
        return _markdown(table)

    def losses(self) -> str:
        table: dict[str, list[str]] = {}
        models = []
        for size, _ in self.plan.loss_sizes:
            for sweep, ending in (("losses", ""), ("standardized", ", logits standardized, T = 2")):
                for one in self.summary(f"{sweep}-{size}"):
                    name = "hard labels" if one["loss"] is None else f"{one['loss']}{ending}"
                    if name == "hard labels" and ending:
                        continue
                    difference = _interval(one["difference"])
                    errors = f"{one['test_errors']['mean']:,.1f}"
                    table.setdefault(name, []).append(f"{errors} ({difference})" if difference else errors)
            models.append(one["model"])
        return _markdown([("loss", *models), *((name, *cells) for name, cells in table.items())])

    def picture(self, path: Path) -> None:
        """Errors over T of students of all sizes."""
        from kdistill.evaluation import figures

        lines = []
        for size, _ in self.plan.sizes:
            every = self.summary(f"temperatures-{size}")
            for model in dict.fromkeys(one["model"] for one in every):
                hard, *of = [one for one in every if one["model"] == model]
                errors = [one["test_errors"] for one in of]
                places, means = [one["temperature"] for one in of], [one["mean"] for one in errors]
                deviations = [one["sd"] or 0.0 for one in errors]
                lines.append(figures.Line(model, places, means, deviations, hard["test_errors"]["mean"]))
        title = f"test errors, {len(self.each_seed())} seeds; dashed: hard labels"
        figures.errors_over("T", lines, title).savefig(path)


def _fewest_errors(logits: np.ndarray, labels: np.ndarray, shifts: np.ndarray) -> int:
    """Return the fewest errors with one offset for the logits of all classes above the widest gap between the shifts."""
    order = shifts.argsort(kind="stable")
    lower, upper = map(np.sort, np.split(order, [np.diff(shifts[order]).argmax() + 1]))
    rows = np.arange(len(labels))
    raised, other = upper[logits[:, upper].argmax(axis=1)], lower[logits[:, lower].argmax(axis=1)]
    margins = (
        logits[rows, other].astype(np.float64) - logits[rows, raised]
    )  # the offset from which `raised` is predicted
    _, places = np.unique(margins, return_inverse=True)
    fewer = np.bincount(places, weights=1.0 * (raised == labels) - (other == labels)).cumsum()
    return int((other != labels).sum() - max(0.0, fewer.max()))


def _each(values: list[int]) -> str:
    if len(values) == 1:
        return f"{values[0]:,}"
    listed = ", ".join(f"{value:,}" for value in values)
    return f"{statistics.fmean(values):,.1f} ± {statistics.stdev(values):.1f} ({listed})"


def _estimate(found: dict[str, Any]) -> str:
    return f"{found['mean']:,.1f}" + (f" ± {found['sd']:.1f}" if found["sd"] is not None else "")


def _interval(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:+,.1f}" + (
        f" [{found['low']:+,.1f}, {found['high']:+,.1f}]" if found["sd"] is not None else ""
    )


def _markdown(table: list[tuple[str, ...]]) -> str:
    head, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([head, "|---" * len(table[0]) + "|", *rows])


def _begin(shares: Any) -> None:
    """Keep to a share of the cores: networks so trained side by side are done sooner than one after another on all."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())
    silence_native_stderr()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Stop where the one that gave the commands was killed: what goes on would stand in the way of its next run."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _kdistill(command: str, workspace: Path) -> str:
    print(f"$ kdistill {command}", flush=True)
    said, warned = io.StringIO(), io.StringIO()
    name, *options = shlex.split(command)
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(warned):  # no bars: two would share a line
            app([name, "--debug", "--workspace", str(workspace), *options], standalone_mode=False)
    finally:
        print(f"{said.getvalue()}{warned.getvalue()}({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    return said.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--place", type=Path, default=Path(".paper"))
    parser.add_argument("--quick", action="store_true", help="the same in miniature, on the built-in digits")
    options = parser.parse_args()
    silence_native_stderr()
    start = time.perf_counter()
    paper = Paper(
        options.place, "digits" if options.quick else options.data, options.seeds, QUICK if options.quick else Plan()
    )
    paper.train()
    said = paper.report()
    (options.place / "results.md").write_text(f"{said}\n", encoding="utf-8")
    paper.picture(options.place / "temperatures.png")
    print(f"{said}\n\nwrote {options.place}/results.md and temperatures.png after {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
