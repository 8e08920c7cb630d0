"""Run each pair of stages at the same time in one workspace, and see whether anything was lost.

    python tests/programs/pairs.py

Different artifacts are written side by side; of two runs on the same artifact, one may be refused, at once and by
name. Either way every artifact passes `verify` at the end.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from pathlib import Path

from chaos import STAGES, command, finish, fork, log, prepare

OTHER = ["--force"]


def one_pair(base: Path, place: Path, first: str, second: str) -> str:
    shutil.copytree(base, place)
    pids = [fork(place, first, *STAGES[first][1]), fork(place, second, *STAGES[second][0], *OTHER)]
    codes = [finish(pid) for pid in pids]
    said = log(place).read_text()
    refused = [line for line in said.splitlines() if line.startswith("error: ")]
    if first == second:
        if sorted(codes) not in ([0, 0], [0, 1]) or (1 in codes and "is being written by process" not in refused[0]):
            return f"exit statuses {codes}: {refused}"
    elif codes != [0, 0]:
        return f"exit statuses {codes}: {refused}"
    return "" if command(place, "verify") == 0 else log(place).read_text()[-500:]


def main() -> int:
    problems = 0
    with tempfile.TemporaryDirectory() as scratch:
        base, place = Path(scratch) / "base", Path(scratch) / "pair"
        base.mkdir()
        prepare(base)
        pairs = list(itertools.combinations_with_replacement(STAGES, 2))
        for first, second in pairs:
            problem = one_pair(base, place, first, second)
            print(f"{first} beside {second}: {problem or 'as it should'}", flush=True)
            problems += bool(problem)
            shutil.rmtree(place)
            log(place).unlink()
    print(f"{len(pairs)} pairs, {problems} with anything lost")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
