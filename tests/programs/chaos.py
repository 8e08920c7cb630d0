"""Kill stages at random times and check that nothing is lost.

    python tests/programs/chaos.py --rounds 100

Each round copies a workspace, runs a stage with changed settings, and kills it (SIGKILL). Then the artifacts must be the old
or the new ones, and the same command must finish with the bytes of an uninterrupted run. Commands run in forks of this
process, which has imported TensorFlow and computed nothing: that saves seconds each time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np

from kdistill import SoftTargets, backend, cli

PRELOADED = (mpl, backend)
QUICK = ["--model", "mlp-30", "--epochs", "4", "--xla", "off"]
STAGES = {  # the options of the first run, and the changed ones of the run that is killed
    "train-teacher": (QUICK, [*QUICK, "--seed", "1"]),
    "soften": (["--batch-size", "20"], ["--batch-size", "20", "--temperature", "5"]),
    "train-student": (QUICK, [*QUICK, "--alpha", "0.5", "--schedule", "cosine"]),
    "plot": ([], ["--format", "svg"]),
}
MORE_STAGES = {
    "sweep": ([*QUICK, "--temperature", "4", "--seeds", "0"], [*QUICK, "--temperature", "4,2", "--seeds", "0,1"]),
    "correct-bias": ([], ["--frequencies", "uniform"]),
    "export": ([], ["--quantize", "float16"]),
    "run": (QUICK, [*QUICK, "--seed", "1", "--temperature", "5"]),
}
ARTIFACTS = {
    "train-teacher": ["teachers/teacher"],
    "soften": ["soft-targets/soft-targets.h5"],
    "train-student": ["students/student"],
    "plot": ["plots"],
    "sweep": ["sweeps/sweep"],
    "correct-bias": ["students/student-corrected"],
    "export": ["exports/student-tflite", "exports/student-tflite-float16"],
    "run": ["teachers/teacher", "soft-targets/soft-targets.h5", "students/student", "plots"],
}
WITH_TIMES = ("checkpoint.npz", "history.csv")  # their digests differ from run to run
Contents = dict[str, object]
Stages = dict[str, tuple[list[str], list[str]]]


def fork(place: Path, *arguments: str) -> int:
    """Start a command in a child process, and return its number. Its output is added to the log of the place."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.chdir(place)
        output = os.open(log(place), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["kdistill", *arguments]
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
        sys.stdout.flush()
    finally:
        os._exit(status)


def log(place: Path) -> Path:
    return place.with_name(f"{place.name}.log")


def finish(pid: int) -> int:
    """Wait for a child process. Return its exit status, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def command(place: Path, *arguments: str) -> int:
    return finish(fork(place, *arguments))


def content(path: Path) -> object:
    """Return what an artifact contains, except times."""
    if path.suffix == ".h5":
        soft_targets = SoftTargets(path)
        return {"digest": soft_targets.digest, "settings": dict(soft_targets.manifest.settings)}
    if not (path / "manifest.json").exists():
        return None
    manifest = json.loads((path / "manifest.json").read_text())
    contents = {
        "outputs": {name: digest for name, digest in manifest["outputs"].items() if name not in WITH_TIMES},
        "settings": manifest["settings"],
        "students": manifest["results"].get("students"),
    }
    if (path / "checkpoint.npz").exists():
        with np.load(path / "checkpoint.npz") as arrays:
            contents["variables"] = {name: arrays[name].tobytes() for name in arrays.files if name != "head"}
        lines = (path / "history.csv").read_text().splitlines()
        contents["history"] = [line.rpartition(",")[0] for line in lines]
    return contents


def contents_of(place: Path, stage: str) -> Contents:
    return {name: content(place / "workspace" / name) for name in ARTIFACTS[stage]}


def prepare(base: Path, stages: Stages = STAGES) -> dict[str, tuple[Contents, Contents, float]]:
    """Make a workspace with all artifacts.

    Returns:
        For each stage, the contents before and after its changed run, and the seconds that this run takes.
    """
    for stage, (options, _) in stages.items():
        assert command(base, stage, *options) == 0, log(base).read_text()
    expected = {}
    for stage, (_, changed) in stages.items():
        place = base.parent / f"expected-{stage}"
        shutil.copytree(base, place)
        start = time.perf_counter()
        assert command(place, stage, *changed) == 0, log(place).read_text()
        expected[stage] = contents_of(base, stage), contents_of(place, stage), time.perf_counter() - start
    return expected


def kill_and_resume(
    place: Path, stage: str, options: list[str], before: Contents, after: Contents, seconds: float
) -> str:
    """Kill a run after some seconds and run it again. Return the first problem, or an empty text."""
    pid = fork(place, stage, *options)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    finish(pid)
    killed = contents_of(place, stage)
    if any(killed[name] not in (before[name], after[name]) for name in killed):
        return "after the kill, an artifact is neither the old nor the new one"
    if command(place, "verify") != 0:
        return "verify fails after the kill"
    if command(place, stage, *options) != 0:
        return "the same command fails after the kill"
    if command(place, "verify") != 0:
        return "verify fails after the second run"
    if contents_of(place, stage) != after:
        return "the result differs from that of an uninterrupted run"
    leftovers = [path for path in (place / "workspace").rglob(".*") if not path.name.endswith(".lock")]
    return f"leftovers: {leftovers}" if leftovers else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    stages = STAGES | MORE_STAGES
    if importlib.util.find_spec("ai_edge_litert") is None:
        del stages["export"]
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        base, place = Path(scratch) / "base", Path(scratch) / "round"
        base.mkdir()
        expected = prepare(base, stages)
        for number in range(options.rounds):
            stage = list(stages)[number % len(stages)]
            before, after, duration = expected[stage]
            seconds = draw.uniform(0, duration)
            shutil.copytree(base, place)
            problem = kill_and_resume(place, stage, stages[stage][1], before, after, seconds)
            title = f"round {number + 1}: {stage} killed after {seconds:.2f} of {duration:.2f} s"
            print(f"{title}: {problem or 'nothing lost'}", flush=True)
            if problem:
                failures += 1
                print(log(place).read_text()[-2000:])
            shutil.rmtree(place)
            log(place).unlink()
    print(f"seed {options.seed}: {options.rounds} rounds, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
