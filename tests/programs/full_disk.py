"""Fill up the disk at every point of every stage and check that nothing is lost.

    python tests/programs/full_disk.py

Each stage runs in a small file system, which is first read-only and then has a little more room each time, until the stage
succeeds. A stage that fails must print one line and leave the artifacts as they were. The exit status is 77 if this process
has no right to mount a file system.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos import STAGES, Contents, command, contents_of, log, prepare

STEP = 192 * 1024
NOT_ALLOWED = 77
REASONS = ("No space left on device", "Read-only file system")


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def problem_after(place: Path, stage: str, before: Contents, status: int) -> str:
    """Return what is wrong after a failed run, or an empty text."""
    output = log(place).read_text().splitlines()
    log(place).unlink()
    errors = [line for line in output if line.startswith("error: ")]
    if status != 1 or errors != output[-1:] or not any(reason in errors[0] for reason in REASONS):
        return f"exit status {status}, printed {output[-3:]}"
    if contents_of(place, stage) != before:
        return "an artifact was changed"
    status = command(place, "verify")
    output = log(place).read_text()
    log(place).unlink()
    return "" if status == 0 else f"verify: {output}"


def try_stage(base: Path, place: Path, stage: str, before: Contents, after: Contents) -> list[str]:
    """Run a stage with more and more room, and return the problems."""
    shutil.copytree(base, place, dirs_exist_ok=True)
    changed = STAGES[stage][1]
    mount("-o", "remount,ro", place)
    problem = problem_after(place, stage, before, command(place, stage, *changed))
    problems = [f"{stage}, read-only: {problem}"] if problem else []
    room = 0
    while True:
        mount("-o", "remount,rw,size=64m", place)
        mount("-o", f"remount,size={shutil.disk_usage(place).used + room}", place)
        status = command(place, stage, *changed)
        mount("-o", "remount,size=64m", place)
        if status == 0:
            break
        if problem := problem_after(place, stage, before, status):
            problems.append(f"{stage}, {room // 1024} kB of room: {problem}")
        room += STEP
    if contents_of(place, stage) != after:
        problems.append(f"{stage}: the result differs from that of an uninterrupted run")
    log(place).unlink()
    print(f"{stage}: failed {room // STEP} times, succeeded with {room // 1024} kB of room", flush=True)
    return problems


def main() -> int:
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        base, place = Path(scratch) / "base", Path(scratch) / "small"
        base.mkdir()
        place.mkdir()
        disk = ("-t", "tmpfs", "-o", "size=64m", "tmpfs", place)
        try:
            mount(*disk)
        except (OSError, subprocess.CalledProcessError):
            print("this process has no right to mount a file system")
            return NOT_ALLOWED
        subprocess.run(["umount", place], check=True)
        for stage, (before, after, _) in prepare(base).items():
            mount(*disk)
            try:
                problems += try_stage(base, place, stage, before, after)
            finally:
                subprocess.run(["umount", place], check=True)
    print("\n".join([*problems, f"{len(problems)} problems"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
