"""Run each pair of stages at the same time in one workspace and check that nothing is lost.

    python tests/programs/pairs.py

Different artifacts are written at the same time. Of two runs on the same artifact, one may be refused with the process
number of the other. In the end, every artifact must pass `verify`.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from pathlib import Path

from chaos import STAGES, command, finish, fork, log, prepare


def run_pair(place: Path, first: str, second: str) -> str:
    """Return what went wrong, or an empty text."""
    pids = [fork(place, first, *STAGES[first][1]), fork(place, second, *STAGES[second][0], "--force")]
    statuses = [finish(pid) for pid in pids]
    output = log(place).read_text()
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    refused = first == second and sorted(statuses) == [0, 1] and len(errors) == 1
    if statuses != [0, 0] and not (refused and any(str(pid) in errors[0] for pid in pids)):
        return f"exit statuses {statuses}: {errors}"
    return "" if command(place, "verify") == 0 else log(place).read_text()[-500:]


def main() -> int:
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        base, place = Path(scratch) / "base", Path(scratch) / "pair"
        base.mkdir()
        prepare(base)
        pairs = list(itertools.combinations_with_replacement(STAGES, 2))
        for first, second in pairs:
            shutil.copytree(base, place)
            problem = run_pair(place, first, second)
            print(f"{first} and {second}: {problem or 'nothing lost'}", flush=True)
            failures += bool(problem)
            shutil.rmtree(place)
            log(place).unlink()
    print(f"{len(pairs)} pairs, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
