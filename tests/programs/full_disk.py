"""Let the disk fill up under every stage, at every point, and see whether anything was lost.

    python tests/programs/full_disk.py

Each stage runs in a small file system of its own, first one that can't be written to, then one with a little more room
each time, until it succeeds: whenever it fails it must say so in one line, and what stood before must stand and pass
`verify`. The system must allow this process to mount one; exit status 77 if not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos import STAGES, Result, command, log, prepare, result

STEP = 96 * 1024
NOT_ALLOWED = 77


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def judge(place: Path, stage: str, before: Result, code: int, where: str) -> str:
    """What is wrong after a failed run; nothing if it failed as it should."""
    said = log(place).read_text().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    log(place).unlink()
    if code != 1 or len(errors) != 1 or said[-1] != errors[0] or not any(why in errors[0] for why in WHY):
        return f"{stage}, {where}: exit status {code}, said {said[-3:]}"
    if result(place, stage) != before:
        return f"{stage}, {where}: what stood does not stand"
    if command(place, "verify") != 0:
        return f"{stage}, {where}: verify: {log(place).read_text()}"
    log(place).unlink()
    return ""


WHY = ("No space left on device", "Read-only file system")


def one_stage(base: Path, place: Path, stage: str, before: Result, after: Result) -> list[str]:
    shutil.copytree(base, place, dirs_exist_ok=True)
    changed = STAGES[stage][1]
    mount("-o", "remount,ro", str(place))
    problems = [judge(place, stage, before, command(place, stage, *changed), "read-only")]
    room, code, failures = 0, 1, 0
    while code != 0:
        mount("-o", "remount,rw,size=64m", str(place))
        used = shutil.disk_usage(place).used
        mount("-o", f"remount,size={used + room}", str(place))
        code = command(place, stage, *changed)
        mount("-o", "remount,size=64m", str(place))
        if code != 0:
            failures += 1
            problems.append(judge(place, stage, before, code, f"{room // 1024} kB of room"))
            room += STEP
    if result(place, stage) != after:
        problems.append(f"{stage}: what it made at last differs from an uninterrupted run's")
    log(place).unlink()
    print(f"{stage}: failed {failures} times, succeeded with {room // 1024} kB of room", flush=True)
    return [problem for problem in problems if problem]


def main() -> int:
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        base, place = Path(scratch) / "base", Path(scratch) / "small"
        base.mkdir()
        place.mkdir()
        try:
            mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
        except (OSError, subprocess.CalledProcessError):
            print("this process may not mount a file system")
            return NOT_ALLOWED
        subprocess.run(["umount", str(place)], check=True)
        for stage, (before, after, _) in prepare(base).items():
            mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
            try:
                problems += one_stage(base, place, stage, before, after)
            finally:
                subprocess.run(["umount", str(place)], check=True)
    print("\n".join([*problems, f"{len(problems)} with anything lost"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
