"""Kill every stage at random instants, run it again, and see whether anything was lost.

    python tests/programs/chaos.py --rounds 100

Each round copies a workspace in which all stages stand, runs one stage with changed settings in a process of its
own, kills it (SIGKILL) at an instant drawn over the whole run, and checks: what stands is whole, old or new; the same
command then works; and what it makes has the bytes that an uninterrupted run makes. Processes are forked from one
that has imported TensorFlow and computed nothing, which saves some five seconds each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kdistill import cli
from kdistill.networks import exports, loading  # noqa: F401 - imported once, for all that are forked
from kdistill.soft_targets import SoftTargets
from kdistill.stages import (  # noqa: F401
    correct_bias,
    evaluate,
    export,
    plot,
    soften,
    sweep,
    train_student,
    train_teacher,
    verify,
)

QUICK = ["--model", "mlp-30", "--epochs", "4"]
STAGES = {  # the command that makes what stands, and the changed one that is killed
    "train-teacher": ([*QUICK], [*QUICK, "--seed", "1"]),
    "soften": (["--batch-size", "20"], ["--batch-size", "20", "--temperature", "5"]),
    "train-student": ([*QUICK], [*QUICK, "--alpha", "0.5", "--schedule", "cosine"]),
    "plot": ([], ["--format", "svg"]),
}
MORE_STAGES = {
    "sweep": ([*QUICK, "--temperature", "4", "--seeds", "0"], [*QUICK, "--temperature", "4,2", "--seeds", "0,1"]),
    "correct-bias": ([], ["--frequencies", "uniform"]),
    "export": ([], ["--quantize", "float16"]),
    "run": ([*QUICK], [*QUICK, "--seed", "1", "--temperature", "5"]),
}
MADE = {  # by each stage, in the workspace
    "train-teacher": ["teachers/teacher"],
    "soften": ["soft-targets/soft-targets.h5"],
    "train-student": ["students/student"],
    "plot": ["plots"],
    "sweep": ["sweeps/sweep"],
    "correct-bias": ["students/student-corrected"],
    "export": ["exports/student-tflite", "exports/student-tflite-float16"],
    "run": ["teachers/teacher", "soft-targets/soft-targets.h5", "students/student", "plots"],
}
TIMED = ("checkpoint.npz", "history.csv")  # outputs that hold seconds
Result = dict[str, object]
Stages = dict[str, tuple[list[str], list[str]]]


def fork(place: Path, *arguments: str) -> int:
    """Start a command in a child; returns its process number. Its output is added to `place`.log."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.chdir(place)
        out = os.open(log(place), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["kdistill", *arguments]
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        sys.stdout.flush()
    finally:
        os._exit(code)


def log(place: Path) -> Path:
    return place.with_name(f"{place.name}.log")


def finish(pid: int) -> int:
    """Wait for a child; returns its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def command(place: Path, *arguments: str) -> int:
    return finish(fork(place, *arguments))


def content(place: Path) -> object:
    """What an artifact holds, but for times: the digests of its files, its settings and its history."""
    if place.suffix == ".h5":
        soft = SoftTargets(place)
        return {"content": soft.digest, "settings": dict(soft.manifest.settings)}
    if not (place / "manifest.json").exists():
        return None
    manifest = json.loads((place / "manifest.json").read_text())
    found = {
        "outputs": {name: digest for name, digest in manifest["outputs"].items() if name not in TIMED},
        "settings": manifest["settings"],
        "students": manifest["results"].get("students"),
    }
    if (place / "checkpoint.npz").exists():
        with np.load(place / "checkpoint.npz") as arrays:
            found["variables"] = {name: arrays[name].tobytes() for name in arrays.files if name != "head"}
        lines = (place / "history.csv").read_text().splitlines()
        found["history"] = [line.rpartition(",")[0] for line in lines]
    return found


def result(place: Path, stage: str) -> Result:
    """What each artifact of a stage holds."""
    return {name: content(place / "workspace" / name) for name in MADE[stage]}


def old_or_new(found: Result, before: Result, after: Result) -> bool:
    """Whether each artifact is the one from before the killed run, or the one that the whole run makes."""
    return all(found[name] in (before[name], after[name]) for name in found)


def leftovers(place: Path) -> list[str]:
    return [str(path) for path in (place / "workspace").rglob(".*") if not path.name.endswith(".lock")]


def prepare(base: Path, stages: Stages = STAGES) -> dict[str, tuple[Result, Result, float]]:
    """Make the workspace that stands, and for each stage the results before and after, and how long it takes."""
    for stage, (standing, _) in stages.items():
        assert command(base, stage, *standing) == 0, log(base).read_text()
    expected = {}
    for stage, (_, changed) in stages.items():
        place = base.parent / f"expected-{stage}"
        shutil.copytree(base, place)
        start = time.perf_counter()
        assert command(place, stage, *changed) == 0, log(place).read_text()
        expected[stage] = result(base, stage), result(place, stage), time.perf_counter() - start
    return expected


def one_round(
    base: Path, place: Path, stage: str, changed: list[str], before: Result, after: Result, instant: float
) -> str:
    """Kill one run at an instant and run it again; returns what went wrong, or nothing."""
    shutil.copytree(base, place)
    pid = fork(place, stage, *changed)
    time.sleep(instant)
    os.kill(pid, signal.SIGKILL)
    finish(pid)
    checks = {
        "what stands after the kill is neither the old nor the new": lambda: old_or_new(
            result(place, stage), before, after
        ),
        "lost: verify fails after the kill": lambda: command(place, "verify") == 0,
        "the same command fails after the kill": lambda: command(place, stage, *changed) == 0,
        "verify fails after the second run": lambda: command(place, "verify") == 0,
        "differs from the uninterrupted run": lambda: result(place, stage) == after,
        "something is left behind": lambda: not leftovers(place),
    }
    return next((problem for problem, holds in checks.items() if not holds()), "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    failures = resumed = 0
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        every = STAGES | MORE_STAGES
        if exports.missing_packages("tflite"):
            del every["export"]
        expected = prepare(base, every)
        stages = list(every)
        for number in range(options.rounds):
            stage = stages[number % len(stages)]
            before, after, seconds = expected[stage]
            place = Path(scratch) / "round"
            instant = draw.uniform(0, seconds)
            problem = one_round(base, place, stage, every[stage][1], before, after, instant)
            print(
                f"round {number + 1}: {stage} killed after {instant:.2f} of {seconds:.2f} s: {problem or 'nothing lost'}",
                flush=True,
            )
            if problem:
                failures += 1
                print(log(place).read_text()[-2000:])
            resumed += "Resuming from epoch" in log(place).read_text()
            shutil.rmtree(place)
            log(place).unlink()
    print(f"seed {seed}: {resumed} killed runs were gone on from, the others begun again or complete")
    print(f"{options.rounds} rounds, {failures} with anything lost or different")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
